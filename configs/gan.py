"""DCGAN.

python launch.py --config=configs/gan.py           the study's 20 epochs
python launch.py --config=configs/gan.py:quick     minutes on a laptop
"""

from ml_collections import ConfigDict

from configs.base import base, check


def get_config(variant: str | None = None) -> ConfigDict:
    check(variant, ("quick",))
    config = base("gan")
    config.method = {
        "name": "gan",
        "latent": 100,  # Radford et al.
        "width": 64,  # half of Radford et al.; a step takes about 0.4 s on two CPU cores
        "discriminator_width": 64,  # the same
    }
    config.optimizer.learning_rate = 2e-4  # the study's
    # With the study's beta1 = 0.9 the discriminator wins early and the generator stops learning.
    # Radford et al. use 0.5 for that reason: --config.optimizer.beta1=0.5 (docs/results.md).
    if variant == "quick":
        config.name = "gan-quick"
        config.data.source = "auto"
        config.method.width = config.method.discriminator_width = 32  # a quarter of the FLOPs
        config.train.epochs = 4
        config.optimizer.beta1 = 0.5  # see above
        config.sample.count = 1000
        config.score.update({"features": ("bloodnet",), "count": 1000})  # nothing to download
    return config
