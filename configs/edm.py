"""EDM by class, the study's future work.

python launch.py --config=configs/edm.py           the study's 20 epochs
python launch.py --config=configs/edm.py:quick     minutes on a laptop
"""

from ml_collections import ConfigDict

from configs.base import base, check


def get_config(variant: str | None = None) -> ConfigDict:
    check(variant, ("quick",))
    config = base("edm")
    config.method = {
        "name": "edm",
        "sigma_data": 0.5,  # Karras et al.
        "p_mean": -1.2,  # Karras et al.
        "p_std": 1.2,  # Karras et al.
        # The network of configs/ddpm.py.
        "net": "unet",
        "widths": (64, 128),
        "blocks": 1,
        "patch": 2,
        "dropout": 0.0,  # Karras et al.: 0.13 to 0.25 for trainings of days
        "conditional": True,  # learns the classes of the data; False: draws from all together
        "label_drop": 0.1,  # Ho and Salimans: the share that learns without labels, for guidance
    }
    config.optimizer.update(
        {
            "learning_rate": 2e-3,
            "beta2": 0.99,
            "warmup_steps": 150,  # of 2,680
            "decay": "cosine",
            "clip_norm": 1.0,
        }
    )
    config.train.augment = True  # a smear has no up: eight times the data
    config.train.ema_decay = 0.9985  # a memory of 670 steps; a tenth of the steps before step 5,990
    config.sampler = {
        # Lu et al.; or heun, whose 18 steps of Karras et al. take 35 network calls; or ddim.
        "name": "dpm_solver_pp_2m",
        "steps": 12,  # network calls
        "eta": 0.0,  # of ddim alone: 1 is ancestral sampling
        "clip": False,  # of the estimated image; Karras et al. do not
        # 6 grey levels; Karras et al.: 0.002. Few steps are better spent above: docs/results.md.
        "sigma_min": 0.05,
        "sigma_max": 80.0,  # Karras et al.
        "rho": 7.0,  # Karras et al.
        # 1 is none. More draws the class better and the rest worse: docs/results.md.
        "guidance": 1.4,
        # The noise levels σ of guidance: all. Kynkäänniemi et al. leave out the highest and lowest.
        "guidance_low": 0.0,
        "guidance_high": 1000.0,
    }
    if variant == "quick":
        config.name = "edm-quick"
        config.data.source = "auto"
        config.method.widths = (32, 64)  # a quarter of the FLOPs
        config.train.epochs = 3
        config.train.batch_size = 64  # twice the steps for the same FLOPs
        config.train.ema_decay = 0.99
        config.sample.count = 500
        config.score.update({"features": ("bloodnet",), "count": 500})  # nothing to download
    return config
