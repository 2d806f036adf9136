"""Sampling: an image is a function of its seed and index, whatever the chunk and the devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.sampling import OPTIONS, draw, made, near, state, write
from helpers.tiny import NAMES, SMALL, method

from bloodjax import methods
from bloodjax.sampling import draw as draw_module
from bloodjax.sampling.draw import TRACES, SampleConfig, check_sampler, dispatch_size
from bloodjax.sampling.samples import check_same_samples

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", NAMES)
def test_an_image_does_not_depend_on_chunk_or_count(name, tmp_path):
    whole = draw(tmp_path / "a", name, chunk=11)
    assert whole["images"].shape == (2, 11, 8, 8, 3)
    near(whole["images"], draw(tmp_path / "b", name, chunk=4)["images"])
    near(whole["images"][:, :5], draw(tmp_path / "c", name, chunk=4, count=5)["images"])
    assert len({image.tobytes() for image in whole["images"].reshape(22, -1)}) == 22


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.names())
def test_an_image_does_not_depend_on_the_number_of_devices(name, tmp_path):
    one = draw(tmp_path / "one", name)["images"]
    code = "import sys, pathlib, helpers.sampling as t, numpy as np, jax\n"
    code += "assert jax.device_count() == 8\n"
    code += "np.save(sys.argv[2], t.draw(pathlib.Path(sys.argv[3]), sys.argv[1])['images'])"
    out = tmp_path / "eight.npy"
    done = subprocess.run(
        [sys.executable, "-c", code, name, str(out), str(tmp_path / "eight")],
        env=os.environ
        | {
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    near(one, np.load(out))


def test_the_file_says_what_it_is(tmp_path):
    file = draw(tmp_path / "a", "ddpm")
    assert file["seeds"].tolist() == [0, 7]
    assert file["step"] == 0
    assert (file["labels"] == -1).all() and file["labels"].shape == (2, 11)
    assert file["trace"].shape == (2, TRACES, 9, 8, 8, 3)
    assert str(file["trace_name"]) == "denoising"
    assert json.loads(str(file["made_by"]))["sampler"]["steps"] == 5
    near(file["trace"][:, :, -1], file["images"][:, :TRACES])


def test_the_same_command_does_not_draw_again_and_another_does(tmp_path):
    first = draw(tmp_path / "a", "vae")
    stamp = (tmp_path / "a" / "samples.npz").stat().st_mtime_ns
    write(tmp_path / "a")
    assert (tmp_path / "a" / "samples.npz").stat().st_mtime_ns == stamp
    write(tmp_path / "a", count=12)
    with np.load(tmp_path / "a" / "samples.npz") as file:
        near(file["images"][:, :11], first["images"])


@pytest.mark.parametrize(("weights", "other"), [("ema", "params"), ("raw", "ema")])
def test_sampling_uses_the_weights_asked_for(weights, other, tmp_path):
    expected = draw(tmp_path / "a", "vae", weights=weights)["images"]
    without = state("vae")
    without = without._replace(**{other: jax.tree.map(np.zeros_like, getattr(without, other))})
    (tmp_path / "b").mkdir()
    write(tmp_path / "b", model=without, weights=weights)
    with np.load(tmp_path / "b" / "samples.npz") as file:
        np.testing.assert_array_equal(file["images"], expected)
        assert len(np.unique(file["images"])) > 9


@pytest.mark.parametrize("name", ["vae", "gan"])
def test_sampling_uses_the_longer_average_where_it_is_asked_for(name, tmp_path):
    model = state(name, ema_decay_long=0.999)
    longer = {player: average.ema for player, (_, average) in model.opt.items()}
    samples = {}
    for folder, weights, drawn_from in (
        ("long", "ema_long", model),
        ("expected", "ema", model._replace(ema=longer)),
        ("short", "ema", model),
    ):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, name, drawn_from, weights=weights)
        with np.load(tmp_path / folder / "samples.npz") as file:
            samples[folder] = file["images"]
    np.testing.assert_array_equal(samples["long"], samples["expected"])
    assert not np.array_equal(samples["long"], samples["short"])


def test_other_weights_are_other_samples_of_the_same_training(tmp_path):
    average = draw(tmp_path / "a", "vae")["images"]
    with pytest.raises(ValueError, match="made with .*'ema'.*, now .*'raw'.*--mode=sample"):
        check_same_samples(tmp_path / "a", made(11, "raw"))
    check_same_samples(tmp_path / "a", {"step": 0})
    with pytest.raises(ValueError, match="'step': 0.*'step': 1.*--mode=sample"):
        check_same_samples(tmp_path / "a", {"step": 1})
    write(tmp_path / "a", weights="raw")
    check_same_samples(tmp_path / "a", made(11, "raw"))
    with np.load(tmp_path / "a" / "samples.npz") as file:
        raw = file["images"]
    assert not np.array_equal(raw, average)
    write(tmp_path / "a")
    with np.load(tmp_path / "a" / "samples.npz") as file:
        np.testing.assert_array_equal(file["images"], average)


def test_chunks_of_other_weights_are_not_gone_on_with(tmp_path, monkeypatch):
    raw = draw(tmp_path / "a", "vae", weights="raw")["images"]
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(draw_module, "join_chunks", broken)
        draw(tmp_path / "b", "vae")
    assert list((tmp_path / "b").glob(".samples-*/0-0.npy"))
    write(tmp_path / "b", weights="raw")
    with np.load(tmp_path / "b" / "samples.npz") as file:
        np.testing.assert_array_equal(file["images"], raw)


def test_images_that_are_not_finite_are_not_written(tmp_path):
    whole = state("vae")
    second = jax.tree.map(lambda x: np.stack([x[0], x[1] * np.nan]), whole.ema)
    with pytest.raises(FloatingPointError, match="4 of 4 samples have NaN or infinite values"):
        draw(tmp_path / "a", "vae", model=whole._replace(ema=second))
    assert not (tmp_path / "a" / "samples.npz").exists()
    assert len(list((tmp_path / "a").glob(".samples-*/0-*.npy"))) == 3, "the first seed's"


def broken(*_):
    raise RuntimeError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", 0),
        ("chunk", -1),
        ("weights", "average"),
        ("checkpoint", "last"),
        ("export", "gif"),
    ],
)
def test_settings_that_cannot_work_are_refused(name, value):
    with pytest.raises(ValueError, match=f"sample.{name}={value!r}: expected "):
        SampleConfig(**{name: value})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 1001}, "sampler.steps=1001"),
        ({"variance": "large"}, "'large'"),
        ({"step": 3}, r"sampler\.step: no such option; did you mean sampler\.steps"),
    ],
)
def test_options_of_the_sampler_are_checked_before_any_work(changes, words):
    check_sampler(method("ddpm"), OPTIONS["ddpm"])
    with pytest.raises(ValueError, match=words):
        check_sampler(method("ddpm"), OPTIONS["ddpm"] | changes)


def test_small_models_cover_every_method():
    assert sorted(SMALL) == methods.names()


@pytest.mark.parametrize(
    ("backend", "chunk", "count", "devices", "expected"),
    [
        ("cpu", 0, 10_000, 1, 250),
        ("cpu", 0, 20, 1, 20),  # no more than needed
        ("gpu", 0, 10_000, 1, 2500),
        ("gpu", 0, 10_001, 8, 8 * 1251),
        ("gpu", 100, 20, 2, 200),
    ],
)
def test_a_dispatch_fills_the_device(monkeypatch, backend, chunk, count, devices, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    assert dispatch_size(SampleConfig(chunk=chunk, count=count)) == expected
