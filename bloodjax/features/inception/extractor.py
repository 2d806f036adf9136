"""InceptionV3 as a feature space, spread over the devices of this process."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bloodjax.features import MISTAKES, RAW_RANGE, Extractor
from bloodjax.features.inception.network import TAPS, Params, forward
from bloodjax.features.inception.protocols import PROTOCOLS
from bloodjax.features.inception.weights import load as load_weights
from bloodjax.images import as_uint8
from bloodjax.runtime.compilation import ENGINES, choose_engine, uncached


def make_extractor(
    protocol: str = "pytorch-fid", weights: str = "", dims: int = 2048, batch_size: int = 0
) -> Extractor:
    """Return InceptionV3 up to one of its taps as an extractor.

    The space is called "inception", and its Fréchet distance FID, only with the published weights,
    all 2048 features and inputs in the range that the network expects; else its name contains the
    difference.

    Args:
        protocol: the resizing and scaling of images: one of `PROTOCOLS`.
        weights: a weight file; empty: the first of `weights.places`, or downloaded.
        dims: 64, 192, 768 or 2048 features.
        batch_size: images per device and dispatch, without influence on the features; 0: 32 on a
            CPU, 256 on an accelerator.

    Raises:
        ValueError: an unknown protocol or tap, or a file without the weights.
        UnavailableError: the weights are not on this machine and cannot be downloaded.
    """
    if protocol not in PROTOCOLS:
        choices = ", ".join(dict.fromkeys((*PROTOCOLS, *MISTAKES)))
        raise ValueError(f"protocol={protocol!r}: expected one of {choices}")
    if dims not in TAPS:
        raise ValueError(f"dims={dims}: expected one of {', '.join(map(str, TAPS))}")
    if batch_size < 0:
        raise ValueError(f"batch_size={batch_size}: expected at least 1, or 0 for the default")
    network = load_weights(weights)
    differences = {network.sha256[:8]: not network.published, str(dims): dims != 2048}
    differences[RAW_RANGE] = protocol == RAW_RANGE
    return Extractor(
        name="-".join(["inception", *(part for part, differs in differences.items() if differs)]),
        dims=dims,
        sha256=network.sha256,
        weights=network.title,
        protocol=protocol,
        features=make_features(network.params, PROTOCOLS[protocol], dims, batch_size),
    )


def make_features(
    params: dict[str, np.ndarray], protocol: Callable[[Array], Array], dims: int, batch_size: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function images [N, H, W, 1 or 3] -> float32 [N, dims], see `Extractor`."""
    devices = jax.local_device_count()
    mesh = jax.make_mesh(
        (devices,),
        ("data",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.local_devices(),
    )
    spread = NamedSharding(mesh, P("data"))
    on_device = jax.device_put(params, NamedSharding(mesh, P()))
    largest = batch_size or (32 if jax.default_backend() == "cpu" else 256)
    engine = choose_engine()
    prepare, forward_all = make_programs(protocol, dims, mesh, engine)

    @uncached(engine)
    def features(images: np.ndarray) -> np.ndarray:
        images = as_uint8(images)
        outputs: list[Any] = [np.empty((0, dims), np.float32)]
        # One size for every batch: one compilation. A few images do not pay for a full batch.
        batch = devices * min(largest, 1 << (-(-len(images) // devices) - 1).bit_length())
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            filler = np.zeros((batch - len(part), *part.shape[1:]), np.uint8)
            x = prepare(jax.device_put(np.concatenate([part, filler]), spread))
            y = forward_all(on_device, x)  # runs while the batch before is fetched
            outputs[-1] = np.asarray(outputs[-1])
            outputs.append(y)
        return np.concatenate(outputs)[: len(images)]

    return features


def make_programs(
    protocol: Callable[[Array], Array], dims: int, mesh: Mesh, engine: str
) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """Return the two programs for the devices of `mesh`, all on its axis "data".

    `engine`, a key of `compilation.ENGINES`, compiles the network.

    Returns:
        The protocol, uint8 [N, H, W, 3] -> float32 [N, 299, 299, 3]: a program for each size of
            images, compiled in no time; and
        the network up to a tap, parameters and prepared images -> float32 [N, dims]: one for all
            sizes.
    """

    def one_tap(params: Params, x: Array) -> Array:
        return forward(params, x)[str(dims)]

    specs = (P(), P("data"))
    return jax.jit(protocol), jax.jit(
        jax.shard_map(one_tap, mesh=mesh, in_specs=specs, out_specs=P("data")),
        compiler_options=ENGINES[engine],
    )
