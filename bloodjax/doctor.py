"""What this machine has: versions, devices, and where data and weights were looked for."""

import jax
from rich.table import Table

from bloodjax import features
from bloodjax.data import bloodmnist
from bloodjax.progress import console
from bloodjax.workdir import environment


def run() -> None:
    """Print it as one table."""
    table = Table("what", "found", title="bloodjax doctor")
    for name, value in environment().items():
        table.add_row(name, value)
    for device in jax.devices():
        table.add_row(f"device {device.id}", f"{device.device_kind} ({device.platform})")
    table.add_section()
    for how, place, there in bloodmnist.places():
        table.add_row(f"BloodMNIST: {how}", f"{'found' if there else 'not there'}: {place}")
    table.add_section()
    for name in features.names():
        extractor = features.make(name)
        table.add_row(f"features: {name}", f"{extractor.dims}-d, sha256 {extractor.sha256[:8]}")
    console.print(table)
