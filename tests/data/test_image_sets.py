"""Sets of images are checked whole before they are read; other files are called what they are."""

import io
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from helpers.pictures import encode, png
from PIL import Image

from bloodjax.data.file_kinds import list_arrays
from bloodjax.data.image_sets import open_images


def cells(n=6, channels=3, size=(5, 7)):
    return np.random.default_rng(0).integers(0, 256, (n, *size, channels), np.uint8)


def read(path, batch=4, **options):
    images = open_images(path, batch, **options)
    parts = list(images.read())
    assert sum(map(len, parts)) == images.size and max(map(len, parts)) <= batch
    return np.concatenate(parts)


def put(folder, images, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        (folder / f"{i:03}{suffix}").write_bytes(png(image))
    return folder


def heard(capsys):
    return capsys.readouterr().err.splitlines()


# ---- arrays ------------------------------------------------------------------------------------


ROWS = {"train": slice(0, 3), "val": slice(3, 4), "test": slice(4, 6)}
ARRAYS = {
    "a run's samples": {"images": cells(), "labels": np.zeros(6, int)},
    "one seed": {"images": cells()[None], "seeds": [3]},
    "improved-diffusion's": {"arr_0": cells(), "arr_1": np.zeros(6, int)},
    "MedMNIST's": {f"{split}_images": cells()[rows] for split, rows in ROWS.items()},
    "only train": {"train_images": cells(), "train_labels": np.zeros(6, int)},
    "floats": {"images": (cells() / 255).astype(np.float32)},
    "half precision": {"images": (cells() / 255).astype(np.float16)},
    "big-endian floats": {"images": (cells() / 255).astype(">f8")},
    "another order in memory": {"images": np.asfortranarray(cells())},
}


@pytest.mark.parametrize("case", ARRAYS)
def test_an_npz_is_read(tmp_path, case):
    np.savez(tmp_path / "x.npz", **ARRAYS[case])
    np.testing.assert_array_equal(read(tmp_path / "x.npz"), cells())


def test_grey_arrays_are_read_as_colour(tmp_path):
    grey = cells(channels=1)
    for images in (grey, grey[..., 0]):
        np.savez(tmp_path / "x.npz", images=images)
        np.testing.assert_array_equal(read(tmp_path / "x.npz"), np.repeat(grey, 3, axis=3))


FLOATS = cells() / 255
REFUSED = {
    "channels first": (cells().transpose(0, 3, 1, 2), "channels first: images.transpose(0, 2, 3,"),
    "floats in [-1, 1]": (2 * FLOATS - 1, "from [-1, 1]: (images + 1) / 2"),
    "floats in 0..255": (255 * FLOATS, "from 0..255: images.round().astype(np.uint8)"),
    "floats of any range": (FLOATS * 1e6 - 7, "look at what made them"),
    "nan": (np.where(FLOATS > 0.5, np.nan, FLOATS), "range from nan"),
    "infinite": (np.where(FLOATS > 0.99, np.inf, FLOATS), "to inf"),
    "out of range at the very end": (np.append(FLOATS[:5], FLOATS[5:] + 2, 0), "range from"),
    "integers": (cells().astype(np.int64), "images.astype(np.uint8)"),
    "16 bits": (cells().astype(np.uint16) * 257, "scale them to 0..255, then astype(np.uint8)"),
    "signed": (cells().astype(np.int16) - 128, "look at what made this array"),
    "yes and no": (cells() > 128, "images * np.uint8(255)"),
    "complex": (cells() * 1j, "complex128"),
    "text": (cells().astype(str), "<U3"),
    "objects": (cells().astype(object), "allow_pickle=False"),
    "transparency": (cells(channels=4), "transparency: images[..., :-1]"),
    "labels": (np.arange(6), "shape (6,): expected (N, H, W, C)"),
    "features": (np.zeros((6, 2048)), "shape (6, 2048): expected (N, H, W, C)"),
    "one picture": (cells()[0], "(5, 7, 3), one picture"),
    "one picture, channels first": (cells()[0].transpose(2, 0, 1), "(3, 5, 7), one picture"),
    "a number": (np.uint8(3), "shape (): expected (N, H, W, C)"),
    "no pixels": (cells()[:, :0], "[6, 0, 7, 3]"),
    "volumes": (np.zeros((6, 9, 9, 9, 1), np.uint8), "shape (6, 9, 9, 9, 1)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_array_that_is_no_images_is_refused_at_once(tmp_path, case):
    array, reason = REFUSED[case]
    np.savez(tmp_path / "x.npz", images=array)
    with pytest.raises(ValueError) as error:
        open_images(tmp_path / "x.npz", 4)
    message = str(error.value)
    assert reason in message and message.count(str(tmp_path)) == 1 and "\n" not in message


def test_samples_of_several_seeds_need_one(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.stack([cells(), 255 - cells()]), seeds=[4, 7])
    np.testing.assert_array_equal(read(tmp_path / "x.npz", seed=7), 255 - cells())
    for seed in (None, 5):
        with pytest.raises(ValueError, match="x.npz: samples of the seeds 4, 7: choose one with"):
            open_images(tmp_path / "x.npz", 4, seed=seed)


@pytest.mark.parametrize("seeds", [7, [4, 7, 9]])
def test_seeds_that_do_not_fit_the_samples_are_refused(tmp_path, seeds):
    np.savez(tmp_path / "x.npz", images=np.stack([cells(), cells()]), seeds=seeds)
    with pytest.raises(ValueError, match="x.npz: seeds of shape"):
        open_images(tmp_path / "x.npz", 4)


def test_what_an_npz_without_images_holds_is_listed(tmp_path):
    for arrays, listing in (({}, "nothing"), ({"x": 1, "labels": 2}, "x, labels")):
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(ValueError, match=f"x.npz: {listing}: expected images, train_images"):
            open_images(tmp_path / "x.npz", 4)


# ---- folders -----------------------------------------------------------------------------------


def test_a_folder_is_read_by_size_and_grey_beside_colour(tmp_path, capsys):
    folder = put(tmp_path / "a b, ü", cells())
    (folder / "large.png").write_bytes(png(cells(1, size=(9, 7))[0]))
    (folder / "z.png").write_bytes(png(cells(1, 1)[0]))
    parts = [*open_images(folder, 4, workers=0).read()]
    assert [part.shape for part in parts] == [(4, 5, 7, 3), (3, 5, 7, 3), (1, 9, 7, 3)]
    np.testing.assert_array_equal(np.concatenate(parts[:2])[:6], cells())
    np.testing.assert_array_equal(parts[1][2], np.repeat(cells(1, 1)[0], 3, axis=2))
    assert [line for line in heard(capsys) if "not read" in line] == []


def test_other_files_in_a_folder_are_reported(tmp_path, capsys):
    folder = put(tmp_path / "a", cells())
    for name in ("notes.txt", "movie.gif", "._000.png", ".DS_Store", "Thumbs.db"):
        (folder / name).write_bytes(b"x")
    put(folder / "deeper", cells())
    (folder / "__MACOSX").mkdir()
    assert len(read(folder)) == 6
    unread = [line for line in heard(capsys) if "not read" in line]
    assert unread == [
        f"{folder}: not read: 2 other files (movie.gif, notes.txt)",
        f"{folder}: not read: 1 folders (deeper)",
    ]


def test_what_is_done_to_images_is_counted_aloud(tmp_path, capsys):
    folder, exif = put(tmp_path / "a", cells()), Image.Exif()
    exif[0x0112] = 6
    for name in ("turned", "too"):
        (folder / f"{name}.png").write_bytes(encode(cells()[0], "png", exif=exif))
    assert [part.shape[1:3] for part in open_images(folder, 9).read()] == [(5, 7), (7, 5)]
    assert f"{folder}: 2 images turned upright by EXIF" in "\n".join(heard(capsys))


def test_a_damaged_image_is_found_before_the_first_is_given_out(tmp_path):
    folder = put(tmp_path / "a", cells())
    (folder / "zz.png").write_bytes(png(cells()[0])[:-30])
    with pytest.raises(ValueError, match="zz.png: not a whole image"):
        open_images(folder, 2)


def test_black_images_are_noted(tmp_path, capsys):
    dark = (cells() > 128).astype(np.uint8)
    np.savez(tmp_path / "x.npz", images=dark)
    for path in (tmp_path / "x.npz", put(tmp_path / "a", dark)):
        np.testing.assert_array_equal(read(path), dark)
        assert f"{path}: all pixels are 0 or 1 of 255" in "\n".join(heard(capsys))


@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        ([], "no images; expected files ending in .bmp, .jpg"),
        ([".DS_Store", "._x.png"], "no images; expected"),
        (["a.gif", "b.npy"], r"no images among its files \(a.gif, b.npy\); expected"),
        (["train/x.png", "val/x.png"], r"no images in it, but folders \(train, val\): give one"),
    ],
    ids=["empty", "leftovers", "other files", "folders"],
)
def test_a_folder_without_images_gets_its_remedy(tmp_path, inside, reason):
    for name in inside:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(b"x")
    (tmp_path / "set").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=reason):
        open_images(tmp_path / "set", 4)


def test_linked_folders_and_files_are_followed(tmp_path):
    folder = put(tmp_path / "a", cells())
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "b").mkdir()
    for file in folder.iterdir():
        (tmp_path / "b" / file.name).symlink_to(file)
    for path in (tmp_path / "link", tmp_path / "b"):
        np.testing.assert_array_equal(read(path), cells())


# ---- other files -------------------------------------------------------------------------------


def zipped(**members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def tarred():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x.png"))
    return out.getvalue()


def saved():
    out = io.BytesIO()
    np.save(out, cells())
    return out.getvalue()


KINDS = {
    "x.png": (png(cells()[0]), "one PNG image", "put the images of a set into a folder"),
    "x.jpg": (encode(cells()[0], "jpeg"), "one JPEG image", "put the images"),
    "x.gif": (encode(cells()[0], "gif"), "one GIF image", "put the images"),
    "x.npy": (saved(), "a NumPy .npy file", "np.savez('set.npz', images=np.load(FILE))"),
    "x.zip": (zipped(**{"a/1.png": b"", "a/2.png": b""}), "a zip archive of 2 files", "unpack it"),
    "weights.pth": (zipped(**{"a/data.pkl": b""}), "a zip archive of 1 files", "unpack it"),
    "x.tar": (tarred(), "a tar archive", "unpack it and give the folder"),
    "x.tar.gz": (b"\x1f\x8b\x08", "a gzip archive", "unpack it"),
    "x.7z": (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    "x.h5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "save its arrays by np.savez"),
    "x.mat": (b"MATLAB 5.0 MAT-file", "a MATLAB file", "np.savez"),
    "x.pkl": (pickle.dumps({"images": 1}), "a pickle", "np.savez"),
    "x.csv": (b"file,label\n1.png,3\n", "a text file", "give the file that it stands for"),
    "link.npz": (b"version https://git-lfs.github.com/spec/v1\n", "a text file", "give the file"),
    "page.npz": (b"<html>404</html>", "a text file", "give the file"),
    "x.npz": (b"", "an empty file", "make it again"),
    "noise.npz": (bytes(range(200, 256)), "unknown bytes", "np.savez"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_is_no_npz_is_called_what_it_is(tmp_path, name):
    raw, kind, remedy = KINDS[name]
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError) as error:
        list_arrays(tmp_path / name, "images or so")
    assert f"{tmp_path / name}: {kind}" in str(error.value) and "\n" not in str(error.value)
    assert "expected images or so; " in str(error.value) and remedy in str(error.value)


def test_an_npz_lists_its_arrays_and_a_cut_one_is_damaged(tmp_path):
    np.savez(tmp_path / "x.npz", a=1, b=2)
    assert list_arrays(tmp_path / "x.npz") == ["a", "b"]
    raw = (tmp_path / "x.npz").read_bytes()
    for length in range(4, len(raw), 50):
        (tmp_path / "x.npz").write_bytes(raw[:length])
        with pytest.raises(ValueError, match="x.npz: not readable .*expected a whole .npz file"):
            list_arrays(tmp_path / "x.npz")


def test_paths_that_are_no_files_are_called_what_they_are(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for name in ("gone", "link", "a\nb"):
        with pytest.raises(FileNotFoundError, match="no such file or folder"):
            list_arrays(tmp_path / name)
    with pytest.raises(ValueError, match="a folder, expected"):
        list_arrays(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: no regular file, expected"):
        list_arrays(tmp_path / "pipe")
