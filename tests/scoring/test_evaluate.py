"""Evaluation while training: it says what the scores would, and a stop does not change it."""

import json
import os
import signal

import jax
import numpy as np
import pytest
from helpers.sampling import OPTIONS, state
from helpers.tiny import cells, method
from helpers.training import equal, lines, run, timeless

from bloodjax import methods
from bloodjax.sampling.draw import SampleConfig, digest, write_samples
from bloodjax.scoring import evaluate, score
from bloodjax.scoring.score import ScoreConfig
from bloodjax.training import log as metrics
from bloodjax.training import loop
from bloodjax.training import step as steps
from bloodjax.training.checkpoint import Checkpoints

SEEDS = (0, 5)
ADAM = steps.make_optimizer(steps.OptimizerConfig())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "weights"), [*((name, "ema") for name in methods.names()), ("vae", "raw")]
)
def test_the_value_is_that_of_the_scores(name, weights, tmp_path, capsys):
    config, sampler = SampleConfig(count=50, chunk=8, weights=weights), OPTIONS.get(name, {})
    judge = evaluate.make_evaluator(method(name), cells(), 30, config, sampler)
    evaluation = judge(state(name, SEEDS))
    write_samples(method(name), state(name, SEEDS), tmp_path, config, sampler)
    scores = score.write_scores(
        tmp_path, cells(), ScoreConfig(features=("bloodnet",), count=30, draws=1)
    )["scores"]
    assert evaluation == {
        "name": scores[0]["name"],
        "values": [s["value"] for s in scores],
        "n_real": scores[0]["n_real"],
        "count": scores[0]["n_fake"],
        "labels": "data" if method(name).classes else "",
        "weights": weights,
        "sampler": OPTIONS.get(name, {}),
    }
    assert len(set(evaluation["values"])) == len(SEEDS)
    assert f"step 0: fd_bloodnet {np.mean(evaluation['values']):.2f}" in capsys.readouterr().err


def test_it_is_written_beside_the_losses_and_the_state(tmp_path):
    by_20 = evaluate.make_evaluator(method(), cells(), 20, SampleConfig(chunk=8), {})
    plain = run(tmp_path / "plain", seeds=SEEDS)
    equal(plain, run(tmp_path / "run", seeds=SEEDS, evaluate=by_20))
    rows = [row for row in lines(tmp_path / "run") if "fd_bloodnet" in row]
    assert [(row["step"], row["seed"]) for row in rows] == [(3, 0), (3, 5), (6, 0), (6, 5)]
    file = tmp_path / "run" / "checkpoints" / "6" / "evaluation.json"
    values = by_20(plain)["values"]
    assert json.loads(file.read_text())["values"] == values
    curve = metrics.read(tmp_path / "run" / "metrics.jsonl")["fd_bloodnet"][5]
    assert curve.tolist() == [[3, rows[1]["fd_bloodnet"]], [6, values[1]]]


def test_count_0_gives_no_evaluator_and_real_images_are_capped():
    config = SampleConfig(chunk=8)
    assert evaluate.make_evaluator(method(), cells(), 0, config, {}) is None
    evaluation = evaluate.make_evaluator(method(), cells(), 50, config, {})(state("vae", SEEDS))
    assert (evaluation["n_real"], evaluation["count"], len(evaluation["values"])) == (40, 50, 2)


# ---- stopping and going on ----

LONG = {"seeds": SEEDS, "epochs": 5, "keep": 1}  # 3 steps an epoch


class Killed(BaseException):
    pass


def judge(params):
    """A function of the state, lowest at step 6."""
    seeds = (jax.tree.map(lambda x, s=s: x[s], params.ema) for s in range(len(SEEDS)))
    noise = [int(digest(own)[:6], 16) / 16**6 for own in seeds]
    return {"name": "distance", "values": [abs(int(params.step[0]) - 7) + x for x in noise]}


def at(step, act, function):
    """`function`, which does something else first when it meets the state after `step`."""

    def acting(*arguments):
        if any(isinstance(x, steps.State) and x.step[0] == step for x in arguments):
            act()
        return function(*arguments)

    return acting


def kill():
    raise Killed


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def record_and_terminate(begin):
    record = metrics.Log.record

    def acting(log, first, *rest):
        if first == begin:
            terminate()
        return record(log, first, *rest)

    return acting


STOPS = {
    "a signal in mid-epoch": (metrics.Log, "record", lambda: record_and_terminate(4), 5),
    "a signal at a checkpoint": (metrics.Log, "record", lambda: record_and_terminate(5), 6),
    "a signal while it evaluates": (None, "", lambda: at(6, terminate, judge), 7),
    "a kill while it evaluates": (None, "", lambda: at(9, kill, judge), 6),
    "a kill after metrics": (Checkpoints, "save", lambda: at(9, kill, Checkpoints.save), 6),
}


@pytest.mark.slow
@pytest.mark.parametrize("stop", STOPS)
def test_stopped_and_resumed_is_the_straight_run(stop, tmp_path, monkeypatch):
    place, name, make, saved = STOPS[stop]
    one, two = tmp_path / "one", tmp_path / "two"
    straight = run(one, evaluate=judge, **LONG)
    with monkeypatch.context() as patch, pytest.raises((Killed, SystemExit)):
        if place:
            patch.setattr(place, name, make())
        run(two, evaluate=judge if place else make(), **LONG)
    assert Checkpoints(two / "checkpoints").steps()[-1] == saved
    equal(straight, run(two, evaluate=judge, **LONG))
    assert timeless(one) == timeless(two)
    files = []
    for folder in (one, two):
        assert Checkpoints(folder / "checkpoints").steps() == [6, 15], "the best and the newest"
        files.append((folder / "checkpoints" / "6" / "evaluation.json").read_bytes())
    assert files[0] == files[1]
    best = [loop.restore(method(), ADAM, x, seeds=SEEDS, checkpoint="best") for x in (one, two)]
    assert best[0].step.tolist() == [6, 6]
    equal(*best)


def test_only_regular_checkpoints_are_evaluated(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.Log, "record", record_and_terminate(4))
    with pytest.raises(SystemExit):
        run(tmp_path, evaluate=judge, **LONG | {"keep": 9})
    assert sorted(p.parent.name for p in tmp_path.glob("*/*/evaluation.json")) == ["3"]
    assert [r["step"] for r in lines(tmp_path) if "distance" in r] == [3, 3]


# ---- which checkpoint ----


def test_where_none_was_evaluated_the_newest_is_the_remedy(tmp_path):
    run(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none was evaluated; .*sample\.checkpoint=newest"):
        loop.restore(method(), ADAM, tmp_path, seeds=(0,), checkpoint="best")


def test_a_damaged_best_is_not_replaced_by_another(tmp_path):
    run(tmp_path, evaluate=judge, **LONG)
    (tmp_path / "checkpoints" / "6" / "default" / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"6 is damaged .*sample\.checkpoint=newest"):
        loop.restore(method(), ADAM, tmp_path, seeds=SEEDS, checkpoint="best")
    assert loop.restore(method(), ADAM, tmp_path, seeds=SEEDS).step.tolist() == [15, 15]
