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
        "width": 32,  # 20 epochs in 5 minutes on two CPU cores
        # The decoder's standard deviation: 1 is the textbook's half squared error. Smaller ones
        # reconstruct more sharply, but from latents that the prior misses, and whole classes are
        # then never drawn: README, results.
        "sigma": 1.0,
    }
    if variant == "quick":
        config.name = "vae-quick"
        config.data.source = "auto"
        config.train.epochs = 4
        config.sample.count = 1000
        config.score.update({"features": ("bloodnet",), "count": 1000})  # nothing to download
    return config
