"""The audit: usefulness of samples, copies, and membership, each against an independent count."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.report import put
from helpers.scoring import extractor
from scipy.stats import mannwhitneyu

from bloodjax import features
from bloodjax.data import join
from bloodjax.data.sources.bloodmnist import CLASSES
from bloodjax.report.audit import audit_section
from bloodjax.scoring import audit, membership


def cells(n, seed, classes=CLASSES, name="cells"):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 28, 28, 3), dtype=np.uint8)
    return join([(images, np.arange(n) % len(classes))], classes, name)


@pytest.mark.parametrize("levels", [3, 1000])
def test_the_area_under_the_curve_is_that_of_mann_and_whitney(levels):
    rng = np.random.default_rng(levels)
    x, y = rng.integers(0, levels, 40), rng.integers(0, levels, 70) // 2
    expected = mannwhitneyu(x, y).statistic / (40 * 70)
    assert membership.area_under_curve(x, y) == pytest.approx(expected)
    assert (
        membership.area_under_curve(x, x) == 0.5 and membership.area_under_curve(x + levels, x) == 1
    )


def test_accuracy_macro_f1_and_recall_are_counted_by_hand():
    counts = np.array([[8, 2, 0, 0], [4, 6, 0, 0], [0, 0, 0, 0], [0, 5, 0, 0]])
    accuracy, macro_f1, recall = audit.measure_confusion(counts)
    assert accuracy == pytest.approx(14 / 25)
    precision = [8 / 12, 6 / 13]
    f1 = [2 * p * r / (p + r) for p, r in zip(precision, (0.8, 0.6), strict=True)]
    assert macro_f1 == pytest.approx((f1[0] + f1[1] + 0) / 3)  # the third class does not occur
    assert recall == [0.8, 0.6, None, 0.0]


def test_copies_of_training_images_are_counted_among_those_alone(monkeypatch):
    monkeypatch.setattr(features, "make", extractor)
    train, test = cells(60, 1), cells(40, 2)
    rows = audit.shuffled_rows(train)[:40]
    shares = audit.count_copies(train.images[rows], train, test)
    assert shares["train"] == 1 and shares["test"] < 0.9 and shares["real"] < 0.9
    again = audit.count_copies(test.images, train, test)
    assert again["test"] == 1 and again["train"] == again["real"] == shares["real"]


def method_with_losses(loss):
    return SimpleNamespace(losses={"only": loss})


def test_a_model_that_knows_its_images_is_found_and_another_is_not():
    train, test = cells(60, 1), cells(40, 2)
    known = jnp.asarray(train.images).reshape(60, -1) / 127.5 - 1

    def recall(params, stats, batch, key):
        distances = jnp.abs(known - batch[0].reshape(1, -1)).mean(1)
        return distances.min() * params["scale"], ({}, stats)

    model = ({"scale": jnp.float32(2)}, {})
    assert membership.attack_membership(method_with_losses(recall), model, train, test) == 1
    blind = method_with_losses(lambda params, stats, batch, key: (jnp.float32(1), ({}, stats)))
    assert membership.attack_membership(blind, model, train, test) == 0.5


def test_the_loss_of_an_image_is_a_mean_over_fixed_noises_and_knows_its_label():
    def loss(params, stats, batch, key):
        noise = membership.random.uniform(key)
        return noise + batch[1][0], ({}, stats)

    images, labels = cells(30, 1).images, np.arange(30)
    losses = membership.measure_losses(method_with_losses(loss), ({}, {}), images, labels)
    keys = membership.random.split(membership.random.key(0), membership.NOISES)
    mean = np.mean([float(membership.random.uniform(key)) for key in keys])
    np.testing.assert_allclose(losses, labels + mean, rtol=1e-6)


def test_the_audit_is_written_and_shown_and_belongs_to_its_samples(tmp_path, monkeypatch):
    trained = []

    def train(images, seed, steps):
        trained.append((images.name, len(images.images), seed, steps))
        return seed

    def confusion(seed, test):
        return np.diag(np.bincount(test.labels, minlength=8)) + seed

    monkeypatch.setattr(audit.training, "train", train)
    monkeypatch.setattr(audit.training, "confusion", confusion)
    monkeypatch.setattr(audit, "attack_membership", lambda *a: 0.5125)
    put(tmp_path, labels=np.arange(40) % 8)
    audit.write_audit(tmp_path, None, None, cells(300, 1), cells(80, 2))
    stored = json.loads((tmp_path / "audit.json").read_text())
    counts, steps = (300, 40, 340), 2 * audit.EPOCHS
    assert [t[2] for t in trained] == [0, 1, 2] * 3
    assert [(t[1], t[3]) for t in trained[::3]] == [(n, steps) for n in counts]
    assert stored["counts"] == {"samples": 40, "train": 300, "test": 80}
    accuracies = [80 / 80, 88 / 144, 96 / 208]  # of a diagonal of tens, plus 0, 1 and 2
    for name in ("real", "samples", "both"):
        assert stored["classifiers"][name]["accuracy"] == pytest.approx(
            {"mean": np.mean(accuracies), "std": np.std(accuracies)}
        )

    samples = audit.read_samples(tmp_path)
    page = audit_section(audit.read_audit(tmp_path, samples))
    assert "recall, lymphocyte" in page and "0.512" in page and "on 40 samples" in page
    other = samples._replace(images=samples.images[:, :9])
    assert audit_section(audit.read_audit(tmp_path, other)) == ""


def test_an_audit_that_was_stopped_goes_on_after_its_last_part(tmp_path, monkeypatch):
    trained, stop_at = [], 4

    def train(images, seed, steps):
        if len(trained) == stop_at:
            raise KeyboardInterrupt
        trained.append((images.name, seed))
        return seed

    def confusion(seed, test):
        return np.diag(np.bincount(test.labels, minlength=8)) + seed

    attacks = []
    monkeypatch.setattr(audit.training, "train", train)
    monkeypatch.setattr(audit.training, "confusion", confusion)
    monkeypatch.setattr(audit, "attack_membership", lambda *a: attacks.append(1) or 0.5125)
    put(tmp_path, labels=np.arange(40) % 8)
    data = cells(300, 1), cells(80, 2)
    with pytest.raises(KeyboardInterrupt):
        audit.write_audit(tmp_path, None, None, *data)
    assert not (tmp_path / "audit.json").exists()
    stop_at = None
    resumed = audit.write_audit(tmp_path, None, None, *data)
    assert len(trained) == len(set(trained)) == 9 and len(attacks) == 1, "nothing is done twice"
    assert audit.read_audit(tmp_path, audit.read_samples(tmp_path)) == resumed
    assert not (tmp_path / ".audit.json").exists()
    assert audit.write_audit(tmp_path, None, None, *data) == resumed
    assert len(trained) == 18

    (tmp_path / ".audit.json").write_text('{"origin": ["of other samples"], "membership": 1.0}')
    assert audit.write_audit(tmp_path, None, None, *data)["membership"] == 0.5125


def test_what_cannot_be_audited_is_refused_with_a_remedy(tmp_path):
    for split in ("all", "test", "val"):
        with pytest.raises(ValueError, match=r"train another run with --config\.data\.split=train"):
            audit.check_audit(split)
    audit.check_audit("train")
    put(tmp_path)
    with pytest.raises(ValueError, match="no labels; expected those of a conditional method"):
        audit.write_audit(tmp_path, None, None, cells(9, 1), cells(9, 2))
    put(tmp_path, labels=0)
    others = cells(9, 1, ("a", "b"))
    with pytest.raises(ValueError, match="expected 28x28 images of BloodMNIST"):
        audit.write_audit(tmp_path, None, None, others, others)
