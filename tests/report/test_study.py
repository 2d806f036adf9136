"""Several runs as one study: what its report says, and the command that makes all of it."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.report import CONFIG, SCORES, a_dataset, put
from PIL import Image

from bloodjax import workdir
from bloodjax.report import study
from configs import ablation, paper
from configs.base import base

ROOT = Path(__file__).parents[2]
COLUMNS = ("sampler.steps", "sampler.clip")


def config(name, method, **sampler):
    options = copy.deepcopy(CONFIG["config"]) | {"name": name, "method": {"name": method}}
    return options | {"sampler": sampler, "score": {"features": ["bloodnet", "inception"]}}


def two_runs(folder, factor=2.0):
    """A VAE that is scored, a DDPM that is scored worse, and one that is not made yet."""
    runs = {
        folder / "vae": config("vae", "vae"),
        folder / "ddpm": config("ddpm", "ddpm", steps=50, clip=True),
        folder / "later": config("later", "ddpm", steps=1000, clip=False),
    }
    worse = copy.deepcopy(SCORES)
    for score in worse["scores"]:
        score["value"] *= factor
        score["n_fake"] = 500
    worse["summary"][0] |= {"mean": 26.0, "std": 1.0}
    for name, scores in {"vae": SCORES, "ddpm": worse}.items():
        (folder / name).mkdir()
        put(folder / name, scores=scores)
    return runs


def table_lines(folder, heading):
    """The cells of a table in table.md, line by line."""
    text = (folder / "report" / "table.md").read_text().split(f"## {heading}\n\n")[1]
    return [line.strip("|\n ").split(" | ") for line in text.split("\n\n")[0].splitlines()]


def table(folder, heading):
    """The cells of a table in table.md: {first cell: the rest}, the header among them."""
    rows = table_lines(folder, heading)
    return {row[0]: row[1:] for row in rows if not row[0].startswith("--")}


def test_the_first_table_has_every_run_beside_the_study(tmp_path):
    study.write_study_report("A study", COLUMNS, two_runs(tmp_path), a_dataset(), tmp_path)
    result = table(tmp_path, "Table 1")
    assert result["run"][:5] == ["steps", "clip", "seeds", "n fake", "n real"]
    assert result["run"][5:] == ["FD-BloodNet", "σ of draws", "the study's FID"]
    values = ["13.00 ± 0.50", "0.12", "201.73 ± 0.23"]
    assert result["vae"] == ["", "", "2", "9,000", "10,000", *values]
    values = ["26.00 ± 1.00", "0.12", "423.70 ± 0.64"]
    assert result["ddpm"] == ["50", "on", "2", "500", "10,000", *values]
    later = ["not made yet", "", "not made yet", "", "423.70 ± 0.64"]
    assert result["later"] == ["1000", "off", "2", *later]
    assert result["real images"][5] == "0.2500 (8,546 against 8,546)"


def test_a_method_that_the_study_did_not_publish_has_no_number_of_it(tmp_path):
    runs = {tmp_path / name: config(name, name) for name in ("vae", "flow")}
    for folder in runs:
        folder.mkdir()
        put(folder)
    study.write_study_report("A study", (), runs, a_dataset(), tmp_path)
    result = table(tmp_path, "Table 1")
    cells = ["2", "9,000", "10,000", "13.00 ± 0.50", "0.12"]
    assert result["vae"] == [*cells, "201.73 ± 0.23"] and result["flow"] == cells


def test_other_real_images_are_those_of_the_largest_comparison():
    key = "fd_bloodnet", ""
    parts = []
    for n, precision in ((100, 0.3), (5000, 0.9), (250, 0.5)):
        real = {"precision": precision, "n_real": n, "n_fake": n}
        score = {"name": key[0], "protocol": key[1], "n_real": n, "n_fake": 7, "real": real}
        parts.append(study.RunResults("vae", {}, None, {"scores": [score], "summary": []}))
    assert study.metric_rows(parts, key)[-1] == (
        "other real images",
        "5,000",
        "5,000",
        "",
        "",
        "0.900",
        *[""] * 4,
    )


def test_the_other_tables_have_all_measures_and_classes(tmp_path):
    study.write_study_report("A study", COLUMNS, two_runs(tmp_path), a_dataset(), tmp_path)
    result = table(tmp_path, "FD-BloodNet, all measures")
    assert list(result) == ["run", "vae", "ddpm", "other real images"]
    assert result["vae"] == "9,000 10,000 11.50 45.6 0.750 0.500 0.625 0.375 0.062".split()
    assert result["other real images"][:5] == ["8,546", "8,546", "", "0.1", "0.900"]
    result = table(tmp_path, "Classes")
    first, *_, last = [name for name in result if name != "class"]
    assert result["class"] == ["real", "vae", "ddpm"]
    assert result[first] == ["25.0%", "50.0%", "50.0%"] and result[last][1] == "0.0%"


def test_each_two_runs_that_compare_have_a_verdict(tmp_path):
    runs = two_runs(tmp_path)
    study.write_study_report("A study", COLUMNS, runs, a_dataset(), tmp_path)
    page = tmp_path / "report" / "index.html"
    assert "What seeds tell" not in page.read_text()  # the runs have different counts

    scores = copy.deepcopy(SCORES)
    scores["scores"][1]["value"] += 2  # seed 4
    put(tmp_path / "ddpm", scores=scores)
    study.write_study_report("A study", COLUMNS, runs, a_dataset(), tmp_path)
    head, _, row = table_lines(tmp_path, "What seeds tell")
    assert head[:3] == ["first", "second", "distance"]
    assert row[:2] == ["vae", "ddpm"] and row[3:6] == ["1", "0 to 2", "62%"]
    assert row[-1].startswith("vae is better than ddpm on average and for 1 of 2 seeds.")
    assert "2 seeds cannot reach p < 0.05 by a sign-flip test: the least p is 0.5." in row[-1]
    assert "2 seeds cannot reach p &lt; 0.05" in page.read_text()


def test_what_is_missing_is_said(tmp_path):
    runs = two_runs(tmp_path)
    study.write_study_report("A study", COLUMNS, runs, a_dataset(), tmp_path)
    sentence = "There is no FID"
    assert sentence in (tmp_path / "report" / "table.md").read_text()
    assert sentence in (tmp_path / "report" / "index.html").read_text()
    asked = {
        where: options | {"score": {"features": ["bloodnet"]}} for where, options in runs.items()
    }
    study.write_study_report("A study", COLUMNS, asked, a_dataset(), tmp_path)
    assert sentence not in (tmp_path / "report" / "table.md").read_text()


def test_scores_of_other_samples_do_not_count(tmp_path):
    runs = two_runs(tmp_path)
    put(tmp_path / "ddpm", n=41, scores=None)  # sampled again, and not scored yet
    study.write_study_report("A study", COLUMNS, runs, a_dataset(), tmp_path)
    assert table(tmp_path, "Table 1")["ddpm"][3:6] == ["not made yet", "", "not made yet"]


def test_a_study_without_scores_has_a_report(tmp_path):
    runs = {tmp_path / "ddpm": config("ddpm", "ddpm", steps=50, clip=True)}
    study.write_study_report("A study", COLUMNS, runs, a_dataset(name="synthetic"), tmp_path)
    assert table(tmp_path, "Table 1")["ddpm"][3] == "not made yet"
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Synthetic cells, not BloodMNIST" in page and "423.70" not in page


def test_the_pictures_show_real_cells_and_every_run(tmp_path):
    path = study.write_study_report("A study", COLUMNS, two_runs(tmp_path), a_dataset(), tmp_path)
    figure = np.asarray(Image.open(path.parent / "samples.png").convert("RGB"))
    for image in (a_dataset().images[np.random.default_rng(0).permutation(60)[0]], drawn(tmp_path)):
        assert holds(figure, image)
    Image.open(path.parent / "classes.png").verify()
    assert "<script" not in path.read_text() and "http" not in path.read_text()


def drawn(folder):
    with np.load(folder / "ddpm" / "samples.npz") as file:
        return file["images"][0, 0]


def holds(figure, image):
    """Whether the image, each pixel thrice as wide and high, is in the figure."""
    large = image.repeat(3, axis=0).repeat(3, axis=1)
    row = large[0].tobytes()
    for y in range(figure.shape[0] - len(large)):
        line = figure[y].tobytes()
        position = line.find(row)
        if position >= 0 and position % 3 == 0:
            x = position // 3
            return (figure[y : y + len(large), x : x + len(large)] == large).all()
    return False


def test_the_study_is_the_three_configurations_with_five_seeds():
    for variant in (None, "cpu"):
        whole = paper.get_config(variant)
        runs = whole.to_dict()["runs"]
        assert set(runs) == set(whole.order) and whole.order[:3] == ("vae", "gan", "ddpm")
        for options in runs.values():
            assert options["seeds"] == (0, 1, 2, 3, 4)
            assert options["train"]["epochs"] == 20 and options["train"]["batch_size"] == 128
            assert options["data"]["source"] == "bloodmnist"
            assert options.keys() == base("x").to_dict().keys()
    assert paper.get_config().runs.ddpm.sampler.steps == 1000
    assert paper.get_config().runs.vae.sample.count == 10_000


def test_a_value_of_the_study_is_that_of_all_its_runs():
    whole = paper.get_config("cpu")
    whole.seeds = (3,)
    whole.data.path = "somewhere.npz"
    whole.precision = "bfloat16"
    for options in whole.to_dict()["runs"].values():
        assert options["seeds"] == (3,) and options["data"]["path"] == "somewhere.npz"
        assert options["precision"] == "bfloat16"


def test_the_ablation_trains_twice_and_crosses_all_settings():
    whole = ablation.get_config().to_dict()
    trained = [options for options in whole["runs"].values() if not options["sample"]["model"]]
    assert sorted(options["method"]["timesteps"] for options in trained) == [200, 1000]
    keys = [key.split(".") for key in whole["columns"]]
    settings = {
        tuple(options[group][key] for group, key in keys) for options in whole["runs"].values()
    }
    assert len(settings) == len(whole["runs"]) == 16
    for options in whole["runs"].values():
        assert options["sampler"]["steps"] == options["method"]["timesteps"]
        if model := options["sample"]["model"]:
            assert whole["order"].index(model) < whole["order"].index(options["name"].split("/")[1])
            assert whole["runs"][model]["method"] == options["method"]


TINY = [
    "--config.runs.vae.method.width=4",
    "--config.runs.gan.method.width=4",
    "--config.runs.gan.method.discriminator_width=4",
]
for name in ("ddpm", "ddpm_ancestral", "ddpm_few"):
    options = ["method.widths=(8,8)", "method.timesteps=10", "sampler.steps=5"]
    TINY += [f"--config.runs.{name}.{change}" for change in options]
for name in ("vae", "gan", "ddpm", "ddpm_ancestral", "ddpm_few"):
    TINY += [f"--config.runs.{name}.{key}=30" for key in ("sample.count", "score.count")]
    TINY += [f"--config.runs.{name}.train.epochs=1", f"--config.runs.{name}.train.batch_size=100"]
    TINY += [f"--config.runs.{name}.score.features=bloodnet"]


@pytest.fixture(scope="module")
def launch(cells, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "COLUMNS": "200",
    }

    def start(*arguments):
        command = [
            sys.executable,
            "launch.py",
            "--config=configs/paper.py:cpu",
            "--config.seeds=5,",
        ]
        command += [*TINY, f"--config.data.path={cells}", f"--workdir={folder / 'runs'}"]
        done = subprocess.run(
            [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        return done, folder / "runs"

    return start


@pytest.fixture(scope="module")
def whole_study(launch):
    done, folder = launch()
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_one_command_makes_the_whole_study_and_goes_on_with_it(launch, whole_study):
    folder = whole_study
    result = table(folder, "Table 1")
    assert list(result)[1:] == ["vae", "gan", "ddpm", "ddpm_ancestral", "ddpm_few", "real images"]
    scored = {
        name: json.loads((folder / name / "scores.json").read_text())
        for name in result
        if (folder / name).is_dir()
    }
    assert len(scored) == 5
    for name, scores in scored.items():
        value = scores["summary"][0]["mean"]
        assert float(result[name][6]) == pytest.approx(value, rel=1e-3)
    assert not (folder / "ddpm_ancestral" / "checkpoints").exists(), "it draws from the ddpm's"

    kept = {file: file.read_bytes() for file in folder.glob("*/samples.npz")}
    (folder / "gan" / "samples.npz").unlink()
    (folder / "report" / "table.md").unlink()
    rerun, _ = launch()
    assert rerun.returncode == 0, rerun.stderr
    assert {file: file.read_bytes() for file in folder.glob("*/samples.npz")} == kept
    assert table(folder, "Table 1") == result


@pytest.mark.slow
def test_the_report_is_made_from_files_alone(launch, whole_study):
    folder = whole_study
    before = (folder / "report" / "table.md").read_text()
    (folder / "ddpm_few" / "samples.npz").rename(folder / "away")
    done, _ = launch("--mode=report")
    (folder / "away").rename(folder / "ddpm_few" / "samples.npz")
    assert done.returncode == 0, done.stderr
    assert "not made yet" in table(folder, "Table 1")["ddpm_few"]
    launch("--mode=report")
    assert (folder / "report" / "table.md").read_text() == before


@pytest.mark.slow
def test_some_of_its_runs_are_named_by_a_flag(launch, whole_study):
    for order in ("gan,vae", "gan"):
        done, folder = launch("--mode=report", f"--config.order={order}")
        assert done.returncode == 0, done.stderr
        assert list(table(folder, "Table 1"))[1:-1] == order.split(",")
    done, _ = launch("--mode=report", "--config.order=gan,vea")
    assert done.returncode == 1 and "order=gan,vea: 'vea' is none of its runs: " in done.stderr


@pytest.mark.slow
def test_a_model_that_was_trained_otherwise_is_refused(launch, whole_study):
    done, _ = launch("--config.runs.ddpm_few.train.epochs=2", "--mode=sample")
    assert done.returncode == 1
    assert "train.epochs was 1, now 2" in done.stderr and "Traceback" not in done.stderr


def test_a_study_has_no_benchmark(launch):
    done, folder = launch("--mode=benchmark")
    assert done.returncode != 0 and "--config=configs/ddpm.py" in done.stderr


def test_groups_that_may_differ_are_named_one_by_one(tmp_path):
    from helpers.tiny import cells

    config = {"optimizer": {}, "train": {"epochs": 1}, "sample": {"count": 1}}
    workdir.open_run(tmp_path, config, cells())
    other = config | {"sample": {"count": 2}}
    workdir.check_same_run(tmp_path, other, cells(), ["sample", "score"])
    with pytest.raises(ValueError, match="sample.count was 1, now 2"):
        workdir.check_same_run(tmp_path, other, cells(), ["score"])
