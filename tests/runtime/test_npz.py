"""Arrays out of .npz files: as they were written, or an error that names the file."""

import io
import os
import zipfile

import numpy as np
import pytest

from bloodjax.runtime import npz

HELD = {"x": np.arange(12, dtype=np.uint8).reshape(3, 4), "text": np.array("b")}
LOCAL, DIRECTORY = b"PK\3\4", b"PK\1\2"  # how the header of a member begins, and its entry


def packed(save=np.savez, **arrays):
    out = io.BytesIO()
    save(out, **(arrays or HELD))
    return out.getvalue()


def changed(raw, at, mask=1):
    return raw[:at] + bytes([raw[at] ^ mask]) + raw[at + 1 :]


def equal(found, expected=HELD):
    return found.keys() == expected.keys() and all(
        found[key].dtype == x.dtype and np.array_equal(found[key], x) for key, x in expected.items()
    )


def refused(file, *only):
    with pytest.raises(ValueError) as error:
        npz.read(file, *only)
    said = str(error.value)
    assert said.startswith(f"{file}: not readable (") and said.endswith("a whole .npz file")
    assert "\n" not in said and len(said) < len(str(file)) + 250
    assert error.value.__suppress_context__
    return said


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back_as_they_were(tmp_path, save):
    file = tmp_path / "a.npz"
    file.write_bytes(packed(save))
    assert equal(npz.read(file)) and npz.names(file) == ["x", "text"]
    assert equal(npz.read(file, "text"), {"text": HELD["text"]})


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_no_bit_can_change_unseen(tmp_path, save):
    """Flip each: the arrays are refused, or what changed is nothing of them (a date, a version)."""
    held, seen = {"x": np.arange(3)}, 0
    file, raw = tmp_path / "a.npz", packed(save, **held)
    for place in range(8 * len(raw)):
        file.write_bytes(changed(raw, place // 8, 1 << place % 8))
        try:
            assert equal(npz.read(file, *held), held), place
        except ValueError as error:
            assert str(file) in str(error)
            seen += 1
    assert seen > 0.5 * 8 * len(raw)


DAMAGED = {
    "data": lambda raw: changed(raw, raw.index(HELD["x"].tobytes())),
    "array's header": lambda raw: raw.replace(b"(3, 4)", b"(2, 4)"),
    "array's type": lambda raw: raw.replace(b"|u1", b"|i1"),
    "encrypted, in the directory": lambda raw: changed(raw, raw.index(DIRECTORY) + 8),
    "method, in the directory": lambda raw: changed(raw, raw.index(DIRECTORY) + 10, 99),
    "version, in the directory": lambda raw: changed(raw, raw.index(DIRECTORY) + 6, 255),
    "checksum, in the directory": lambda raw: changed(raw, raw.index(DIRECTORY) + 16),
    "name, in the directory": lambda raw: changed(raw, raw.index(DIRECTORY) + 46),
    "name, in the header": lambda raw: changed(raw, raw.index(LOCAL) + 30),
    "length of name, in the header": lambda raw: changed(raw, raw.index(LOCAL) + 26, 128),
    "magic of the header": lambda raw: changed(raw, raw.index(LOCAL)),
    "end": lambda raw: raw[:-1],
    "half": lambda raw: raw[: len(raw) // 2],
    "nothing": lambda raw: b"",
    "text": lambda raw: b"<html>404</html>",
    "one array": lambda raw: raw[raw.index(b"\x93NUMPY") :],
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named(tmp_path, case):
    (tmp_path / "a.npz").write_bytes(DAMAGED[case](packed()))
    refused(tmp_path / "a.npz", *HELD)


def test_an_array_that_says_it_is_shorter_is_read_to_its_end(tmp_path):
    raw = packed(x=np.zeros((3, 9999), np.uint8))  # more than zipfile reads at a time
    (tmp_path / "a.npz").write_bytes(raw.replace(b"(3, 9999)", b"(2, 9999)"))
    refused(tmp_path / "a.npz")


def test_deflated_bytes_that_make_no_sense_are_named(tmp_path):
    raw = packed(np.savez_compressed)
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        begin = archive.getinfo("x.npy").header_offset
    at = begin + 30 + sum(raw[begin + 26 : begin + 30 : 2])
    (tmp_path / "a.npz").write_bytes(raw[:at] + b"\xff" + raw[at + 1 :])
    assert "decompress" in refused(tmp_path / "a.npz")


class Bomb:
    def __reduce__(self):
        return exec, ("import os; os.environ['BLOODJAX_BOMB'] = 'went off'",)


def test_nothing_is_unpickled(tmp_path):
    (tmp_path / "a.npz").write_bytes(packed(x=HELD["x"], bomb=np.array([Bomb()], object)))
    assert "bomb" in refused(tmp_path / "a.npz")
    assert npz.read(tmp_path / "a.npz", "x").keys() == {"x"}
    assert "BLOODJAX_BOMB" not in os.environ


def test_an_array_that_is_missing_is_named(tmp_path):
    (tmp_path / "a.npz").write_bytes(packed())
    assert "y.npy" in refused(tmp_path / "a.npz", "x", "y")


def test_a_file_that_is_missing_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="a.npz"):
        npz.read(tmp_path / "a.npz")
