"""Inception's weights: the table of layers, what files hold, and what is made of them."""

import hashlib

import numpy as np
import pytest
from helpers.torch_files import FORMATS, legacy, same, script
from helpers.weights import LAYERS, rng, shrink, small, write

from bloodjax.features.inception import conversion
from bloodjax.features.inception.layers import CONVS

TABLE = "bd04e829988dd22dd0bbf9e499a87af311ed57c1b4309a9d20a907d8ed4123d4"


@pytest.fixture(params=FORMATS)
def form(request):
    return FORMATS[request.param]


# ---- the table of layers -----------------------------------------------------------------------


def test_table():
    """Count, elements and digest of what pytorch-fid's network itself lists."""
    shapes = {"fc.weight": conversion.FC, "fc.bias": conversion.FC[:1]}
    for name, shape in CONVS.items():
        shapes[f"{name}.conv.weight"] = shape
        shapes |= {f"{name}.bn.{part}": shape[:1] for part in conversion.NORM}
    assert len(CONVS) == 94 and len(shapes) == 566 - 94
    assert sum(np.prod(shape) for shape in shapes.values()) == 23_885_486 - 94
    text = "\n".join(sorted(f"{name} {list(shape)}" for name, shape in shapes.items()))
    assert hashlib.sha256(text.encode()).hexdigest() == TABLE


# ---- a network of two layers -------------------------------------------------------------------


@pytest.fixture
def two_layers(monkeypatch):
    shrink(monkeypatch)


two_layers_only = pytest.mark.usefixtures("two_layers")


@two_layers_only
@pytest.mark.parametrize("counters", [True, False])
def test_read(tmp_path, form, counters):
    same(
        conversion.read(write(tmp_path / "w", form(small(counters=counters)))),
        small(counters=False),
    )


@two_layers_only
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_become_float32(tmp_path, form, dtype):
    arrays = {name: x.astype(dtype) for name, x in small(counters=False).items()}
    expected = {name: x.astype(np.float32) for name, x in arrays.items()}
    same(conversion.read(write(tmp_path / "w", form(arrays))), expected)


KERNEL = "Mixed_6b__branch7x7_2__conv__weight"
NAN, LARGE = np.full((5, 4), np.nan, np.float32), np.full((5, 4), 1e300)
WRONG = {
    "missing": ({KERNEL: None}, "Mixed_6b.branch7x7_2.conv.weight is missing", "(4, 3, 1, 7)"),
    "turned": ({KERNEL: np.zeros((4, 3, 7, 1), "f")}, "(4, 3, 7, 1)", "(4, 3, 1, 7)"),
    "torchvision's classes": (
        {"fc__weight": np.zeros((3, 4), "f")},
        "fc.weight is (3, 4)",
        "(5, 4)",
    ),
    "more": (
        {"AuxLogits__fc__bias": np.zeros(2, "f")},
        "AuxLogits.fc.bias is (2,)",
        "no such tensor",
    ),
    "odd": ({"a\nb" * 1000: np.zeros(2, "f"), "b": np.zeros(2, "f")}, "[...] (and 1 more", "FID's"),
    "no classifier": ({"fc__bias": None}, "fc.bias is missing", "(5,)"),
    "another counter": (
        {"fc__bn__num_batches_tracked": np.array(0)},
        "fc.bn.num",
        "no such tensor",
    ),
    "not a number": ({"fc__weight": NAN}, "fc.weight", "finite"),
    "too large": ({"fc__weight": LARGE}, "fc.weight (float64)", "finite"),
    "integers": ({"fc__bias": np.arange(5)}, "fc.bias (int64)", "finite floats"),
    "variance": (
        {"Conv2d_1a_3x3__bn__running_var": np.array([1, -2, 3], "f")},
        "Conv2d_1a_3x3.bn.running_var is down to -2.0",
        ">= 0",
    ),
}


@two_layers_only
@pytest.mark.parametrize("case", WRONG)
def test_wrong_tensors_are_named(tmp_path, form, case):
    changes, *said = WRONG[case]
    path = write(tmp_path / "w", form(small(**changes)))
    with pytest.raises(ValueError) as error:
        conversion.read(path)
    for part in (f"{path}: ", *said):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@two_layers_only
def test_several_wrong_tensors_are_counted(tmp_path):
    path = write(
        tmp_path / "w", legacy(small(fc__bias=None, fc__weight=None, more=np.zeros(1, "f")))
    )
    with pytest.raises(ValueError, match=r"fc.bias is missing.*\(and 2 more differences\)"):
        conversion.read(path)


def naive(state, name, x, epsilon):
    """BatchNorm (Ioffe & Szegedy, algorithm 1) of a convolution, pixel by pixel; x [h, w, in]."""
    kernel = state[f"{name}.conv.weight"].astype(float)
    gamma, beta, mean, var = (state[f"{name}.bn.{part}"].astype(float) for part in conversion.NORM)
    out, _, h, w = kernel.shape
    y = np.zeros((x.shape[0] - h + 1, x.shape[1] - w + 1, out))
    for i, j, o in np.ndindex(y.shape):
        patch = x[i : i + h, j : j + w].transpose(2, 0, 1)
        y[i, j, o] = (patch * kernel[o]).sum()
    return gamma * (y - mean) / np.sqrt(var + epsilon) + beta


@two_layers_only
@pytest.mark.parametrize("name", LAYERS)
def test_fold_is_convolution_then_normalisation(tmp_path, name):
    state = small(counters=False)
    folded = conversion.fold(state)
    assert {x.dtype for x in folded.values()} == {np.dtype(np.float64)}
    kernel, bias = folded[f"{name}.kernel"], folded[f"{name}.bias"]
    h, w, into, out = kernel.shape
    assert LAYERS[name] == (out, into, h, w)
    x = rng(1).normal(size=(4, 9, into))
    patches = np.lib.stride_tricks.sliding_window_view(x, (h, w), (0, 1))
    found = np.einsum("ijchw,hwco->ijo", patches, kernel) + bias
    np.testing.assert_allclose(found, naive(state, name, x, 1e-3), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(folded["fc.kernel"], state["fc.weight"].T.astype(float))
    np.testing.assert_array_equal(folded["fc.bias"], state["fc.bias"].astype(float))


# ---- the wheel's file, and the digest ----------------------------------------------------------


def wheel_names(state):
    """The arrays under names such as the wheel's, in its order; nothing else of the state."""
    parts = {"weight": "conv.weight", "beta": "bn.bias"}
    parts |= {"mean": "bn.running_mean", "var": "bn.running_var"}
    scopes = dict(zip(LAYERS, ("net.layers.conv", "net.layers.mixed_4.tower.conv_1"), strict=True))
    return {
        f"{scope}.{new}": state[f"{name}.{old}"]
        for name, scope in scopes.items()
        for new, old in parts.items()
    }


def plain(seed=0):
    """Weights whose normalisation has no gain, as those of the graph of 2015."""
    state = small(seed, counters=False)
    return {k: np.ones_like(x) if k.endswith("bn.weight") else x for k, x in state.items()}


@two_layers_only
def test_the_wheels_file_is_read_in_its_order(tmp_path):
    state = plain()
    classifier = {"fc.weight": np.zeros((5, 4), "f"), "fc.bias": np.zeros(5, "f")}
    found = conversion.read(write(tmp_path / "w.pt", script(wheel_names(state))))
    same(found, state | classifier)


@two_layers_only
@pytest.mark.parametrize(
    "change",
    [
        lambda x: dict(reversed(x.items())),
        lambda x: {k: v for k, v in x.items() if not k.endswith("tower.conv_1.var")},
        lambda x: x | {"net.layers.more.weight": x["net.layers.conv.weight"]},
    ],
    ids=["another order", "a part is missing", "more"],
)
def test_a_module_of_other_tensors_is_refused(tmp_path, change):
    path = write(tmp_path / "w.pt", script(change(wheel_names(plain()))))
    with pytest.raises(ValueError, match="w.pt: not FID's InceptionV3"):
        conversion.read(path)


@two_layers_only
def test_the_digest_is_the_same_for_every_container_and_another_for_other_weights(tmp_path):
    state = plain()
    sha = hashlib.sha256()
    for name in LAYERS:
        for part in ("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var"):
            sha.update(state[f"{name}.{part}"].tobytes())
    files = [form(state) for form in FORMATS.values()] + [script(wheel_names(state))]
    wide = {name: x.astype(float) for name, x in state.items()}
    for raw in (*files, legacy(wide)):
        found = conversion.read(write(tmp_path / "w", raw))
        assert conversion.digest_tensors(found) == sha.hexdigest()
    changed = [name for name in state if not name.startswith("fc.")]
    others = {conversion.digest_tensors(state | {name: state[name] / 2}) for name in changed}
    assert len(others) == len(changed) and sha.hexdigest() not in others
