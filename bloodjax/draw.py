"""python -m bloodjax.draw OUT: images from a trained model, by default from the one shipped."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bloodjax.model import SHIPPED, load
from bloodjax.runtime import compilation
from bloodjax.runtime.progress import console
from bloodjax.sampling import export


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bloodjax.draw", description="Draw images from a trained model."
    )
    parser.add_argument("out", type=Path, help="NAME.png: a grid; NAME.npz; else a folder of PNGs")
    parser.add_argument(
        "--model", type=Path, default=SHIPPED, help="a run's folder, or a file made of one"
    )
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--seed", type=int, help="of the drawing; default: that of the training")
    parser.add_argument("--steps", type=int, help="a DDPM's; default: as the model was scored")
    parser.add_argument("--eta", type=float, help="a DDPM's, 0 (DDIM) to 1")
    args = parser.parse_args(argv)
    own = {"steps": args.steps, "eta": args.eta}
    try:
        compilation.configure_jax(deterministic=False, precision="float32")
        model = load(args.model)
        options = {name: value for name, value in own.items() if value is not None}
        images = model.sample(args.count, args.seed, **options)
        about = {"seed": args.seed, "options": model.options | options, "model": model.about}
        export.write_images(args.out, images, **about)
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    console.print(f"{args.out}: {args.count:,} images", markup=False)


if __name__ == "__main__":
    main()
