"""Folders of images, MedMNIST's package and TFDS: what they hold, and what bad ones are told."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.sources import NOWHERE, SIZES, arrays, medmnist_at, tfds_at, write, write_folder
from helpers.tiny import torch_with_torchvision
from PIL import Image

from bloodjax import data
from bloodjax.data.sources import bloodmnist, synthetic

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("home")


def same(found, held, split="train"):
    """Pixels and labels are those of the arrays of a MedMNIST file."""
    np.testing.assert_array_equal(np.squeeze(found.images), np.squeeze(held[f"{split}_images"]))
    np.testing.assert_array_equal(found.labels, held[f"{split}_labels"][:, 0])


@pytest.mark.parametrize("source, package", [("medmnist",) * 2, ("tfds", "tensorflow_datasets")])
def test_a_missing_package_is_named_with_its_extra(source, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(data.UnavailableError) as error:
        data.load(source)
    assert f"data.source={source}" in str(error.value) and "\n" not in str(error.value)
    assert f"pip install -e '.[{source}]'" in str(error.value)


# ---- folders


@pytest.mark.parametrize("shape", [(12, 9, 3), (12, 9)])
def test_folder_of_splits(home, shape):
    held = arrays(shape, classes=3)
    folder = write_folder(home / "cells", ("zebra", "Ape", "bee"), **held)
    (folder / "readme.txt").write_text("not an image")
    (folder / ".cache").mkdir()
    order = np.array([2, 0, 1])  # of zebra, Ape and bee when sorted
    for split in SIZES:
        found = data.load("folder", str(folder), split)
        rows = np.argsort(order[held[f"{split}_labels"][:, 0]], kind="stable")
        expected = held[f"{split}_images"][rows].reshape(len(rows), 12, 9, -1)
        np.testing.assert_array_equal(found.images, expected)
        np.testing.assert_array_equal(found.labels, np.sort(order[held[f"{split}_labels"][:, 0]]))
        assert found.classes == ("Ape", "bee", "zebra") and found.name == "cells"
    assert len(data.load("folder", str(folder)).labels) == sum(SIZES.values())


def test_folder_is_read_as_torchvision_reads_it(home):
    torch_with_torchvision()
    reason = "the reference is torchvision"
    torchvision = pytest.importorskip("torchvision.datasets", reason=reason)
    folder = write_folder(home / "cells", ("b", "B", "a10", "a9")) / "train"
    (folder / "b" / "upper.PNG").write_bytes((folder / "b" / "000.png").read_bytes())
    theirs, ours = torchvision.ImageFolder(folder), data.load("folder", str(folder))
    assert list(ours.classes) == theirs.classes and ours.labels.tolist() == theirs.targets
    for mine, (image, _) in zip(ours.images, theirs, strict=True):
        np.testing.assert_array_equal(mine, np.asarray(image))


def test_a_class_may_be_missing_from_a_split(home):
    folder = write_folder(home / "cells", "abc")
    shutil.rmtree(folder / "val" / "b")
    shutil.rmtree(folder / "train" / "a")  # the first that is met is then not the first by name
    val = data.load("folder", str(folder), "val")
    assert val.classes == ("a", "b", "c") and set(val.labels.tolist()) == {0, 2}


def test_one_colour_file_makes_all_splits_colour(home):
    folder = write_folder(home / "cells", **arrays((6, 6), classes=2))
    assert data.load("folder", str(folder), "val").images.shape == (8, 6, 6, 1)
    Image.new("RGB", (6, 6), (9, 90, 200)).save(folder / "test" / "a" / "000.png")
    grey = data.load("folder", str(folder), "val").images
    assert grey.shape == (8, 6, 6, 3) and np.all(grey == grey[..., :1])
    assert data.load("folder", str(folder), "test").images[0, 0, 0].tolist() == [9, 90, 200]


def test_folder_without_splits_or_classes(home):
    folder = write_folder(home / "cells") / "train"
    (folder / "a" / "000.png").rename(folder / "a" / "000.PNG")
    found = data.load("folder", str(folder))
    assert found.classes == ("a", "b") and found.name == "train" and len(found.labels) == 24
    with pytest.raises(ValueError, match="train: it has no splits; expected a folder .*train/val"):
        data.load("folder", str(folder), "val")
    alone = data.load("folder", str(folder / "a"))
    assert alone.classes == ("a",) and alone.labels.tolist() == [0] * 12
    np.testing.assert_array_equal(alone.images, found.images[:12])


@pytest.mark.parametrize("name", ["bloodmnist", "synthetic"])
def test_a_folder_is_not_taken_for_a_source_of_its_name(home, name):
    assert data.load("folder", str(write_folder(home / name))).name == f"folder {name}"


def test_folder_has_only_some_splits(home, monkeypatch):
    folder = write_folder(home / "cells")
    shutil.rmtree(folder / "val")
    monkeypatch.chdir(home)
    assert len(data.load("folder", "cells").labels) == 24 + 16
    with pytest.raises(ValueError, match="it has the splits train, test; expected a folder .*val"):
        data.load("folder", "~/cells", "val")


def spoil_size(folder):
    Image.new("RGB", (28, 27)).save(folder / "val" / "b" / "001.png")


def spoil_depth(folder):
    Image.fromarray(np.zeros((28, 28), np.uint16)).save(folder / "val" / "b" / "001.png")


def spoil_bytes(folder):
    file = folder / "val" / "b" / "001.png"
    file.write_bytes(file.read_bytes()[:500])


BAD_FOLDERS = {
    "two sizes": (spoil_size, "train/a/000.png is 28x28 and .*val/b/001.png 28x27.*resize"),
    "16 bits": (spoil_depth, "val/b/001.png: more than 8 bits a channel, expected 8"),
    "cut short": (spoil_bytes, "val/b/001.png: not a whole image.*replace or remove"),
    "text": (lambda f: (f / "val/b/001.png").write_text("x"), "val/b/001.png: not an image"),
    "empty class": (lambda f: (f / "val/c").mkdir(), "val/c: neither folders nor images.*png"),
    "other folder": (lambda f: (f / "extra").mkdir(), "folders extra beside train, val, test"),
    "too deep": (lambda f: shutil.move(f / "val", f / "train/a/val"), "beside images"),
    "deeper": (lambda f: shutil.copytree(f / "val/a", f / "val/c/d"), "val/c: holds folders; exp"),
    "loose image": (lambda f: shutil.copy(f / "val/b/001.png", f), "folders .* beside images"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folders_are_refused(home, case):
    folder = write_folder(home / "cells")
    spoil, said = BAD_FOLDERS[case]
    spoil(folder)
    with pytest.raises(ValueError, match=said):
        data.load("folder", str(folder))


@pytest.mark.parametrize("path", ["", "gone", "file.txt"])
def test_no_folder(home, path):
    (home / "file.txt").write_text("x")
    with pytest.raises(ValueError, match="data.path='.*expected a folder of images"):
        data.load("folder", path and str(home / path))


# ---- MedMNIST's package


def test_our_constants_are_the_packages():
    facts = pytest.importorskip("medmnist", reason="nothing to compare with").INFO["bloodmnist"]
    names = [facts["label"][str(k)] for k in range(8)]
    assert all(name.startswith(c) for name, c in zip(names, bloodmnist.CLASSES, strict=True))
    assert facts["MD5"] == bloodmnist.MD5 and facts["license"] == "CC BY 4.0"
    assert facts["n_samples"] == {split: sum(n) for split, n in synthetic.COUNTS.items()}


@pytest.mark.parametrize(
    ("shape", "classes", "stem", "name"),
    [
        ((28, 28, 3), 8, "my-bloodmnist", "bloodmnist"),
        ((28, 28, 3), 7, "bloodmnist", "file bloodmnist"),
        ((28, 28), 8, "bloodmnist", "bloodmnist_28"),
        ((28, 28, 3), 8, "synthetic", "file synthetic"),
        ((28, 28, 3), 8, "cells", "cells"),
    ],
)
def test_only_data_like_the_study_s_have_their_name(home, shape, classes, stem, name):
    file = write(home / f"{stem}.npz", **arrays(shape, classes=classes))
    assert data.load("bloodmnist", str(file)).name == name


def test_our_address_is_the_packages():
    info = pytest.importorskip("medmnist", reason="nothing to compare with").INFO
    code = "from bloodjax.data.sources.bloodmnist import URL; print(URL)"  # here it is replaced
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert shown.stdout.strip() == info["bloodmnist"]["url"]


@pytest.mark.parametrize(
    "path, stem, shape, classes",
    [
        ("", "bloodmnist", (28, 28, 3), bloodmnist.CLASSES),
        ("bloodmnist:28", "bloodmnist", (28, 28, 3), bloodmnist.CLASSES),
        ("bloodmnist:64", "bloodmnist_64", (64, 64, 3), bloodmnist.CLASSES),
        ("breastmnist", "breastmnist", (28, 28), ("malignant", "normal, benign")),
        ("organamnist:128", "organamnist_128", (128, 128), 11),
    ],
)
def test_medmnist_is_what_the_package_gives(home, monkeypatch, path, stem, shape, classes):
    held = arrays(shape, classes=8 if "blood" in stem else 2)
    medmnist = medmnist_at(home, monkeypatch, stem, **held)
    flag, _, size = stem.partition("_")
    kind = getattr(medmnist, medmnist.INFO[flag]["python_class"])
    for split in SIZES:
        found = data.load("medmnist", path, split)
        same(found, held, split)
        theirs = kind(split=split, size=int(size or 28))
        for i, (image, target) in enumerate(theirs):
            np.testing.assert_array_equal(np.squeeze(found.images[i]), np.asarray(image))
            assert found.labels[i] == target[0]
        assert found.images.shape[1:] == (*shape[:2], 3 if len(shape) == 3 else 1)
        assert found.name == stem
    assert found.classes == classes or len(found.classes) == classes
    own = data.load("bloodmnist", str(home / ".medmnist" / f"{stem}.npz"))
    found = data.load("medmnist", path)
    assert (found.digest, found.name) == (own.digest, own.name)


@pytest.mark.parametrize(
    "path",
    ["chestmnist", "organmnist3d", "pathmnst", "PathMNIST", "bloodmnist_64"]
    + ["bloodmnist:32", "bloodmnist:028", "bloodmnist:big", ":", "x.npz"],
)
def test_unknown_medmnist_sets_are_refused_early(home, monkeypatch, path):
    medmnist = medmnist_at(home, monkeypatch)
    monkeypatch.setattr(medmnist.dataset.MedMNIST, "__init__", lambda *a, **k: pytest.fail("work"))
    flags = ", ".join(f for f in medmnist.INFO if f != "chestmnist" and not f.endswith("3d"))
    if path == ":":
        path = "bloodmnist:64:64"
    with pytest.raises(ValueError) as error:
        data.load("medmnist", path)
    assert f"data.path={path!r}" in str(error.value) and "\n" not in str(error.value)
    assert f": {flags};" in str(error.value) and "28, 64, 128, 224" in str(error.value)


def test_a_failed_download_says_the_ways_out(home, monkeypatch, capsys):
    medmnist = medmnist_at(home, monkeypatch)
    monkeypatch.setitem(medmnist.INFO["pathmnist"], "url_64", NOWHERE)
    with pytest.raises(data.UnavailableError) as error:
        data.load("medmnist", "pathmnist:64")
    said = str(error.value)
    for part in (NOWHERE, "~/.medmnist/pathmnist_64.npz", "data.source=bloodmnist", "synthetic"):
        assert part in said
    assert "refused" in said and "\n" not in said and error.value.__suppress_context__


def test_a_stopped_download_stops(home, monkeypatch):
    medmnist_at(home, monkeypatch)
    from torchvision.datasets import utils  # what the package downloads with

    def stopped(**options):
        raise SystemExit(130)

    monkeypatch.setattr(utils, "download_url", stopped)
    with pytest.raises(SystemExit, match="130"):
        data.load("medmnist", "pathmnist")


# ---- TFDS


@pytest.fixture
def tfds(home, monkeypatch):
    return tfds_at(home, monkeypatch)


def prepare(tfds, home, features, examples, name="few", keys=("image", "label"), **info):
    """Prepare a set of {split: [example, ...]} and return its folder."""

    def describe(self):
        kinds = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=kinds, supervised_keys=keys, **info)

    def generate(self, dl_manager):
        return {split: enumerate(rows) for split, rows in examples.items()}

    methods = {"_info": describe, "_split_generators": generate, "_generate_examples": None}
    body = {"VERSION": tfds.core.Version("2.0.1"), "name": name, **methods}
    base = tfds.core.GeneratorBasedBuilder
    kind = type(base)("Few", (base,), body, skip_registration=True)
    builder = kind(data_dir=home / "tensorflow_datasets")
    builder.download_and_prepare(file_format="array_record")
    return builder.data_dir


def picture(value, shape=(9, 12), mode="L"):
    return Image.new(mode, shape[::-1], value if mode == "L" else (value, 7, 0))


def test_blood_mnist_is_prepared_once_from_the_npz(home, tfds, monkeypatch):
    held = arrays()
    file = write(home / "bloodmnist.npz", **held)
    monkeypatch.setenv("BLOODJAX_DATA", str(file))
    own = {split: data.load("bloodmnist", "", split) for split in ("all", *SIZES)}
    for path in ("", "blood_mnist", "blood_mnist:1.0.0"):
        for split in own:
            found = data.load("tfds", path, split)
            assert (found.digest, found.name) == (own[split].digest, "bloodmnist")
            assert found.classes == bloodmnist.CLASSES
            file.unlink(missing_ok=True)
    folder = home / "tensorflow_datasets/blood_mnist/1.0.0"
    assert data.load("tfds", str(folder)).digest == own["all"].digest
    theirs = tfds.data_source("blood_mnist", split="validation", data_dir=folder.parent.parent)
    same(data.load("tfds", "", "val"), held, "val")
    for i, example in enumerate(theirs):
        np.testing.assert_array_equal(example["image"], held["val_images"][i])


CODE = """
import sys
from bloodjax import data
found = data.load("tfds")
assert "tensorflow" not in sys.modules and "tensorflow_datasets" in sys.modules
print(found.digest)
"""


def test_tensorflow_is_not_imported_and_the_default_folder_is_that_of_tfds(home, tfds):
    file = write(home / "bloodmnist.npz")
    places = {"TFDS_DATA_DIR": str(home / "sets"), "BLOODJAX_DATA": str(file)}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | places, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == data.load(path=str(file)).digest
    assert (home / "sets/blood_mnist/1.0.0/dataset_info.json").is_file()


@pytest.mark.parametrize("shape", [(28, 28), (64, 64, 3)])
def test_blood_mnist_is_of_no_other_file(home, tfds, monkeypatch, shape):
    monkeypatch.setenv("BLOODJAX_DATA", str(write(home / "bloodmnist.npz", **arrays(shape))))
    with pytest.raises(ValueError, match=r"DATA is bloodmnist_(28|64) of .*needs BloodMNIST"):
        data.load("tfds")
    assert not (home / "tensorflow_datasets/blood_mnist/1.0.0").exists()


def test_blood_mnist_needs_bloodmnist(tfds):
    with pytest.raises(data.UnavailableError, match="Three ways out"):
        data.load("tfds")


def test_a_foreign_set(home, tfds):
    features = {
        "number": tfds.features.Text(),
        "scan": tfds.features.Image(shape=(9, 12, 1)),
        "kind": tfds.features.ClassLabel(names=["x", "y", "z"]),
    }
    splits = {"test": range(5), "train": range(5, 40), "extra": range(3)}
    rows = {
        split: [{"number": str(i), "scan": picture(i), "kind": "xyz"[i % 3]} for i in places]
        for split, places in splits.items()
    }
    folder = prepare(tfds, home, features, rows, keys=("scan", "kind"))
    for path in ("few", "few:2.0.1", str(folder)):
        found = data.load("tfds", path)
        assert found.images.shape == (40, 9, 12, 1) and found.name == "few"
        assert found.classes == ("x", "y", "z")
        values = found.images[:, 4, 4, 0]
        assert sorted(values[:35]) == [*range(5, 40)] and sorted(values[35:]) == [*range(5)]
        np.testing.assert_array_equal(found.labels, values % 3)
    theirs = tfds.builder_from_directory(folder).as_data_source("test")
    for mine, example in zip(data.load("tfds", "few", "test").images, theirs, strict=True):
        np.testing.assert_array_equal(mine, example["scan"])
    with pytest.raises(ValueError, match="data.path='few': no split 'val'; the set has .*extra"):
        data.load("tfds", "few", "val")


def test_grey_files_of_a_colour_set_are_colour(home, tfds):
    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(num_classes=2),
    }
    modes = ("L", "RGB", "RGBA", "L")
    rows = [{"image": Image.new(mode, (4, 5), 0), "label": 1} for mode in modes]
    folder = prepare(tfds, home, features, {"train": rows}, keys=None)
    found = data.load("tfds", str(folder))
    assert found.images.shape == (4, 5, 4, 3) and found.classes == ("0", "1")


def bad_sets(tfds):
    image, label = tfds.features.Image(shape=(9, 12, 1)), tfds.features.ClassLabel(num_classes=3)
    row, grey = {"image": picture(1), "label": 2}, {"image": image, "label": label}
    wide = np.full((9, 12), 500, np.uint16)
    alpha = tfds.features.Image(shape=(9, 12, 4))
    deep = tfds.features.Image(shape=(9, 12, 1), dtype=np.uint16)
    free = tfds.features.Image(shape=(None, None, 1))
    two = row | {"image": picture(1, (8, 12))}
    array = tfds.features.Tensor(shape=(2, 2, 1), dtype=np.uint8)
    return {
        "no class": (grey | {"label": tfds.features.Text()}, [row | {"label": "a"}], "Text"),
        "number": (grey | {"label": np.int64}, [row], "int64"),
        "no image": ({"label": label}, [{"label": 1}], "ClassLabel"),
        "array": (grey | {"image": array}, [row | {"image": np.zeros((2, 2, 1), np.uint8)}], "Ten"),
        "alpha": (grey | {"image": alpha}, [row | {"image": picture(1, mode="RGBA")}], "4)"),
        "16 bits": (grey | {"image": deep}, [row | {"image": Image.fromarray(wide)}], "uint16"),
        "two shapes": (grey | {"image": free}, [row, two], "expected one shape"),
        "no label": (grey, [row | {"label": -1}], "has no class"),
    }


BAD_SETS = ["no class", "number", "no image", "array", "alpha", "16 bits", "two shapes", "no label"]


@pytest.mark.parametrize("case", BAD_SETS)
def test_unfit_sets_are_refused(home, tfds, case):
    features, rows, said = bad_sets(tfds)[case]
    folder = prepare(tfds, home, features, {"train": rows}, keys=None)
    with pytest.raises(ValueError) as error:
        data.load("tfds", str(folder))
    assert f"data.path={str(folder)!r}" in str(error.value) and "\n" not in str(error.value)
    assert said in str(error.value)


def test_sets_that_are_not_here_say_how_to_get_them(home, tfds):
    (home / "folder").mkdir()
    for path in ("mnist", "mnits", "mnist:9.9.9", "no name", str(home / "folder"), "../gone"):
        with pytest.raises(data.UnavailableError) as error:
            data.load("tfds", path)
        said = str(error.value)
        assert f"data.path={path!r}" in said and "\n" not in said
        assert "tfds build NAME --file_format=array_record" in said and "TFDS_DATA_DIR" in said


@pytest.fixture
def few(home, tfds):
    image, label = tfds.features.Image(shape=(9, 12, 1)), tfds.features.ClassLabel(num_classes=3)
    rows = [{"image": picture(i), "label": i % 3} for i in range(9)]
    return Path(prepare(tfds, home, {"image": image, "label": label}, {"train": rows}))


def test_another_format_says_what_to_do(few):
    file = few / "dataset_info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(data.UnavailableError, match="TFRECORD is not supported.*=array_record"):
        data.load("tfds", "few")


def test_damaged_sets_are_refused(few):
    (records,) = few.glob("*.array_record*")
    whole = records.read_bytes()
    middle = len(whole) // 2
    for damaged in (whole[:middle], whole[:middle] + bytes(200) + whole[middle + 200 :]):
        records.write_bytes(damaged)
        with pytest.raises(ValueError, match="data.path='few': damaged .*prepare the set again"):
            data.load("tfds", "few")
    (few / "dataset_info.json").write_text("{")
    with pytest.raises(data.UnavailableError, match="no prepared set that can be read"):
        data.load("tfds", "few")


# ---- the whole way


@pytest.mark.slow
def test_grey_images_are_trained_sampled_and_scored(home, file):
    few = data.load("synthetic", split="val")
    grey = few.images.mean(3).round().astype(np.uint8)
    rows = {"train": slice(0, 24), "val": slice(24, 32), "test": slice(32, 48)}
    held = {f"{split}_images": grey[s] for split, s in rows.items()}
    held |= {f"{split}_labels": few.labels[s, None] % 2 for split, s in rows.items()}
    folder = write_folder(home / "grey cells", **held)
    command = [sys.executable, "launch.py", "--config=configs/vae.py:quick"]
    command += ["--config.data.source=folder", f"--config.data.path={folder}"]
    command += ["--config.method.width=4", "--config.train.epochs=1", "--config.train.batch_size=8"]
    command += ["--config.sample.count=6", "--config.score.count=6"]
    command += ["--config.score.features=bloodnet,inception", f"--workdir={home / 'run'}"]
    env = os.environ | {"BLOODJAX_INCEPTION": str(file)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(home / "run/samples.npz") as samples:
        assert samples["images"].shape == (1, 6, 28, 28, 1)
    scores = json.loads((home / "run/scores.json").read_text())["scores"]
    assert {score["name"].split("-")[0] for score in scores} == {"fd_bloodnet", "fd_inception"}
    assert all(score["value"] > 0 and score["n_real"] == 6 for score in scores)
    assert json.loads((home / "run/config.json").read_text())["dataset"]["name"] == "grey cells"
    assert (home / "run/report/index.html").is_file()
