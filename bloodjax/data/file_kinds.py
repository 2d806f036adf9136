"""Files that are no .npz are called what they are, with the way to make one of them."""

from pathlib import Path

from PIL import Image

from bloodjax.runtime import npz

UNPACK = "unpack it and give the folder"
SAVE = "save its arrays by np.savez"
SIGNATURES = {  # the first bytes of a file -> its kind, and the remedy
    b"\x93NUMPY": ("a NumPy .npy file", "np.savez('set.npz', images=np.load(FILE)) makes an .npz"),
    b"\x89HDF": ("an HDF5 file", SAVE),
    b"MATLAB": ("a MATLAB file", SAVE),
    b"\x80": ("a pickle", SAVE),
    b"\x1f\x8b": ("a gzip archive", UNPACK),
    b"BZh": ("a bzip2 archive", UNPACK),
    b"\xfd7zXZ": ("an xz archive", UNPACK),
    b"7z\xbc\xaf": ("a 7z archive", UNPACK),
    b"Rar!": ("a RAR archive", UNPACK),
    b"%PDF": ("a PDF file", "save its pictures as image files"),
}


def list_arrays(file: Path, expected: str = "an .npz file") -> list[str]:
    """Return the names of the arrays of an .npz file; messages name the `expected` kinds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a damaged .npz, or a file of another kind; names the kind and the remedy.
    """
    kind, remedy = _identify(file)
    if kind:
        raise ValueError(f"{file}: {kind}, expected {expected}; {remedy}")
    return npz.names(file)


def _identify(file: Path) -> tuple[str, str]:
    """Return the kind of a file that is no .npz, and the remedy; empty texts for an .npz."""
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file or folder")
    if file.is_dir():
        return "a folder", "give a file in it"
    if not file.is_file():
        return "no regular file", "give one"
    with file.open("rb") as stream:
        head = stream.read(512)
    if head.startswith(b"PK"):
        with npz.opened(file) as archive:
            members = archive.namelist()
        if not members or any(name.endswith(".npy") for name in members):
            return "", ""
        return f"a zip archive of {len(members):,} files ({members[0]}, ...)", UNPACK
    for signature, kind in SIGNATURES.items():
        if head.startswith(signature):
            return kind
    if head[257:262] == b"ustar":
        return "a tar archive", UNPACK
    try:
        with Image.open(file) as image:
            return f"one {image.format} image", "put the images of a set into a folder and give it"
    except Exception:  # any error that foreign bytes cause in Pillow
        pass
    if not head:
        return "an empty file", "make it again"
    text = b"\0" not in head and not any(byte > 126 for byte in head[:64])
    return ("a text file", "give the file that it stands for") if text else ("unknown bytes", SAVE)
