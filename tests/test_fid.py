"""`python -m bloodjax.fid`: what it takes, what it says, and pytorch-fid's command beside it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny import flagged, torch_reference
from PIL import Image

from bloodjax import features, fid
from bloodjax.data.image_sets import open_images
from bloodjax.data.sources import synthetic
from bloodjax.scoring.distances import Moments, frechet

ROOT = Path(__file__).parent.parent


def rng(*seed):
    return np.random.default_rng(seed)


def put(folder, images, suffix=".png"):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:04d}{suffix}")
    return folder


@pytest.fixture(scope="module")
def cells():
    return synthetic.render(np.arange(24) % 8)


@pytest.fixture(scope="module")
def noise():
    return rng(1).integers(0, 256, (20, 28, 28, 3), dtype=np.uint8)


@pytest.fixture
def run(file, capsys):
    """The command with random weights and few features; what it printed."""

    def command(*args):
        capsys.readouterr()
        fid.main(["--weights", str(file), "--dims", "64", *map(str, args)])
        return capsys.readouterr().out

    return command


@pytest.fixture
def fails(run, capsys):
    """The one line that it says when it refuses."""

    def command(*args):
        with pytest.raises(SystemExit) as stop:
            run(*args)
        assert stop.value.code == 1
        said = capsys.readouterr()
        assert not said.out
        return said.err.splitlines()[-1]

    return command


# ---- what it takes -----------------------------------------------------------------------------


def test_json_says_all(run, tmp_path, cells, noise, file):
    a, b = put(tmp_path / "a", cells), put(tmp_path / "b", noise)
    result = json.loads(run(a, b, "--json"))
    space = fid.features.make("inception", weights=str(file), dims=64)
    x, y = space.features(cells), space.features(noise)
    assert result["value"] == pytest.approx(frechet(Moments.of(x), Moments.of(y)), rel=1e-6)
    assert result["name"] == space.distance == f"fd_inception-{space.sha256[:8]}-64"
    assert (result["n_a"], result["n_b"], result["dims"]) == (24, 20, 64)
    assert (result["protocol"], result["extractor_sha256"]) == ("pytorch-fid", space.sha256)
    assert {"bloodjax", "jax", "numpy", "python"} <= result["versions"].keys()


def test_prints_as_pytorch_fid_does(run, tmp_path, cells, noise):
    a, b = put(tmp_path / "a", cells), put(tmp_path / "b", noise)
    name, value = run(a, b).split(":  ")
    assert name.startswith("FD-inception-") and float(value) > 0


def test_called_fid_with_the_published_weights_alone(
    tmp_path, cells, noise, file, monkeypatch, capsys
):
    a, b = put(tmp_path / "a", cells[:2]), put(tmp_path / "b", noise[:2])
    sha256 = fid.features.make("inception", weights=str(file)).sha256
    monkeypatch.setattr("bloodjax.features.inception.weights.TENSORS", sha256)
    for options, name in (([], "FID:  "), (["--protocol", "clean"], "FID (clean):  ")):
        fid.main([str(a), str(b), "--weights", str(file), *options])
        assert capsys.readouterr().out.startswith(name)


def test_a_folder_is_its_images_in_any_form(tmp_path, cells):
    forms = {
        "folder": put(tmp_path / "folder", cells),
        "capitals": put(tmp_path / "capitals", cells[::-1], ".PNG"),
        "grown": put(tmp_path / "grown", cells, ".bmp"),
    }
    np.savez(tmp_path / "images.npz", images=cells)
    np.savez(tmp_path / "floats.npz", images=np.float32(cells / 255))
    splits = {"train": cells[:9], "val": cells[9:10], "test": cells[10:]}
    np.savez(tmp_path / "medmnist.npz", **{f"{k}_images": v for k, v in splits.items()})
    (forms["folder"] / "notes.txt").write_text("not an image")
    (forms["folder"] / "below").mkdir()
    files = [*forms.values(), *(tmp_path / f"{n}.npz" for n in ("images", "floats", "medmnist"))]
    for form in files:
        images = open_images(form, batch=10)
        assert images.size == len(cells)
        pixels = np.concatenate([*images.read()])
        np.testing.assert_array_equal(pixels[::-1] if form.name == "capitals" else pixels, cells)


def test_the_samples_of_one_seed(run, tmp_path, cells, noise):
    np.savez(tmp_path / "samples.npz", images=np.stack([noise, cells[:20]]), seeds=[4, 7])
    others, few = put(tmp_path / "others", noise), put(tmp_path / "few", cells[:20])
    of_a_seed = run(tmp_path / "samples.npz", others, "--seed", "7")
    np.testing.assert_allclose(*(float(x.split(":")[1]) for x in (of_a_seed, run(few, others))))


def test_images_of_many_sizes(run, tmp_path, cells, noise):
    folder = put(tmp_path / "mixed", cells[:6])
    for i, size in enumerate([(28, 30), (45, 28), (28, 30), (300, 310)]):
        Image.fromarray(cells[6 + i]).resize(size, Image.NEAREST).save(folder / f"x{i}.png")
    Image.fromarray(cells[9, :, :, 0]).save(folder / "grey.png")
    result = json.loads(run(folder, put(tmp_path / "b", noise), "--json", "--batch-size", "2"))
    assert result["n_a"] == 11


def test_batch_size_and_order_do_not_change_the_score(run, tmp_path, cells, noise):
    b = put(tmp_path / "b", noise)
    values = []
    for i, batch in enumerate((50, 1, 7)):
        a = put(tmp_path / f"a{i}", rng(i).permutation(cells))
        values.append(json.loads(run(a, b, "--json", "--batch-size", batch))["value"])
    np.testing.assert_allclose(values, values[0], rtol=1e-6)


def test_several_batches_at_a_time(file, tmp_path, cells, noise, monkeypatch, capsys):
    """More than one, so that the extractor computes a batch while it fetches the one before."""
    sizes, make_it = [], features.make

    def make(*args, **options):
        space = make_it(*args, **options)
        return space._replace(features=lambda x: sizes.append(len(x)) or space.features(x))

    monkeypatch.setattr(features, "make", make)
    np.savez(tmp_path / "b.npz", images=noise)
    paths = str(put(tmp_path / "a", cells)), str(tmp_path / "b.npz")
    fid.main([*paths, "--weights", str(file), "--dims", "64", "--batch-size", "2"])
    assert sizes == [8, 8, 8] + [8, 8, 4]


@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME")
def test_programs_are_kept_for_the_next_start(file, tmp_path, cells):
    folders = [str(put(tmp_path / name, cells[:2])) for name in "ab"]
    command = [sys.executable, "-m", "bloodjax.fid", *folders, "--weights", str(file)]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([*command, "--dims", "64"], check=True, env=environment, cwd=ROOT)
    kept = [path.name for path in (tmp_path / "cache/bloodjax/xla").glob("*-cache")]
    assert any("one_tap" in name for name in kept), kept


# ---- statistics --------------------------------------------------------------------------------


def test_statistics_stand_for_the_images(run, tmp_path, cells, noise):
    a, b = put(tmp_path / "a", cells), put(tmp_path / "b", noise)
    assert run("--save-stats", a, tmp_path / "a.npz") == ""
    with np.load(tmp_path / "a.npz") as content:
        assert content["mu"].shape == (64,) and content["sigma"].shape == (64, 64)
        assert content["mu"].dtype == content["sigma"].dtype == np.float64
    expected = json.loads(run(a, b, "--json"))
    found = json.loads(run(tmp_path / "a.npz", b, "--json"))
    assert found.pop("value") == pytest.approx(expected.pop("value"), rel=1e-9)
    assert found == expected


def test_two_statistics_need_no_network(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fid.features, "make", None)
    for i in range(2):
        x = rng(i).normal(i, 1 + i, (500, 4))
        np.savez(tmp_path / f"{i}.npz", mu=x.mean(0), sigma=np.cov(x, rowvar=False))
    fid.main([str(tmp_path / "0.npz"), str(tmp_path / "1.npz")])
    said = capsys.readouterr()
    assert said.out.startswith("FD:  ") and float(said.out.split()[1]) == pytest.approx(8, 0.2)
    assert "does not say which weights" in said.err


def test_foreign_statistics_are_used_and_said_to_be_so(run, tmp_path, cells, noise, capsys, file):
    np.savez(tmp_path / "foreign.npz", mu=np.zeros(64), sigma=np.eye(64))
    fid.main(
        [str(tmp_path / "foreign.npz"), str(put(tmp_path / "b", noise))]
        + ["--json", "--weights", str(file), "--dims", "64"]
    )
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert "foreign.npz does not say" in said.err and result["n_a"] is None
    assert result["unverified"] == [str(tmp_path / "foreign.npz")]
    run("--save-stats", tmp_path / "foreign.npz", tmp_path / "copy.npz")
    assert json.loads(run(tmp_path / "foreign.npz", tmp_path / "copy.npz", "--json"))["n_b"] is None


def test_different_protocols_are_not_compared(run, fails, tmp_path, cells, noise):
    run("--save-stats", put(tmp_path / "a", cells), tmp_path / "a.npz", "--protocol", "clean")
    said = fails(tmp_path / "a.npz", put(tmp_path / "b", noise))
    assert "made with protocol clean" in said and "with pytorch-fid: expected the same" in said
    assert "exists" in fails("--save-stats", tmp_path / "a", tmp_path / "a.npz")


# ---- what it refuses ---------------------------------------------------------------------------


def spoil_truncated(folder):
    file = folder / "0003.png"
    file.write_bytes(file.read_bytes()[:-200])
    return "0003.png"


def spoil_text(folder):
    (folder / "0002.jpg").write_text("<html>not found</html>")
    return "0002.jpg"


def spoil_depth(folder):
    Image.fromarray(np.full((28, 28), 40000, np.uint16)).save(folder / "0004.png")
    return "0004.png.*more than 8 bits"


@pytest.mark.parametrize("spoil", [spoil_truncated, spoil_text, spoil_depth])
def test_an_unreadable_image_is_named(fails, tmp_path, cells, spoil):
    folder = put(tmp_path / "a", cells)
    name = spoil(folder)
    assert re.search(name, fails(folder, folder))


@pytest.mark.parametrize(
    "arrays, what",
    [
        ({}, "nothing: expected images"),
        ({"x": np.zeros(3)}, "x: expected images, train_images or mu and sigma"),
        (
            {"images": np.zeros((2, 28, 28, 3)) - 1},
            r"from -1.0 to .*floats in [0, 1]; from [-1, 1]: (images + 1) / 2",
        ),
        ({"images": np.zeros((2, 1, 28, 28, 3), np.uint8)}, "(2, 1, 28, 28, 3): expected (N, H"),
        ({"images": np.uint8(3)}, "shape (): expected (N, H, W, C)"),
        ({"images": np.zeros((2, 3, 28, 28), np.uint8)}, "transpose"),
        ({"images": np.array([{}], object)}, "allow_pickle=False"),
        ({"images": np.zeros((2, 1, 8, 8, 3), np.uint8), "seeds": [3, 5]}, "seeds 3, 5"),
        ({"train_images": np.zeros((5, 8, 8)), "test_images": np.zeros((5, 9, 9))}, "match"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, "expected [d] and [d, d]"),
        ({"mu": np.full(64, np.nan), "sigma": np.eye(64)}, "NaN"),
        ({"mu": np.zeros(3), "sigma": np.eye(3)}, "3 features against 64"),
        ({"mu": np.zeros(192), "sigma": np.eye(192)}, "192 features against 64; give --dims 192"),
    ],
    ids=lambda x: "" if isinstance(x, dict) else x[:20],
)
def test_an_npz_with_something_else(fails, tmp_path, cells, arrays, what):
    np.savez(tmp_path / "a.npz", **arrays)
    said = fails(tmp_path / "a.npz", put(tmp_path / "b", cells))
    assert all(part in said for part in what.split(".*")), said
    assert said.count(str(tmp_path / "a.npz")) == 1


@pytest.mark.parametrize("damage", [flagged, lambda raw: raw[:-9]])
def test_a_damaged_npz(fails, tmp_path, cells, damage):
    np.savez(tmp_path / "a.npz", images=cells)
    (tmp_path / "a.npz").write_bytes(damage((tmp_path / "a.npz").read_bytes()))
    assert "a.npz: not readable" in fails(tmp_path / "a.npz", put(tmp_path / "b", cells))


def test_paths_that_lead_nowhere(fails, tmp_path, cells):
    (tmp_path / "empty").mkdir()
    assert "no images; expected files ending in .bmp" in fails(tmp_path / "empty", tmp_path)
    assert "nowhere: no such file or folder" in fails(tmp_path / "nowhere", tmp_path / "empty")
    one = put(tmp_path / "one", cells[:1])
    assert "1 image, expected at least 2" in fails(one, one)
    assert "--batch-size 0" in fails(one, one, "--batch-size", "0")
    (tmp_path / "text.npz").write_text("<html>")
    assert "text.npz: a text file, expected a folder" in fails(tmp_path / "text.npz", tmp_path)


# ---- pytorch-fid -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_equals_pytorch_fids_command(run, tmp_path, state):
    """With more images than features, where its square root is exact."""
    torch_reference(state)
    from pytorch_fid.fid_score import calculate_fid_given_paths

    folders = [
        put(tmp_path / "a", synthetic.render(np.arange(90) % 8)),
        put(tmp_path / "b", 255 - synthetic.render(np.arange(80) % 3)),  # far from the others
    ]
    expected = calculate_fid_given_paths([*map(str, folders)], 50, "cpu", 64, num_workers=0)
    assert float(run(*folders, "--dims", "64").split(":")[1]) == pytest.approx(expected, rel=1e-6)
