"""What this machine has: versions, devices, and where data and weights were looked for."""

from importlib import metadata

import jax
from rich.table import Table

from bloodjax import features
from bloodjax.data import bloodmnist
from bloodjax.features.inception import weights
from bloodjax.runtime.environment import environment
from bloodjax.runtime.progress import console
from bloodjax.scoring.tables import title

PACKAGES = {"medmnist": "medmnist", "tfds": "tensorflow-datasets"}  # that a data source needs


def print_table() -> None:
    """Print it as one table."""
    table = Table("what", "found", title="bloodjax doctor")
    for name, value in environment().items():
        table.add_row(name, value)
    for device in jax.devices():
        table.add_row(f"device {device.id}", f"{device.device_kind} ({device.platform})")
    table.add_section()
    for how, place, there in bloodmnist.places():
        table.add_row(f"BloodMNIST: {how}", f"{'found' if there else 'not there'}: {place}")
    for source, package in PACKAGES.items():
        table.add_row(f"data.source={source}", version(package))
    table.add_section()
    for how, place, there in weights.places():
        table.add_row(f"Inception: {how}", f"{'found' if there else 'not there'}: {place}")
    table.add_section()
    for name in features.names():
        table.add_row(f"features: {name}", space(name))
    console.print(table)


def space(name: str) -> str:
    """A feature space's size and weights, or what stands in its way; downloads nothing."""
    if name == "inception" and not any(there for _, _, there in weights.places()):
        return "no weights here: FID will try to download them"
    try:
        extractor = features.make(name)
    except (OSError, ValueError) as error:
        return str(error)
    return f"{extractor.dims}-d, sha256 {extractor.sha256[:8]}: {title(extractor.distance)}"


def version(package: str) -> str:
    """Of an optional package."""
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"needs {package}, which is not installed"
