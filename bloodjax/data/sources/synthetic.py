"""Stained blood cells drawn by arithmetic: BloodMNIST's classes without a file or a network.

Pixels see only operations that IEEE 754 rounds exactly, and every image has random numbers of
its own: image i is the same bits on every machine, in any chunks.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bloodjax.data.dataset import SPLITS, Dataset, join

CHUNK = 32  # images drawn together, so that they stay in the processor's cache
NEIGHBOURS, LOBES = 7, 4  # red cells around; lobes of a nucleus at most
NUMBERS = 67  # random numbers of an image, apart from its noise
PAPER, RED_CELL = (252, 226, 200), (198, 160, 157)
BLUE_STAIN, BLUE_SHARE = (0.87, 0.97, 1.16), 0.03  # a few real smears are lilac, not yellowish

# fmt: off
RANGES = {  # each cell draws its own; in pixels of 28x28, `turn` in turns
    #                      radius        lobes       of radius   off centre  a turn apart
    "basophil":             ((8.0, 10.4), (2.0, 4.0), (4.0, 5.0), (2.2, 3.2), (.30, .35)),
    "eosinophil":           ((9.0, 10.8), (2.0, 3.3), (3.2, 4.0), (3.8, 4.8), (.33, .42)),
    "erythroblast":         ((5.2, 8.00), (1.0, 1.0), (3.2, 4.8), (0.0, 1.6), (0.0, 0.0)),
    "immature granulocyte": ((8.8, 11.4), (1.0, 2.5), (5.8, 6.9), (1.2, 2.4), (.20, .35)),
    "lymphocyte":           ((6.6, 8.60), (1.0, 1.0), (5.7, 7.0), (0.0, 0.8), (0.0, 0.0)),
    "monocyte":             ((10., 12.4), (3.0, 4.6), (4.6, 5.4), (4.6, 5.6), (.15, .19)),
    "neutrophil":           ((8.0, 9.80), (2.6, 4.9), (2.5, 3.1), (4.0, 4.9), (.17, .24)),
    "platelet":             ((2.8, 4.60), (1.0, 3.0), (1.2, 2.0), (0.3, 1.0), (.30, .35)),
}
TRAITS = {  # the same for all cells of a class, the classes in the order above
    "body":      ((170, 120, 172), (186, 106, 136), (158, 132, 168), (172, 124, 176),
                  (148, 122, 182), (172, 146, 182), (190, 150, 180), (166, 120, 166)),
    "nucleus":   ((84, 40, 124), (96, 46, 132), (66, 34, 116), (98, 52, 138),
                  (80, 40, 126), (106, 58, 142), (88, 44, 128), (108, 62, 136)),
    "stretch":   (1.2, 1.15, 1.3, 1.35, 1.2, 1.35, 1.2, 1.4),  # long over short axis, at most
    "rough":     (.30, .12, .15, .22, .12, .40, .15, .20),  # how far the outline strays
    "granules":  (1.0, 0.0, 0.0, 0.3, 0.0, 0.0, 0.1, 0.5),  # nuclear dye in grains over the body
    "grain":     (14., 17., 8.0, 12., 8.0, 11., 12., 12.),  # light and dark in the body
    "chromatin": (22., 13., 11., 15., 10., 15., 12., 18.),  # light and dark in the nucleus
}
COUNTS = {  # images of each class, as in BloodMNIST
    "train": (852, 2181, 1085, 2026, 849, 993, 2330, 1643),
    "val":   (122,  312,  155,  290, 122, 143,  333,  235),
    "test":  (244,  624,  311,  579, 243, 284,  666,  470),
}
# fmt: on
CLASSES = tuple(RANGES)
Values = float | np.ndarray


def load(path: str = "", split: str = "all") -> Dataset:
    """Draw cells in BloodMNIST's class counts: uint8 [N, 28, 28, 3], N = 17,092 for "all".

    Raises:
        ValueError: a path is given; there is no file to name.
    """
    if path:
        raise ValueError(
            f"data.path={path!r} names a file, but source 'synthetic' reads none; "
            "leave data.path empty, or set data.source=bloodmnist"
        )
    parts = []
    for seed, name in enumerate(SPLITS):
        if split in (name, "all"):
            labels = np.repeat(np.arange(len(CLASSES), dtype=np.int32), COUNTS[name])
            order = np.argsort(_uniform(seed + 100, len(labels)), kind="stable")
            parts.append((render(labels[order], seed), labels[order]))
    return join(parts, CLASSES, "synthetic")


def render(labels: np.ndarray, seed: int = 0, size: int = 28) -> np.ndarray:
    """Draw one cell per label; image i depends on `seed`, i and its label only.

    Args:
        labels: integers [N] in 0..7, places in CLASSES.
        seed: >= 0, of all random numbers.
        size: height and width; the same cells at another resolution.

    Returns:
        uint8 [N, size, size, 3].
    """
    labels = np.asarray(labels)
    images = np.empty((len(labels), size, size, 3), np.uint8)
    numbers = _uniform(seed, len(labels), NUMBERS + 28 * 28)

    def fill(start: int) -> None:
        part = slice(start, start + CHUNK)
        images[part] = _draw(labels[part], numbers[part], size)

    with ThreadPoolExecutor() as pool:  # numpy releases the interpreter while it computes
        list(pool.map(fill, range(0, len(labels), CHUNK)))
    return images


def _uniform(seed: int, *shape: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).random(shape, np.float32)


def _draw(labels: np.ndarray, numbers: np.ndarray, size: int) -> np.ndarray:
    """Paint paper, red cells, a stray platelet, body and nucleus; arrays are [n, k, y, x]."""
    columns = iter(numbers[:, :NUMBERS].T)
    noise = numbers[:, NUMBERS:].reshape(-1, 1, 28, 28) - np.float32(0.5)
    grain = 10 * _blur(noise)
    cloud = 3 * _blur(_blur(grain))
    noise, grain, cloud = (_enlarge(field, size) for field in (noise, grain, cloud))
    axis = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(28 / size) - 14
    x, y = axis, axis[:, None]

    def draw(low: Values = 0, high: Values = 1, count: int = 1) -> np.ndarray:
        values = np.stack([next(columns) for _ in range(count)], axis=1)[:, :, None, None]
        return low + (high - low) * values

    def trait(name: str) -> np.ndarray:
        return np.array(TRAITS[name], np.float32)[labels].reshape(len(labels), -1, 1, 1)

    ranges = np.array([*RANGES.values()], np.float32)[labels][..., None, None]
    radius, *nucleus_shape = np.split(draw(ranges[:, :, 0], ranges[:, :, 1], 5), 5, axis=1)
    image = np.array(PAPER, np.float32)[:, None, None] + draw(-3, 3, 3)
    red = np.array(RED_CELL, np.float32)[:, None, None] + draw(-12, 12) + draw(-4, 4, 3)
    image = _blend(image, red, _red_cells(x, y, radius, draw))
    nucleus = trait("nucleus") + draw(-8, 8) + draw(-4, 4, 3) + trait("chromatin") * grain
    image = _blend(image, nucleus + 10, _stray(x, y, draw))

    stretch, (cos, sin) = np.sqrt(draw(1, trait("stretch"))), _direction(draw())
    dx, dy = x - draw(-0.8, 0.8), y - draw(-0.8, 0.8)
    u, v = (dx * cos + dy * sin) / stretch, (dy * cos - dx * sin) * stretch
    wobble = trait("rough") * cloud
    body = trait("body") + draw(-14, 14) + draw(-7, 7, 3) + trait("grain") * grain
    inside = _cover(radius - np.sqrt(u * u + v * v) + wobble)
    dye = trait("granules") * np.clip(0.6 + 0.6 * grain, 0, 1)
    image = _blend(image, _blend(body, nucleus, dye), inside)
    lobes = _lobes(u, v, *nucleus_shape)
    image = _blend(image, nucleus, _cover(lobes + wobble / 2) * inside)

    blue = np.array(BLUE_STAIN, np.float32)[:, None, None]
    stain = np.where(draw() < BLUE_SHARE, blue, np.float32(1)) * draw(0.98, 1.02)
    image = image * stain + 6 * noise
    return (np.clip(image, 0, 255) + 0.5).astype(np.uint8).transpose(0, 2, 3, 1)


def _red_cells(x: np.ndarray, y: np.ndarray, keep_out: np.ndarray, draw: Callable) -> np.ndarray:
    """Return the cover of each pixel by red cells: discs, often pale in the middle, all around."""
    index = np.arange(NEIGHBOURS, dtype=np.float32)[:, None, None]
    cos, sin = _direction((index + draw(0, 0.7, NEIGHBOURS)) / NEIGHBOURS + draw())
    radius = draw(3.6, 5.4, NEIGHBOURS)
    far = np.maximum(keep_out + radius, 8) + draw(0, 5, NEIGHBOURS)
    pale = np.maximum(draw(-0.3, 0.85, NEIGHBOURS), 0)
    present = draw(0, 1, NEIGHBOURS) < draw(0.4, 1.4)
    dx, dy = x - far * cos, y - far * sin
    depth = radius - np.sqrt(dx * dx + dy * dy)
    return np.max(_cover(depth) * (1 - pale * _cover(depth - 1.9)) * present, axis=1, keepdims=True)


def _stray(x: np.ndarray, y: np.ndarray, draw: Callable) -> np.ndarray:
    """Return the cover by a platelet near the border, in one image out of five."""
    cos, sin = _direction(draw())
    far = draw(11, 16)
    dx, dy = x - far * cos, y - far * sin
    return _cover(draw(0.9, 1.7) - np.sqrt(dx * dx + dy * dy)) * (draw() < 0.2)


def _lobes(u, v, count, radius, arc, turn) -> np.ndarray:
    """Return the depth below the rim of `count` discs along an arc, melted into one nucleus."""
    index = np.arange(LOBES, dtype=np.float32)[:, None, None]
    count = np.floor(count)
    cos, sin = _direction(turn * (index - (count - 1) / 2))
    du, dv = u - arc * cos, v - arc * sin
    near = np.maximum(1 - (du * du + dv * dv) / (2.4 * radius * radius), 0)
    field = np.sum(near * near * (index < count), axis=1, keepdims=True)
    return (field - 0.34) * radius  # 0.34 = (1 - 1 / 2.4)^2: a lone disc keeps its radius


def _direction(turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return cosine and sine, rounded from float64 so that the libraries' last bits do not show."""
    angle = 2 * np.pi * turns.astype(np.float64)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def _cover(depth: np.ndarray) -> np.ndarray:
    """Return the share of a pixel inside an outline, by its depth below it: a soft edge."""
    return np.clip(depth / np.float32(1.4) + np.float32(0.5), 0, 1)


def _blend(below: np.ndarray, above: np.ndarray, cover: np.ndarray) -> np.ndarray:
    return below + cover * (above - below)


def _blur(x: np.ndarray) -> np.ndarray:
    """Average 3x3 pixels."""
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    x = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    return (x[..., :-2] + x[..., 1:-1] + x[..., 2:]) / np.float32(9)


def _enlarge(x: np.ndarray, size: int) -> np.ndarray:
    """Enlarge 28x28 bilinearly along both axes; unchanged at that size."""
    place = np.clip((np.arange(size) + 0.5) * 28 / size - 0.5, 0, 27)
    low = np.minimum(place.astype(int), 26)
    part = (place - low).astype(np.float32)
    x = x[..., low, :] * (1 - part)[:, None] + x[..., low + 1, :] * part[:, None]
    return x[..., low] * (1 - part) + x[..., low + 1] * part
