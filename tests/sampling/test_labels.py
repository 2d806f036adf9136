"""Labels: which class each sample is asked to be of."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.sampling import state
from helpers.tiny import SHAPE, cells

from bloodjax.sampling.draw import SampleConfig, make_sampler, write_samples
from bloodjax.sampling.labels import make_labels, no_labels


class Painter:
    """A conditional method whose images are as bright as their label."""

    shape, classes, trace_title = SHAPE, 5, "painting"

    def sample(self, params, stats, key, label=None):
        return jnp.full(SHAPE, label / 4 * 2 - 1.0)

    def trace(self, params, stats, key, label=None):
        return self.sample(params, stats, key, label)[None]


def choose(choice, count):
    return make_labels(cells(40).classes, cells(40).counts, choice, count)


def test_labels_of_the_data_have_its_frequencies_and_do_not_depend_on_the_count():
    dataset = cells(40)
    labels = choose("data", 80)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(np.bincount(labels), 2 * np.bincount(dataset.labels))
    np.testing.assert_array_equal(choose("data", 7), labels[:7])
    assert (np.diff(labels[:40]) < 0).any(), "shuffled"


def test_labels_are_balanced_or_of_one_class_by_name_or_number():
    assert choose("balanced", 5).tolist() == [0, 1, 0, 1, 0]
    assert choose("b", 3).tolist() == choose("1", 3).tolist() == [1] * 3
    assert no_labels(2).tolist() == [-1, -1]


@pytest.mark.parametrize("choice", ["c", "2", "-1", "1.0", ""])
def test_an_unknown_class_is_refused_with_those_there_are(choice):
    with pytest.raises(ValueError, match="expected data, balanced, or one of the classes 0 a, 1 b"):
        choose(choice, 1)


def test_each_image_is_drawn_with_its_label_and_the_file_holds_it(tmp_path):
    def labels(count):
        return (np.arange(count) % 5).astype(np.int32)

    config = SampleConfig(count=11, chunk=4, labels="balanced")
    write_samples(Painter(), state("vae"), tmp_path, config, {}, labels)
    with np.load(tmp_path / "samples.npz") as file:
        np.testing.assert_array_equal(file["labels"], [labels(11)] * 2)
        expected = np.rint(labels(11) / 4 * 255)
        assert (file["images"] == expected[None, :, None, None, None]).all()
        assert (file["trace"][:, :, 0] == expected[None, :4, None, None, None]).all()
        assert json.loads(str(file["made_by"]))["labels"] == "balanced"


def test_an_unconditional_method_gets_no_label(tmp_path):
    class Unlabelled(Painter):
        classes = 0

        def sample(self, params, stats, key, label=None):
            assert label is None
            return jnp.zeros(SHAPE)

    draw = make_sampler(Unlabelled(), {}, "XLA")
    images, finite = draw({}, {}, jnp.uint32(0), jnp.arange(2), no_labels(2))
    assert images.shape == (2, *SHAPE) and finite.all()
