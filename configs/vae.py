"""VAE.

python launch.py --config=configs/vae.py           the paper's 20 epochs
python launch.py --config=configs/vae.py:quick     minutes on a laptop
"""

from ml_collections import ConfigDict

from configs.base import base, check


def get_config(variant: str | None = None) -> ConfigDict:
    check(variant, ("quick",))
    config = base("vae")
    config.method = {
        "name": "vae",
        "latent": 128,  # more than are used: the KL switches the others off
        "width": 32,  # 20 epochs in 5 to 8 minutes on two CPU cores
        "sigma": 0.2,  # the decoder's; smaller: sharper images, but of latents the prior misses
    }
    if variant == "quick":
        config.name = "vae-quick"
        config.data.source = "auto"
        config.train.epochs = 4
        config.sample.count = 1000
        config.score.count = 1000
    return config
