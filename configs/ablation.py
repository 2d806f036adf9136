"""What turns a working DDPM into "a lump of blobs": the settings that the study does not state.

python launch.py --config=configs/ablation.py        hours on two CPU cores

Two trainings of the U-Net of the course that the study was made in, one with 1000 timesteps and one
with 200, each sampled in eight ways, all scored rightly and in two input ranges that are wrong.
"""

import itertools

from ml_collections import ConfigDict

from configs import ddpm
from configs.base import check
from configs.paper import study

SPACES = ("bloodnet", "inception")
RANGES = ("", ":raw-range", ":raw-reals")  # right; both wrong; the real images wrong
COLUMNS = ("method.timesteps", "sample.clip", "sample.weights", "sample.variance")


def get_config(variant: str | None = None) -> ConfigDict:
    check(variant, ())
    runs = {}
    for timesteps in (1000, 200):  # 200 is what the course's network has unless told otherwise
        ways = itertools.product((True, False), ("ema", "raw"), ("posterior", "beta"))
        model = ""
        for clip, weights, variance in ways:
            name = f"t{timesteps}_{'clip' if clip else 'free'}_{weights}_{variance}"
            config = runs[name] = ddpm.get_config()
            config.method.update({"timesteps": timesteps, "net": "course"})
            config.method.update({"widths": (10, 20, 40), "blocks": 3, "patch": 1})
            # Few, since all 1000 steps take seconds an image: enough to tell failure from success.
            config.sample.update({"steps": timesteps, "clip": clip, "model": model, "count": 250})
            config.sample.update({"weights": weights, "variance": variance})
            config.score.count = 5000
            config.score.features = tuple(s + r for s in SPACES for r in RANGES)
            model = model or name  # the first is trained, the others draw from it
    config = study("ablation", "Which settings make a DDPM fail", COLUMNS, runs)
    config.seeds = (0,)
    return config
