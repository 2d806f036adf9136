"""DDPM.

python launch.py --config=configs/ddpm.py           the paper's 20 epochs, ancestral sampling
python launch.py --config=configs/ddpm.py:quick     minutes on a laptop
"""

from ml_collections import ConfigDict

from configs.base import base, check


def get_config(variant: str | None = None) -> ConfigDict:
    check(variant, ("quick",))
    config = base("ddpm")
    config.method = {
        "name": "ddpm",
        "timesteps": 1000,  # Ho et al.
        "beta_first": 1e-4,  # Ho et al.
        "beta_last": 0.02,  # Ho et al.
        "widths": (64, 128),
        "blocks": 1,
        "patch": 2,
    }
    config.train.ema_decay = 0.998  # a memory of 500 steps of 2,680; the loss has flattened by then
    config.sample.update(
        {
            "steps": 1000,  # as many as timesteps with eta 1: the ancestral sampler of Ho et al.
            "eta": 1.0,
            "clip": True,
            "variance": "posterior",
        }
    )
    if variant == "quick":
        config.name = "ddpm-quick"
        config.data.source = "auto"
        config.train.epochs = 1
        config.sample.update({"count": 500, "steps": 25, "eta": 0.0})
        config.score.count = 500
    return config
