"""Data sets: the contract of every source, what bad files are told, and where files come from."""

import functools
import hashlib
import http.server
import io
import os
import pickle
import struct
import threading
import time
import zipfile

import numpy as np
import pytest
from helpers.sources import NOWHERE, SIZES, arrays, ready, write
from helpers.tiny import flagged

from bloodjax import data
from bloodjax.data.sources import bloodmnist, synthetic

REAL = os.environ.get("BLOODJAX_DATA", "")
SYNTHETIC = "30b43346097cfbad7ac10a1ea6e6ec9a10b2bdd0b5a48ea566da37e64c08f098"


pytestmark = pytest.mark.usefixtures("home")


def heard(capsys):
    return " ".join(capsys.readouterr().err.split())


# the contract of every source


load_once = functools.cache(data.load)


def once(source, split="all", path=""):
    return load_once(source, path, split)


@pytest.mark.parametrize("source", data.names())
def test_contract(source, home, monkeypatch):
    path = ready(source, home, monkeypatch)
    whole, *parts = (once(source, split, path) for split in ("all", *data.SPLITS))
    for part in (whole, *parts):
        assert part.images.dtype == np.uint8 and part.images.ndim == 4
        assert part.images.shape[3] in (1, 3) and part.images.flags.c_contiguous
        assert part.labels.dtype == np.int32 and part.labels.shape == part.images.shape[:1]
        assert part.labels.min() >= 0 and part.labels.max() < len(part.classes)
        assert part.classes == whole.classes and part.name == whole.name and part.name
    np.testing.assert_array_equal(whole.images, np.concatenate([part.images for part in parts]))
    np.testing.assert_array_equal(whole.labels, np.concatenate([part.labels for part in parts]))
    assert len({part.digest for part in (whole, *parts)}) == 4
    assert data.load(source, path, "val").digest == parts[1].digest


def test_digest_sees_pixels_labels_and_shape():
    images, labels = np.zeros((4, 2, 2, 1), np.uint8), np.zeros(4, int)
    turned = images.reshape(4, 4, 1, 1)
    changed = [images + (np.arange(4) == 3).astype(np.uint8)[:, None, None, None], turned, images]
    digests = [data.join([(x, labels)], "a", "x").digest for x in changed]
    digests.append(data.join([(images, labels + 1)], "a", "x").digest)
    assert len(set(digests)) == 4
    halves = [(images[:1], labels[:1]), (images[1:], labels[1:])]
    assert data.join(halves, "a", "y").digest == digests[2]


def test_names_are_the_modules():
    assert data.names() == ("bloodmnist", "folder", "medmnist", "synthetic", "tfds")


def test_unknown_names_are_refused_with_a_suggestion():
    with pytest.raises(ValueError, match="'bloodmist'.*synthetic.*did you mean 'bloodmnist'"):
        data.load("bloodmist")
    with pytest.raises(ValueError, match="'training'.*val, test, all.*did you mean 'train'"):
        data.load("synthetic", split="training")
    with pytest.raises(ValueError, match="'../x': expected one of bloodmnist, .*, tfds, auto$"):
        data.load("../x")


# files


def test_blood_file(home, capsys):
    held = arrays()
    found = data.load(path=str(write(home / "[red]" / "bloodmnist.npz", **held)))
    assert found.name == "bloodmnist" and found.classes == synthetic.CLASSES
    assert found.images.shape == (48, 28, 28, 3)
    np.testing.assert_array_equal(found.images[24:32], held["val_images"])
    np.testing.assert_array_equal(found.labels[32:], held["test_labels"][:, 0])
    assert "[red]/bloodmnist.npz" in (said := heard(capsys)) and "published checksum" in said


def test_published_checksum_is_accepted_silently(home, capsys, monkeypatch):
    file = write(home / "bloodmnist.npz")
    monkeypatch.setattr(bloodmnist, "MD5", hashlib.md5(file.read_bytes()).hexdigest())
    data.load(path=str(file))
    assert heard(capsys) == ""


@pytest.mark.parametrize("shape", [(28, 28), (64, 48), (12, 12, 1), (9, 9, 3)])
def test_other_medmnist_files(home, shape):
    held = arrays(shape, classes=5)
    held |= {f"{split}_labels": held[f"{split}_labels"][:, 0].astype(int) for split in SIZES}
    found = data.load(path=str(write(home / "organmnist.npz", **held)), split="test")
    assert found.images.shape == (16, *shape[:2], 3 if shape[2:] == (3,) else 1)
    assert found.name == "organmnist" and found.classes[4:] == ("class 4",)
    np.testing.assert_array_equal(found.images.ravel(), held["test_images"].ravel())


def test_classes_are_counted_over_all_splits(home):
    held = arrays(train_labels=np.full(24, 6), val_labels=np.zeros(8, int))
    path = str(write(home / "gaps.npz", **held | {"test_labels": np.ones(16, int)}))
    assert len(data.load(path=path, split="val").classes) == 7


IMAGES = arrays()["val_images"]
LABELS = arrays()["val_labels"]
BAD = {
    "images missing": (dict(test_images=None), "test_images"),
    "labels missing": (dict(train_labels=None), "train_labels"),
    "float images": (dict(val_images=IMAGES / 255), "float64"),
    "signed images": (dict(val_images=IMAGES.astype(np.int8)), "int8"),
    "flat images": (dict(val_images=IMAGES.reshape(8, -1)), "[8, 2352]"),
    "volumes": (dict(val_images=np.zeros((8, 9, 9, 9), np.uint8)), "[8, 9, 9, 9]"),
    "no pixels": (dict(val_images=IMAGES[:, :0]), "[8, 0, 28, 3]"),
    "empty split": (dict(val_images=IMAGES[:0], val_labels=LABELS[:0]), "[0, 1]"),
    "other size": (dict(val_images=IMAGES[:, 1:]), "(27, 28, 3)"),
    "count": (dict(val_labels=LABELS[1:]), "8 images and 7 labels"),
    "float labels": (dict(val_labels=LABELS.astype(float)), "float64"),
    "bool labels": (dict(val_labels=LABELS > 0), "bool"),
    "negative label": (dict(val_labels=LABELS.astype(int) - 1), "-1"),
    "huge label": (dict(val_labels=LABELS.astype(np.uint64) + 2**63), str(2**63)),
    "multi-label": (dict(val_labels=np.zeros((8, 14), np.uint8)), "[8, 14]"),
    "scalar labels": (dict(val_labels=np.uint8(3)), "[]"),
    "objects": (dict(val_labels=np.array([{}] * 8, object)), "val_labels"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_refused(home, case):
    changes, found = BAD[case]
    refused(write(home / "bad.npz", **arrays(**changes)), found)


def refused(file, *said):
    """Loading `file` says its name, what was found, what was expected and a way out."""
    for source in ("bloodmnist", "auto"):  # a file that was named is never silently replaced
        with pytest.raises(ValueError) as error:
            data.load(source, path=str(file))
        message = str(error.value)
        for part in (str(file), *said, "expected", "BLOODJAX_DATA"):
            assert part in message
        assert "\n" not in message and error.value.__suppress_context__


def test_bad_containers_are_refused(home):
    whole = write(home / "whole.npz").read_bytes()
    spoilt, garbled = bytearray(whole), bytearray(whole)
    spoilt[2000:2100] = bytes(100)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        place = archive.getinfo("val_labels.npy").header_offset
    garbled[place + 30 + sum(struct.unpack("<HH", whole[place + 26 : place + 30]))] = 0xFF
    single = io.BytesIO()
    np.save(single, IMAGES)
    for name, content in {
        "text.npz": b"<html>404</html>",
        "empty.npz": b"",
        "short.npz": whole[: len(whole) // 2],
        "spoilt.npz": bytes(spoilt),  # another checksum
        "garbled.npz": bytes(garbled),  # cannot be inflated
        "flagged.npz": flagged(whole),
        "single.npy": single.getvalue(),
        "pickle.npz": pickle.dumps({"train_images": 1}),
    }.items():
        (home / name).write_bytes(content)
        refused(home / name)
    (home / "folder.npz").mkdir()
    refused(home / "folder.npz", "a folder", "data.source=folder")
    with zipfile.ZipFile(home / "texts.npz", "w") as archive:
        for key in arrays():
            archive.writestr(f"{key}.npy", "no array")
    refused(home / "texts.npz", "train_images")


class Bomb:
    def __reduce__(self):
        return exec, ("import os; os.environ['BLOODJAX_BOMB'] = 'went off'",)


@pytest.mark.parametrize("key", ["train_labels", "test_images"])
def test_nothing_is_unpickled(home, key):
    file = write(home / "bomb.npz", **arrays(**{key: np.array([Bomb()], object)}))
    refused(file, key)
    assert "BLOODJAX_BOMB" not in os.environ


@pytest.mark.parametrize("source", ["bloodmnist", "auto"])
def test_a_named_file_must_exist(home, source, monkeypatch):
    write(home / ".medmnist" / "bloodmnist.npz")
    with pytest.raises(FileNotFoundError, match="gone.npz.*BLOODJAX_DATA"):
        data.load(source, path=str(home / "gone.npz"))
    monkeypatch.setenv("BLOODJAX_DATA", str(home / "gone.npz"))
    with pytest.raises(FileNotFoundError, match="gone.npz.*BLOODJAX_DATA"):
        data.load(source)


def test_order_of_places(home, monkeypatch):
    kept = write(home / "cache" / "bloodjax" / "bloodmnist.npz", **arrays(seed=1))
    monkeypatch.setattr(bloodmnist, "MD5", hashlib.md5(kept.read_bytes()).hexdigest())
    files = [kept]
    assert [there for _, _, there in bloodmnist.places()] == [False, True]
    pixels = [data.load().images]
    files.append(write(home / ".medmnist" / "bloodmnist.npz", **arrays(seed=2)))
    pixels.append(data.load().images)
    files.append(write(home / "env.npz", **arrays(seed=3)))
    monkeypatch.setenv("BLOODJAX_DATA", "~/env.npz")
    pixels.append(data.load().images)
    files.append(write(home / "path.npz", **arrays(seed=4)))
    pixels.append(data.load(path=str(files[-1])).images)
    for seed, images in enumerate(pixels, start=1):
        np.testing.assert_array_equal(images[:24], arrays(seed=seed)["train_images"])
    found = bloodmnist.places(str(files[-1]))
    assert [file for _, file, _ in found] == files[::-1] and all(there for _, _, there in found)
    assert [label for label, _, _ in found][:2] == ["data.path", "BLOODJAX_DATA"]


# the download


@pytest.fixture
def server(monkeypatch):
    """Serves `server.body` on this machine, claiming `server.length` bytes."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.hits += 1
            self.send_response(self.server.code)
            self.send_header("Content-Length", str(self.server.length or len(self.server.body)))
            self.end_headers()
            self.wfile.write(self.server.body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.body, running.length, running.code, running.hits = b"", 0, 200, 0
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setattr(bloodmnist, "URL", f"http://127.0.0.1:{running.server_port}/b.npz")
        yield running
        running.shutdown()
        thread.join()


def test_download_once(home, server, monkeypatch, capsys):
    server.body = write(home / "served.npz").read_bytes()
    monkeypatch.setattr(bloodmnist, "MD5", hashlib.md5(server.body).hexdigest())
    np.testing.assert_array_equal(data.load("auto").images[:24], arrays()["train_images"])
    assert data.load().name == "bloodmnist" and server.hits == 1
    assert [file.name for file in (home / "cache" / "bloodjax").iterdir()] == ["bloodmnist.npz"]
    said = heard(capsys)
    assert "download" in said and "checksum" not in said and "SYNTHETIC" not in said
    (home / "cache" / "bloodjax" / "bloodmnist.npz").write_bytes(b"damaged")
    assert data.load().name == "bloodmnist" and server.hits == 2


@pytest.mark.parametrize("case", ["other bytes", "cut short", "not found"])
def test_failed_download_leaves_nothing(home, server, case):
    server.body = write(home / "served.npz").read_bytes()
    if case == "cut short":
        server.length = len(server.body) + 1
    if case == "not found":
        server.code = 404
    with pytest.raises(data.UnavailableError, match="Three ways out"):
        data.load()
    assert server.hits == 1 and not list((home / "cache" / "bloodjax").iterdir())


def test_offline_names_the_ways_out(home, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waits to try again"))
    with pytest.raises(data.UnavailableError) as error:
        data.load()
    for way in ("data.path=FILE", "BLOODJAX_DATA=FILE", NOWHERE, "~/.medmnist/bloodmnist.npz"):
        assert way in str(error.value)
    assert "--config.data.source=synthetic" in str(error.value)
    assert "no connection" in str(error.value) and "\n" not in str(error.value)
    assert error.value.__context__ is None and not list((home / "cache" / "bloodjax").iterdir())


def test_auto_falls_back_loudly(capsys):
    found = data.load("auto", split="val")
    assert found.name == "synthetic" and found.digest == once("synthetic", "val").digest
    assert "SYNTHETIC" in heard(capsys)


def test_auto_takes_the_file_at_hand(home, capsys):
    write(home / ".medmnist" / "bloodmnist.npz")
    assert data.load("auto").name == "bloodmnist" and "SYNTHETIC" not in heard(capsys)


# the synthetic cells


def test_synthetic_is_the_same_everywhere():
    assert once("synthetic").digest == SYNTHETIC


def test_synthetic_has_the_classes_of_bloodmnist():
    assert synthetic.CLASSES == bloodmnist.CLASSES
    for split, count in {"train": 11_959, "val": 1_712, "test": 3_421, "all": 17_092}.items():
        assert once("synthetic", split).images.shape == (count, 28, 28, 3)
    for split, counts in synthetic.COUNTS.items():
        assert tuple(np.bincount(once("synthetic", split).labels)) == counts


def test_synthetic_image_depends_on_seed_place_and_label_only(monkeypatch):
    labels = np.arange(40) % 8
    images = synthetic.render(labels, seed=5)
    np.testing.assert_array_equal(synthetic.render(labels[:9], seed=5), images[:9])
    monkeypatch.setattr(synthetic, "CHUNK", 7)
    other = synthetic.render(np.where(np.arange(40) == 3, 0, labels), seed=5)
    changed = np.any(other != images, axis=(1, 2, 3))
    assert changed.tolist() == (np.arange(40) == 3).tolist()
    assert np.all(np.any(synthetic.render(labels, seed=6) != images, axis=(1, 2, 3)))
    assert len(np.unique(synthetic.render([2] * 40), axis=0)) == 40


def test_synthetic_at_other_sizes():
    labels = np.arange(16) % 8
    fine = synthetic.render(labels, size=56).reshape(16, 28, 2, 28, 2, 3).mean(axis=(2, 4))
    assert np.abs(fine - synthetic.render(labels)).mean() < 4  # another cell: 27
    assert synthetic.render(labels, size=9).shape == (16, 9, 9, 3)
    assert synthetic.render([]).shape == (0, 28, 28, 3)


def test_synthetic_reads_no_file():
    with pytest.raises(ValueError, match="x.npz.*synthetic.*data.source=bloodmnist"):
        data.load("synthetic", path="x.npz")


def test_synthetic_is_fast():
    begin = time.monotonic()
    synthetic.render(np.arange(2000) % 8)
    assert time.monotonic() - begin < 15 * 2000 / 17_092 + 1


def test_synthetic_classes_can_be_told_apart():
    def features(x):
        x = x.images.reshape(-1, 7, 4, 7, 4, 3).mean(axis=(2, 4)).reshape(len(x.labels), -1) / 255
        return np.hstack([x, x**2, np.ones((len(x), 1))])

    train, test = once("synthetic", "train"), once("synthetic", "test")
    a, targets = features(train), np.eye(8)[train.labels]
    weights = np.linalg.solve(a.T @ a + 0.1 * np.eye(a.shape[1]), a.T @ targets)
    right = np.argmax(features(test) @ weights, axis=1) == test.labels
    assert min(right[test.labels == k].mean() for k in range(8)) > 0.5  # chance: 0.125


def test_synthetic_colours_are_like_the_real_ones():
    x = once("synthetic").images / 255
    np.testing.assert_allclose(x.mean((0, 1, 2)), (0.7943, 0.6596, 0.6962), atol=0.03)
    np.testing.assert_allclose(x.std((0, 1, 2)), (0.2156, 0.2415, 0.1179), atol=0.03)


# the real file


@pytest.mark.skipif(not REAL, reason="BLOODJAX_DATA names no BloodMNIST file")
def test_real_bloodmnist():
    for split, counts in synthetic.COUNTS.items():
        part = data.load(path=REAL, split=split)
        assert part.name == "bloodmnist" and part.classes == bloodmnist.CLASSES
        assert part.images.shape[1:] == (28, 28, 3)
        assert tuple(np.bincount(part.labels)) == counts
