"""Networks in flax linen, NHWC. A further denoising network is a further file in this folder.

`dtype` is the dtype of activations, and so of the factors of products. Inputs, outputs, parameters
and BatchNorm's statistics are always float32, and so are the operations that would lose accuracy:
sums over pixels (mean, variance, the gradient of a bias), softmax, sinusoids of the time.
"""

import importlib
import pkgutil
from typing import Any, cast

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from bloodjax import options


def make(name: str, **hyper_parameters: Any) -> nn.Module:
    """Return the denoising network of the file called `name`.

    Its `apply` maps variables, x float [B, H, W, C] and t float [B] to float [B, H, W, C]. With
    classes it also takes a label int [B], of which `classes` stands for an unknown class.

    Args:
        name: a file in this folder whose function `make` checks the hyper-parameters and returns
            the network, e.g. "unet".
        hyper_parameters: shape, widths, blocks, patch, dtype, and classes and dropout where they
            are not 0: see `unet.make`.

    Raises:
        ValueError: the file or its `make` is missing, or the network does not allow a value.
    """
    files = [file.name for file in pkgutil.iter_modules(__path__)]
    modules = {file: importlib.import_module(f"{__name__}.{file}") for file in files}
    builders = {file: module.make for file, module in modules.items() if hasattr(module, "make")}
    if name not in builders:
        raise ValueError(f"method.net={name!r}: expected {' or '.join(builders)}")
    options.check(builders[name], "method", hyper_parameters)
    return builders[name](**hyper_parameters)


def make_denoiser(method: Any) -> nn.Module:
    """Return the network `method.net`, with those hyper-parameters of the method that are not 0."""
    names = ("shape", "widths", "blocks", "patch", "dtype", "classes", "dropout")
    values = {name: getattr(method, name, 0) for name in names}
    return make(method.net, **{name: value for name, value in values.items() if value != 0})


def init(network: nn.Module, key: Array, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Return the first parameters of a denoising network for images of `shape`, (H, W, C)."""
    variables = network.init(key, jnp.zeros((1, *shape)), jnp.zeros((1,)))
    return cast(dict[str, Any], variables["params"])


def apply(
    network: nn.Module, variables: dict[str, Any], *inputs: Any, rngs: dict[str, Any] | None = None
) -> Array:
    """Return the output of a network without changing its variables."""
    return cast(Array, network.apply(variables, *inputs, rngs=rngs))
