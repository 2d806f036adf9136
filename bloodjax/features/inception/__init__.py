"""The features of FID: InceptionV3 with the weights that Heusel et al. (2017) took."""

from collections.abc import Callable

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bloodjax.features import MISTAKES, Extractor, mistaken
from bloodjax.features.inception import weights as files
from bloodjax.features.inception.network import TAPS, Params, forward
from bloodjax.features.inception.protocols import PROTOCOLS, raw_range
from bloodjax.images import as_uint8


def extractor(
    protocol: str = "pytorch-fid", weights: str = "", dims: int = 2048, batch_size: int = 0
) -> Extractor:
    """InceptionV3 up to one of its taps, spread over the devices of this process.

    Args:
        protocol: how images are resized and scaled: one of `PROTOCOLS` or of `MISTAKES`.
        weights: a weight file; empty: found as `weights.places` says, or downloaded.
        dims: 64, 192, 768 or 2048 features.
        batch_size: images per device and dispatch, without influence on the features; 0: 32 on a
            CPU, 256 on an accelerator.

    The space is called "inception", and its Fréchet distance FID, only with the published weights,
    all 2048 features and inputs in the range that those expect; else its name says what differs.

    Raises:
        ValueError: an unknown protocol or tap, or a file that does not hold the weights.
        Unavailable: the weights are neither here nor to be downloaded.
    """
    known = dict.fromkeys((*PROTOCOLS, *MISTAKES))
    if protocol not in known:
        raise ValueError(f"protocol={protocol!r}: expected one of {', '.join(known)}")
    if dims not in TAPS:
        raise ValueError(f"dims={dims}: expected one of {', '.join(map(str, TAPS))}")
    if batch_size < 0:
        raise ValueError(f"batch_size={batch_size}: expected at least 1, or 0 for the default")
    sha256, params = files.load(weights)
    differs = {sha256[:8]: sha256 != files.PUBLISHED, str(dims): dims != 2048}
    proper = "pytorch-fid" if protocol in MISTAKES else protocol
    right = Extractor(
        name="-".join(["inception", *(what for what, holds in differs.items() if holds)]),
        dims=dims,
        sha256=sha256,
        protocol=proper,
        features=compiled(params, PROTOCOLS[proper], dims, batch_size),
        classify=None,
        classes=(),
    )
    if protocol not in MISTAKES:
        return right
    return mistaken(right, protocol, compiled(params, raw_range, dims, batch_size))


def compiled(
    params: dict[str, np.ndarray], protocol: Callable[[Array], Array], dims: int, batch_size: int
) -> Callable[[np.ndarray], np.ndarray]:
    """The function images [N, H, W, 1 or 3] -> float32 [N, dims], see `Extractor`."""
    devices = jax.local_device_count()
    mesh = jax.make_mesh(
        (devices,),
        ("data",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.local_devices(),
    )
    spread = NamedSharding(mesh, P("data"))
    params = jax.device_put(params, NamedSharding(mesh, P()))
    largest = batch_size or (32 if jax.default_backend() == "cpu" else 256)
    prepare, forward_all = programs(protocol, dims, mesh)

    def features(images: np.ndarray) -> np.ndarray:
        images = as_uint8(images)
        out = np.empty((len(images), dims), np.float32)
        # One size for every batch: one compilation. A few images do not pay for a full batch.
        batch = devices * min(largest, 1 << (-(-len(images) // devices) - 1).bit_length())
        running: list[tuple[int, Array]] = []
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            filler = np.zeros((batch - len(part), *part.shape[1:]), np.uint8)
            x = prepare(jax.device_put(np.concatenate([part, filler]), spread))
            running.append((start, forward_all(params, x)))
            if len(running) == 2:  # the next batch is under way while this one is fetched
                store(out, *running.pop(0))
        for start, y in running:
            store(out, start, y)
        return out

    return features


def programs(
    protocol: Callable[[Array], Array], dims: int, mesh: Mesh
) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """What is compiled for the devices of `mesh`, all on its axis "data".

    Returns:
        A protocol, uint8 [N, H, W, 3] -> float32 [N, 299, 299, 3]: a program for each size of
            images, compiled in no time; and
        the network up to a tap, parameters and those images -> float32 [N, dims]: one for all.
    """

    def one_tap(params: Params, x: Array) -> Array:
        return forward(params, x)[str(dims)]

    specs = (P(), P("data"))
    return jax.jit(protocol), jax.jit(
        jax.shard_map(one_tap, mesh=mesh, in_specs=specs, out_specs=P("data"))
    )


def store(out: np.ndarray, start: int, y: Array) -> None:
    """Fetch a batch from the devices into its rows of `out`, without what filled it up."""
    rows = out[start : start + len(y)]
    rows[:] = np.asarray(y)[: len(rows)]
