"""An image file is read as people see it, or refused with the reason and the remedy."""

import io

import numpy as np
import pytest
from helpers.pictures import encode, png, tiff
from PIL import Image

from bloodjax.data.image_files import NOTES, list_folder, read_image

ROWS, COLUMNS = 5, 7


def pixels(channels=3, dtype=np.uint8):
    rng = np.random.default_rng(channels)
    high = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    shape = ROWS, COLUMNS, channels
    return (rng.random(shape) * high).astype(dtype)


def opaque():
    return np.concatenate([pixels(), np.full((ROWS, COLUMNS, 1), 255, np.uint8)], axis=2)


def palette():
    colours = np.array([[9, 90, 200], [250, 0, 7]], np.uint8)
    places = np.arange(ROWS * COLUMNS, dtype=np.uint8).reshape(ROWS, COLUMNS) % 2
    image = Image.fromarray(places).convert("P")
    image.putpalette(colours.tobytes())
    return image, colours[places]


def one_bit():
    places = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS, 1) % 3 == 0
    return Image.fromarray(places[..., 0]), np.uint8(255) * places


READ = {
    "png": (png(pixels()), pixels()),
    "grey png": (png(pixels(1)), pixels(1)),
    "png with opaque alpha": (png(opaque()), pixels()),
    "grey png with opaque alpha": (png(np.full((5, 7, 2), 255, np.uint8)), None),
    "palette": (encode(palette()[0], "png"), palette()[1]),
    "one bit": (encode(one_bit()[0], "png"), one_bit()[1]),
    "one bit, tiff": (encode(one_bit()[0], "tiff", compression="group4"), one_bit()[1]),
    "tiff": (tiff(pixels()), pixels()),
    "grey tiff": (tiff(pixels(1)), pixels(1)),
    "tiff, compressed": (encode(pixels(), "tiff", compression="tiff_lzw"), pixels()),
    "bmp": (encode(pixels(), "bmp"), pixels()),
    "ppm": (encode(pixels(), "ppm"), pixels()),
    "pgm of 15": (b"P5 2 1 15\n\x00\x0f", np.array([[[0], [255]]], np.uint8)),
    "webp": (encode(pixels(), "webp", lossless=True), pixels()),
    "another suffix than the format's": (encode(pixels(), "tiff"), pixels()),
}


@pytest.mark.parametrize("case", READ)
def test_is_read(tmp_path, case):
    raw, expected = READ[case]
    (tmp_path / "x.png").write_bytes(raw)
    found = read_image(tmp_path / "x.png")
    assert found.notes == () and found.pixels.dtype == np.uint8
    np.testing.assert_array_equal(found.pixels, 255 if expected is None else expected)


def frames(form, count=3, **options):
    images = [Image.fromarray(pixels() ^ np.uint8(80 * i)) for i in range(count)]
    return encode(images[0], form, save_all=True, append_images=images[1:], **options)


def transparent(kind):
    image = Image.fromarray(pixels(1)[..., 0])
    if kind == "rgb":
        image = image.convert("RGB")
        return encode(image, "png", transparency=tuple(pixels(1)[0, 0].repeat(3).tolist()))
    if kind == "palette":
        return encode(image.convert("P"), "png", transparency=int(pixels(1)[0, 0, 0]))
    return encode(image, "png", transparency=int(pixels(1)[0, 0, 0]))


def lost_page():
    """A TIFF whose directory names a second page where there are only pixels."""
    raw = bytearray(tiff(np.full((40, 40, 3), 1, np.uint8)))
    end = 8 + 2 + 12 * 11
    raw[end : end + 4] = len(raw).to_bytes(4, "little")
    return bytes(raw) + b"\1\0" + b"\0\1\3\0\1\0\0\0\1\0\0\0" + bytes(4)


DEEP = "expected 8: scale its values to 0..255"
CLEAR = "transparent pixels, expected none: put it on a background"
PAGES = "3 pages or frames, expected one picture: save each as a file"
WHOLE = "not a whole image .*; replace or remove it"
REFUSED = {
    "16-bit RGB png": (png(pixels(3, np.uint16)), f"16 bits a channel, {DEEP}"),
    "8-bit values in a 16-bit RGB png": (png(pixels().astype(np.uint16)), f"16 bits .*{DEEP}"),
    "16-bit RGBA png": (png(pixels(4, np.uint16)), DEEP),
    "16-bit grey and alpha png": (png(pixels(2, np.uint16)), DEEP),
    "16-bit grey png": (png(pixels(1, np.uint16)), DEEP),
    "16-bit RGB tiff": (tiff(pixels(3, np.uint16)), f"16 bits a channel, {DEEP}"),
    "16-bit RGBA tiff": (tiff(pixels(4, np.uint16)), DEEP),
    "16-bit grey tiff": (tiff(pixels(1, np.uint16)), DEEP),
    "16-bit signed tiff": (tiff(pixels(1, np.int16)), DEEP),
    "8-bit signed tiff": (tiff(pixels(1, np.int8)), "signed numbers a channel, expected 8"),
    "32-bit tiff": (tiff(pixels(1, np.uint32)), DEEP),
    "float tiff": (tiff(pixels(1, np.float32)), DEEP),
    "float RGB tiff": (tiff(pixels(3, np.float32)), "not an image that can be read"),
    "16-bit ppm": (b"P6 1 1 65535\n" + bytes(6), f"16 bits a channel, {DEEP}"),
    "12-bit ppm": (b"P6 1 1 4095\n" + bytes(6), DEEP),
    "16-bit pgm": (b"P5 1 1 65535\n" + bytes(2), DEEP),
    "tiff stack": (frames("tiff"), PAGES),
    "animated png": (frames("png"), PAGES),
    "animated webp": (frames("webp"), PAGES),
    "animated gif in disguise": (frames("gif"), PAGES),
    "rgba with a hole": (png(pixels(4)), CLEAR),
    "grey with a hole": (png(pixels(2)), CLEAR),
    "webp with a hole": (encode(pixels(4), "webp", lossless=True), CLEAR),
    "one grey level transparent": (transparent("grey"), CLEAR),
    "one colour transparent": (transparent("rgb"), CLEAR),
    "one place of the palette transparent": (transparent("palette"), CLEAR),
    "lab tiff": (encode(Image.new("LAB", (3, 3)), "tiff"), "mode LAB, expected grey or RGB"),
    "cut png": (png(pixels())[:-30], WHOLE),
    "cut jpeg": (encode(np.tile(pixels(), (9, 9, 1)), "jpeg")[:-300], WHOLE),
    "cut tiff": (tiff(pixels())[:-9], WHOLE),
    "tiff with a pointer to no page": (lost_page(), WHOLE),
    "cut bmp": (encode(pixels(), "bmp")[:-9], WHOLE),
    "empty": (b"", "not an image that can be read; replace or remove it"),
    "a page of the web": (b"<!DOCTYPE html><html>404</html>", "not an image that can be read"),
    "a vector drawing": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "an array": (b"\x93NUMPY\x01\x00", "not an image that can be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused_with_reason_and_remedy(tmp_path, case):
    raw, reason = REFUSED[case]
    (tmp_path / "x.png").write_bytes(raw)
    with pytest.raises(ValueError, match=f"^{tmp_path}/x.png: .*{reason}") as error:
        read_image(tmp_path / "x.png")
    assert "\n" not in str(error.value)
    assert error.value.__suppress_context__ or error.value.__context__ is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_followed(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: x.swapaxes(0, 1)[:, ::-1],
        7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
        8: lambda x: x.swapaxes(0, 1)[::-1],
    }[orientation]
    for form in ("png", "webp"):
        options = {"lossless": True} if form == "webp" else {}
        (tmp_path / "x.png").write_bytes(encode(pixels(), form, exif=exif, **options))
        found = read_image(tmp_path / "x.png")
        np.testing.assert_array_equal(found.pixels, upright(pixels()))
        assert found.notes == (() if orientation == 1 else ("turned",))


def test_what_is_done_to_a_file_is_noted(tmp_path):
    profile = b"\0" * 128 + b"desc Adobe RGB (1998)"
    cases = {
        "cmyk": encode(Image.new("CMYK", (4, 4)), "jpeg"),
        "profile": encode(pixels(), "png", icc_profile=profile),
        "mpo": frames("mpo", 2),
    }
    for note, raw in cases.items():
        (tmp_path / "x.jpg").write_bytes(raw)
        assert read_image(tmp_path / "x.jpg").notes == (note,) and NOTES[note]
    wide = "sRGB IEC61966-2.1".encode("utf-16-be")
    (tmp_path / "x.png").write_bytes(encode(pixels(), "png", icc_profile=b"\0" * 128 + wide))
    assert read_image(tmp_path / "x.png").notes == ()


@pytest.mark.parametrize("form", ["png", "tiff", "jpeg", "webp", "bmp", "ppm"])
def test_a_file_that_ends_anywhere_is_refused_or_read_whole(tmp_path, form):
    whole, file = encode(pixels(), form), tmp_path / "x"
    file.write_bytes(whole)
    expected, refused = read_image(file).pixels, 0
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        try:
            found = read_image(file).pixels
        except ValueError as error:
            assert str(error).startswith(f"{file}: ") and "replace" in str(error)
            refused += 1
        else:  # all pixels were there, as with a PNG without its last chunk
            np.testing.assert_array_equal(found, expected)
    assert refused > len(whole) // 2


def test_missing_and_unreadable_files_are_refused(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    for name in ("link.png", "gone.png", "."):
        with pytest.raises(ValueError, match="cannot be read"):
            read_image(tmp_path / name)


def test_leftovers_of_file_managers_do_not_count(tmp_path):
    leftovers = [".DS_Store", "._x.png", ".hidden.png", "Thumbs.db", "THUMBS.DB", "desktop.ini"]
    for name in (*leftovers, "Icon\r", "b.png", "A.JPG", "notes.txt", "x.gif", "10.png", "9.png"):
        (tmp_path / name).write_bytes(b"")
    for name in ("__MACOSX", ".ipynb_checkpoints", "@eaDir", "folder.png", "zebra"):
        (tmp_path / name).mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "zebra")
    contents = list_folder(tmp_path)
    assert [path.name for path in contents.images] == ["10.png", "9.png", "A.JPG", "b.png"]
    assert [path.name for path in contents.folders] == ["folder.png", "linked", "zebra"]
    assert [path.name for path in contents.other_files] == ["notes.txt", "x.gif"]


def test_pillow_agrees_with_the_files_made_by_hand():
    for raw, expected in ((png(pixels()), pixels()), (tiff(pixels(1)), pixels(1)[..., 0])):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(raw))), expected)
