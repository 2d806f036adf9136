"""Image files byte by byte, of kinds that Pillow does not write."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def png(pixels):
    """Return a PNG of uint8 or uint16 [H, W, 1 to 4]: grey, grey and alpha, RGB, RGBA."""
    h, w, c = pixels.shape
    rows = b"".join(b"\0" + row.astype(pixels.dtype.newbyteorder(">")).tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", w, h, 8 * pixels.itemsize, (0, 4, 2, 6)[c - 1], 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(x)) + kind + x + struct.pack(">I", zlib.crc32(kind + x))
        for kind, x in chunks
    )


def tiff(pixels):
    """Return a little-endian, uncompressed TIFF of [H, W, 1, 3 or 4], of any NumPy type."""
    h, w, c = pixels.shape
    bits = struct.pack(f"<{c}H", *[8 * pixels.itemsize] * c)
    start = 8 + 2 + 12 * 11 + 4
    short = 3, "<HH"
    entries = {
        256: (short, w),
        257: (short, h),
        258: (short, bits if c < 3 else start),
        259: (short, 1),
        262: (short, 1 if c == 1 else 2),
        273: (short, start + len(bits)),
        277: (short, c),
        278: (short, h),
        279: (short, pixels.nbytes),
        284: (short, 1),
        339: (short, {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]),
    }
    directory = b""
    for tag, ((kind, form), value) in entries.items():
        count = c if tag == 258 else 1
        raw = value.ljust(4, b"\0") if isinstance(value, bytes) else None
        if tag == 258 and c >= 3:
            raw = struct.pack("<I", value)
        directory += struct.pack("<HHI", tag, kind, count) + (raw or struct.pack(form, value, 0))
    little = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return head + directory + struct.pack("<I", 0) + bits + little


def encode(pixels, form, **options):
    """Return the bytes of an image that Pillow writes; `pixels` is an array or an Image."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.squeeze(pixels))
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()
