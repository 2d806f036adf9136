"""DDPM.

python launch.py --config=configs/ddpm.py           the study's 20 epochs, ancestral sampling
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
        # A file in bloodjax/nets. "course_unet" with widths (10, 20, 40), blocks 3 and patch 1 is
        # the U-Net of the course in which the study was made.
        "net": "unet",
        # 0.3 GFLOP an image at 14×14 and 7×7: 20 epochs took 48 minutes on two busy CPU cores.
        "widths": (64, 128),
        "blocks": 1,
        "patch": 2,  # folded into channels: 14×14 runs nearer to a CPU's peak than 28×28
        "conditional": False,  # the study's; True: draws by class, see configs/edm.py
        "label_drop": 0.1,  # of a conditional one, see configs/edm.py
    }
    config.train.ema_decay = 0.998  # a memory of 500 steps; a tenth of the steps before step 4,490
    config.sampler = {
        "name": "ddim",  # or heun, dpm_solver_pp_2m, both with eta 0
        "steps": 1000,  # all timesteps, with eta 1: the ancestral sampler of Ho et al.
        "eta": 1.0,  # 0 with fewer steps: DDIM
        "clip": True,  # of the estimated x0: early errors do not grow
        "variance": "posterior",  # or "beta", the second variance of Ho et al., section 3.2
        # Of a conditional model, see configs/edm.py.
        "guidance": 1.0,
        "guidance_low": 0.0,
        "guidance_high": 1000.0,
    }
    if variant == "quick":
        config.name = "ddpm-quick"
        config.data.source = "auto"
        config.method.widths = (32, 64)  # a quarter of the FLOPs
        config.train.epochs = 3
        config.train.batch_size = 64  # twice the steps for the same FLOPs
        config.optimizer.learning_rate = 2e-3  # 800 steps have no time for smaller ones
        config.train.ema_decay = 0.99
        config.sampler.update({"steps": 50, "eta": 0.0})  # DDIM
        config.sample.count = 500
        config.score.update({"features": ("bloodnet",), "count": 500})  # nothing to download
    return config
