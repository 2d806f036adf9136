"""Samples for other programs: the same pixels, each in its place."""

import json

import numpy as np
import pytest
from PIL import Image

from bloodjax.sampling import export
from bloodjax.sampling.samples import Samples, write_samples_file


def some(n=5, channels=3):
    return np.random.default_rng(0).integers(0, 256, (n, 8, 6, channels), dtype=np.uint8)


def put(folder, images, labels):
    seeds, trace = np.array([4, 9], np.uint32), images[:, :0, None]
    write_samples_file(folder, Samples(images, labels, seeds, 40, trace, "none"))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_has_every_image_by_its_number(tmp_path, channels):
    export.write_images(tmp_path / "a" / "out", some(channels=channels))
    files = sorted((tmp_path / "a" / "out").iterdir())
    assert [file.name for file in files] == [f"{i:06}.png" for i in range(5)]
    for file, image in zip(files, some(channels=channels), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), image.squeeze())
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["out"]


def test_images_with_a_label_lie_with_their_class(tmp_path):
    export.write_images(tmp_path / "out", some(), np.array([1, -1, 0, 1, 1]), ("red", "white"))
    found = sorted(p.relative_to(tmp_path / "out").as_posix() for p in tmp_path.rglob("*.png"))
    assert found == [
        "000001.png",
        "red/000002.png",
        "white/000000.png",
        "white/000003.png",
        "white/000004.png",
    ]


@pytest.mark.parametrize("name", ["", "..", "/red", "../red", "a\\b"])
def test_no_class_leads_out_of_the_folder(tmp_path, name):
    with pytest.raises(ValueError, match="no name of a folder"):
        export.write_images(tmp_path / "out", some(), np.zeros(5, int), (name,))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_not_touched(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(FileExistsError, match="out exists"):
        export.write_images(tmp_path / "out", some())
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "mine"]


def test_an_npz_says_what_it_is(tmp_path):
    export.write_images(tmp_path / "out.npz", some(), seed=3)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["images"], some())
        assert file["labels"].tolist() == [-1] * 5
        assert json.loads(str(file["about"])) == {"seed": 3}


def test_a_grid_shows_them_in_rows(tmp_path):
    export.write_images(tmp_path / "out.png", some())
    grid = np.asarray(Image.open(tmp_path / "out.png"))
    scale = 84 // 8
    assert grid.shape == (2 * (8 * scale + 2), 3 * (6 * scale + 2), 3)
    fourth = grid[8 * scale + 2 :: scale][:8, ::scale][:, :6]  # the first of the second row
    np.testing.assert_array_equal(fourth, some()[3])


def test_a_run_s_samples_are_written_seed_by_seed(tmp_path):
    images = some(2 * 70).reshape(2, 70, 8, 6, 3)
    put(tmp_path, images, np.full((2, 70), -1))
    export.export_run(tmp_path, ("png", "grid"), ())
    for s, seed in enumerate((4, 9)):
        files = sorted((tmp_path / "samples" / f"seed{seed}").iterdir())
        np.testing.assert_array_equal(np.stack([Image.open(f) for f in files]), images[s])
        height, width = np.asarray(Image.open(tmp_path / f"samples-seed{seed}.png")).shape[:2]
        assert (height, width) == (8 * 82, 8 * 62)  # 64 of them
    put(tmp_path, images[:, :3], np.full((2, 3), -1))
    export.export_run(tmp_path, ("png",), ())
    assert len(list((tmp_path / "samples" / "seed4").iterdir())) == 3, "none of before"


def test_nothing_is_written_unasked(tmp_path):
    export.export_run(tmp_path, (), ())
    assert not list(tmp_path.iterdir())
