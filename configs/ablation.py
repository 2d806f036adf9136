"""The settings that the study does not state and that break a DDPM.

python launch.py --config=configs/ablation.py        hours on two CPU cores
    --config.order=t200_clip_ema_posterior,t200_free_ema_posterior      a part, in the same workdir

Two trainings of the U-Net of the course that the study was made in, one with 1000 timesteps and one
with 200, each sampled in eight ways, all scored with the right input range and with three wrong
ones.
"""

import itertools

from ml_collections import ConfigDict

from configs import ddpm
from configs.base import check
from configs.paper import study

SPACES = ("bloodnet", "inception")
# Right; both wrong; the real images wrong; each sample scaled by itself.
RANGES = ("", ":raw-range", ":raw-reals", ":min-max")
COLUMNS = ("method.timesteps", "sampler.clip", "sample.weights", "sampler.variance")


def get_config(variant: str | None = None) -> ConfigDict:
    check(variant, ())
    runs = {}
    for timesteps in (1000, 200):  # 200 is the default of the course's network
        settings = itertools.product((True, False), ("ema", "raw"), ("posterior", "beta"))
        model = ""
        for clip, weights, variance in settings:
            name = f"t{timesteps}_{'clip' if clip else 'free'}_{weights}_{variance}"
            config = runs[name] = ddpm.get_config()
            config.method.update({"timesteps": timesteps, "net": "course_unet"})
            config.method.update({"widths": (10, 20, 40), "blocks": 3, "patch": 1})
            config.sampler.update({"steps": timesteps, "clip": clip, "variance": variance})
            # Few, since all 1000 steps take seconds an image: enough to tell failure from success.
            config.sample.update({"weights": weights, "model": model, "count": 250})
            config.score.count = 5000
            config.score.features = tuple(s + r for s in SPACES for r in RANGES)
            model = model or name  # the first run trains; the rest sample its model
    config = study("ablation", "Which settings make a DDPM fail", COLUMNS, runs)
    config.seeds = (0,)
    return config
