"""Image classification sets of TensorFlow Datasets."""

from bloodjax.data.sources.tfds.reader import load as load
