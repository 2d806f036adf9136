"""Models to draw from: the images of the run itself, out of its folder and out of one file."""

import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.sampling import OPTIONS, near, state
from helpers.tiny import NAMES, SHAPE, SMALL, cells, method
from PIL import Image

from bloodjax import draw, model, workdir
from bloodjax.data.sources.bloodmnist import CLASSES
from bloodjax.model import load, save
from bloodjax.sampling import draw as sample
from bloodjax.sampling.draw import SampleConfig
from bloodjax.sampling.labels import make_labels, no_labels
from bloodjax.training.checkpoint import Checkpoints

SEEDS = (0, 7)


def run(folder, name="vae", sampler=(), samples=True, ema_decay_long=0.0, **changes):
    """The folder of a run of two seeds with a checkpoint and, if `samples`, samples; the state."""
    options = OPTIONS.get(name, {})
    config = {
        "name": name,
        "precision": "float32",
        "seeds": SEEDS,
        "method": {"name": name} | SMALL[name],
        "optimizer": {},
        "sampler": options | dict(sampler),
        "sample": {"count": 5, "chunk": 5, "checkpoint": "newest", "weights": "ema"}
        | {"labels": "data", "model": "", "export": ()}
        | changes,
    }
    if ema_decay_long:  # older runs lack the key
        config["train"] = {"ema_decay_long": ema_decay_long}
    folder.mkdir()
    made = jax.device_get(state(name, SEEDS, ema_decay_long))
    workdir.open_run(folder, config, cells())
    Checkpoints(folder / "checkpoints").save(int(made.step[0]), made)
    if not samples:
        return made
    labels = no_labels
    if method(name).classes:
        labels = functools.partial(make_labels, cells().classes, cells().counts, "data")
    chosen = SampleConfig(count=5, chunk=5)
    sample.write_samples(method(name), made, folder, chosen, {**options}, labels)
    return made


def drawn(folder):
    with np.load(folder / "samples.npz") as file:
        return file["images"]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_drawn_from_in_three_lines(tmp_path, name):
    run(tmp_path / "run", name)
    for s, seed in enumerate(SEEDS):
        images = load(tmp_path / "run", seed).sample(5)
        assert images.shape == (5, *SHAPE) and images.dtype == np.uint8
        near(images, drawn(tmp_path / "run")[s])
    near(load(tmp_path / "run").sample(3), drawn(tmp_path / "run")[0, :3])
    other = load(tmp_path / "run").sample(3, seed=123)
    assert (other != drawn(tmp_path / "run")[0, :3]).any()


def test_more_images_begin_with_the_same_ones_in_chunks_and_out(tmp_path, monkeypatch):
    run(tmp_path / "run")
    whole = load(tmp_path / "run").sample(11)
    assert len({image.tobytes() for image in whole}) == 11
    monkeypatch.setattr(model, "CPU_CHUNK", 4)
    near(load(tmp_path / "run").sample(11), whole)
    near(load(tmp_path / "run").sample(2), whole[:2])


@pytest.mark.parametrize("name", NAMES)
def test_a_file_has_the_model_in_half_the_bytes(tmp_path, name):
    run(tmp_path / "run", name)
    whole = load(tmp_path / "run", 7)
    save(whole, tmp_path / "one.npz")
    again = load(tmp_path / "one.npz")
    assert again.origin["seed"] == 7 and again.options == whole.options
    assert again.method == whole.method

    def rounded(own, other):
        assert other.dtype == jnp.float32
        np.testing.assert_array_equal(np.float32(np.float16(own)), other)

    jax.tree.map(rounded, (whole.params, whole.stats), (again.params, again.stats))
    difference = again.sample(4).astype(int) - whole.sample(4)
    assert np.abs(difference).mean() < 2


def test_a_file_of_a_bfloat16_run_computes_in_it(tmp_path):
    run(tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    file.write_text(file.read_text().replace('"float32"', '"bfloat16"'))
    save(load(tmp_path / "run"), tmp_path / "one.npz")
    assert load(tmp_path / "one.npz").method == load(tmp_path / "run").method
    assert load(tmp_path / "one.npz").method.dtype == "bfloat16"


def test_weights_of_one_kind_are_not_the_others(tmp_path):
    made = run(tmp_path / "run")
    for weights, params in (("ema", made.ema), ("raw", made.params)):
        found = load(tmp_path / "run", weights=weights).params
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[0]), found, params)


def test_the_longer_average_goes_into_a_file_if_the_run_has_one(tmp_path):
    made = run(tmp_path / "run", ema_decay_long=0.999)
    longer = load(tmp_path / "run", 7, weights="ema_long")
    expected = {player: average.ema for player, (_, average) in made.opt.items()}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[1]), longer.params, expected)
    assert longer.origin["weights"] == "ema_long"
    model.main([str(tmp_path / "run"), str(tmp_path / "one.npz"), "--weights=ema_long", "--seed=7"])
    near(load(tmp_path / "one.npz").sample(3), longer.sample(3))
    run(tmp_path / "older")
    with pytest.raises(ValueError, match="'ema_long'.*ema_decay_long=0 .*expected ema or raw"):
        load(tmp_path / "older", weights="ema_long")


def test_a_run_that_draws_from_another_s_model_is_loaded_by_it(tmp_path, monkeypatch):
    run(tmp_path / "one", "ddpm")
    run(tmp_path / "other", "ddpm", model="one", sampler={"steps": 3})
    (tmp_path / "other" / "checkpoints").rename(tmp_path / "gone")
    found = load(tmp_path / "other")
    assert found.options["steps"] == 3
    one = load(tmp_path / "one")
    jax.tree.map(np.testing.assert_array_equal, found.params, one.params)
    near(found.sample(2), one.sample(2, steps=3))
    monkeypatch.chdir(tmp_path / "other")
    jax.tree.map(np.testing.assert_array_equal, load(".").params, one.params)


def test_a_run_is_loaded_with_the_weights_that_it_drew_with(tmp_path):
    made = run(tmp_path / "run", weights="raw")
    for weights, params in ((None, made.params), ("ema", made.ema)):
        found = load(tmp_path / "run", weights=weights)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[0]), found.params, params)
    run(tmp_path / "best", checkpoint="best")
    with pytest.raises(FileNotFoundError, match="none was evaluated"):
        load(tmp_path / "best")


def test_images_that_are_not_finite_are_refused(tmp_path):
    run(tmp_path / "run")
    whole = load(tmp_path / "run")
    broken = whole._replace(params=jax.tree.map(lambda x: x * jnp.nan, whole.params))
    with pytest.raises(FloatingPointError, match="3 of 3 samples have NaN or infinite values"):
        broken.sample(3)


def test_the_sampler_s_options_are_those_of_the_run_or_the_call(tmp_path, monkeypatch):
    run(tmp_path / "run", "ddpm", samples=False)
    ours = load(tmp_path / "run")
    assert ours.options == OPTIONS["ddpm"]
    drawn_with = []
    monkeypatch.setattr(model, "compile_sampler", lambda _, **options: drawn_with.append(options))
    for options in ({}, {"eta": 0.0}):
        ours.sample_chunks(2, **options)
    assert drawn_with == [ours.options, ours.options | {"eta": 0.0}]
    with pytest.raises(ValueError, match="did you mean sampler.steps"):
        ours.sample(2, step=3)


@pytest.mark.slow
def test_classes_are_drawn_by_name_by_number_and_as_in_the_data(tmp_path):
    run(tmp_path / "run", "edm")
    save(load(tmp_path / "run"), tmp_path / "one.npz")
    for source in ("run", "one.npz"):
        one = load(tmp_path / source)
        assert one.labels(4, "b").tolist() == [1] * 4
        assert one.labels(4, "balanced").tolist() == [0, 1, 0, 1]
        assert np.bincount(one.labels(40)).tolist() == list(cells().counts)
        images = {label: one.sample(4, 3, label) for label in ("a", "b", "balanced", "data", None)}
        assert (images["a"] != images["b"]).any(axis=(1, 2, 3)).all()
        near(one.sample(4, 3, 1), images["b"])
        near(one.sample(2, 3, "b"), images["b"][:2])
        near(images["data"], images[None])
        for mixed in ("balanced", "data"):  # image i depends on its own label alone
            for i, label in enumerate(one.labels(4, mixed)):
                near(images[mixed][i], images["ab"[label]][i])


def test_an_unknown_class_and_an_unconditional_model_are_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(model, "compile_sampler", lambda *a, **k: lambda *a: pytest.fail("draws"))
    dataset = {"classes": ["a", "b"], "counts": [1, 1]}
    origin = {"seed": 0, "dataset": dataset, "config": {"sample": {"labels": "data"}}}
    conditional, plain = (
        model.Model(method(name), {}, {}, OPTIONS[name], origin) for name in ("edm", "ddpm")
    )
    for label in ("c", 2, -1):
        with pytest.raises(ValueError, match="expected data, balanced, or .* 0 a, 1 b"):
            conditional.labels(2, label)
    for label in ("a", 0, "data"):
        with pytest.raises(ValueError, match=r"draws from all classes .*configs/edm\.py"):
            plain.labels(2, label)
    with pytest.raises(ValueError, match="expected data, balanced, or .* 0 a, 1 b"):
        conditional.sample_chunks(2, label="c")
    for count, seed in ((2, 1.5), (2.5, 1)):
        with pytest.raises(ValueError, match="a whole number"):
            plain.sample_chunks(count, seed)
    dataset = {k: v for k, v in conditional.origin["dataset"].items() if k != "counts"}
    older = conditional._replace(origin=conditional.origin | {"dataset": dataset})
    with pytest.raises(ValueError, match="does not hold the frequencies .* balanced or a class"):
        older.labels(2)
    assert older.labels(2, "b").tolist() == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"seed": 5}, "has the seeds 0, 7"),
        ({"weights": "best"}, "expected ema or ema_long or raw"),
        ({"checkpoint": "best"}, "none was evaluated"),
        ({"checkpoint": "Best"}, "expected newest or best"),
    ],
)
def test_what_a_run_does_not_have_is_refused(tmp_path, arguments, words):
    run(tmp_path / "run")
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        load(tmp_path / "run", **arguments)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="there is no run"):
        load(tmp_path)
    run(tmp_path / "run")
    with pytest.raises(ValueError, match="python -m bloodjax.model RUN FILE"):
        load(tmp_path / "run" / "samples.npz")
    one = load(tmp_path / "run")
    for bad in ({"count": 0}, {"count": 1, "seed": -1}, {"count": 1, "seed": 2**32}):
        with pytest.raises(ValueError, match="expected"):
            one.sample(**bad)
    save(one, tmp_path / "one.npz")
    with pytest.raises(ValueError, match="holds one model"):
        load(tmp_path / "one.npz", 7)


def test_a_file_with_other_arrays_is_refused(tmp_path):
    run(tmp_path / "run")
    save(load(tmp_path / "run"), tmp_path / "one.npz")
    with np.load(tmp_path / "one.npz") as file:
        arrays = dict(file)
    name = next(name for name in arrays if name.endswith("kernel"))
    for changed in (arrays[name][:1], arrays[name].astype(np.float32), None):
        left = {k: v for k, v in arrays.items() if k != name}
        np.savez(tmp_path / "bad.npz", **left, **({} if changed is None else {name: changed}))
        with pytest.raises(ValueError, match=f"{name} is"):
            load(tmp_path / "bad.npz")


def test_weights_that_float16_has_no_room_for_are_not_saved(tmp_path):
    run(tmp_path / "run")
    large = load(tmp_path / "run")
    large = large._replace(params=jax.tree.map(lambda x: 1e6 + x, large.params))
    with pytest.raises(ValueError, match="does not fit into float16"):
        save(large, tmp_path / "one.npz")
    assert not (tmp_path / "one.npz").exists()


def test_the_commands(tmp_path, capsys):
    run(tmp_path / "run", "ddpm")
    model.main([str(tmp_path / "run"), str(tmp_path / "one.npz"), "--seed=7"])
    own = ["--model", str(tmp_path / "one.npz"), "--count=5"]
    for out in ("grid.png", "folder", "all.npz"):
        draw.main([str(tmp_path / out), *own, "--seed=3", "--steps=4"])
    expected = load(tmp_path / "one.npz").sample(5, 3, steps=4)
    files = sorted((tmp_path / "folder").iterdir())
    assert [file.name for file in files] == [f"{i:06}.png" for i in range(5)]
    np.testing.assert_array_equal(np.stack([Image.open(file) for file in files]), expected)
    with np.load(tmp_path / "all.npz") as file:
        np.testing.assert_array_equal(file["images"], expected)
        about = json.loads(str(file["about"]))
    assert about["seed"] == 3 and about["options"]["steps"] == 4
    assert about["model"]["seed"] == 7
    for arguments in (["x.png", "--model", "nowhere"], ["x.png", *own, "--steps=400"]):
        with pytest.raises(SystemExit) as stop:
            draw.main(arguments)
        assert stop.value.code == 1
        assert "expected" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_draws_a_class(tmp_path, capsys):
    run(tmp_path / "run", "edm")
    own = ["--model", str(tmp_path / "run"), "--count=3", "--seed=3", "--guidance=2", "--steps=4"]
    for out in ("b.npz", "folder"):
        draw.main([str(tmp_path / out), *own, "--class=b"])
    expected = load(tmp_path / "run").sample(3, 3, "b", guidance=2.0, steps=4)
    with np.load(tmp_path / "b.npz") as file:
        np.testing.assert_array_equal(file["images"], expected)
        assert file["labels"].tolist() == [1] * 3
        assert json.loads(str(file["about"]))["model"]["dataset"]["classes"] == ["a", "b"]
    files = sorted(file.relative_to(tmp_path) for file in (tmp_path / "folder").rglob("*.png"))
    assert [file.as_posix() for file in files] == [f"folder/b/{i:06}.png" for i in range(3)]
    with pytest.raises(SystemExit) as stop:
        draw.main([str(tmp_path / "c.npz"), *own, "--class=c"])
    assert stop.value.code == 1 and not (tmp_path / "c.npz").exists()
    assert "class 'c': expected data, balanced, or one of the classes 0 a, 1 b" in (
        capsys.readouterr().err
    )


def test_an_npz_holds_the_seed_that_drew_it(tmp_path):
    run(tmp_path / "run")
    for name, options, seed in (("a", [], 0), ("b", ["--seed=3"], 3)):
        out = tmp_path / f"{name}.npz"
        draw.main([str(out), "--model", str(tmp_path / "run"), "--count=2", *options])
        with np.load(out) as file:
            assert json.loads(str(file["about"]))["seed"] == seed


def test_the_model_that_comes_with_bloodjax_draws_cells(tmp_path):
    """From the start of a process, by the default command; few steps, as the tests' XLA is slow."""
    command = [sys.executable, "-m", "bloodjax.draw", str(tmp_path / "cells.npz")]
    options = ["--count=4", "--steps=4", "--class=lymphocyte"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "cells.npz") as file:
        assert file["labels"].tolist() == [CLASSES.index("lymphocyte")] * 4
        assert file["images"].shape == (4, 28, 28, 3)
        assert file["images"].std() > 20
