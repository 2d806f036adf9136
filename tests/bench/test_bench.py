"""The benchmark: what it asks, what it answers, and what it makes of the answers."""

import importlib.util
import json
import sys

import jax
import numpy as np
import pytest
from helpers.tiny import SMALL
from helpers.tiny import cells as noisy

from bloodjax import data
from bloodjax.bench import contest, jax_side, results, speed
from bloodjax.bench.contest import Contestant, Failed
from bloodjax.bench.serve import host_peak

TORCH = importlib.util.find_spec("torch") is not None
TRAIN = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "ema_decay": 0.0}
WHO = ("JAX", "launch.py"), ("PyTorch", "channels_last")
BENCH = {"torch_python": "", "batches": (32, 128), "repeats": 5, "quick": True}


def contestant(side, variant, median, first=None, peak=1 << 20):
    made = Contestant(side, variant, {}, sys.executable)
    made.times, made.peak_bytes = [0.9 * median, median, median, median, 1.5 * median], peak
    made.first = 1, first or median
    return made


def row(task, side, variant, median, *, batch=128, precision="float32", **more):
    first = more.pop("first", None)
    return results.row(task, batch, precision, contestant(side, variant, median, first), **more)


# ---- what is made of times


def test_medians_quartiles_and_what_the_first_unit_took_longer():
    made = row("train", "jax", "step", 0.2, first=3.2)
    assert made["median_s"] == pytest.approx(0.2) and made["iqr_s"] == pytest.approx(0.0)
    assert made["compile_s"] == pytest.approx(3.0)
    assert made["peak_bytes"] == 1 << 20 and made["windows"] == 5
    other = contestant("jax", "step", 1.0)
    other.times = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert results.row("train", 1, "float32", other)["iqr_s"] == 2.0


def test_ratios_are_to_the_fastest_rival_of_the_same_task_batch_and_precision():
    rows = [
        row("train", "jax", "step", 0.2),
        row("train", "torch", "eager", 0.4),
        row("train", "torch", "channels_last", 0.1),
        row("train", "torch", "eager", 0.01, batch=32),
        row("train", "torch", "eager", 0.02, precision="bfloat16"),
        row("frechet", "jax", "eigh", 1.0, batch=0),
        row("frechet", "jax", "sqrtm", 30.0, batch=0),
        row("sample", "jax", "step", 1.0),
    ]
    ratios = [r["ratio"] for r in results.complete(rows)]
    assert ratios == [pytest.approx(x) for x in (0.5, 0.25, 1, 1, 1, 30, 1)] + [None]
    assert rows[6]["framework"] == "SciPy"


def test_the_bound_is_the_fastest_matrix_product_of_the_same_precision():
    rows = [
        row("matmul", "jax", "step", 2.0, flops=8.0),
        row("matmul", "torch", "eager", 1.0, flops=8.0),
        row("matmul", "torch", "eager", 0.1, flops=8.0, precision="tf32"),
        row("train", "jax", "step", 0.5, flops=2.0),
    ]
    assert [r["bound_share"] for r in results.complete(rows)] == [0.5, 1.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("own", "rival", "said"),
    [
        ((0.1, 5.0), (0.3, 1.0), "from step 21 on"),  # (4.9 - 0.7) / 0.2
        ((0.3, 1.0), (0.1, 5.0), "until step 21"),
        ((0.1, 1.0), (0.3, 5.0), "from step 0 on"),
        ((0.3, 5.0), (0.1, 1.0), "never"),
    ],
)
def test_break_even_counts_compilation(own, rival, said):
    rows = [
        row("train", "jax", "step", own[0], first=own[1]),
        row("train", "torch", "eager", rival[0], first=rival[1]),
    ]
    assert f"eager: {said}" in results.break_even(rows)


def test_several_benchmarks_make_one_table_of_what_was_measured(tmp_path, capsys):
    for name, seconds in (("gan", 0.2), ("vae", 3.0)):
        (tmp_path / name).mkdir()
        rows = [row("train", "jax", "step", seconds), row("train", "torch", "eager", 1.0)]
        results.write(tmp_path / name, results.complete(rows + speed.unmeasured(rows)))
    results.main([str(tmp_path / name) for name in ("vae", "gan")])
    lines = [line.strip("|").split(" | ") for line in capsys.readouterr().out.splitlines()]
    lines = [[cell.strip("| ") for cell in line] for line in lines]
    assert lines[0] == ["", "task", "JAX", "PyTorch eager", "ratio"]
    assert lines[2] == ["vae", "train 128", "3.00 s", "1.00 s", "0.33"]
    assert lines[3] == ["gan", "train 128", "200.0 ms", "1.00 s", "5.00"] and len(lines) == 4


def test_what_only_a_gpu_can_show_is_there_and_empty():
    measured = [row("train", "jax", "step", 0.2), row("frechet", "jax", "eigh", 0.2)]
    made = speed.unmeasured(measured)
    assert [(r["task"], r["precision"]) for r in made] == [("train", "tf32"), ("train", "bfloat16")]
    for r in made:
        assert r["note"] == "not measured: no GPU here" and r["windows"] == 0
        assert all(r[k] is None for k in ("median_s", "iqr_s", "compile_s", "peak_bytes"))
        assert r["note"] in results.markdown(made)
    assert r.keys() == measured[0].keys() | {"version", "device"}


# ---- processes


def job(**more):
    return {"task": "matmul", "precision": "float32", "dims": 64, **more}


def test_contestants_take_turns_and_one_that_fails_is_no_harm(monkeypatch):
    monkeypatch.setattr(contest, "WINDOW", 0.01)
    good, bad = (Contestant("jax", "step", job(task=t), sys.executable) for t in ("matmul", "x"))
    seen = []
    failed = contest.compare([good, bad], 5, lambda n, note: seen.append(note))
    assert failed == {1: "KeyError: 'x'"}
    assert seen == ["jax step"] * 5 and len(good.times) == 5 and min(good.times) > 0
    assert good.about == {"version": f"jax {jax.__version__}", "device": "cpu"}
    assert good.first[1] > max(good.times), "it compiled"
    assert good.process.poll() is not None and bad.process.poll() is not None


def test_one_that_fails_on_its_way_leaves_no_times(monkeypatch):
    good, bad = (Contestant("jax", "jit", job(), sys.executable) for _ in range(2))
    ask = bad.ask

    def fail_later(line):
        if len(bad.times) == 2:
            raise Failed("out of memory")
        return ask(line)

    monkeypatch.setattr(contest, "WINDOW", 0.01)
    monkeypatch.setattr(bad, "ask", fail_later)
    assert contest.compare([good, bad], 5, lambda n, note: None) == {1: "out of memory"}
    assert len(good.times) == 5 and bad.times == []


def test_steps_of_a_scan_are_counted_as_they_are_done(tmp_path):
    np.save(tmp_path / "images.npy", noisy().images)
    told = {"variant": "scan", "seeds": 1, "batch": 8, "images": str(tmp_path / "images.npy")}
    told |= {"method": {"name": "vae", **SMALL["vae"]}, "dtype": "float32", "ema_decay": 0.0}
    told["optimizer"] = {name: TRAIN[name] for name in ("learning_rate", "beta1", "beta2")}
    work = jax_side.train(told)
    assert [work(1), work(10), work(11)] == [10, 10, 20]
    made = Contestant("jax", "scan", {}, sys.executable)
    made.times, made.first = [0.1, 0.1], (10, 5.0)
    assert results.row("train", 8, "float32", made)["compile_s"] == pytest.approx(4.0)


def test_a_contestant_that_cannot_start_says_why():
    with pytest.raises(Failed, match="No module named"):
        Contestant("nothing", "step", job(), sys.executable).start()


def test_the_peak_is_this_process_s_own():
    before = host_peak()
    np.ones(2**25)  # 256 MB
    assert host_peak() - before > 200 << 20


# ---- all of it


@pytest.mark.parametrize(
    "options", [{"batches": ()}, {"batches": (0,)}, {"repeats": 4}, {"torch_python": "/no/python"}]
)
def test_options_that_cannot_be_are_refused(options):
    speed.check(**BENCH)
    with pytest.raises(ValueError, match=f"bench.{next(iter(options))}="):
        speed.check(**BENCH | options)


@pytest.fixture
def measured(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "DIMS", {"matmul": 64, "frechet": 32})
    monkeypatch.setattr(speed, "COUNT", {"sample": 8, "steps": 4, "features": 2})
    monkeypatch.setattr(speed, "CHUNK", 4)
    monkeypatch.setattr(contest, "WINDOW", 0.01)
    method = {"name": "vae", **SMALL["vae"]}
    return speed.run(tmp_path, noisy(), method=method, train=TRAIN, sampler={}, job=[], **BENCH)


def test_a_quick_benchmark_writes_every_row(measured, tmp_path):
    rows = json.loads((tmp_path / "speed.json").read_text())
    assert rows == measured
    found = {(r["task"], r["framework"], r["variant"]): r for r in rows if r["windows"]}
    ours = {("matmul", "JAX", "jit"), ("train", "JAX", "step"), ("sample", "JAX", "jit")}
    theirs = {(t, "PyTorch", v) for t in ("train", "sample") for v in ("eager", "channels_last")}
    theirs.add(("matmul", "PyTorch", "eager"))
    assert found.keys() == (ours | theirs if TORCH else ours)
    for r in found.values():
        assert r["median_s"] > 0 and r["iqr_s"] >= 0 and r["compile_s"] >= 0 and r["windows"] == 5
        assert r["peak_bytes"] > 50 << 20 and r["bound_share"] > 0
        assert r["precision"] == "float32" and r["note"] == ""
    if not TORCH:
        assert all(
            "No module named 'torch'" in r["note"]
            for r in rows
            if r["task"] == "train" and r["framework"] == "PyTorch" and r["precision"] == "float32"
        )
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert "| train 128 | JAX step |" in (tmp_path / "speed.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not TORCH, reason="the other contestant is PyTorch")
def test_the_whole_benchmark_has_every_task(tmp_path, cells, monkeypatch):
    monkeypatch.setattr(speed, "DIMS", {"matmul": 64, "frechet": 32})
    monkeypatch.setattr(speed, "COUNT", {"sample": 8, "steps": 4, "features": 1})
    monkeypatch.setattr(contest, "WINDOW", 0.01)
    dataset = data.load(path=str(cells))
    method = {"name": "vae", **SMALL["vae"]}
    job = [sys.executable, "launch.py", "--config=configs/vae.py:quick"]
    job += [f"--config.data.path={cells}", "--config.method.width=4", "--config.train.epochs=1"]
    job += ["--config.sample.count=30", "--config.score.count=30"]
    options = BENCH | {"batches": (8,), "quick": False}
    rows = speed.run(
        tmp_path / "bench", dataset, method=method, train=TRAIN, sampler={}, job=job, **options
    )
    found = {(r["task"], r["framework"], r["variant"]): r for r in rows if r["windows"]}
    for task in ("train", "sample", "sweep"):
        assert {v for t, f, v in found if (t, f) == (task, "PyTorch")} >= {"eager", "channels_last"}
        assert (task, "JAX", "jit" if task == "sample" else "step") in found
    assert {("frechet", "JAX", "eigh"), ("frechet", "SciPy", "sqrtm")} <= found.keys()
    assert ("features", "JAX", "jit") in found
    own, rival = (found["time to score", *who] for who in WHO)
    assert own["score"]["fd_bloodnet"] > 0 and rival["score"]["fd_bloodnet"] > 0
    assert own["windows"] == rival["windows"] == 1 and own["ratio"] > 0
    assert own["iqr_s"] is own["compile_s"] is own["peak_bytes"] is None
