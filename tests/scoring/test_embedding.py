"""Features of a data set are computed once, and never taken for others."""

import shutil

import numpy as np
import pytest
from helpers.tiny import flagged

from bloodjax import features
from bloodjax.data import join
from bloodjax.features import Extractor
from bloodjax.scoring import embedding
from bloodjax.scoring.embedding import cache_folder, embed_dataset, shuffled_rows


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(embedding, "BLOCK", 16)
    return tmp_path


@pytest.fixture
def calls():
    return []


@pytest.fixture
def space(calls):
    def mean(images):
        calls.extend(images[:, 0, 0, 0].tolist())
        return images.reshape(len(images), -1)[:, :2].astype(np.float32)

    return Extractor("space", 2, "ab" * 32, "as is", mean, None, ())


def a_dataset(n=50, first=0):
    images = np.arange(first, first + n, dtype=np.uint8)[:, None, None, None]
    images = np.broadcast_to(images, (n, 2, 2, 3))
    return join([(images, np.zeros(n, np.int64))], ["a"], "test")


def take(space, n, dataset=None):
    moved = []
    dataset = dataset or a_dataset()
    out = embed_dataset(space, dataset, n, lambda k, note: moved.append(k))
    assert sum(moved) == n
    rows = shuffled_rows(dataset)[:n]
    np.testing.assert_array_equal(out[:, 0], dataset.images[rows, 0, 0, 0])
    assert out.shape == (n, 2) and out.dtype == np.float32


def test_each_image_is_seen_once(space, calls):
    take(space, 50)
    take(space, 50)
    take(space, 20)
    assert sorted(calls) == list(range(50))


def test_more_images_build_on_fewer(space, calls):
    take(space, 32)
    del calls[:]
    take(space, 50)
    assert len(calls) == 50 - 32


def test_a_part_of_a_block_is_not_taken_for_all_of_it(space, calls):
    take(space, 20)
    del calls[:]
    take(space, 40)
    assert len(calls) == 24  # the first block of 16 was whole


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A copy of the package, whose code counts."""
    folder = tmp_path / "code"
    shutil.copytree(embedding.PACKAGE / "features", folder / "features")
    shutil.copy(embedding.PACKAGE / "images.py", folder)
    monkeypatch.setattr(embedding, "PACKAGE", folder)
    return folder


def append_line(file):
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as out:
        out.write("SIDE = 300\n")
    embedding.code_digest.cache_clear()


def test_the_same_code_elsewhere_finds_them(space, calls, request):
    take(space, 16)
    request.getfixturevalue("code")
    take(space, 16)
    assert len(calls) == 16


SPACES = {"bloodnet": "bloodnet", "inception": "inception-64-raw-range"}


@pytest.mark.parametrize(
    "file, depend",
    [
        ("images.py", {"bloodnet", "inception"}),
        ("features/__init__.py", {"bloodnet", "inception"}),
        ("features/inception/protocols.py", {"inception"}),
        ("features/inception/new.py", {"inception"}),
        ("features/dinov2.py", set()),
        ("features/dinov2/network.py", set()),
    ],
)
def test_they_are_of_the_code_of_their_own_space(space, calls, code, file, depend):
    """A new or changed file of another space leaves the features of this one alone."""
    spaces = {module: space._replace(name=name) for module, name in SPACES.items()}
    for module_space in spaces.values():
        take(module_space, 16)
    append_line(code / file)
    for module, module_space in spaces.items():
        del calls[:]
        take(module_space, 16)
        assert len(calls) == 16 * (module in depend), module


def test_the_code_of_each_space_is_found(code):
    for name in features.names():
        files = [*code.glob(f"features/{name}.py"), *code.glob(f"features/{name}/*.py")]
        assert files, name
        for file in files:
            before = embedding.code_digest(code, name)
            append_line(file)
            assert embedding.code_digest(code, name) != before


@pytest.mark.parametrize(
    "change",
    [{"sha256": "cd" * 32}, {"protocol": "other"}, {"name": "other"}, "data", "order"],
    ids=str,
)
def test_nothing_is_mixed_up(space, calls, change, monkeypatch):
    take(space, 16)
    del calls[:]
    if change == "order":
        monkeypatch.setattr(embedding, "ORDER_SEED", 4)
    other = space._replace(**change) if isinstance(change, dict) else space
    take(other, 16, a_dataset(first=100) if change == "data" else a_dataset())
    assert len(calls) == 16


def spoil_truncate(file):
    file.write_bytes(file.read_bytes()[:-40])


def spoil_flip(file):
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def spoil_flag(file):
    file.write_bytes(flagged(file.read_bytes()))


def spoil_shape(file):
    np.savez(file, features=np.zeros((16, 3), np.float32))


def spoil_type(file):
    np.savez(file, features=np.zeros((16, 2), np.float64))


def spoil_object(file):
    np.savez(file, features=np.array([{}] * 16, object), allow_pickle=True)


@pytest.mark.parametrize(
    "spoil",
    [spoil_truncate, spoil_flip, spoil_flag, spoil_shape, spoil_type, spoil_object],
)
def test_a_damaged_file_is_made_again(space, calls, spoil):
    take(space, 16)
    spoil(cache_folder(space, a_dataset()) / "0.npz")
    del calls[:]
    take(space, 16)
    assert len(calls) == 16
    take(space, 16)
    assert len(calls) == 16  # and is whole now


def test_without_a_place_to_keep_them_it_goes_on(space, cache, capsys):
    (cache / "bloodjax").write_text("a file where the folder should be")
    take(space, 16)
    assert "not kept" in capsys.readouterr().err
