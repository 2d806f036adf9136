"""A report on this machine: versions, devices, and the places of data and weights."""

from importlib import metadata

import jax

from bloodjax import features
from bloodjax.data.sources import bloodmnist
from bloodjax.features.inception import weights
from bloodjax.runtime.environment import environment
from bloodjax.runtime.progress import print_line
from bloodjax.scoring.tables import title

PACKAGES = {"medmnist": "medmnist", "tfds": "tensorflow-datasets"}  # that a data source needs


def print_report() -> None:
    """Print versions, devices, places of data and weights, and feature spaces."""
    rows = dict(environment())
    for device in jax.devices():
        rows[f"device {device.id}"] = f"{device.device_kind} ({device.platform})"
    for label, place, exists in bloodmnist.places():
        rows[f"BloodMNIST: {label}"] = f"{'found' if exists else 'missing'}: {place}"
    for source, package in PACKAGES.items():
        rows[f"data.source={source}"] = describe_package(package)
    for label, place, exists in weights.places():
        rows[f"Inception: {label}"] = f"{'found' if exists else 'missing'}: {place}"
    for name in features.names():
        rows[f"features: {name}"] = describe_space(name)
    width = max(map(len, rows))
    for name, value in rows.items():  # no table, which would cut the paths
        print_line(f"{name:{width}}  {value}")


def describe_space(name: str) -> str:
    """Return a feature space's size and weights, or why it cannot be had; downloads nothing."""
    if name == "inception" and not any(exists for _, _, exists in weights.places()):
        return f"no weights here: {weights.INSTALL}; else FID tries to download them"
    try:
        extractor = features.make(name)
    except (OSError, ValueError) as error:
        return str(error)
    return f"{extractor.dims}-d, sha256 {extractor.sha256[:8]}: {title(extractor.distance)}"


def describe_package(package: str) -> str:
    """Return the version of an optional package, or the need for it."""
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"needs {package}, which is not installed"
