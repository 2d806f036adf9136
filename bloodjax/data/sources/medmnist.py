"""Any two-dimensional MedMNIST set at any of its sizes, fetched and read by the medmnist package.

Source: MedMNIST+ (Yang et al., Scientific Data 10, 2023, 41); the package names each set's licence.
"""

import textwrap
from typing import Any, NoReturn

from bloodjax.data.dataset import SPLITS, Dataset, join
from bloodjax.data.sources import bloodmnist
from bloodjax.runtime.download import UnavailableError


def load(path: str = "", split: str = "all") -> Dataset:
    """Read the package's own file; the package downloads it into ~/.medmnist first if needed.

    `path` is FLAG or FLAG:SIZE, e.g. "pathmnist" or "bloodmnist:64"; SIZE defaults to 28. Empty:
    "bloodmnist".

    Returns:
        images uint8 [N, SIZE, SIZE, C] (grey: C = 1), labels int32 [N]; named FLAG or FLAG_SIZE
        after the package's file. Classes are the package's; BloodMNIST's are BloodNet's.

    Raises:
        ValueError: no such flag or size, volumes, or a set of several labels an image.
        UnavailableError: no package, or no file and it cannot be downloaded; names the remedies.
    """
    info, kinds, sizes = _import_package()
    flag, _, size = (path or "bloodmnist").partition(":")
    size = size or "28"
    if flag not in kinds or size not in sizes:
        raise ValueError(
            f"data.path={path!r}: expected FLAG or FLAG:SIZE; FLAG, one of the two-dimensional "
            f"sets with one label an image: {', '.join(kinds)}; SIZE: {', '.join(sizes)}"
        )
    suffix = "" if size == "28" else f"_{size}"
    wanted = [name for name in SPLITS if split in (name, "all")]
    parts = []
    try:
        for name in wanted:
            part = kinds[flag](name, size=int(size), download=not parts)  # compares the checksum
            images = part.imgs if part.imgs.ndim == 4 else part.imgs[..., None]
            parts.append((images, part.labels[:, 0]))
    except RuntimeError as error:
        _refuse(flag + suffix, info[flag][f"url{suffix}"], error)
    label = info[flag]["label"]
    classes = [label[str(k)] for k in range(len(label))]
    return join(parts, bloodmnist.CLASSES if flag == "bloodmnist" else classes, flag + suffix)


def _import_package() -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return the package's facts and data set classes by flag, and the sizes."""
    try:
        # Late, as it imports torch; pyright would find this file under the name.
        from medmnist import INFO, dataset  # pyright: ignore
    except ImportError as error:
        raise UnavailableError(
            f"data.source=medmnist needs the medmnist package ({error}): pip install -e "
            "'.[medmnist]'; or use data.source=bloodmnist with data.path=FILE, which reads any "
            "MedMNIST .npz without it"
        ) from None
    flat = dataset.MedMNIST2D
    kinds = {flag: getattr(dataset, facts["python_class"]) for flag, facts in INFO.items()}
    one_label = [flag for flag, facts in INFO.items() if "multi-label" not in facts["task"]]
    kinds = {flag: kinds[flag] for flag in one_label if issubclass(kinds[flag], flat)}
    return INFO, kinds, [str(size) for size in flat.available_sizes]


def _refuse(name: str, url: str, error: RuntimeError) -> NoReturn:
    """Explain how to get a file that the package could not download."""
    reason = error.__context__ or error
    if not isinstance(reason, Exception):  # SystemExit, which the package takes for a failure
        raise reason from None
    raise UnavailableError(
        f"{name} is not on this machine and cannot be downloaded "
        f"({textwrap.shorten(str(reason), 150)}). Three ways out: (1) download {url} elsewhere and "
        f"put it at ~/.medmnist/{name}.npz; (2) data.source=bloodmnist with data.path=FILE reads "
        "any MedMNIST .npz from anywhere; (3) --config.data.source=synthetic for the built-in "
        "synthetic cells"
    ) from None
