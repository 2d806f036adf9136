"""The real program, started as a user starts it: from its command line, in a process of its own."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny import cells as few

from bloodjax import data, options, workdir
from bloodjax.runtime import files
from configs import edm, vae
from configs.base import base
from launch import RunConfig, make_method

ROOT = Path(__file__).parent.parent
TINY = {  # each method's quick job, made tiny
    "vae": ["--config.method.width=4"],
    "gan": ["--config.method.width=4", "--config.method.discriminator_width=4"],
    "ddpm": [
        "--config.method.widths=(8,8)",
        "--config.method.timesteps=20",
        "--config.sampler.steps=3",
    ],
}
SMALL = [
    "--config.train.epochs=2",
    "--config.train.batch_size=64",
    "--config.sample.count=30",
    "--config.score.count=30",
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    cache = tmp_path_factory.mktemp("xla")
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "COLUMNS": "200",
    }


@pytest.fixture
def launch(cells, environment, tmp_path):
    def start(*arguments, name="vae", folder="run"):
        command = [sys.executable, "launch.py", f"--config=configs/{name}.py:quick", *SMALL]
        command += [*TINY[name], f"--config.data.path={cells}", f"--workdir={tmp_path / folder}"]
        return subprocess.run(
            [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
        )

    return start


@pytest.mark.parametrize(
    "name", ["vae", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gan", "ddpm"))]
)
def test_one_command_leaves_the_whole_workdir(launch, name, tmp_path, cells):
    done = launch("--config.seeds=0,3", name=name)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"

    config = json.loads((run / "config.json").read_text())
    assert config["config"]["seeds"] == [0, 3]
    assert config["config"]["method"]["name"] == name
    assert config["dataset"]["name"] == "few-synthetic" and config["dataset"]["n"] == 200
    assert config["dataset"]["digest"] == data.load(path=str(cells)).digest
    assert {"jax", "flax", "python", "device", "git_commit"} <= config["environment"].keys()

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(m["step"], m["seed"]) for m in lines] == [(t, s) for t in range(1, 9) for s in (0, 3)]
    assert all({"epoch", "images_per_s"} < m.keys() for m in lines)

    with np.load(run / "samples.npz", allow_pickle=False) as samples:
        assert samples["images"].shape == (2, 30, 28, 28, 3)
        assert samples["images"].dtype == np.uint8
        assert samples["labels"].shape == (2, 30)
        assert samples["seeds"].tolist() == [0, 3]
        assert samples["step"] == 8
        assert not np.array_equal(samples["images"][0], samples["images"][1])

    scores = json.loads((run / "scores.json").read_text())
    assert [s["seed"] for s in scores["scores"]] == [0, 3]
    for score in scores["scores"]:
        assert score["name"] == "fd_bloodnet" and score["value"] > 0 and score["floor"] > 0
        assert (score["n_real"], score["n_fake"]) == (30, 30)
    values = [s["value"] for s in scores["scores"]]
    assert scores["summary"][0]["mean"] == pytest.approx(np.mean(values))
    assert scores["summary"][0]["std"] == pytest.approx(np.std(values))

    trace = "denoising" if name == "ddpm" else "interpolation"
    report = {file.name for file in (run / "report").iterdir()}
    names = ("samples", "closest", "curves", "classes", trace)
    pictures = {f"{picture}.png" for picture in names}
    assert report == {"index.html", "table.md"} | pictures
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["4", "8"]


def test_a_workdir_of_another_run_is_refused_with_the_keys_that_differ(launch, tmp_path):
    assert launch("--mode=train").returncode == 0
    before = (tmp_path / "run" / "config.json").read_bytes()
    other = launch("--mode=train", "--config.optimizer.learning_rate=0.5")
    assert other.returncode == 1
    assert "optimizer.learning_rate was 0.001, now 0.5" in other.stderr
    assert "--workdir" in other.stderr and "Traceback" not in other.stderr
    assert (tmp_path / "run" / "config.json").read_bytes() == before

    more = launch("--mode=sample", "--config.sample.count=10")  # its own group may change
    assert more.returncode == 0, more.stderr
    assert b'"count": 10' in (tmp_path / "run" / "config.json").read_bytes()
    with np.load(tmp_path / "run" / "samples.npz") as samples:
        assert samples["images"].shape[1] == 10


def test_what_a_run_takes_may_change_and_what_it_is_may_not(tmp_path):
    config = {name: group for name, group in base("x").to_dict().items() if name != "name"}

    def changed(key, value):
        group, name = key.split(".")
        assert name in config[group]
        return config | {group: config[group] | {name: value}}

    workdir.open_run(tmp_path, config, few())
    free = "sample.chunk train.keep train.checkpoint_epochs train.evaluate_count log.tensorboard"
    for key in free.split():
        workdir.open_run(tmp_path, changed(key, 9), few())
    for key in ("train.epochs", "sample.count", "sample.checkpoint", "train.ema_decay_long"):
        with pytest.raises(ValueError, match=f"belongs to another run: {key} was"):
            workdir.open_run(tmp_path, changed(key, 9), few())


def test_config_json_changes_with_the_results_and_keeps_where_the_run_began(tmp_path):
    config = {name: group for name, group in base("x").to_dict().items() if name != "name"}
    workdir.open_run(tmp_path, config, few())
    file = tmp_path / "config.json"
    begun = json.loads(file.read_text())
    begun["environment"]["device"] = "of the training"
    file.write_text(json.dumps(begun))
    fewer = json.loads(json.dumps(config | {"sample": config["sample"] | {"count": 9}}))
    workdir.open_run(tmp_path, fewer, few(), ["sample"])
    assert json.loads(file.read_text()) == begun, "nothing is drawn yet"
    workdir.update_config(tmp_path, fewer, few())
    assert json.loads(file.read_text()) == begun | {"config": fewer}


def test_labels_and_names_that_cannot_work_are_refused_before_training():
    run = options.build(RunConfig, "", vae.get_config("quick").to_dict())
    labels = replace(run, sample=replace(run.sample, labels="platelet"))
    with pytest.raises(ValueError, match="sample.labels='platelet': expected data"):
        make_method(labels, few(), "float32")
    edm_run = options.build(RunConfig, "", edm.get_config("quick").to_dict())
    png = replace(edm_run, sample=replace(edm_run.sample, export=("png",)))
    with pytest.raises(ValueError, match="class 'a/b': no name of a folder"):
        make_method(png, replace(few(), classes=("a/b", "c")), "float32")


def test_a_run_from_before_a_key_goes_on_with_its_default(tmp_path):
    config = {name: group for name, group in base("x").to_dict().items() if name != "name"}
    older = config | {"train": {k: v for k, v in config["train"].items() if k != "ema_decay_long"}}
    workdir.open_run(tmp_path, older, few())
    longer = config | {"train": config["train"] | {"ema_decay_long": 0.5}}
    with pytest.raises(ValueError, match=r"run: train\.ema_decay_long was 0\.0, now 0\.5\. Use"):
        workdir.open_run(tmp_path, longer, few())
    workdir.check_same_run(tmp_path, config, few())
    workdir.open_run(tmp_path, config, few())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--confg=x"], "Did you mean: config"),
        (["--config.train.epoch=3"], 'Did you mean "epochs"'),
        (["--mode=trian"], "should be one of"),
        (["--config.data.source=bloodmnst"], "did you mean 'bloodmnist'"),
        (["--config.score.features=('blodnet',)"], "expected one of bloodnet"),
        (["--mode=audit"], "train another run with --config.data.split=train"),
        (["--config.train.epochs=0"], "train.epochs=0: expected an integer, at least 1"),
        (["--config=configs/vea.py:quick"], "there is no file 'configs/vea.py' here"),
        (["--config.trian.epochs=2"], 'Did you mean "train"'),
        (["--config.train.epochs=many"], "invalid literal"),
        (["--config.data.path=nowhere.npz"], "nowhere.npz: no such file"),
    ],
)
def test_a_mistake_is_said_at_once_in_one_line(launch, tmp_path, arguments, words):
    done = launch(*arguments)
    assert done.returncode != 0
    assert words in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists(), "nothing is written for a command that cannot work"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sample.count": 0}, "sample.count=0: expected an integer, at least 2"),
        ({"seeds": (1, 1)}, r"^seeds=\(1, 1\): expected different integers"),
        ({"seeds": ()}, r"^seeds=\(\): expected different integers, at least one"),
        ({"seeds": (-1,)}, r"^seeds=\(-1,\): expected a tuple, each item an integer, 0 to"),
        ({"seeds": (2**32,)}, r"^seeds=\(4294967296,\): expected a tuple, each item an integer"),
        ({"seeds": ("0-4",)}, r"seeds=\('0-4',\): expected a tuple, each item an integer"),
        ({"precision": "half"}, "precision='half': expected 'float32' or 'tf32' or 'bfloat16'"),
        ({"optimizer.beta1": 1.5}, "optimizer.beta1=1.5: expected .* 0 <= value < 1"),
        ({"sample.checkpoint": "best"}, "--config.train.evaluate_count=1000"),
        ({"train.epocs": 3}, "train.epocs: no such option; did you mean train.epochs"),
        ({"epochs": 3}, "epochs: no such option"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_its_range(changes, words):
    config = vae.get_config("quick").to_dict()
    options.build(RunConfig, "", config)
    for key, value in changes.items():
        group, _, name = key.rpartition(".")
        (config[group] if group else config)[name] = value
    with pytest.raises(ValueError, match=words):
        options.build(RunConfig, "", config)


def test_doctor_says_what_is_here_and_where_it_looked(environment, cells):
    done = subprocess.run(
        [sys.executable, "launch.py", "--mode=doctor"],
        cwd=ROOT,
        env=environment | {"BLOODJAX_DATA": str(cells)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for words in ("jaxlib", "device 0", "BLOODJAX_DATA", "found", "bloodnet", ".medmnist"):
        assert words in done.stderr
    assert f"found: {cells}\n" in done.stderr  # however long
    package = importlib.util.find_spec("tensorflow_datasets")
    said = "tensorflow-datasets 4" if package else "needs tensorflow-datasets, which is not"
    assert f"data.source=tfds {said}" in " ".join(done.stderr.split())


def test_a_file_is_whole_or_as_it_was(tmp_path):
    file = tmp_path / "x.json"
    files.write_text(file, "first")
    with pytest.raises(RuntimeError), files.atomic_write(file) as part:
        part.write_text("half")
        raise RuntimeError
    assert file.read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_broken_config_json_names_the_file(launch, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{")
    done = launch("--mode=train")
    assert done.returncode == 1
    assert "config.json is not JSON" in done.stderr and "Traceback" not in done.stderr
