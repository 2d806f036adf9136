"""VAE.

python launch.py --config=configs/vae.py           the study's 20 epochs
python launch.py --config=configs/vae.py:quick     minutes on a laptop
"""

from ml_collections import ConfigDict

from configs.base import base, check


def get_config(variant: str | None = None) -> ConfigDict:
    check(variant, ("quick",))
    config = base("vae")
    config.method = {
        "name": "vae",
        "latent": 128,  # more than enough: the KL term switches off the rest
        "width": 32,  # 20 epochs in 5 minutes on two CPU cores
        # The decoder's standard deviation: 1 gives the textbook's half squared error. A smaller one
        # reconstructs more sharply, but from latents that the prior misses: whole classes are then
        # never drawn (docs/results.md).
        "sigma": 1.0,
    }
    if variant == "quick":
        config.name = "vae-quick"
        config.data.source = "auto"
        config.train.epochs = 4
        config.sample.count = 1000
        config.score.update({"features": ("bloodnet",), "count": 1000})  # nothing to download
    return config
