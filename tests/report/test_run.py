"""The report of a small made-up run: what is on the page, and what is not."""

import hashlib
import io
import json
import math
from base64 import b64decode
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers.report import CLASSES, CONFIG, SCORES, a_dataset, a_line, put
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from bloodjax.images import tile
from bloodjax.report import figures
from bloodjax.report import run as report
from bloodjax.report.page import headline
from bloodjax.training import log


class Page(HTMLParser):
    """The tags, attributes and visible text of a page."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text("utf-8")
        self.tags, self.links, self.images, self.words = [], [], [], []
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.links += [attrs[key] for key in ("src", "href", "srcset") if key in attrs]
        self.images += [attrs] if tag == "img" else []

    def handle_data(self, data):
        if self.tags[-1:] != ["style"]:
            self.words.append(data)


@pytest.fixture
def workdir(tmp_path):
    put(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A run with its report, to be looked at alone."""
    folder = tmp_path_factory.mktemp("reported")
    put(folder)
    assert report.write_report(folder, a_dataset()) == folder / "report" / "index.html"
    return folder


def test_everything_is_written(reported):
    path = reported / "report" / "index.html"
    pictures = {f"{name}.png" for name in ("samples", "closest", "curves", "classes", "denoising")}
    assert {p.name for p in path.parent.iterdir()} == {"index.html", "table.md"} | pictures


def test_the_page_stands_alone(reported):
    page = Page(reported / "report" / "index.html")
    assert len(page.images) == 5
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"script", "link", "iframe", "b>"} & set(page.tags)
    for word in ("url(", "@import", "http:", "https:"):
        assert word not in page.source
    names = ("samples", "denoising", "closest", "curves", "classes")
    for image, name in zip(page.images, names, strict=True):
        data = b64decode(image["src"].partition(",")[2])
        assert data == (reported / "report" / f"{name}.png").read_bytes()
        assert "DDPM on BloodMNIST" in image["alt"]


def test_the_page_says_what_was_found(reported):
    text = Page(reported / "report" / "index.html").text
    for words in (
        "DDPM on BloodMNIST",
        "FD-BloodNet 13.00 ± 0.50 floor 0.2500",
        "Higher is better: precision, recall, density, coverage.",
        "between 9,000 generated and 10,000 real images",
        "the distance of 8,546 other real images from 8,546",
        "population σ over 2 seeds; σ 0.12 over 5 draws of the real images",
        "Lower is better",
        "This is not FID",
        "plain 25.0% 0.0% -",
        r"cells 25.0% 50.0% 31.00",
        "diffusion 423.70 ± 0.64",
        "Only an FID compares with them",
        "train.epochs 20",
        "seeds 3, 4",
        "jax 0.12.0",
        "python launch.py --config=configs/ddpm.py",
    ):
        assert words in text
    assert "nan" not in text.lower().split() and "None" not in text
    assert "synthetic" not in text.lower()


@pytest.mark.parametrize("space", ["bloodnet", "inception", "inception-64"])
@pytest.mark.parametrize("mistake", ["", "-raw-range", "-raw-reals", "-min-max"])
def test_a_mistake_is_called_one(space, mistake):
    summary = {**SCORES["summary"][0], "features": space + mistake}
    text = headline(summary, SCORES)
    assert ("a range that it does not expect" in text) == bool(mistake)


def test_names_are_escaped(reported):
    page = Page(reported / "report" / "index.html")
    assert CLASSES[0] in page.text and CLASSES[0] not in page.source
    assert 'a "<b>" & c' in page.text and "<b>&quot;" not in page.source
    assert "script" not in page.tags


def test_a_hostile_title_is_escaped(tmp_path):
    put(tmp_path, config=CONFIG | {"config": {"name": "x; <i>", "method": {"name": r"<i>$\m$"}}})
    page = Page(report.write_report(tmp_path, a_dataset()))
    assert page.text.count(r"<I>$\M$ on BloodMNIST") == 2  # title and h1
    assert "launch.py '--config=configs/x; <i>.py'" in page.text


def test_a_quick_run_names_its_variant(tmp_path):
    put(tmp_path, config={"config": {"name": "ddpm-quick", "method": {"name": "ddpm"}}})
    text = Page(report.write_report(tmp_path, a_dataset())).text
    assert "python launch.py --config=configs/ddpm.py:quick" in text


def test_the_table(reported):
    lines = (reported / "report" / "table.md").read_text("utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert lines[0] == "# DDPM on BloodMNIST"
    numbers = "0.12 | 0.2500 | 11.50 | 45.6 | 0.750 | 0.500 | 0.625 | 0.375 | 0.062"
    assert rows[2] == (
        f"| 3 | FD-BloodNet | 12.50 | {numbers} | 10,000 | 9,000 | 2,680 | "
        r"BloodMNIST cdcdcdcdcdcd | as is \| or not | w.npz efefefefefef |"
    )
    assert rows[4].startswith(f"| mean of 2 | FD-BloodNet | 13.00 ± 0.50 | {numbers} |")
    alike = "| 0.2500 |  |  |  | 0.1 | 0.900 | 0.910 | 0.970 | 0.980 | 0.438 | 8,546 | 8,546"
    assert rows[5].startswith(f"| other real images | FD-BloodNet {alike} |")
    assert {row.replace(r"\|", "").count("|") for row in rows[:6]} == {19}
    assert rows[-1] == "| diffusion | 423.70 ± 0.64 |"


def test_the_studys_table_stands_beside_its_own_data_alone(tmp_path):
    put(tmp_path)
    page = Page(report.write_report(tmp_path, a_dataset(name="pathmnist")))
    assert "423.70" not in page.text
    assert "423.70" not in (tmp_path / "report" / "table.md").read_text("utf-8")


def test_samples_stand_above_their_nearest_training_images(workdir, monkeypatch):
    calls = {}
    monkeypatch.setattr(
        figures, "mosaic", lambda heading, blocks, *sizes: calls.update({sizes: blocks}) or b"png"
    )
    report.write_report(workdir, a_dataset())
    (caption, pairs), (second, _) = calls[(2, 1)]
    assert "seed 3: ratios 2.50 to 7.50" in caption and "seed 4" in second
    with np.load(workdir / "samples.npz") as file:
        expected = [*file["images"][0, [2, 7]], *a_dataset().images[[57, 52]]]
    np.testing.assert_array_equal(pairs, expected)


@pytest.mark.parametrize("columns", [1, 2, 8])
def test_captions_that_are_wider_than_their_pictures_do_not_meet(monkeypatch, columns):
    drawn = []
    monkeypatch.setattr(figures, "png", drawn.append)
    pixels = np.zeros((columns, 28, 28, 3), np.uint8)
    names = "immature granulocyte (3,112)", "platelet (2,348)", "lymphocyte (1,214)"
    figures.mosaic("Cells", [(name, pixels) for name in names], columns, 3)
    (figure,) = drawn
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.texts if text.get_text() in names]
    ends = [x for box in boxes for x in (box.x0, box.x1)]
    assert ends == sorted(ends) and ends[-1] <= figure.bbox.width


@pytest.mark.parametrize("where", ["data", "config"])
def test_synthetic_cells_are_called_so_everywhere(tmp_path, monkeypatch, where):
    put(tmp_path, config=CONFIG | {"dataset": {"name": "synthetic" if where == "config" else "x"}})
    titles = []
    png = figures.png
    monkeypatch.setattr(
        figures, "png", lambda figure: titles.append(words_in(figure)) or png(figure)
    )
    dataset = a_dataset(name="synthetic" if where == "data" else "bloodmnist")
    page = Page(report.write_report(tmp_path, dataset))
    label = "synthetic cells, not BloodMNIST"
    assert len(titles) == 5
    assert sum(label in words for words in titles) == (5 if where == "data" else 4)
    assert page.text.startswith(f"DDPM on {label} DDPM on {label}")
    assert "No number here says anything about blood" in page.text
    assert label in (tmp_path / "report" / "table.md").read_text("utf-8").splitlines()[0]


def words_in(figure):
    words = [figure.get_suptitle(), *(text.get_text() for text in figure.texts)]
    return " ".join([*words, *(axes.get_title("left") for axes in figure.axes)])


def test_real_and_every_seed_are_shown(workdir, monkeypatch):
    calls = []
    png = figures.png
    monkeypatch.setattr(
        figures, "png", lambda figure: calls.append(words_in(figure)) or png(figure)
    )
    report.write_report(workdir, a_dataset())
    samples, denoising, _, curves, classes = calls
    for words in ("real", "generated, seed 3, step 2,680", "generated, seed 4"):
        assert words in samples
    assert "seed 3" in denoising
    assert "loss" in curves and "kl" in curves and "images_per_s" not in curves
    assert "plain (20)" in classes and "empty" not in classes


def test_pixels_come_through_unchanged(reported):
    """Each pixel of an image is a whole square of its colour in the picture."""
    picture = np.asarray(Image.open(reported / "report" / "samples.png").convert("RGB"))
    with np.load(reported / "samples.npz") as file:
        first = file["images"][0, 0].repeat(3, axis=0).repeat(3, axis=1)
    y, x = find(picture, first[0])
    np.testing.assert_array_equal(picture[y : y + 84, x : x + 84], first)


def find(picture, row):
    """Where a row of pixels, uint8 [n, 3], begins in a picture."""
    for y, x in np.argwhere((picture[:, : -len(row)] == row[0]).all(-1)):
        if (picture[y, x : x + len(row)] == row).all():
            return y, x
    raise AssertionError("the image is not in the picture")


@pytest.mark.parametrize("shape", [(28, 28, 1), (64, 64, 3), (5, 9, 1), (224, 224, 3)])
def test_other_shapes(tmp_path, shape):
    put(tmp_path, shape, seeds=(0,), n=3, trace=(1, 2), scores=None)
    path = report.write_report(tmp_path, a_dataset(shape))
    for name in ("samples", "classes", "denoising"):
        Image.open(path.parent / f"{name}.png").verify()


def test_tile_shows_grey_as_grey():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1), dtype=np.uint8)
    grid = tile(images, 3)
    assert grid.shape == (2 * 86, 3 * 86, 3) and grid.dtype == np.uint8
    assert (grid == grid[..., :1]).all()
    assert (grid[:84:21, :84:21, 0] == images[0, :, :, 0]).all()
    assert (grid[86:170:21, 86:170:21, 0] == images[4, :, :, 0]).all()
    assert (grid[86:, 172:] == 255).all()  # a place without a picture is white


@pytest.mark.parametrize(
    "missing, words",
    [
        ("scores.json", "Not scored"),
        ("metrics.jsonl", "No curves: metrics.jsonl is missing"),
        ("config.json", "Missing in config.json"),
    ],
)
def test_what_is_missing_is_named(workdir, missing, words):
    (workdir / missing).unlink()
    page = Page(report.write_report(workdir, a_dataset()))
    assert words in page.text
    table = (workdir / "report" / "table.md").read_text("utf-8")
    assert ("Not scored yet: run with --mode=score" in table) == (missing == "scores.json")


def test_scores_of_other_samples_are_left_out(tmp_path, capsys):
    put(tmp_path, n=40)
    scores = (tmp_path / "scores.json").read_bytes()
    put(tmp_path, n=39)
    (tmp_path / "scores.json").write_bytes(scores)
    assert "Not scored" in Page(report.write_report(tmp_path, a_dataset())).text
    assert "belongs to other samples and is left out" in capsys.readouterr().err


def test_a_run_without_samples_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="--mode=sample"):
        report.write_report(tmp_path, a_dataset())
    assert not (tmp_path / "report").exists()


def test_a_run_without_trace_or_classes(tmp_path):
    without = {"classes": None, "closest": []}
    scores = {**SCORES, "scores": [s | without for s in SCORES["scores"]]}
    put(tmp_path, trace=(0, 0), scores=scores)
    page = Page(report.write_report(tmp_path, a_dataset()))
    assert len(page.images) == 3 and "The share of each class" not in page.text
    assert not (tmp_path / "report" / "denoising.png").exists()


def test_labelled_samples_are_shown_and_judged_by_class(tmp_path):
    accuracy = {"real": 0.96, "fake": 0.8}
    classes = {
        name: share | {"accuracy": {"real": 0.9, "fake": 0.75 if i < 2 else None}}
        for i, (name, share) in enumerate(SCORES["scores"][0]["classes"].items())
    }
    own = [s | {"accuracy": accuracy, "classes": classes} for s in SCORES["scores"]]
    labels = np.arange(40) % 2 * 2  # classes 0 and 2
    put(tmp_path, scores=SCORES | {"scores": own}, labels=labels)
    page = Page(report.write_report(tmp_path, a_dataset()))
    assert "Samples by class" in page.text and CLASSES[0] not in page.source
    assert "BloodNet assigns 80.0% of the samples to the class that was asked for" in page.text
    assert "96.0% of the real images" in page.text
    assert r"$\nope$ cells 25.0% 50.0% 90.0% 75.0% 31.00" in page.text
    assert "plain 25.0% 0.0% 90.0% - -" in page.text
    grid = [image for image in page.images if image["alt"].endswith(", generated")]
    assert [image["alt"] for image in grid] == [f"{CLASSES[k]}, generated" for k in (0, 2)]
    with np.load(tmp_path / "samples.npz") as file:
        for k, image in zip((0, 2), grid, strict=True):
            raw = b64decode(image["src"].partition(",")[2])
            expected = tile(file["images"][0, labels == k][:8], 8)
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(raw))), expected)


def test_unlabelled_samples_are_not_judged_by_class(reported):
    text = Page(reported / "report" / "index.html").text
    assert "Samples by class" not in text and "asked for" not in text and "accuracy" not in text


def test_one_seed_has_no_spread(tmp_path):
    summary = [SCORES["summary"][0] | {"seeds": 1, "std": 0.0}]
    put(tmp_path, seeds=(3,), scores={"scores": SCORES["scores"][:1], "summary": summary})
    page = Page(report.write_report(tmp_path, a_dataset()))
    assert "FD-BloodNet 13.00 floor" in page.text and "one seed" in page.text
    assert "13.00 ±" not in page.text and "mean of" not in page.text


def test_a_second_run_writes_the_same_bytes(workdir, reported):
    def digests(folder):
        files = (folder / "report").iterdir()
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    report.write_report(workdir, a_dataset())
    assert digests(workdir) == digests(reported)


def test_metrics_of_a_resumed_and_interrupted_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rerun = a_line(0, 2).replace('"loss": 0.5', '"loss": 7.0')
    path.write_text("\n".join([a_line(0, 1), a_line(0, 2), a_line(0, 3), rerun, a_line(0, 4)[:20]]))
    curves = log.read(path)
    assert sorted(curves) == ["kl", "loss"]
    np.testing.assert_allclose(curves["loss"][0], [[1, 1], [2, 7], [3, 1 / 3]])


def test_curves_survive_a_diverged_run(workdir):
    lines = [a_line(3, step) for step in range(1, 9)]
    lines += [json.dumps({"seed": 3, "step": 9, "loss": math.inf, "kl": math.nan})]
    lines += [json.dumps({"seed": 4, "step": 1, "late": math.nan})]
    (workdir / "metrics.jsonl").write_text("\n".join(lines))
    assert list(log.read(workdir / "metrics.jsonl")) == ["kl", "late", "loss"]
    assert len(Page(report.write_report(workdir, a_dataset())).images) == 5


def test_the_smooth_line_is_the_mean_of_its_neighbours():
    figure = figures.Figure()
    axes = figure.add_subplot()
    values = np.random.default_rng(0).normal(size=80)
    figures.draw_loss(axes, "loss", {0: np.stack([np.arange(80.0), values], axis=1)})
    raw, smooth = (line.get_ydata() for line in axes.lines)
    np.testing.assert_allclose(raw, values)
    np.testing.assert_allclose(smooth[40], values[39:42].mean())
    np.testing.assert_allclose(smooth[[0, -1]], [values[:2].mean(), values[-2:].mean()])


def test_long_names_of_classes_keep_their_first_letters():
    assert figures.class_caption("x" * 36, 0) == "x" * 36
    assert figures.class_caption("Tomato___" + "x" * 40, 0) == "Tomato___" + "x" * 26 + "…"


@pytest.mark.parametrize(
    ("name", "caption"),
    [("Lymphozyt größer", "Lymphozyt größer"), ("淋巴细胞", "class 4"), ("лимфоцит", "лимфоцит")],
)
def test_a_class_in_letters_that_the_font_lacks_is_numbered(name, caption):
    assert figures.class_caption(name, 4) == caption
