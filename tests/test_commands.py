"""What every installed command answers to a mistaken line, before any work."""

import re
import shlex

import numpy as np
import pytest
from helpers.pictures import png
from helpers.tiny import torch_with_torchvision

from bloodjax import draw, fid, model

COMMANDS = {"fid": fid.main, "draw": draw.main, "model": model.main}


@pytest.fixture
def answers(capsys, monkeypatch):
    """Run a command that must not get to its work; return its exit code and lines."""
    monkeypatch.setattr(fid.features, "make", lambda *a, **k: pytest.fail("embeds"))
    monkeypatch.setattr(draw, "load", lambda *a: pytest.fail("loads a model"))
    monkeypatch.setattr(model, "load", lambda *a: pytest.fail("loads a model"))

    def run(name, *arguments):
        with pytest.raises(SystemExit) as stop:
            COMMANDS[name]([*map(str, arguments)])
        said = capsys.readouterr()
        return stop.value.code, said.out, said.err.splitlines()

    return run


# ---- the line itself ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_option(answers, name):
    for flag in ("--help", "-h"):
        code, out, err = answers(name, flag)
        assert code == 0 and err == [] and out.startswith("usage: ") and name in out


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("fid", "the following arguments are required: A, B"),
        ("fid A", "the following arguments are required: B"),
        ("fid A B C", "unrecognized arguments: C"),
        ("fid A B --dims 65", "invalid choice: 65"),
        ("fid A B --dims many", "invalid int value: 'many'"),
        ("fid A B --protocol tf", "invalid choice: 'tf'"),
        ("fid A B --batch-size x", "invalid int value: 'x'"),
        ("fid A B --device", "expected one argument"),
        ("fid A B --wieghts x", "unrecognized arguments: --wieghts x"),
        ("draw", "the following arguments are required: out"),
        ("draw x.png --count few", "invalid int value: 'few'"),
        ("draw x.png --eta none", "invalid float value: 'none'"),
        ("model", "the following arguments are required: workdir, out"),
        ("model run x.npz --weights best", "invalid choice: 'best'"),
    ],
)
def test_a_mistaken_line_gets_usage_and_reason(answers, line, reason):
    name, *arguments = line.split()
    code, out, err = answers(name, *arguments)
    assert code == 2 and out == "" and err[0].startswith("usage: ") and reason in err[-1]


PYTORCH_FIDS = [
    "A B",
    "A B --device cpu",
    "--device cpu A B",
    "--device=cuda:0 A B --dims 64",
    "--dims 64 A B",
    "A B --dims=192 --batch-size=7",
    "--batch-size 7 --num-workers 3 A B",
    "--batch 7 --num 0 --dev cpu --di 768 A B",
    "--b 7 --n 2 --dev cuda A B",
    "--save-stats A B.npz",
    "A B.npz --save-stats",
    "--save A B.npz",
    "--s A B.npz",
    "-- A B",
    "--device cpu -- -a -b",
]


@pytest.mark.parametrize("line", PYTORCH_FIDS)
def test_every_line_of_pytorch_fid_is_taken(line):
    torch_with_torchvision()
    reference = pytest.importorskip("pytorch_fid.fid_score", reason="the reference is pytorch-fid")
    theirs = reference.parser.parse_args(line.split())
    ours = fid.make_parser().parse_args(line.split())
    assert [str(ours.a), str(ours.b)] == theirs.path
    for key in ("batch_size", "dims", "save_stats"):
        assert getattr(ours, key) == getattr(theirs, key)
    assert ours.device == (theirs.device or "")
    assert theirs.num_workers in (None, ours.num_workers)


def test_options_may_stand_between_the_paths():
    args = fid.make_parser().parse_args(shlex.split("A --dims 64 'B c' --json"))
    assert (str(args.a), str(args.b), args.dims, args.json) == ("A", "B c", 64, True)


# ---- fid ---------------------------------------------------------------------------------------


def images(n=4, size=8):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder A with images, and files of all kinds beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "A").mkdir()
    for i, image in enumerate(images()):
        (tmp_path / "A" / f"{i}.png").write_bytes(png(image))
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "0.png").write_bytes(png(images()[0]))
    (tmp_path / "classes" / "a").mkdir(parents=True)
    (tmp_path / "classes" / "a" / "0.png").write_bytes(png(images()[0]))
    np.save("x.npy", images())
    np.savez("float11.npz", images=images() / 127.5 - 1)
    np.savez("first.npz", images=images().transpose(0, 3, 1, 2))
    identity = {"mu": np.zeros(2048), "sigma": np.eye(2048, dtype=np.float32)}
    np.savez("nan.npz", **identity | {"mu": np.full(2048, np.nan)})
    np.savez("dims.npz", mu=np.zeros(192), sigma=np.eye(192))
    np.savez("negative.npz", mu=np.zeros(2), sigma=np.diag([1.0, -0.1]))
    return tmp_path


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("A float11.npz", r"float11.npz: images range from -1.0 to .*; from .*images . 1. / 2"),
        ("float11.npz A", "float11.npz: images range"),
        ("A first.npz", "first.npz: images are uint8 .*channels first"),
        ("A nan.npz", "nan.npz: mu or sigma has NaN"),
        ("A dims.npz", "dims.npz: 192 features against 2048; give --dims 192"),
        ("A negative.npz", "negative.npz: sigma has the eigenvalue -0.1"),
        ("A x.npy", "x.npy: a NumPy .npy file, expected a folder of images"),
        ("A A/0.png", "A/0.png: one PNG image, expected a folder"),
        ("A classes", r"classes: no images in it, but folders \(a\): give one of these"),
        ("A gone", "gone: no such file or folder"),
        ("gone A", "gone: no such file or folder"),
        ("A one", "one: 1 image, expected at least 2"),
        ("A A --batch-size 0", "--batch-size 0: expected at least 1"),
        ("A A --num-workers -1", "--num-workers -1: expected at least 0"),
        ("A A --device tpu:x", "--device tpu:x: expected cpu, cuda"),
        ("A A --device gpu2", "--device gpu2: expected cpu, cuda"),
        ("A A --device cuda", "--device cuda: there is no such device"),
        ("--save-stats A gone/x.npz", "gone/x.npz: there is no folder .*gone: create it first"),
        ("--save-stats A stats", "stats: expected a name that ends in .npz"),
        ("--save-stats A stats.json", "stats.json: expected a name that ends in .npz"),
        ("--save-stats A nan.npz", "nan.npz exists: choose another name"),
        ("--save-stats nan.npz out.npz", "nan.npz: mu or sigma has NaN"),
    ],
)
def test_fid_refuses_before_it_embeds(answers, here, line, reason):
    before = sorted(here.rglob("*"))
    code, out, err = answers("fid", *line.split())
    assert out == "" and sorted(here.rglob("*")) == before
    assert code == 1
    assert re.match(f"error: {reason}", err[-1]), err[-1]


# ---- draw and model ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("draw cells.jpg", "cells.jpg: expected NAME.png for a grid, NAME.npz, or NAME/"),
        ("draw cells.npy", "cells.npy: expected NAME.png"),
        ("draw cells.png/", "cells.png/: expected NAME.png"),
        ("draw gone/cells.png", "gone/cells.png: there is no folder"),
        ("draw nan.npz", "nan.npz exists: choose another name"),
        ("draw A", "A exists: choose another name"),
        ("draw A/", "A exists: choose another name"),
        ("draw new --overwrite", "new: --overwrite replaces files only"),
        ("model A out", "out: expected a name that ends in .npz"),
        ("model A nan.npz", "nan.npz exists: choose another name"),
        ("model A gone/out.npz", "gone/out.npz: there is no folder"),
    ],
)
def test_draw_and_model_refuse_before_they_load(answers, here, line, reason):
    before = sorted(here.rglob("*"))
    name, *arguments = line.split()
    code, out, err = answers(name, *arguments)
    assert code == 1 and out == "" and sorted(here.rglob("*")) == before
    assert err[-1].startswith(f"error: {reason}"), err[-1]


def test_a_folder_may_have_a_dot_in_its_name(here):
    draw.check_output("cells.v2/", overwrite=False)
    draw.check_output("cells", overwrite=False)
    draw.check_output("nan.npz", overwrite=True)
