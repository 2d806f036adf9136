"""Every feature space keeps the one contract; BloodNet is what its model card says."""

import functools
import hashlib
import io
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import flagged

from bloodjax import data, features
from bloodjax.data import Dataset
from bloodjax.data.sources import synthetic
from bloodjax.features.bloodnet import extractor as bloodnet
from bloodjax.features.bloodnet import training
from bloodjax.features.inception.weights import VARIABLE
from bloodjax.scoring.embedding import cache_folder


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module", params=features.names())
def space(request, file):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(file))  # Inception's are not shipped: random ones do
        return features.make(request.param)


# ---- the contract ----------------------------------------------------------------------------


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="'bloodnut'.*bloodnet"):
        features.make("bloodnut")


def test_says_what_it_is(space):
    assert space.name.partition("-")[0] in features.names() and space.protocol
    assert space.distance == f"fd_{space.name}"
    assert len(bytes.fromhex(space.sha256)) == 32
    assert (space.classify is None) == (space.classes == ())


@pytest.mark.parametrize("shape", [(0, 28, 28, 3), (1, 28, 28, 1), (2, 45, 30, 3), (3, 7, 9, 1)])
def test_any_number_size_and_channels(space, shape):
    out = space.features(noise(*shape))
    assert out.shape == (shape[0], space.dims) and out.dtype == np.float32
    assert np.isfinite(out).all()


def test_an_image_has_the_same_features_in_any_company(space):
    images = noise(5, 28, 28, 3)
    together = space.features(images)
    assert together.std(0).max() > 0
    near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5 * together.max())
    near(space.features(images[::-1])[::-1], together)
    near(np.concatenate([space.features(images[i : i + 1]) for i in range(5)]), together)


def test_grey_is_rgb_with_equal_channels(space):
    grey = noise(2, 28, 28, 1)
    as_rgb = space.features(np.repeat(grey, 3, axis=3))
    np.testing.assert_allclose(space.features(grey), as_rgb, atol=1e-5)


def test_floats_in_0_to_1_are_rounded_to_pixels(space):
    images = noise(2, 28, 28, 3)
    found = space.features((images / 255 + 1e-3).astype(np.float32).clip(0, 1))
    np.testing.assert_array_equal(found, space.features(images))


@pytest.mark.parametrize(
    "images",
    [
        np.full((2, 28, 28, 3), -1.0, np.float32),
        np.zeros((2, 28, 28, 3), np.int32),
        np.zeros((28, 28, 3), np.uint8),
        np.zeros((2, 3, 28, 28), np.uint8),
        np.zeros((2, 0, 28, 3), np.uint8),
    ],
    ids=lambda a: f"{a.dtype}{list(a.shape)}",
)
def test_refuses_what_is_no_uint8_image(space, images):
    with pytest.raises(ValueError, match="expected uint8"):
        space.features(images)


def test_classify_gives_probabilities(space):
    if space.classify is None:
        pytest.skip(f"{space.name} has no classes")
    odds = space.classify(space.features(noise(4, 28, 28, 3)))
    assert odds.shape == (4, len(space.classes)) and odds.dtype == np.float32
    assert (odds >= 0).all()
    np.testing.assert_allclose(odds.sum(1), 1, atol=1e-5)


def test_refuses_a_protocol_that_it_does_not_have(space):
    name = space.name.partition("-")[0]
    with pytest.raises(ValueError, match="protocol='tf': expected .*raw-range, raw-reals, min-max"):
        features.make(f"{name}:tf")


# ---- mistakes that were published ------------------------------------------------------------


@pytest.fixture(scope="module")
def mistakes(space, file):
    name = space.name.partition("-")[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(file))
        return {mistake: features.make(f"{name}:{mistake}") for mistake in features.MISTAKES}


def test_a_mistake_passes_for_nothing_else(space, mistakes):
    for mistake, made in mistakes.items():
        assert made.name == f"{space.name}-{mistake}" and made.protocol == mistake
        assert made.distance == f"fd_{space.name}-{mistake}"
        assert (made.dims, made.sha256) == (space.dims, space.sha256)
        assert (made.classify, made.classes) == (None, ())
    data = Dataset(noise(1, 28, 28, 3), np.zeros(1, np.int32), ("a",), "noise", "00" * 32)
    folders = {cache_folder(own, data) for own in (space, *mistakes.values())}
    assert len(folders) == 4


def test_real_and_generated_images_are_read_as_the_mistake_says(space, mistakes):
    images = noise(2, 28, 28, 3)
    both, reals = mistakes["raw-range"], mistakes["raw-reals"]
    right, raw = space.features(images), both.features(images)
    assert np.abs(raw - right).max() > 0.1 * np.abs(right).max()
    np.testing.assert_array_equal(reals.features(images), raw)
    np.testing.assert_array_equal(reals.generated.features(images), right)
    assert both.generated is None is space.generated
    scaled = mistakes["min-max"]
    assert scaled.generated.name != scaled.name, "features are cached by name"
    np.testing.assert_array_equal(scaled.features(images), right)
    dark = images // 4 + 30
    dark[:, 0, 0] = (30, 93, 60)  # the range of each image
    bright = np.rint((dark - 30.0) * 255 / 63).astype(np.uint8)
    np.testing.assert_array_equal(scaled.generated.features(dark), space.features(bright))


# ---- BloodNet: what is shipped ---------------------------------------------------------------


@pytest.fixture(scope="module")
def net():
    return bloodnet.make_extractor()


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    with np.load(bloodnet.WEIGHTS, allow_pickle=False) as file:
        return dict(file)


def test_shipped_file_is_small_and_float16(net, weights):
    assert bloodnet.WEIGHTS.stat().st_size <= 4_000_000
    assert all(a.dtype == np.float16 for a in weights.values())
    assert net.sha256 == hashlib.sha256(bloodnet.WEIGHTS.read_bytes()).hexdigest()


def test_the_card_is_about_the_shipped_file(net):
    assert net.sha256 in bloodnet.WEIGHTS.with_suffix(".md").read_text()


def convolve(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, stride: int) -> np.ndarray:
    """The sum over kernel taps of shifted images [H, W, C], zeros around them."""
    reach = len(kernel) // 2
    h, w = x.shape[:2]
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)))
    out = bias + np.zeros((h, w, len(bias)))
    for i, j in np.ndindex(kernel.shape[:2]):
        out += padded[i : i + h, j : j + w] @ kernel[i, j]
    return out[::stride, ::stride]


def twin(weights: dict[str, np.ndarray], image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """BloodNet's features and logits of one image in NumPy float64."""
    wide = {k: v.astype(np.float64) for k, v in weights.items()}

    def conv(name, x, stride=1):
        return convolve(x, wide[f"{name}/kernel"], wide[f"{name}/bias"], stride)

    x = np.maximum(conv("stem", image / 127.5 - 1), 0)
    for block in ("block0", "block1", "block2"):
        inner = np.maximum(conv(f"{block}_in", x, 2), 0)
        x = np.maximum(conv(f"{block}_out", inner) + conv(f"{block}_skip", x, 2), 0)
    pooled = x.mean((0, 1))
    return pooled, pooled @ wide["head/kernel"] + wide["head/bias"]


def test_agrees_with_a_numpy_twin(net, weights):
    for image in synthetic.render(np.array([1, 6])):
        pooled, logits = twin(weights, image)
        found = net.features(image[None])
        np.testing.assert_allclose(found[0], pooled, rtol=1e-4, atol=1e-4)
        odds = np.exp(logits - logits.max())
        np.testing.assert_allclose(net.classify(found)[0], odds / odds.sum(), atol=1e-4)


def test_raw_range_is_scaled_twice(weights):
    """x in [-1, 1] taken for [0, 1] and made 2x - 1, against the twin, which scales once."""
    raw = features.make("bloodnet:raw-range")
    for image in synthetic.render(np.array([1, 6])):
        pooled, _ = twin(weights, 127.5 * (2 * (image / 127.5 - 1)))
        np.testing.assert_allclose(raw.features(image[None])[0], pooled, rtol=1e-4, atol=1e-4)


def test_features_suit_a_frechet_distance(net):
    out = net.features(synthetic.render(np.arange(64) % 8))
    assert out.shape[1] <= 256 and (out >= 0).all()
    assert (out.std(0) > 0).mean() > 0.9  # few dead features


def test_more_than_one_chunk_is_no_seam(net):
    images = noise(bloodnet.CHUNK + 3, 28, 28, 3)
    whole = net.features(images)
    np.testing.assert_allclose(whole[-5:], net.features(images[-5:]), atol=1e-5)


def test_classify_refuses_other_features(net):
    with pytest.raises(ValueError, match=r"\(2, 2048\).*192"):
        net.classify(np.zeros((2, 2048), np.float32))


def test_accuracy_on_the_test_split(net):
    if not os.environ.get("BLOODJAX_DATA"):
        pytest.skip("BLOODJAX_DATA names no bloodmnist.npz")
    cells = data.load("bloodmnist", split="test")
    right = net.classify(net.features(cells.images)).argmax(1) == cells.labels
    assert right.mean() >= 0.95


# ---- BloodNet: reading weights ---------------------------------------------------------------


def packed(arrays: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def flipped(raw: bytes) -> bytes:
    at = len(raw) // 2
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda raw, w: b"", ""),
        (lambda raw, w: b"<html>not found</html>", ""),
        (lambda raw, w: raw[:-1000], ""),
        (lambda raw, w: flipped(raw), ""),
        (lambda raw, w: flagged(raw), "encrypted"),
        (lambda raw, w: packed({k: v for k, v in w.items() if k != "head/bias"}), "head/bias"),
        (lambda raw, w: packed({**w, "more": w["head/bias"]}), "more"),
        (lambda raw, w: packed({**w, "head/bias": w["head/bias"][:7]}), "head/bias"),
        (lambda raw, w: packed({**w, "head/bias": w["head/bias"].astype("f4")}), "head/bias"),
        (lambda raw, w: packed({**w, "head/bias": w["head/bias"] * np.float16("nan")}), "finite"),
    ],
    ids="empty html truncated bit-flip flag missing extra shape float32 nan".split(),
)
def test_a_spoilt_file_is_refused(tmp_path, weights, spoil, what):
    path = tmp_path / "spoilt.npz"
    path.write_bytes(spoil(bloodnet.WEIGHTS.read_bytes(), weights))
    with pytest.raises(ValueError, match=f"(?s)spoilt.npz is not BloodNet.*{what}.*train it again"):
        features.make("bloodnet", weights=path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere.npz is not BloodNet"):
        features.make("bloodnet", weights=tmp_path / "nowhere.npz")


# ---- BloodNet: training ----------------------------------------------------------------------


def test_folding_the_normalisation_changes_nothing():
    x = jnp.asarray(noise(2, 8, 8, 3) / 127.5 - 1, jnp.float32)
    trained = bloodnet.BloodNet(norm=True)
    draw = np.random.default_rng(1).uniform
    shapes = jax.eval_shape(trained.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda a: jnp.asarray(draw(0.5, 1.5, a.shape), a.dtype), shapes)
    scaled = jax.tree.map(lambda a: a / a[..., 0].size if a.ndim > 1 else a, variables["params"])
    variables = {**variables, "params": scaled}  # activations stay near one
    folded = bloodnet.fold(variables["params"], variables["batch_stats"])
    wanted = jax.jit(trained.apply)(variables, x)
    found = jax.jit(bloodnet.BloodNet().apply)({"params": folded}, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), found, wanted)


def test_augmentation_only_moves_and_tints():
    flat = np.full((4, 28, 28, 3), 200, np.uint8)
    out = training.augment(jax.random.key(0), jnp.asarray(flat))
    assert out.shape == flat.shape
    np.testing.assert_array_equal(out, np.broadcast_to(out[:, :1, :1], out.shape))
    assert len(np.unique(out[:, 0, 0])) == 12


def test_the_command_trains_and_writes_what_it_measures(tmp_path, monkeypatch, capsys):
    asked = []

    def load(source, path, split):
        asked.append(split)
        labels = np.arange(128 if split == "train" else 8, dtype=np.int32) % 8
        return data.Dataset(synthetic.render(labels), labels, bloodnet.CLASSES, source, "")

    monkeypatch.setattr(data, "load", load)
    monkeypatch.setattr(bloodnet, "BLOCKS", ((bloodnet.DIMS, 2),))  # compiles faster
    out = tmp_path / "new.npz"
    training.main(["--out", str(out), "--epochs", "1"])
    assert asked == ["train", "val", "val", "test"]  # the test split last, and once
    said = capsys.readouterr().err
    assert features.make("bloodnet", weights=out).sha256 in said
    assert all(name in said for name in bloodnet.CLASSES)


def test_training_can_be_made_for_cuda():
    net, key = bloodnet.BloodNet(norm=True), jax.random.key(0)
    variables = jax.eval_shape(net.init, key, jnp.zeros((1, 28, 28, 3)))
    params, stats = variables["params"], variables["batch_stats"]
    tx, program = training.make_step(10, "XLA")
    state = {"params": params, "stats": stats, "ema": (params, stats)}
    state["opt"] = jax.eval_shape(tx.init, params)
    batch = noise(8, 28, 28, 3), np.arange(8)
    made = jax.export.export(program, platforms=["cuda"])
    assert made(state, np.uint32(0), key, batch).platforms == ("cuda",)


def test_training_refuses_other_data():
    large = data.Dataset(noise(8, 64, 64, 3), np.arange(8), bloodnet.CLASSES, "large", "")
    with pytest.raises(ValueError, match="large: images .*, expected 28x28 images of BloodMNIST"):
        training.train(large, seed=0, steps=1)
