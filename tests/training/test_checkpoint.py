"""Checkpoints: whole or not there, as many as asked for, and never read when damaged."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.tiny import contents, file_limit

from bloodjax.training.checkpoint import Checkpoints, DamagedError

ROOT = Path(__file__).parents[2]


def state(seed=0):
    rng = np.random.default_rng(seed)
    arrays = {"w": rng.normal(size=(64, 65)), "b": rng.normal(size=3)}
    return {"net": {k: x.astype(np.float32) for k, x in arrays.items()}, "step": np.int32(seed)}


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def saved(tmp_path):
    """Checkpoints 4 and 8, of different states; 8 is better."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (4, 8):
        checkpoints.save(step, state(step), evaluation(1 / step))
    return checkpoints


def evaluation(*values, **how):
    return {"name": "distance", "values": values, **how}


def test_what_is_saved_is_restored(saved):
    assert saved.steps() == [4, 8]
    equal(saved.restore(4, state()), state(4))
    step, newest = saved.restore_newest(state())
    assert step == 8
    equal(newest, state(8))
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(newest))


def test_a_folder_that_is_not_there_has_no_checkpoints(tmp_path):
    assert Checkpoints(tmp_path / "none").restore_newest(state()) is None


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_are_kept(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep)
    for step in (9, 10, 11, 100):
        checkpoints.save(step, state(step))
    assert checkpoints.steps() == [9, 10, 11, 100][-keep:]
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == set(
        map(str, checkpoints.steps())
    )


def test_the_best_is_kept_beside_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    assert checkpoints.best() is None
    means = {2: 5, 4: 3, 5: None, 6: 3, 8: 4, 10: 2, 12: 6}  # 5 is a signal's; 4 came before 6
    kept = []
    for step, mean in means.items():
        checkpoints.save(step, state(step), mean and evaluation(mean - step, mean + step))
        kept.append(checkpoints.steps())
    assert kept == [[2], [4], [4, 5], [4, 6], [4, 8], [10], [10, 12]]
    assert checkpoints.best() == 10
    equal(checkpoints.restore(10, state()), state(10))
    found = json.loads((checkpoints.folder / "12" / "evaluation.json").read_text())
    assert found == {"name": "distance", "values": [-6, 18]}


def test_only_what_was_evaluated_alike_is_compared(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=9)
    for step, (value, count) in enumerate([(1, 500), (4, 1000), (3, 1000), (9, 1000)]):
        checkpoints.save(step, state(step), evaluation(value, n_fake=count))
    checkpoints.save(10, state(10))
    assert checkpoints.best() == 2


@pytest.mark.parametrize("name", ["evaluation.json", "sha256.txt"])
def test_a_damaged_evaluation_counts_as_none(saved, name):
    assert saved.best() == 8
    content = (saved.folder / "8" / name).read_text()
    (saved.folder / "8" / name).write_text(content.replace("1", "2"))
    assert saved.best() == 4


def test_the_digests_are_those_of_sha256sum(saved):
    folder = saved.folder / "8"
    lines = (folder / "sha256.txt").read_text().splitlines()
    found = dict(reversed(line.split("  ")) for line in lines)
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "sha256.txt"]
    assert found == {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--quiet", "-c", "sha256.txt"], cwd=folder, check=True)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, truncate, empty, Path.unlink])
def test_damage_to_any_file_is_found_and_the_one_before_is_taken(saved, damage, capsys):
    whole = shutil.copytree(saved.folder, saved.folder.with_name("whole"))
    for name in contents(whole / "8"):
        shutil.rmtree(saved.folder)
        shutil.copytree(whole, saved.folder)
        damage(saved.folder / "8" / name)
        damaged = contents(saved.folder / "8")
        with pytest.raises(DamagedError, match=str(saved.folder / "8")):
            saved.restore(8, state())
        step, restored = saved.restore_newest(state())
        assert step == 4
        equal(restored, state(4))
        said = capsys.readouterr().err
        assert "8.damaged" in said and "step 4 is intact" in said and "Traceback" not in said
        assert contents(saved.folder / "8.damaged") == damaged, "it is put aside as it is"
        assert saved.steps() == [4] and contents(saved.folder / "4") == contents(whole / "4")


def test_a_step_can_be_damaged_twice(saved):
    for _ in range(2):
        flip(saved.folder / "8" / "sha256.txt")
        assert saved.restore_newest(state())[0] == 4
        saved.save(8, state(8))
    assert saved.steps() == [4, 8]


def test_where_all_are_damaged_each_is_named_and_none_is_touched(saved):
    for step in (4, 8):
        truncate(saved.folder / str(step) / "default" / "manifest.ocdbt")
    before = contents(saved.folder)
    with pytest.raises(
        DamagedError, match=r"/8 is damaged \(default/manifest.ocdbt\).*/4 is damaged"
    ):
        saved.restore_newest(state())
    with pytest.raises(DamagedError, match=f"delete {saved.folder} to start again"):
        saved.restore_newest(state())
    assert contents(saved.folder) == before


def test_a_full_disk_is_an_error_of_the_system_and_harms_nothing(saved, capfd):
    before = contents(saved.folder)
    with file_limit(5000), pytest.raises(OSError) as full:
        saved.save(12, state(12))
    assert full.value.errno == errno.EFBIG and "/.part" in full.value.filename
    assert contents(saved.folder) == before
    assert "Traceback" not in capfd.readouterr().err
    saved.save(12, state(12))
    equal(saved.restore_newest(state())[1], state(12))


def test_what_a_killed_process_left_is_cleared_away(saved):
    shutil.copytree(saved.folder / "8", saved.folder / ".part")
    shutil.copytree(saved.folder / "4", saved.folder / ".4")
    saved.save(12, state(12))
    assert sorted(p.name for p in saved.folder.iterdir()) == ["12", "8"]


SAVE = """
import sys, pathlib, test_checkpoint as t
checkpoints = t.Checkpoints(pathlib.Path(sys.argv[1]), keep=1)
first = checkpoints.steps()[-1] + 1
for step in range(first, first + 10_000):
    checkpoints.save(step, t.state(step))
"""


def test_killed_while_saving_there_is_a_whole_checkpoint(tmp_path):
    """Processes that do nothing but save, each killed at some moment of it, after the first."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(0, state(0))
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}{os.pathsep}{ROOT / 'tests'}"
    }
    rng, found = np.random.default_rng(0), [0]
    for _ in range(3):
        command = [sys.executable, "-c", SAVE, str(checkpoints.folder)]
        process = subprocess.Popen(command, env=environment)
        with process:
            while max(checkpoints.steps(), default=found[-1]) == found[-1]:
                assert process.poll() is None
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.3))
            process.kill()
        step, restored = checkpoints.restore_newest(state())
        equal(restored, state(step))
        found.append(step)
    assert found == sorted(set(found))
    assert not list(checkpoints.folder.glob("*.damaged"))
