"""The Fréchet Inception Distance of two sets of images: `bloodjax-fid A B`.

Heusel et al. (2017), eq. 6, with the command line of pytorch-fid.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bloodjax import features
from bloodjax.data.file_kinds import list_arrays
from bloodjax.data.image_files import name_value_errors
from bloodjax.data.image_sets import EXPECTED, ImageSet, open_images
from bloodjax.features import Extractor, distance_name
from bloodjax.features.inception.network import TAPS
from bloodjax.features.inception.protocols import PROTOCOLS
from bloodjax.runtime import command, compilation, devices
from bloodjax.runtime.environment import environment
from bloodjax.runtime.progress import print_line, progress
from bloodjax.scoring.distances import Moments, frechet
from bloodjax.scoring.statistics_files import (
    Statistics,
    describe_extractor,
    read_statistics,
    write_statistics,
)
from bloodjax.scoring.tables import title

# Batches given to the extractor at a time, so that it computes one and fetches another
BATCHES_AHEAD = 4


def main(argv: Sequence[str] | None = None) -> None:
    """Print the FID of two sets of images, or save the statistics of one."""
    args = make_parser().parse_args(argv)
    command.run(lambda: run(args), owns_process=argv is None)


def make_parser() -> argparse.ArgumentParser:
    """Return the command line: every option of pytorch-fid's, and more."""
    parser = argparse.ArgumentParser(
        prog="bloodjax-fid",
        description="FID of two sets of images. A and B are each a folder of images, an .npz of "
        "images (a run's samples.npz, MedMNIST's) or an .npz of statistics (mu, sigma).",
    )
    add = parser.add_argument
    add("a", type=Path, metavar="A", help="the first set")
    add("b", type=Path, metavar="B", help="the second set; with --save-stats, the file to write")
    add("--weights", default="", help="the Inception weights, .pth or .safetensors")
    add("--protocol", default="pytorch-fid", choices=PROTOCOLS, help="resizing and scaling")
    add("--dims", type=int, default=2048, choices=TAPS, help="features; FID has 2048")
    add("--device", default="", help="cpu, cuda, cuda:1, tpu; default: the fastest here")
    add("--batch-size", type=int, default=50, help="images per device and step")
    add("--num-workers", type=int, default=min(8, os.cpu_count() or 1), help="readers of files")
    add("--seed", type=int, help="the seed to read, if a samples.npz holds several")
    add("--json", action="store_true", help="print one JSON object")
    # --s: pytorch-fid's abbreviation, which would stand for --seed as well
    add("--save-stats", "--s", action="store_true", help="write the statistics of A to B, an .npz")
    return parser


def run(args: argparse.Namespace) -> None:
    """Check both sides and the output, embed the images, and print or save the result."""
    paths: list[Path] = [args.a] if args.save_stats else [args.a, args.b]
    check_options(args)
    compilation.configure_jax(deterministic=False, precision="float32")
    devices.select_device(args.device)

    # All that can be refused is refused before the first image is embedded.
    names = [[] if path.is_dir() else list_arrays(path, EXPECTED) for path in paths]
    has_statistics = [{"mu", "sigma"} <= set(arrays) for arrays in names]
    sides = [open_side(*side, args) for side in zip(paths, has_statistics, strict=True)]
    extractor, origin = None, {}
    if not all(has_statistics):
        check_dims(paths, sides, args.dims)
        sizes = {"dims": args.dims, "batch_size": args.batch_size}
        origins = {"protocol": args.protocol, "weights": args.weights}
        extractor = features.make("inception", **origins, **sizes)
        origin = describe_extractor(extractor)
    check_alike(paths, [x.made_by if isinstance(x, Statistics) else origin for x in sides])

    statistics = []
    for path, side in zip(paths, sides, strict=True):
        if isinstance(side, ImageSet):
            assert extractor  # made above, as there are images
            side = embed(extractor, side, path)
        statistics.append(side)
    if args.save_stats:
        write_statistics(args.b, statistics[0])
        print_line(f"{args.b}: statistics of {args.a}")
    else:
        print_result(paths, statistics, extractor, args.json)


def open_side(path: Path, has_statistics: bool, args: argparse.Namespace) -> Statistics | ImageSet:
    """Check one side, and return its statistics, or its images to be embedded."""
    if has_statistics:
        return read_statistics(path)
    at_a_time = BATCHES_AHEAD * args.batch_size * jax.local_device_count()
    images = open_images(path, at_a_time, args.num_workers, args.seed)
    if images.size < 2:
        raise ValueError(f"{path}: {images.size} image, expected at least 2")
    return images


def check_options(args: argparse.Namespace) -> None:
    """Refuse options out of their range, and an output that cannot be written."""
    if args.batch_size < 1:
        raise ValueError(f"--batch-size {args.batch_size}: expected at least 1")
    if args.num_workers < 0:
        raise ValueError(f"--num-workers {args.num_workers}: expected at least 0")
    if args.save_stats:
        if args.b.suffix != ".npz":
            raise ValueError(f"{args.b}: expected a name that ends in .npz, for pytorch-fid")
        command.check_output(args.b)


def check_dims(paths: Sequence[Path], sides: Sequence[Statistics | ImageSet], dims: int) -> None:
    """Refuse statistics of other features than those that the images will have."""
    for path, side in zip(paths, sides, strict=True):
        if isinstance(side, Statistics) and (actual := len(side.moments.mean)) != dims:
            hint = f"; give --dims {actual}" if actual in TAPS else ""
            raise ValueError(f"{path}: {actual} features against {dims}{hint}")


def check_alike(paths: Sequence[Path], origins: Sequence[dict[str, Any]]) -> None:
    """Refuse to compare results of different networks or protocols; print what is unknown."""
    for path, origin in zip(paths, origins, strict=True):
        if not origin:
            print_line(
                f"{path} does not say which weights and protocol made it: taken to be the same"
            )
    first, last = origins[0], origins[-1]
    for key in first.keys() & last.keys():
        if first[key] != last[key]:
            raise ValueError(
                f"{paths[0]} was made with {key} {first[key]}, {paths[-1]} with {last[key]}: "
                "expected the same; compute one of them again"
            )


def embed(extractor: Extractor, images: ImageSet, path: Path) -> Statistics:
    """Return the statistics of images; a few batches are in memory at a time."""
    out, done = np.empty((images.size, extractor.dims), np.float32), 0
    with progress(path.name, images.size) as advance:
        for part in images.read():
            out[done : done + len(part)] = extractor.features(part)
            done += len(part)
            advance(len(part))
    with name_value_errors(path):
        return Statistics(Moments.of(out), images.size, describe_extractor(extractor))


def print_result(
    paths: Sequence[Path],
    statistics: Sequence[Statistics],
    extractor: Extractor | None,
    as_json: bool,
) -> None:
    """Print the distance as pytorch-fid does, or one JSON object with its origin."""
    a, b = statistics
    made_by = a.made_by or b.made_by
    name = distance_name(made_by["name"]) if made_by else "fd"
    with name_value_errors(" and ".join(map(str, paths))):
        value = frechet(a.moments, b.moments)
    if not as_json:
        print(f"{title(name, made_by.get('protocol', ''))}:  {value}")
        return
    result = {
        "value": value,
        "name": name,
        "protocol": made_by.get("protocol"),
        "dims": len(a.moments.mean),
        "n_a": a.n,
        "n_b": b.n,
        "weights": extractor.weights if extractor else None,
        "extractor_sha256": made_by.get("sha256"),
        "unverified": [str(p) for p, x in zip(paths, statistics, strict=True) if not x.made_by],
        "versions": environment(),
    }
    print(json.dumps(result, indent=1, allow_nan=False))


if __name__ == "__main__":
    main()
