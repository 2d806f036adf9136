"""The Fréchet Inception Distance of two sets of images: `python -m bloodjax.fid A B`.

Heusel et al. (2017), eq. 6, with the command line of pytorch-fid.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bloodjax import features
from bloodjax.data.image_files import Source, name_value_errors, open_images
from bloodjax.features import Extractor, distance_name
from bloodjax.features.inception.network import TAPS
from bloodjax.features.inception.protocols import PROTOCOLS
from bloodjax.runtime import compilation, npz
from bloodjax.runtime.environment import environment
from bloodjax.runtime.files import atomic_write
from bloodjax.runtime.progress import console, progress
from bloodjax.scoring.distances import Moments, frechet
from bloodjax.scoring.tables import title

COMMAND = "python -m bloodjax.fid"
MADE_BY = ("name", "protocol", "dims", "sha256")  # an extractor's: must agree between two sides
STATISTICS = ("mu", "sigma", "n", "made_by")  # the first two are pytorch-fid's
AHEAD = 4  # batches given to the extractor at a time, so that it computes one and fetches another


class Side(NamedTuple):
    """One of the two sets.

    Attributes:
        moments: of its features.
        n: how many images; None where a file of statistics does not say.
        made_by: `MADE_BY` of the extractor; {} where a file of statistics does not say.
    """

    moments: Moments
    n: int | None
    made_by: dict[str, Any]


# ---- statistics --------------------------------------------------------------------------------


def is_statistics(path: Path) -> bool:
    return not path.is_dir() and {"mu", "sigma"} <= set(npz.names(path))


def read_statistics(file: Path) -> Side:
    """Mu and sigma, as pytorch-fid writes them, and what bloodjax writes beside them."""
    found = npz.names(file)
    arrays = npz.read(file, *(name for name in STATISTICS if name in found))
    with name_value_errors(file):
        mu, sigma = (np.asarray(arrays[key], np.float64) for key in ("mu", "sigma"))
        if mu.ndim != 1 or sigma.shape != 2 * mu.shape:
            raise ValueError(f"mu {mu.shape} and sigma {sigma.shape}, expected [d] and [d, d]")
        n = int(arrays["n"]) if "n" in arrays else None
        made_by = json.loads(str(arrays["made_by"])) if "made_by" in arrays else {}
        known = n or len(mu) + 2  # unknown: more than dimensions, so that sigma counts as it stands
        return Side(Moments(n=known, mean=mu, m2=sigma * (known - 1)), n, made_by)


def write_statistics(file: Path, side: Side) -> None:
    """An .npz that pytorch-fid reads too; whole or not there."""
    if file.exists():
        raise ValueError(f"{file} exists: remove it or name another file")
    arrays = {"mu": side.moments.mean, "sigma": side.moments.cov}
    if side.n:
        arrays["n"] = side.n
    with atomic_write(file) as part, part.open("wb") as out:
        np.savez(out, **arrays, made_by=json.dumps(side.made_by))


def embed(extractor: Extractor, source: Source, path: Path) -> Side:
    """The statistics of images, of which a few batches are in memory at a time."""
    out, done = np.empty((source.count, extractor.dims), np.float32), 0
    with progress(path.name, source.count) as advance:
        for images in source.parts:
            out[done : done + len(images)] = extractor.features(images)
            done += len(images)
            advance(len(images))
    made_by = dict(zip(MADE_BY, (getattr(extractor, key) for key in MADE_BY), strict=True))
    with name_value_errors(path):
        return Side(Moments.of(out), source.count, made_by)


def check_alike(paths: Sequence[Path], sides: Sequence[Side]) -> None:
    """Refuse to compare what different networks or protocols made; say what cannot be known."""
    a, b = (side.made_by for side in sides)
    for key in a.keys() & b.keys():
        if a[key] != b[key]:
            raise ValueError(
                f"{paths[0]} was made with {key} {a[key]}, {paths[1]} with {b[key]}: "
                "expected the same; compute one of them again"
            )
    for path, side in zip(paths, sides, strict=True):
        if not side.made_by:
            said = f"{path} does not say which weights and protocol made it: taken to be the same"
            console.print(said, markup=False, soft_wrap=True)


# ---- the command -------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="FID of two sets of images. A and B are each a folder of images, an .npz of "
        "images (a run's samples.npz, MedMNIST's) or an .npz of statistics (mu, sigma).",
    )
    add = parser.add_argument
    add("paths", nargs=2, type=Path, metavar=("A", "B"))
    add("--weights", default="", help="the Inception weights, .pth or .safetensors")
    add("--protocol", default="pytorch-fid", choices=PROTOCOLS, help="resizing and scaling")
    add("--dims", type=int, default=2048, choices=TAPS, help="features; FID has 2048")
    add("--batch-size", type=int, default=50, help="images per device and step")
    add("--num-workers", type=int, default=min(8, os.cpu_count() or 1), help="readers of files")
    add("--seed", type=int, help="whose images, if a samples.npz holds several seeds")
    add("--json", action="store_true", help="print one JSON object")
    add("--save-stats", action="store_true", help="write the statistics of A to the new file B")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    inputs = args.paths[:1] if args.save_stats else args.paths
    if args.save_stats and args.paths[1].exists():
        raise ValueError(f"{args.paths[1]} exists: remove it or name another file")
    if args.batch_size < 1:
        raise ValueError(f"--batch-size {args.batch_size}: expected at least 1")
    at_a_time = AHEAD * args.batch_size * jax.local_device_count()
    sources = [
        None if is_statistics(path) else open_images(path, at_a_time, args.num_workers, args.seed)
        for path in inputs
    ]
    for path, source in zip(inputs, sources, strict=True):
        if source and source.count < 2:
            raise ValueError(f"{path}: {source.count} image, expected at least 2")
    extractor = any(sources) and features.make(
        "inception",
        protocol=args.protocol,
        weights=args.weights,
        dims=args.dims,
        batch_size=args.batch_size,
    )
    sides = [
        embed(extractor, source, path) if source else read_statistics(path)
        for path, source in zip(inputs, sources, strict=True)
    ]
    if args.save_stats:
        write_statistics(args.paths[1], sides[0])
        return
    check_alike(inputs, sides)
    made_by = sides[0].made_by or sides[1].made_by
    name = distance_name(made_by["name"]) if made_by else "fd"
    with name_value_errors(" and ".join(map(str, inputs))):
        value = frechet(sides[0].moments, sides[1].moments)
    if not args.json:
        print(f"{title(name, made_by.get('protocol', ''))}:  {value}")
        return
    result = {
        "value": value,
        "name": name,
        "protocol": made_by.get("protocol"),
        "dims": len(sides[0].moments.mean),
        "n_a": sides[0].n,
        "n_b": sides[1].n,
        "extractor_sha256": made_by.get("sha256"),
        "unverified": [str(p) for p, side in zip(inputs, sides, strict=True) if not side.made_by],
        "versions": environment(),
    }
    print(json.dumps(result, indent=1))


def main(argv: Sequence[str] | None = None) -> None:
    """`run`, with what a user can mend said in one line."""
    args = parse(argv)
    compilation.configure_jax(deterministic=False, precision="float32")
    try:
        run(args)
    except (ValueError, OSError) as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
