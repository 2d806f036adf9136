"""Inception's weights: the table of layers, where files come from, and what is made of them."""

import hashlib
import http.server
import io
import os
import pathlib
import pickle
import socket
import threading
import time

import numpy as np
import pytest
from helpers.tiny import flagged
from helpers.torch_files import FORMATS, legacy, same, zipped

from bloodjax.features.inception import weights
from bloodjax.runtime import download

NOWHERE = "http://127.0.0.1:9/inception.pth"  # the discard port: refused at once
LAYERS = {"Conv2d_1a_3x3": (3, 2, 3, 3), "Mixed_6b.branch7x7_2": (4, 3, 1, 7)}
ENDLESS = 20_000  # times a body: more than anyone reads who knows how long the file is
TABLE = "bd04e829988dd22dd0bbf9e499a87af311ed57c1b4309a9d20a907d8ed4123d4"


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(params=FORMATS)
def form(request):
    return FORMATS[request.param]


# ---- the table of layers -----------------------------------------------------------------------


def test_table():
    """Count, elements and digest of what pytorch-fid's network itself lists."""
    shapes = {"fc.weight": weights.FC, "fc.bias": weights.FC[:1]}
    for name, shape in weights.CONVS.items():
        shapes[f"{name}.conv.weight"] = shape
        shapes |= {f"{name}.bn.{part}": shape[:1] for part in weights.NORM}
    assert len(weights.CONVS) == 94 and len(shapes) == 566 - 94
    assert sum(np.prod(shape) for shape in shapes.values()) == 23_885_486 - 94
    text = "\n".join(sorted(f"{name} {list(shape)}" for name, shape in shapes.items()))
    assert hashlib.sha256(text.encode()).hexdigest() == TABLE


def test_published_names_agree():
    assert weights.PUBLISHED[:8] in weights.FILE and len(weights.PUBLISHED) == 64
    assert [url.endswith(".pth") and weights.PUBLISHED[:8] in url for url in weights.URLS] == [
        True
    ] * 2


# ---- this network's weights --------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home directory, no settings, no network, and a network of two layers."""
    for name in (weights.VARIABLE, "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "USERPROFILE", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(weights.pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr(weights, "URLS", (NOWHERE, f"{NOWHERE}?mirror"))
    monkeypatch.setattr(weights, "CONVS", LAYERS)
    monkeypatch.setattr(weights, "FC", (5, 4))
    return tmp_path


def small(seed=0, counters=True, **changes):
    """Weights of that network; `changes` replace arrays, None drops one. No dots: __ for them."""
    draw, held = rng(seed).random, {}
    for name, shape in LAYERS.items():
        held[f"{name}.conv.weight"] = draw(shape) - 0.5
        held |= {f"{name}.bn.{part}": draw(shape[0]) for part in weights.NORM}
    held |= {"fc.weight": draw((5, 4)), "fc.bias": draw(5)}
    held = {name: x.astype(np.float32) for name, x in held.items()}
    if counters:
        held |= {f"{name}.bn.num_batches_tracked": np.array(0) for name in LAYERS}
    held |= {name.replace("__", "."): x for name, x in changes.items()}
    return {name: x for name, x in held.items() if x is not None}


def write(path, raw=None):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(legacy(small()) if raw is None else raw)
    return path


def publish(monkeypatch, raw):
    monkeypatch.setattr(weights, "PUBLISHED", hashlib.sha256(raw).hexdigest())
    monkeypatch.setattr(weights, "SIZE", len(raw))
    return raw


def heard(capsys):
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("counters", [True, False])
def test_read(home, form, counters):
    same(weights.read(write(home / "w", form(small(counters=counters)))), small(counters=False))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_become_float32(home, form, dtype):
    arrays = {name: x.astype(dtype) for name, x in small(counters=False).items()}
    expected = {name: x.astype(np.float32) for name, x in arrays.items()}
    same(weights.read(write(home / "w", form(arrays))), expected)


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


@pytest.mark.parametrize("case", WRONG)
def test_wrong_tensors_are_named(home, form, case):
    changes, *said = WRONG[case]
    path = write(home / "w", form(small(**changes)))
    with pytest.raises(ValueError) as error:
        weights.load(str(path))
    for part in (f"{path}: ", *said, f"download it again from {NOWHERE}"):
        assert part in str(error.value)
    assert "\n" not in str(error.value) and not (home / "cache").exists()


def test_several_wrong_tensors_are_counted(home):
    path = write(home / "w", legacy(small(fc__bias=None, fc__weight=None, more=np.zeros(1, "f"))))
    with pytest.raises(ValueError, match=r"fc.bias is missing.*\(and 2 more differences\)"):
        weights.read(path)


def test_a_damaged_file_says_how_to_get_another(home):
    path = write(home / "w", legacy(small())[:-1])
    with pytest.raises(ValueError, match=f"{path}.*announced as.*download it again from http"):
        weights.load(str(path))


def naive(state, name, x, epsilon):
    """BatchNorm (Ioffe & Szegedy, algorithm 1) of a convolution, pixel by pixel; x [h, w, in]."""
    kernel = state[f"{name}.conv.weight"].astype(float)
    gamma, beta, mean, var = (state[f"{name}.bn.{part}"].astype(float) for part in weights.NORM)
    out, _, h, w = kernel.shape
    y = np.zeros((x.shape[0] - h + 1, x.shape[1] - w + 1, out))
    for i, j, o in np.ndindex(y.shape):
        patch = x[i : i + h, j : j + w].transpose(2, 0, 1)
        y[i, j, o] = (patch * kernel[o]).sum()
    return gamma * (y - mean) / np.sqrt(var + epsilon) + beta


@pytest.mark.parametrize("name", LAYERS)
def test_fold_is_convolution_then_normalisation(home, name):
    state = small(counters=False)
    folded = weights.fold(state)
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


# ---- places ------------------------------------------------------------------------------------


def test_order_of_places(home, monkeypatch):
    raw = publish(monkeypatch, legacy(small()))
    hub = home / ".cache/torch/hub/checkpoints"
    expected = {
        "download cache": home / "cache/bloodjax/pt_inception-2015-12-05-6726825d.pth",
        "pytorch-fid": hub / "pt_inception-2015-12-05-6726825d.pth",
        "torch-fidelity": hub / "weights-inception-2015-12-05-6726825d.pth",
    }
    assert weights.places() == [(label, path, False) for label, path in expected.items()]
    for label, path in reversed(expected.items()):
        write(path, raw)
        assert [there for _, _, there in weights.places()][list(expected).index(label)]
        assert weights._find("") == (path, weights.PUBLISHED)
    other = write(home / "env.pth", legacy(small(1)))
    monkeypatch.setenv(weights.VARIABLE, "~/env.pth")
    assert weights.load()[0] == hashlib.sha256(other.read_bytes()).hexdigest() != weights.PUBLISHED
    given = write(home / "given.pth", legacy(small(2)))
    assert weights.load(str(given))[0] == hashlib.sha256(given.read_bytes()).hexdigest()
    found = weights.places(str(given))
    assert [(label, path) for label, path, _ in found] == [
        ("weights", given),
        (weights.VARIABLE, other),
        *expected.items(),
    ]


def test_torch_s_own_settings_are_followed(home, monkeypatch):
    name = "hub/checkpoints/pt_inception-2015-12-05-6726825d.pth"
    for variable, value, folder in (
        ("XDG_CACHE_HOME", home / "xdg", home / "xdg/torch"),
        ("TORCH_HOME", "~/torch", home / "torch"),
        ("TORCH_HOME", "", home / "xdg/torch"),
    ):
        monkeypatch.setenv(variable, str(value))
        assert (
            dict((label, path) for label, path, _ in weights.places())["pytorch-fid"]
            == folder / name
        )


def test_a_named_file_must_exist(home, monkeypatch):
    publish(monkeypatch, write(home / "cache/bloodjax" / weights.FILE).read_bytes())
    with pytest.raises(FileNotFoundError, match="gone.pth: no such file; correct weights"):
        weights.load(str(home / "gone.pth"))
    with pytest.raises(ValueError, match="a folder; expected a .pth"):
        weights.load(str(home))
    monkeypatch.setenv(weights.VARIABLE, str(home / "gone.pth"))
    with pytest.raises(
        FileNotFoundError, match=f"gone.pth: no such file; correct {weights.VARIABLE}"
    ):
        weights.load()


def test_an_npz_is_refused(home):
    np.savez(home / "w.npz", x=np.zeros(3))
    with pytest.raises(
        ValueError, match="w.npz: a zip file of x.npy.*expected a whole .pth or .safe"
    ):
        weights.load(str(home / "w.npz"))


# ---- conversion --------------------------------------------------------------------------------


@pytest.fixture
def folds(monkeypatch):
    """A list that grows by one at every conversion."""
    done, fold = [], weights.fold
    monkeypatch.setattr(weights, "fold", lambda state: done.append(1) or fold(state))
    return done


def kept(home):
    return sorted(path.name for path in (home / "cache/bloodjax").iterdir())


def test_converted_once(home, folds, capsys):
    path = write(home / "w.pth")
    sha256, params = weights.load(str(path))
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    same(params, {name: x.astype(np.float32) for name, x in weights.fold(small()).items()})
    assert kept(home) == [f"inception-{sha256[:16]}.npz"] and len(folds) == 2
    again = weights.load(str(path))
    assert again[0] == sha256 and len(folds) == 2 and heard(capsys) == []
    same(again[1], params)
    other = weights.load(str(write(home / "w.pth", zipped(small(1)))))  # same name, other content
    assert len(folds) == 3 and len(kept(home)) == 2
    assert not np.array_equal(other[1]["fc.bias"], params["fc.bias"])


class Bomb:
    def __reduce__(self):
        return exec, ("import os; os.environ['BLOODJAX_BOMB'] = 'went off'",)


def damages(raw):
    middle = len(raw) // 2
    yield from (b"", b"<html>", raw[:-1], raw[:middle], bytes(len(raw)), pickle.dumps([1]))
    with np.load(io.BytesIO(raw)) as file:
        held = dict(file)
    name = "Conv2d_1a_3x3.bias"
    at = raw.index(held[name].tobytes())
    yield raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
    yield flagged(raw)
    rest = {key: x for key, x in held.items() if key != name}
    others = (held[name] + 1, held[name][None], held[name].astype(float), held[name].view(np.int32))
    changed = [rest | {name: x} for x in (*others, np.array([Bomb()], object))]
    changed += [rest, rest | {"more": held[name]}, rest | {f"{name}ed": held[name]}]
    changed += [{key: x for key, x in held.items() if key != "sha256"}]
    for arrays in changed:
        out = io.BytesIO()
        np.savez(out, **arrays)
        yield out.getvalue()
    out = io.BytesIO()
    np.save(out, held[name])
    yield out.getvalue()


def test_damaged_conversions_are_made_again(home, folds, capsys):
    path = write(home / "w.pth")
    sha256, params = weights.load(str(path))
    cached = home / "cache/bloodjax" / f"inception-{sha256[:16]}.npz"
    for count, raw in enumerate(damages(cached.read_bytes()), start=2):
        cached.write_bytes(raw)
        same(weights.load(str(path))[1], params)
        (said,) = heard(capsys)
        assert str(cached) in said and "converted again" in said
        assert len(folds) == count and "BLOODJAX_BOMB" not in os.environ
        weights.load(str(path))
        assert heard(capsys) == [] and len(folds) == count


def test_conversions_of_another_source_or_layout_are_not_taken(home, folds, monkeypatch):
    path, other = write(home / "w.pth"), write(home / "v.pth", legacy(small(1)))
    sha256, params = weights.load(str(path))
    digest, _ = weights.load(str(other))
    folder = home / "cache/bloodjax"
    os.replace(folder / f"inception-{digest[:16]}.npz", folder / f"inception-{sha256[:16]}.npz")
    same(weights.load(str(path))[1], params)
    assert len(folds) == 3
    monkeypatch.setattr(weights, "LAYOUT", weights.LAYOUT + 1)
    weights.load(str(path))
    assert len(folds) == 4


def test_a_cache_that_cannot_be_written(home, folds, capsys):
    path = write(home / "w.pth")
    write(home / "cache", b"a file in the way")
    for count in (1, 2):
        params = weights.load(str(path))[1]
        (said,) = heard(capsys)
        assert "cannot be kept" in said and len(folds) == count
    assert params.keys() == weights.fold(small()).keys()


def test_a_full_disk_leaves_nothing(home, monkeypatch, capsys):
    def full(out, **arrays):
        out.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights.np, "savez", full)
    weights.load(str(write(home / "w.pth")))
    assert "No space left" in heard(capsys)[0] and kept(home) == []


def test_several_at_once(home):
    path, found, start = write(home / "w.pth"), [], threading.Barrier(8)

    def work():
        start.wait()
        found.extend(weights.load(str(path)) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 40 and len(kept(home)) == 1
    for sha256, params in found:
        assert sha256 == found[0][0]
        same(params, found[0][1])


# ---- the download ------------------------------------------------------------------------------


@pytest.fixture
def server(home, monkeypatch):
    """Serves `server.replies` on this machine, {path: (status, body, bytes that it claims)}.

    Where it claims none it goes on and on.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.hits.append(self.path)
            status, body, length = self.server.replies[self.path]
            self.send_response(status)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            try:
                for _ in range(1 if length is not None else ENDLESS):
                    self.wfile.write(body)
            except OSError:  # the other side has seen enough
                self.server.hung_up.set()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.hits, running.replies, running.hung_up = [], {}, threading.Event()
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        base = f"http://127.0.0.1:{running.server_port}"
        monkeypatch.setattr(weights, "URLS", (f"{base}/first", f"{base}/mirror"))
        yield running
        running.shutdown()
        thread.join()


def test_download_once(home, server, monkeypatch):
    raw = publish(monkeypatch, legacy(small()))
    server.replies = {"/first": (200, raw, len(raw))}
    sha256, params = weights.load()
    assert sha256 == weights.PUBLISHED and params.keys() == weights.fold(small()).keys()
    weights.load()
    assert server.hits == ["/first"]
    assert kept(home) == [f"inception-{sha256[:16]}.npz", weights.FILE]
    assert (home / "cache/bloodjax" / weights.FILE).read_bytes() == raw


def replies(raw):
    """What a server may send instead, and what is said of it."""
    other = legacy(small(1))
    page = b"<html>moved</html>"
    return {
        "not found": (404, page, len(page), "404"),
        "error": (500, b"", 0, "500"),
        "a page": (200, page, len(page), "expected"),
        "other weights, as long": (200, other, len(other), "hash"),
        "cut short": (200, raw[:-100], len(raw), ""),
        "shorter": (200, raw[:-100], len(raw) - 100, "expected"),
        "longer": (200, raw + b"more", len(raw) + 4, "expected"),
        "without end": (200, raw, None, "expected"),
        "empty": (200, b"", 0, "expected"),
    }


@pytest.mark.parametrize("case", replies(b""))
def test_bad_replies_and_the_mirror(home, server, monkeypatch, case):
    raw = publish(monkeypatch, legacy(small()))
    read = []
    monkeypatch.setattr(weights, "read", read.append)
    *bad, said = replies(raw)[case]
    assert case != "other weights, as long" or len(bad[1]) == len(raw)
    said = said.replace("expected", f"expected {len(raw)} bytes")
    server.replies = {"/first": bad, "/mirror": bad}
    with pytest.raises(download.Unavailable) as error:
        weights.load()
    assert "\n" not in str(error.value) and error.value.__context__ is None
    assert said in str(error.value)
    assert case != "without end" or server.hung_up.wait(60)
    assert server.hits == ["/first", "/mirror"] and read == [] and kept(home) == []
    server.replies["/mirror"] = (200, raw, len(raw))
    assert weights._find("") == (home / "cache/bloodjax" / weights.FILE, weights.PUBLISHED)


def test_offline_names_the_ways_out(home, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waits to try again"))
    with pytest.raises(download.Unavailable) as error:
        weights.load()
    said = str(error.value)
    for part in (weights.FILE, "sha256 6726825d", "no connection", weights.URLS[0]):
        assert part in said
    assert f"{weights.VARIABLE}=FILE" in said and str(home / "cache") in said
    assert "\n" not in said and said.count("no connection") == 1 and kept(home) == []


def test_a_silent_server_is_not_waited_for(home, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setattr(weights, "URLS", (f"http://127.0.0.1:{mute.getsockname()[1]}/w",))
        monkeypatch.setattr(download, "TIMEOUT", (0.2, 0.2))
        with pytest.raises(download.Unavailable, match="(?i)timed out.*read timeout=0.2"):
            weights.load()
    assert kept(home) == []


def test_damaged_copies_are_skipped(home, server, monkeypatch, capsys):
    raw = publish(monkeypatch, legacy(small()))
    server.replies = {"/first": (200, raw, len(raw))}
    hub = write(home / ".cache/torch/hub/checkpoints" / weights.FILE, raw[:-1])
    own = write(home / "cache/bloodjax" / weights.FILE, legacy(small(1)))
    assert weights.load()[0] == weights.PUBLISHED and server.hits == ["/first"]
    said = [line for line in heard(capsys) if "damaged" in line]
    assert [str(path) in line for path, line in zip((own, hub), said, strict=True)] == [True] * 2
    assert own.read_bytes() == raw and hub.read_bytes() == raw[:-1]  # another program's: left alone


def test_a_copy_elsewhere_saves_the_download(home, monkeypatch):
    raw = publish(monkeypatch, legacy(small()))
    write(home / ".cache/torch/hub/checkpoints" / weights.MIRRORED, raw)
    assert weights.load()[0] == weights.PUBLISHED
    assert kept(home) == [f"inception-{weights.PUBLISHED[:16]}.npz"]


# ---- the whole network -------------------------------------------------------------------------


def test_full_size(state, tmp_path):
    """566 tensors of 95 MB in the published file's own format."""
    arrays = dict(state) | {f"{name}.bn.num_batches_tracked": np.array(7) for name in weights.CONVS}
    path = write(tmp_path / "w.pth", legacy(arrays))
    assert len(arrays) == 566 and abs(path.stat().st_size - weights.SIZE) < 100_000
    found = weights.read(path)
    same(found, state)
    folded = weights.fold(found)
    assert len(folded) == 2 * 94 + 2
    assert sum(x.size for x in folded.values()) == 23_885_486 - 94 - 3 * sum(
        shape[0] for shape in weights.CONVS.values()
    )
