"""Image files as people see them: 8 bits a channel, upright, opaque, one picture a file."""

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from bloodjax.runtime.progress import print_line

SUFFIXES = (".bmp", ".jpg", ".jpeg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Files of file managers, beside those that begin with a dot; macOS writes "Icon\r".
LEFTOVERS = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir")
GREY = ("1", "L", "LA", "La")  # Pillow's modes of one channel
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr")
ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
BITS_PER_SAMPLE, SAMPLE_FORMAT = 258, 339  # TIFF's tags; a format of 1 is unsigned
NOTES = {  # condition of a file -> what is done about it
    "turned": "turned upright by EXIF orientation, which pytorch-fid ignores",
    "cmyk": "converted from CMYK to RGB without a colour profile",
    "profile": "with a colour profile other than sRGB, which is not applied",
    "mpo": "of several pictures in one file (MPO), of which the first is read",
}


class Contents(NamedTuple):
    """The contents of a folder, sorted by name, without hidden files and leftovers."""

    images: list[Path]
    folders: list[Path]
    other_files: list[Path]


class Picture(NamedTuple):
    """One image file.

    Attributes:
        pixels: uint8 [H, W, C], C = 1 if the file is grey, else 3.
        notes: keys of `NOTES`.
    """

    pixels: np.ndarray
    notes: tuple[str, ...]


def list_folder(folder: Path) -> Contents:
    """Sort the contents of a folder into images, by their suffix, folders and other files."""
    contents = Contents([], [], [])
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name.lower() in LEFTOVERS:
            continue
        if path.is_dir():
            contents.folders.append(path)
        elif path.suffix.lower() in SUFFIXES:
            contents.images.append(path)
        else:
            contents.other_files.append(path)
    return contents


def refuse_imageless(folder: Path, contents: Contents) -> None:
    """Raise ValueError if a folder holds no images, with the remedy."""
    if contents.images:
        return
    if contents.folders:
        names = _shorten(contents.folders)
        raise ValueError(f"{folder}: no images in it, but folders ({names}): give one of these")
    listing = f" among its files ({_shorten(contents.other_files)})" if contents.other_files else ""
    raise ValueError(
        f"{folder}: no images{listing}; expected files ending in {', '.join(SUFFIXES)}"
    )


def report_unread(folder: Path, paths: Sequence[Path], kind: str) -> None:
    """Print how many files or folders in a folder are not read, and the first names."""
    if paths:
        print_line(f"{folder}: not read: {len(paths):,} {kind} ({_shorten(paths)})")


def report_notes(folder: Path, notes: Iterable[str]) -> None:
    """Print how many images of a folder are not taken byte for byte, and why."""
    for note, count in Counter(notes).items():
        print_line(f"{folder}: {count:,} images {NOTES[note]}")


def report_dark(path: Path, brightest: int) -> None:
    """Print a note if all images are black: floats in [0, 1] that were cut to integers."""
    if brightest <= 1:
        print_line(f"{path}: all pixels are 0 or 1 of 255; were floats in [0, 1] cut to integers?")


def _shorten(paths: Sequence[Path]) -> str:
    return textwrap.shorten(", ".join(path.name for path in paths), 80, placeholder=" ...")


def read_image(file: Path) -> Picture:
    """Read one image file as people see it.

    Raises:
        ValueError: not a whole image, several pages or frames, more than 8 bits a channel, or
            transparent pixels; names file and remedy.
    """
    try:
        image = Image.open(file)
    except UnidentifiedImageError:
        raise ValueError(f"{file}: not an image that can be read; replace or remove it") from None
    except Exception as error:  # any error that foreign bytes cause in Pillow
        raise ValueError(f"{file}: cannot be read ({error}); replace or remove it") from None
    with image:
        _check(file, image)
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)
            pixels = np.asarray(upright.convert("L" if image.mode in GREY else "RGB"))
            alpha = upright.convert("RGBA").getchannel("A") if image.has_transparency_data else None
            opaque = alpha is None or alpha.getextrema() == (255, 255)
            notes = tuple(_notes(image))
        except Exception as error:
            raise ValueError(f"{file}: not a whole image ({error}); replace or remove it") from None
    if not opaque:
        raise ValueError(f"{file}: transparent pixels, expected none: put it on a background")
    return Picture(pixels.reshape(*pixels.shape[:2], -1), notes)


def _check(file: Path, image: Image.Image) -> None:
    """Refuse a file whose header tells that it cannot be read as people see it."""
    try:
        frames = getattr(image, "n_frames", 1)  # reads further pages of a TIFF
    except Exception as error:
        raise ValueError(f"{file}: not a whole image ({error}); replace or remove it") from None
    if frames > 1 and image.format != "MPO":
        raise ValueError(
            f"{file}: {frames} pages or frames, expected one picture: save each as a file"
        )
    if (bits := _depth(image)) != 8:
        raise ValueError(
            f"{file}: {bits} a channel, expected 8: scale its values to 0..255 and save it again"
        )
    if image.mode not in (*GREY, *COLOUR):
        raise ValueError(f"{file}: mode {image.mode}, expected grey or RGB: convert it")


def _depth(image: Image.Image) -> int | str:
    """Return the bits of a channel: 8 for 8 and fewer, which Pillow scales to 0..255."""
    if image.mode[0] in "IF":
        return "more than 8 bits"
    tags: Any = getattr(image, "tag_v2", {})
    if set(tags.get(SAMPLE_FORMAT, (1,))) != {1}:
        return "signed numbers"
    tile: Any = getattr(image, "tile", None)  # of image files, not of images in memory
    arguments = tile[0][3] if tile else ""
    raw_mode, *rest = (arguments,) if isinstance(arguments, str) else arguments
    wide = re.search(r";(12|16|32)", str(raw_mode))
    bits = [*tags.get(BITS_PER_SAMPLE, ()), int(wide[1]) if wide else 8]
    if image.format == "PPM" and rest and rest[0] > 255:  # the largest value
        bits.append(16)
    return f"{max(bits)} bits" if max(bits) > 8 else 8


def _notes(image: Image.Image) -> Iterator[str]:
    if image.getexif().get(ORIENTATION, 1) not in (0, 1):
        yield "turned"
    if image.mode == "CMYK":
        yield "cmyk"
    elif b"sRGB" not in (image.info.get("icc_profile") or b"sRGB").replace(b"\0", b""):
        yield "profile"
    if image.format == "MPO":
        yield "mpo"


@contextmanager
def name_value_errors(origin: Path | str) -> Iterator[None]:
    """Prefix the ValueErrors of a block with the file or option that causes them."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from None
