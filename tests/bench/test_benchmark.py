"""The benchmark as a whole: its options, its tasks, and the rows and files that it writes."""

import functools
import importlib.util
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import SHAPE, SMALL
from helpers.tiny import cells as noisy

from bloodjax import data, options
from bloodjax.bench import benchmark, parity, tasks, time_to_score
from bloodjax.bench.benchmark import BenchConfig, run_benchmark
from bloodjax.bench.tasks import Plan, Task
from bloodjax.bench.timing import Contestant
from bloodjax.training.step import OptimizerConfig

TORCH = importlib.util.find_spec("torch") is not None
ADAM = OptimizerConfig()
VAE = {"name": "vae", **SMALL["vae"]}


# ---- options


@pytest.mark.parametrize(
    "values", [{"batches": ()}, {"batches": (0,)}, {"repeats": 4}, {"torch_python": "/no/python"}]
)
def test_impossible_options_are_refused(values):
    with pytest.raises(ValueError, match=f"bench.{next(iter(values))}="):
        options.build(BenchConfig, "bench", values)


@pytest.mark.parametrize("method", [{"name": "edm"}, {"name": "ddpm", "net": "course_unet"}])
def test_a_method_without_a_twin_is_refused_before_any_work(tmp_path, method):
    with pytest.raises(ValueError, match=r"method\.(name='edm'|net='course_unet'): .* twin"):
        run_benchmark(
            tmp_path / "new",
            noisy(),
            BenchConfig(),
            method=method,
            optimizer=ADAM,
            ema_decay=0.0,
            sampler={},
            job=[],
        )
    assert not (tmp_path / "new").exists()


def test_an_optimizer_that_the_twin_lacks_is_refused():
    assert parity.adam_numbers(ADAM) == {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999}
    with pytest.raises(ValueError, match="optimizer: the PyTorch twin has a constant learning"):
        parity.adam_numbers(OptimizerConfig(warmup_steps=5))


# ---- tasks


def plan(device="cpu", quick=False):
    return Plan({}, {}, "/their/python", device, quick)


def variants(contestants, side="torch"):
    return [x.variant for x in contestants if x.side == side]


def test_a_gpu_times_all_variants_in_float32_and_the_fast_ones_elsewhere():
    whole = plan("gpu").enter("train", batch=128)
    assert variants(whole) == ["eager", "channels_last", "compile", "cuda_graphs"]
    assert variants(whole, "jax") == ["step", "scan"]
    for other in (
        plan("gpu").enter("train", batch=32),
        plan("gpu").enter("train", "bfloat16", batch=128),
    ):
        assert variants(other) == ["channels_last", "cuda_graphs"]
        assert variants(other, "jax") == ["scan"]
    assert variants(plan("gpu").enter("sweep", batch=128), "jax") == ["loop", "vmap", "map"]


def test_a_cpu_leaves_out_what_only_a_gpu_has_and_quick_what_takes_minutes():
    assert variants(plan().enter("train", batch=32)) == ["eager", "channels_last", "compile"]
    assert variants(plan(quick=True).enter("train", batch=32)) == ["eager", "channels_last"]
    pythons = {x.side: x.python for x in plan().enter("train", batch=32)}
    assert pythons == {"jax": sys.executable, "torch": "/their/python"}


def test_tasks_are_grouped_by_the_contestants_that_memory_holds():
    made = [
        Task("train", i, "float32", [Contestant("jax", "", {}, "")] * i) for i in (2, 2, 3, 6, 1)
    ]
    sizes = [[len(task.contestants) for task in group] for group in benchmark.group(made, 5)]
    assert sizes == [[2, 2], [3], [6], [1]]


def test_operations_are_counted_where_the_default_device_has_no_count(monkeypatch):
    """On a GPU, XLA counts only programs that are lowered for the CPU."""
    count = jax.stages.Lowered.cost_analysis

    def count_on_cpu_only(lowered):
        return count(lowered) if jax.config.jax_default_device is not None else None

    monkeypatch.setattr(jax.stages.Lowered, "cost_analysis", count_on_cpu_only)
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    assert jax.jit(jnp.matmul).lower(x, x).cost_analysis() is None
    assert tasks.count_flops(jnp.matmul, x, x) == pytest.approx(2 * 64**3, rel=0.01)


@pytest.mark.parametrize(("name", "calls"), [("heun", 35), ("ddim", 18)])
def test_a_sampler_is_counted_by_its_network_calls(name, calls, tmp_path, monkeypatch):
    np.save(tmp_path / "images.npy", np.zeros((1, *SHAPE), np.uint8))
    job = {"images": tmp_path / "images.npy", "method": {"name": "ddpm"} | SMALL["ddpm"]}
    monkeypatch.setattr(tasks, "count_flops", lambda *_: 2.0)
    assert tasks.count_sample(job, {"name": name, "steps": 18}) == 2.0 * calls


def test_operations_that_cannot_be_counted_are_none(monkeypatch):
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    monkeypatch.setattr(jax.stages.Lowered, "cost_analysis", lambda lowered: None)
    assert tasks.count_flops(jnp.matmul, x, x) == 0.0

    def no_cpu(backend):
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(jax, "local_devices", no_cpu)
    assert tasks.count_flops(jnp.matmul, x, x) == 0.0


def test_a_variant_that_computes_something_else_does_not_take_part():
    entered = plan().enter("train", batch=32)
    benchmark.keep_out([Task("train", 32, "float32", entered)], {"compile": "off by 1e-2"})
    assert {x.variant: x.failure for x in entered if x.failure} == {"compile": "off by 1e-2"}


# ---- time to score


@pytest.mark.parametrize(("chunk", "expected"), [(0, 30), (8, 8)])
def test_pytorch_samples_in_chunks_of_jax_s_size(tmp_path, chunk, expected):
    config = {
        "method": VAE,
        "optimizer": {"learning_rate": 1e-3},
        "train": {"ema_decay": 0.0, "epochs": 1, "batch_size": 8},
        "sample": {"count": 30, "chunk": chunk},
        "sampler": {},
        "seeds": [0],
    }
    time_to_score.write_torch_job(config, noisy(), 1, tmp_path)
    assert json.loads((tmp_path / "job.json").read_text())["chunk"] == expected


# ---- all of it


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(tasks, "DIMS", {"matmul": 64, "frechet": 32})
    monkeypatch.setattr(tasks, "COUNT", {"cpu": {"sample": 8, "steps": 4}})
    monkeypatch.setattr(tasks, "FEATURES", 1)
    monkeypatch.setattr(tasks, "CPU_CHUNK", 4)
    monkeypatch.setattr(benchmark, "WINDOW", {"cpu": 0.01})
    return functools.partial(
        run_benchmark, method=VAE, optimizer=ADAM, ema_decay=0.0, sampler={}, job=[]
    )


@pytest.mark.slow
def test_a_quick_benchmark_writes_every_row(small, tmp_path):
    measured = small(tmp_path, noisy(), BenchConfig(quick=True))
    content = json.loads((tmp_path / "speed.json").read_text())
    rows = content["rows"]
    assert rows == measured
    timed = {(r["task"], r["framework"], r["variant"]): r for r in rows if r["windows"]}
    ours = {("matmul", "JAX", "jit"), ("train", "JAX", "step"), ("sample", "JAX", "jit")}
    theirs = {(t, "PyTorch", v) for t in ("train", "sample") for v in ("eager", "channels_last")}
    theirs.add(("matmul", "PyTorch", "eager"))
    assert timed.keys() == (ours | theirs if TORCH else ours)
    for r in timed.values():
        assert r["median_s"] > 0 and r["iqr_s"] >= 0 and r["compile_s"] >= 0 and r["windows"] == 5
        assert r["peak_bytes"] > 50 << 20 and r["bound_share"] > 0
        assert r["precision"] == "float32" and r["note"] == ""
    for r in rows:
        if not TORCH and r["framework"] == "PyTorch" and r["precision"] == "float32":
            assert "not measured: ModuleNotFoundError: No module named 'torch'" in r["note"]
            assert sys.executable in r["note"]
    assert set(content["seconds"]) == {"parity", "start and compile", "timing"}
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert "| train 128 | JAX step |" in (tmp_path / "speed.md").read_text()


def test_rows_are_written_as_they_come(small, tmp_path, monkeypatch):
    """A benchmark that is killed in the middle leaves the rows so far."""
    written = []

    def stop(tasks, *_):
        yield tasks[0]
        written.append(json.loads((tmp_path / "speed.json").read_text())["rows"])
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "prove", lambda plan: {})
    monkeypatch.setattr(benchmark, "measure", stop)
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path, noisy(), BenchConfig(quick=True))
    assert {r["task"] for r in written[0]} == {"matmul"}


@pytest.mark.slow
@pytest.mark.skipif(not TORCH, reason="the other contestant is PyTorch")
def test_the_whole_benchmark_has_every_task(small, tmp_path, cells):
    job = [sys.executable, "launch.py", "--config=configs/vae.py:quick"]
    job += [f"--config.data.path={cells}", "--config.method.width=4", "--config.train.epochs=1"]
    job += ["--config.sample.count=30", "--config.score.count=30"]
    rows = small(tmp_path / "bench", data.load(path=str(cells)), BenchConfig(batches=(8,)), job=job)
    timed = {(r["task"], r["framework"], r["variant"]): r for r in rows if r["windows"]}
    for task, variant in (("train", "step"), ("sample", "jit"), ("sweep", "loop")):
        assert {v for t, f, v in timed if (t, f) == (task, "PyTorch")} >= {"eager", "channels_last"}
        assert (task, "JAX", variant) in timed
    assert {("frechet", "JAX", "eigh"), ("frechet", "SciPy", "sqrtm")} <= timed.keys()
    assert ("features", "JAX", "jit") in timed
    job_rows = [
        timed["time to score", *who] for who in (("JAX", "launch.py"), ("PyTorch", "channels_last"))
    ]
    for r in job_rows:
        assert r["score"]["fd_bloodnet"] > 0 and r["windows"] == 1
    assert job_rows[0]["ratio"] > 0
    assert job_rows[0]["iqr_s"] is job_rows[0]["compile_s"] is job_rows[0]["peak_bytes"] is None
