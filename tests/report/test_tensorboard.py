"""TensorBoard: what its own reader finds is what metrics.jsonl and samples.npz hold, once."""

import io
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny import cells, file_limit, method
from helpers.training import lines
from helpers.training import run as train_run
from PIL import Image

from bloodjax.report import tensorboard
from bloodjax.report.tensorboard import Board
from bloodjax.runtime import files
from bloodjax.sampling.draw import SampleConfig
from bloodjax.sampling.samples import Samples
from bloodjax.scoring import evaluate
from bloodjax.training import log as metrics
from bloodjax.training.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]
SEEDS = (0, 5)
missing = [name for name in ("tensorboardX", "tensorboard") if find_spec(name) is None]
written = pytest.mark.skipif(bool(missing), reason=f"needs {' and '.join(missing)}")


def read(folder, seed):
    """What TensorBoard reads of a seed's run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = {"scalars": 0, "images": 0}
    reader = EventAccumulator(str(folder / "tensorboard" / f"seed{seed}"), everything)
    assert reader.Reload().file_version == 2  # else it would not look for START
    return reader


def assert_same(folder, seeds=SEEDS):
    """Every value of metrics.jsonl is on the board once, to the float32, and nothing else is."""
    for seed in seeds:
        reader, expected = read(folder, seed), {}
        for row in (row for row in lines(folder) if row["seed"] == seed):
            for name in row.keys() - {"seed", "step", "epoch"}:
                expected.setdefault(name, []).append((row["step"], float(np.float32(row[name]))))
        scalars = {tag: reader.Scalars(tag) for tag in reader.Tags()["scalars"]}
        assert {
            tag: [(e.step, e.value) for e in board_values] for tag, board_values in scalars.items()
        } == expected


def pictures(folder, seed):
    """{tag: {step: uint8 [H, W, 3]}}, one of a step."""
    reader, read_pictures = read(folder, seed), {}
    for tag in reader.Tags()["images"]:
        steps = [e.step for e in reader.Images(tag)]
        assert len(steps) == len(set(steps)), tag
        read_pictures[tag] = {}
        for e in reader.Images(tag):
            pixels = np.asarray(Image.open(io.BytesIO(e.encoded_image_string)))
            assert pixels.shape == (e.height, e.width, 3)
            read_pictures[tag][e.step] = pixels
    return read_pictures


def assert_shows(picture, images, columns):
    """The picture has the images in rows, each pixel a square, with a white gap of 2 between."""
    rows, (h, w) = -(-len(images) // columns), images.shape[1:3]
    scale = (picture.shape[0] // rows - 2) // h
    assert scale > 1
    assert picture.shape[:2] == (rows * (h * scale + 2), columns * (w * scale + 2))
    for i, image in enumerate(images):
        y, x = i // columns * (h * scale + 2), i % columns * (w * scale + 2)
        for dy in (0, scale - 1):
            board_values = picture[y + dy : y + h * scale : scale, x + dy : x + w * scale : scale]
            np.testing.assert_array_equal(board_values, image)
        assert (picture[y + h * scale : y + h * scale + 2, x : x + w * scale] == 255).all()


def run(folder, seeds=SEEDS, shown=True, **changes):
    """Train with a board, as the command line does."""
    board = Board(folder, seeds, cells()) if shown else None
    judge = evaluator(board and board.show_evaluated)
    update = board and board.update
    return train_run(folder, seeds=seeds, evaluate=judge, on_written=update, **changes)


def evaluator(show):
    return evaluate.make_evaluator(method(), cells(), 7, SampleConfig(chunk=4), {}, show=show)


def some(step=6, seeds=SEEDS, shift=0):
    """Samples of which no two images are alike."""
    images = np.random.default_rng(step + shift).integers(0, 256, (2, 40, 8, 8, 3), np.uint8)
    trace = images[:, :12].reshape(2, 3, 4, 8, 8, 3)
    labels = np.full((2, 40), -1, np.int32)
    return Samples(images, labels, np.array(seeds, np.uint32), step, trace, "trace")


# ---- what is shown ----


@written
def test_every_value_of_every_line_is_shown(tmp_path):
    run(tmp_path)
    assert_same(tmp_path)
    assert {"vae_loss", "images_per_s", "compile_s", "fd_bloodnet"} < set(
        read(tmp_path, 0).Tags()["scalars"]
    )


@written
def test_curves_are_seen_while_it_trains(tmp_path):
    board, shown_steps = Board(tmp_path, (0,), cells()), []

    def update():
        board.update()
        reader = read(tmp_path, 0)
        shown_steps.append(
            [e.step for e in reader.Scalars("vae_loss")] if reader.Tags()["scalars"] else []
        )

    train_run(tmp_path, on_written=update)
    assert shown_steps == [list(range(1, n + 1)) for n in range(7)]
    assert [p.suffix for p in (tmp_path / "tensorboard" / "seed0").iterdir()] == [".000000"]


@written
def test_pictures_have_the_pixels(tmp_path):
    run(tmp_path)
    evaluated = {}
    repeat = evaluator(lambda *made: evaluated.update({made[:2]: made[2]}))
    repeat(train_run(tmp_path, seeds=SEEDS))
    Board(tmp_path, SEEDS, cells()).show_samples(samples := some())
    for s, seed in enumerate(SEEDS):
        shown = pictures(tmp_path, seed)
        assert {tag: list(steps) for tag, steps in shown.items()} == {
            "real": [0],
            "evaluated": [3, 6],
            "samples": [6],
            "trace": [6],
        }
        assert_shows(shown["evaluated"][6], evaluated[seed, 6], 6)
        assert_shows(shown["samples"][6], samples.images[s, :36], 6)
        assert_shows(shown["trace"][6], samples.images[s, :12], 4)
        real = shown["real"][0].reshape(6, 82, 6, 82, 3).swapaxes(1, 2).reshape(36, 82, 82, 3)
        real = {np.ascontiguousarray(image[:80:10, :80:10]).tobytes() for image in real}
        assert len(real) == 36 and real <= {image.tobytes() for image in cells().images}
    assert_same(tmp_path)


@written
def test_samples_of_a_step_are_those_drawn_last(tmp_path):
    run(tmp_path)
    board = Board(tmp_path, SEEDS, cells())
    for samples in (some(3), some(6), some(6, shift=1)):
        board.show_samples(samples)
    shown = pictures(tmp_path, 5)["samples"]
    assert list(shown) == [3, 6]
    assert_shows(shown[3], some(3).images[1, :36], 6)
    assert_shows(shown[6], some(6, shift=1).images[1, :36], 6)
    none = some()._replace(trace=np.empty((2, 0, 4, 8, 8, 3), np.uint8))
    (tmp_path / "other").mkdir()
    Board(tmp_path / "other", SEEDS, cells()).show_samples(none)
    assert set(pictures(tmp_path / "other", 0)) == {"real", "samples"}


# ---- stopping and going on ----

LONG = {"epochs": 4}  # 3 steps an epoch


class Killed(BaseException):
    pass


def raising_at(count, function):
    """`function`, but for its `count`-th call."""
    remaining = [count]

    def acting(*arguments, **options):
        remaining[0] -= 1
        if not remaining[0]:
            raise Killed
        return function(*arguments, **options)

    return acting


KILLS = {
    "between checkpoints": (metrics.Log, "record", 9),
    "after the evaluation": (Checkpoints, "save", 2),
    "between the lines of a step": (metrics.json, "dumps", 20),
    "while an event is written": (tensorboard, "append", 17),
}


@pytest.mark.slow
@written
@pytest.mark.parametrize("kill", KILLS)
def test_after_a_kill_every_step_is_shown_once(kill, tmp_path, monkeypatch):
    place, name, count = KILLS[kill]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(place, name, raising_at(count, getattr(place, name)))
        run(tmp_path, **LONG)
    saved = Checkpoints(tmp_path / "checkpoints").steps()[-1]
    before = {e.step: e.wall_time for e in read(tmp_path, 5).Scalars("vae_loss")}
    assert 0 < saved < 12 and set(before) >= set(range(1, saved + 1))
    run(tmp_path, **LONG)
    assert_same(tmp_path)
    after = {e.step: e.wall_time for e in read(tmp_path, 5).Scalars("vae_loss")}
    assert list(after) == list(range(1, 13))
    assert all(after[step] == before[step] for step in range(1, saved + 1)), "when they were made"
    assert all(after[step] > max(before.values()) for step in range(saved + 1, 13))
    assert list(pictures(tmp_path, 5)["evaluated"]) == [3, 6, 9, 12]


@written
def test_a_kill_while_the_files_are_written_anew_loses_nothing(tmp_path, monkeypatch):
    run(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "unlink", raising_at(2, Path.unlink))
        Board(tmp_path, SEEDS, cells()).update()
    both = tmp_path / "tensorboard" / "seed5"
    assert len(list(both.iterdir())) == 2
    assert_same(tmp_path)
    newest = max(both.iterdir())
    newest.write_bytes(newest.read_bytes()[:-900])  # or even before it was whole
    Board(tmp_path, SEEDS, cells()).update()
    assert_same(tmp_path)
    assert list(pictures(tmp_path, 5)["evaluated"]) == [3, 6]
    assert [len(list(both.parent.joinpath(f"seed{s}").iterdir())) for s in SEEDS] == [1, 1]


@written
def test_steps_that_were_made_without_a_board_are_shown_too(tmp_path):
    for epochs, shown in enumerate((False, True, False, True), 1):
        run(tmp_path, epochs=epochs, shown=shown)
    assert_same(tmp_path)
    assert list(pictures(tmp_path, 0)["evaluated"]) == [6, 12]
    run(tmp_path / "late", shown=False)
    Board(tmp_path / "late", SEEDS, cells()).update()
    assert_same(tmp_path / "late")


@written
def test_a_line_is_shown_when_it_is_whole(tmp_path):
    board, log = Board(tmp_path, (0,), cells()), tmp_path / "metrics.jsonl"
    board.update()  # there is none as yet
    for text, steps in (
        ('{"seed": 0, "step": 1, "a": 2.5}\n{"se', [1]),
        ('ed": 0, "step": 2', [1]),
    ):
        with log.open("a") as file:
            file.write(text)
        board.update()
        assert [e.step for e in read(tmp_path, 0).Scalars("a")] == steps
    with log.open("a") as file:
        file.write(', "a": 0.1}\n{"seed": \n{"seed": 0, "step": 3, "a": 1e-9}\n')
    board.update()
    reader = [(e.step, e.value) for e in read(tmp_path, 0).Scalars("a")]
    assert reader == [(1, 2.5), (2, np.float32(0.1)), (3, np.float32(1e-9))]


@written
def test_of_a_file_that_was_cut_short_whole_events_are_read(tmp_path):
    file, cut = tmp_path / "whole", tmp_path / "cut"
    made = [tensorboard.scalars({"seed": 0, "step": i, "loss": 1 / i}) for i in (1, 2, 3)]
    ends = []
    for one in made:
        tensorboard.append(file, [one])
        ends.append(file.stat().st_size)
    for size in range(ends[-1] + 1):
        cut.write_bytes(file.read_bytes()[:size])
        assert list(tensorboard.read_events(cut)) == made[: sum(end <= size for end in ends)]


@written
def test_reading_stops_at_the_first_damaged_event(tmp_path):
    run(tmp_path)
    (file,) = (tmp_path / "tensorboard" / "seed0").iterdir()
    raw = file.read_bytes()
    offset = raw.rindex(b"evaluated") - 9  # within the event of step 6
    file.write_bytes(raw[:offset] + b"\xff" * 9 + raw[offset + 9 :])
    Board(tmp_path, SEEDS, cells()).update()
    assert_same(tmp_path)
    assert list(pictures(tmp_path, 0)["evaluated"]) == [3]


@written
def test_a_full_disk_is_named_and_costs_nothing(tmp_path):
    run(tmp_path, epochs=1)
    (file,) = (tmp_path / "tensorboard" / "seed0").iterdir()
    with file_limit(file.stat().st_size + 300), pytest.raises(OSError) as full:
        run(tmp_path)
    message = files.explain_os_error(full.value)
    assert message.startswith(f"{file.parent}/") and "ulimit -f" in message and "\n" not in message
    run(tmp_path)
    assert_same(tmp_path)


# ---- the whole program ----


@pytest.mark.slow
@written
def test_the_program_killed_and_started_again_shows_all_of_it(noise, tmp_path):
    flags = ["--config=configs/vae.py:quick", f"--workdir={tmp_path / 'run'}"]
    flags += [f"--config.data.path={noise}", "--config.method.width=4", "--config.seeds=3,0"]
    flags += ["--config.train.batch_size=64", "--config.train.epochs=2", "--config.log.tensorboard"]
    flags += [
        "--config.train.evaluate_count=40",
        "--config.sample.count=40",
        "--config.score.count=40",
    ]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    kill = ["tests/helpers/stop_itself.py", f"step:6:0:{int(signal.SIGKILL)}"]
    for start, code in ((kill, -signal.SIGKILL), (["launch.py"], 0), (["launch.py"], 0)):
        command = [sys.executable, *start, *flags]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
    assert_same(tmp_path / "run", (3, 0))
    with np.load(tmp_path / "run" / "samples.npz") as samples:
        for s, seed in enumerate(samples["seeds"].tolist()):
            shown = pictures(tmp_path / "run", seed)
            assert list(shown["evaluated"]) == [4, 8] and list(shown["real"]) == [0]
            assert_shows(shown["samples"][8], samples["images"][s, :36], 6)
            np.testing.assert_array_equal(shown["samples"][8], shown["evaluated"][8])
            trace = samples["trace"][s]
            assert_shows(shown["interpolation"][8], np.concatenate(trace), trace.shape[1])


WITHOUT = """
import sys
sys.modules["tensorboardX"] = None
import launch
launch.app.run(launch.cli)
"""


def test_without_the_package_it_says_so_before_any_work(noise, tmp_path):
    flags = ["--config=configs/vae.py:quick", f"--workdir={tmp_path / 'run'}"]
    flags += [f"--config.data.path={noise}", "--config.log.tensorboard"]
    command = [sys.executable, "-c", WITHOUT, *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for words in ("log.tensorboard=True", "pip install tensorboardX", "log.tensorboard=False"):
        assert words in line
    assert not (tmp_path / "run").exists()


def test_unasked_it_needs_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    tensorboard.LogConfig(tensorboard=False)
    with pytest.raises(ValueError, match="pip install tensorboardX"):
        tensorboard.LogConfig(tensorboard=True)
