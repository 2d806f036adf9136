"""Rows made of times, and tables made of rows."""

import sys
from pathlib import Path

import pytest

from bloodjax.bench import benchmark, tables
from bloodjax.bench.results import add_ratios, make_row, read_benchmarks
from bloodjax.bench.tasks import Task
from bloodjax.bench.timing import Contestant

GPU_FILE = Path(__file__).parents[2] / "docs/gpu_h200.json"


def contestant(side, variant, median, first=None):
    made = Contestant(side, variant, {}, sys.executable)
    made.times, made.peak_bytes = [0.9 * median, median, median, median, 1.5 * median], 1 << 20
    made.first = 1, first or median
    return made


def row(task, side, variant, median, *, batch=128, precision="float32", flops=0.0, first=None):
    entered = contestant(side, variant, median, first)
    return make_row(Task(task, batch, precision, [entered], flops), entered)


def test_medians_quartiles_and_the_extra_time_of_the_first_unit():
    made = row("train", "jax", "step", 0.2, first=3.2)
    assert made["median_s"] == pytest.approx(0.2) and made["iqr_s"] == pytest.approx(0.0)
    assert made["compile_s"] == pytest.approx(3.0)
    assert made["peak_bytes"] == 1 << 20 and made["windows"] == 5
    other = contestant("jax", "step", 1.0)
    other.times = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert make_row(Task("train", 1, "float32", []), other)["iqr_s"] == 2.0


def test_compilation_is_counted_per_unit_of_the_first_call():
    scan = Contestant("jax", "scan", {}, sys.executable)
    scan.times, scan.first = [0.1, 0.1], (10, 5.0)
    made = make_row(Task("train", 8, "float32", []), scan)
    assert made["compile_s"] == pytest.approx(4.0)


def test_a_contestant_that_failed_has_a_row_with_the_reason():
    failed = Contestant("torch", "compile", {}, "", failure="no compiler")
    made = make_row(Task("train", 8, "float32", [failed]), failed)
    assert made["note"] == "not measured: no compiler" and made["median_s"] is None


def test_ratios_compare_with_the_fastest_rival_of_the_same_task_batch_and_precision():
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
    ratios = [r["ratio"] for r in add_ratios(rows)]
    assert ratios == [pytest.approx(x) for x in (0.5, 0.25, 1, 1, 1, 30, 1)] + [None]
    assert rows[6]["framework"] == "SciPy"


def test_the_bound_is_the_fastest_matrix_product_of_the_same_precision():
    rows = [
        row("matmul", "jax", "step", 2.0, flops=8.0),
        row("matmul", "torch", "eager", 1.0, flops=8.0),
        row("matmul", "torch", "eager", 0.1, flops=8.0, precision="tf32"),
        row("train", "jax", "step", 0.5, flops=2.0),
    ]
    assert [r["bound_share"] for r in add_ratios(rows)] == [0.5, 1.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("jax_times", "torch_times", "expected"),
    [
        ((0.1, 5.0), (0.3, 1.0), "from step 21 on"),  # (4.9 - 0.7) / 0.2
        ((0.3, 1.0), (0.1, 5.0), "until step 21"),
        ((0.1, 1.0), (0.3, 5.0), "from step 0 on"),
        ((0.3, 5.0), (0.1, 1.0), "never"),
        ((0.1, 5.0), (0.1, 1.0), "never"),
        ((0.1, 1.0), (0.1, 5.0), "always"),
    ],
)
def test_break_even_counts_compilation(jax_times, torch_times, expected):
    rows = [
        row("train", "jax", "step", jax_times[0], first=jax_times[1]),
        row("train", "torch", "eager", torch_times[0], first=torch_times[1]),
    ]
    assert f"eager: {expected}" in tables.break_even(rows)


def test_shares_of_the_time_add_up():
    text = tables.format_shares({"parity": 30.0, "timing": 90.0})
    assert text == "The benchmark took 2.0 minutes: parity 25%, timing 75%."
    assert text in tables.format_markdown(
        [row("train", "jax", "step", 0.2)], {"parity": 30.0, "timing": 90.0}
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00109, "1.09 ms"),
        (0.2, "200 ms"),
        (0.9996, "1.00 s"),
        (8.95, "8.95 s"),
        (104.2, "104 s"),
        (1234.5, "1,234 s"),
    ],
)
def test_durations_have_three_digits(value, text):
    assert tables.format_seconds(value) == text


def cells_of(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_benchmarks_of_several_methods_make_one_table(tmp_path, capsys):
    for name, seconds in (("gan", 0.2), ("vae", 3.0)):
        (tmp_path / name).mkdir()
        rows = [row("train", "jax", "step", seconds), row("train", "torch", "eager", 1.0)]
        rows += benchmark.list_unmeasured(rows)
        benchmark.write_files(tmp_path / name, rows, {"timing": 60.0})
    tables.main([str(tmp_path / name) for name in ("vae", "gan")])
    text = capsys.readouterr().out
    assert cells_of(text) == [
        ["", "task", "JAX", "PyTorch eager", "ratio"],
        ["---", "---", "---:", "---:", "---:"],
        ["vae", "train 128", "3.00 s", "1.00 s", "0.33"],
        ["gan", "train 128", "200 ms", "1.00 s", "5.00"],
    ]
    gaps = "Not measured: no GPU here: train 128 tf32; train 128 bfloat16."
    assert gaps in text


def test_the_fastest_jax_fills_the_cell_and_other_contestants_stand_below():
    failed = Contestant("torch", "compile", {}, "", failure="no compiler")
    rows = [
        row("train", "jax", "step", 0.4),
        row("train", "jax", "scan", 0.2),
        row("train", "torch", "eager", 0.1),
        make_row(Task("train", 128, "float32", []), failed),
    ]
    text = tables.compare_methods({"vae": add_ratios(rows)})
    assert cells_of(text)[2] == ["vae", "train 128", "200 ms", "100 ms", "0.50"]
    assert "Other contestants of JAX: vae train 128 step 400 ms." in text
    assert "Not measured: no compiler: train 128 by PyTorch compile." in text


def test_rows_that_only_a_gpu_can_fill_are_listed_and_empty():
    measured = [row("train", "jax", "step", 0.2), row("frechet", "jax", "eigh", 0.2)]
    made = benchmark.list_unmeasured(measured)
    assert [(r["task"], r["precision"]) for r in made] == [("train", "tf32"), ("train", "bfloat16")]
    for r in made:
        assert r["note"] == "not measured: no GPU here" and r["windows"] == 0
        assert all(r[k] is None for k in ("median_s", "iqr_s", "compile_s", "peak_bytes"))
        assert r["note"] in tables.format_markdown(made, {})
    assert r.keys() == measured[0].keys() | {"version", "device"}


def test_the_published_gpu_measurements_make_a_table_with_losing_rows_and_gaps():
    text = tables.compare_methods(read_benchmarks([GPU_FILE]))
    rows = {(line[0], line[1]): line[2:] for line in cells_of(text)}
    assert rows["gan", "train 128"][-1] == "0.88", "JAX loses"
    assert rows["vae", "train 128"][-1] == "1.67" and rows["ddpm", "train 128"][-1] == "1.00"
    assert rows["ddpm", "train 128 bfloat16"][-1] == "2.27"
    assert rows["ddpm", "sample 1000"][-1] == "1.01"
    assert rows["ddpm", "train 128"][0] == "6.86 ms (33%)"
    assert "ddpm train 128 step 7.16 ms" in text
    assert "ended with exit code -9: train 128 by JAX scan with Triton (ddpm)" in text
    gaps = text[text.index("Not measured: train 32") :]
    assert "train 512 tf32; " in gaps and "sweep 128; features 96; frechet; time to score" in gaps
    assert "train 128 bfloat16 (gan, vae)" in gaps and "sample (gan, vae)" in gaps


def test_the_document_shows_that_table_and_its_gaps():
    document = " ".join((GPU_FILE.parent / "benchmark.md").read_text("utf-8").split())
    for line in tables.compare_methods(read_benchmarks([GPU_FILE])).splitlines():
        assert " ".join(line.split()) in document
