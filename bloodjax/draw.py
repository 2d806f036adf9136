"""Images from a trained model, by default the one that comes with bloodjax: `bloodjax-draw OUT`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bloodjax.model import SHIPPED, load
from bloodjax.runtime import command
from bloodjax.runtime.progress import print_line, progress
from bloodjax.sampling import export

EXPECTED = "expected NAME.png for a grid, NAME.npz, or NAME/ for a folder of PNG files"

OPTIONS = ("steps", "eta", "guidance")  # of the sampler


def main(argv: Sequence[str] | None = None) -> None:
    """Draw images and write them as a grid, an .npz or a folder."""
    parser = argparse.ArgumentParser(
        prog="bloodjax-draw", description="Draw images from a trained model."
    )
    add = parser.add_argument
    add("out", help="NAME.png: a grid; NAME.npz; NAME or NAME/: a folder of PNG files")
    add("--model", type=Path, default=SHIPPED, help="a run's folder, or a file made of one")
    add("--count", type=int, default=64, help="images")
    add("--seed", type=int, help="random seed of the images; default: the training's")
    add(
        "--class",
        dest="label",
        metavar="CLASS",
        help="name or number of a class, or balanced, or data; default: as the model was scored",
    )
    add("--steps", type=int, help="of a diffusion model; default: as the model was scored")
    add("--eta", type=float, help="noise that DDIM adds, 0 (none) to 1 (ancestral)")
    add("--guidance", type=float, help="strength of classifier-free guidance; 1 is none")
    add("--overwrite", action="store_true", help="replace the file if it exists")
    args = parser.parse_args(argv)
    command.run(lambda: run(args), owns_process=argv is None)


def run(args: argparse.Namespace) -> None:
    """Check the output, draw, and write."""
    out = Path(args.out)
    check_output(args.out, args.overwrite)
    options = {name: value for name in OPTIONS if (value := getattr(args, name)) is not None}
    model = load(args.model)
    chunks = model.sample_chunks(args.count, args.seed, args.label, **options)
    labels = model.labels(args.count, args.label)
    images = []
    with progress("draw", args.count) as advance:
        for chunk in chunks:
            images.append(chunk)
            advance(len(chunk))
    seed = model.origin["seed"] if args.seed is None else args.seed
    origin = {"seed": seed, "options": model.options | options, "model": model.origin}
    classes = model.origin["dataset"]["classes"]
    export.write_images(out, np.concatenate(images), labels, classes, **origin)
    print_line(f"{out}: {args.count:,} images")


def check_output(name: str, overwrite: bool) -> None:
    """Refuse an output that cannot be written, or is not a kind that `write_images` knows."""
    path = Path(name)
    is_file, is_folder = path.suffix in (".png", ".npz"), name.endswith("/") or not path.suffix
    if is_file == is_folder:
        raise ValueError(f"{name}: {EXPECTED}")
    if is_folder and overwrite:
        raise ValueError(f"{name}: --overwrite replaces files only: remove the folder first")
    command.check_output(path, overwrite)


if __name__ == "__main__":
    main()
