import pytest
from helpers.scoring import CALLS, extractor, put_samples, random_images

from bloodjax import features


@pytest.fixture
def workdir(tmp_path, monkeypatch, tmp_path_factory):
    """A run of two seeds with 50 samples each, to be scored in spaces of four numbers."""
    monkeypatch.setattr(features, "make", extractor)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    put_samples(tmp_path, random_images(2, 50), [5, 4294967295])
    CALLS.clear()
    return tmp_path
