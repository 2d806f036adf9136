"""Models and data so small that a test trains them in seconds."""

import numpy as np

from bloodjax import methods
from bloodjax.data import Dataset

SHAPE = (8, 8, 3)
SMALL = {
    "vae": {"latent": 4, "width": 4, "sigma": 0.2},
    "gan": {"latent": 4, "width": 4, "discriminator_width": 4},
    "ddpm": {
        "timesteps": 20,
        "beta_first": 1e-4,
        "beta_last": 0.02,
        "widths": (8, 16),
        "blocks": 1,
        "patch": 2,
    },
}


def method(name="vae"):
    return methods.make(name, shape=SHAPE, **SMALL[name])


def cells(n=40):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, *SHAPE), dtype=np.uint8)
    return Dataset(images, rng.integers(0, 2, n).astype(np.int32), ("a", "b"), "test", "0" * 64)
