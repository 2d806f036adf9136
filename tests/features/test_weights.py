"""Where Inception's weights come from, and what is kept of them."""

import hashlib
import http.server
import io
import os
import pickle
import socket
import threading
import time

import numpy as np
import pytest
from helpers.tiny import flagged
from helpers.torch_files import legacy, same, zipped
from helpers.weights import shrink, small, write

from bloodjax.features.inception import conversion, weights
from bloodjax.features.inception.layers import CONVS
from bloodjax.runtime import download

NOWHERE = "http://127.0.0.1:9/inception.pth"  # the discard port: refused at once
ENDLESS = 20_000  # times a body: more than anyone reads who knows how long the file is


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home directory, no settings, no wheel, no network, and a network of two layers."""
    for name in (weights.VARIABLE, "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "USERPROFILE", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(weights.pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr(weights, "URLS", (NOWHERE, f"{NOWHERE}?mirror"))
    monkeypatch.setattr(weights, "WHEEL", "no-such-wheel")
    shrink(monkeypatch)
    return tmp_path


def publish(monkeypatch, raw):
    """Make these bytes the published file."""
    monkeypatch.setattr(weights, "PTH_SHA256", hashlib.sha256(raw).hexdigest())
    monkeypatch.setattr(weights, "PUBLISHED", {weights.PTH_SHA256: "pytorch-fid"})
    monkeypatch.setattr(weights, "SIZE", len(raw))
    return raw


def file_digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def heard(capsys):
    return capsys.readouterr().err.splitlines()


def test_published_names_agree():
    assert weights.PTH_SHA256[:8] in weights.FILE
    assert all(len(digest) == 64 for digest in (*weights.PUBLISHED, weights.TENSORS))
    assert all(url.endswith(".pth") and "6726825d" in url for url in weights.URLS)
    assert len(weights.URLS) == 2


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
        assert weights.find("") == (path, weights.PTH_SHA256) and weights.load().published
    other = write(home / "env.pth", legacy(small(1)))
    monkeypatch.setenv(weights.VARIABLE, "~/env.pth")
    assert weights.load()[:2] == ("env.pth", False)
    given = write(home / "given.pth", legacy(small(2)))
    assert weights.load(str(given)).title == "given.pth"
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


def test_the_wheel_is_found_without_importing_it(home, monkeypatch):
    folder = home / "site"
    info = write(folder / "no_such_wheel-0.1.dist-info/METADATA", b"Name: no-such-wheel\n")
    write(info.with_name("RECORD"), b"no_such_wheel/__init__.py,,\nno_such_wheel/default_1.pt,,\n")
    write(folder / "no_such_wheel/__init__.py", b"raise ImportError('imported')")
    file = write(folder / "no_such_wheel/default_1.pt", legacy(small()))
    monkeypatch.syspath_prepend(folder)
    assert ("no-such-wheel", file, True) in weights.places()
    with pytest.raises(download.UnavailableError):  # other bytes than the published ones
        weights.load()
    monkeypatch.setattr(weights, "PUBLISHED", {file_digest(file): "no-such-wheel 0.1"})
    found = weights.load()
    assert found.published and found.title == "no-such-wheel 0.1"


def test_known_tensors_count_as_published_in_any_file(home, monkeypatch):
    monkeypatch.setattr(weights, "TENSORS", conversion.digest_tensors(small()))
    assert weights.load(str(write(home / "other.pth", zipped(small())))).published
    assert not weights.load(str(write(home / "more.pth", zipped(small(1))))).published


def test_a_damaged_file_gets_the_command_for_a_whole_one(home):
    path = write(home / "w", legacy(small())[:-1])
    with pytest.raises(ValueError, match=f"{path}.*announced as.*get the published weights: pip"):
        weights.load(str(path))


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
    first = weights.load(str(path))
    assert first.sha256 == conversion.digest_tensors(small())
    same(first.params, {name: x.astype(np.float32) for name, x in conversion.fold(small()).items()})
    assert kept(home) == [f"inception-{file_digest(path)[:16]}.npz"] and len(folds) == 1
    again = weights.load(str(path))
    assert again[:3] == first[:3] and len(folds) == 1 and heard(capsys) == []
    same(again.params, first.params)
    other = weights.load(str(write(home / "w.pth", zipped(small(1)))))  # same name, other content
    assert len(folds) == 2 and len(kept(home)) == 2
    assert not np.array_equal(other.params["fc.bias"], first.params["fc.bias"])


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
    changed += [
        {key: x for key, x in held.items() if key != gone} for gone in ("tensors", "checksum")
    ]
    for arrays in changed:
        out = io.BytesIO()
        np.savez(out, **arrays)
        yield out.getvalue()
    out = io.BytesIO()
    np.save(out, held[name])
    yield out.getvalue()


def test_damaged_conversions_are_made_again(home, folds, capsys):
    path = write(home / "w.pth")
    params = weights.load(str(path)).params
    cached = home / "cache/bloodjax" / f"inception-{file_digest(path)[:16]}.npz"
    for count, raw in enumerate(damages(cached.read_bytes()), start=2):
        cached.write_bytes(raw)
        same(weights.load(str(path)).params, params)
        (said,) = heard(capsys)
        assert str(cached) in said and "converted again" in said
        assert len(folds) == count and "BLOODJAX_BOMB" not in os.environ
        weights.load(str(path))
        assert heard(capsys) == [] and len(folds) == count


def test_conversions_of_another_source_or_layout_are_not_taken(home, folds, monkeypatch):
    path, other = write(home / "w.pth"), write(home / "v.pth", legacy(small(1)))
    params = weights.load(str(path)).params
    weights.load(str(other))
    names = (home / f"cache/bloodjax/inception-{file_digest(x)[:16]}.npz" for x in (other, path))
    os.replace(*names)
    same(weights.load(str(path)).params, params)
    assert len(folds) == 3
    monkeypatch.setattr(weights, "LAYOUT", weights.LAYOUT + 1)
    weights.load(str(path))
    assert len(folds) == 4


def test_a_cache_that_cannot_be_written(home, folds, capsys):
    path = write(home / "w.pth")
    write(home / "cache", b"a file in the way")
    for count in (1, 2):
        params = weights.load(str(path)).params
        (said,) = heard(capsys)
        assert "cannot be kept" in said and len(folds) == count
    assert params.keys() == conversion.fold(small()).keys()


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
    for each in found:
        assert each[:3] == found[0][:3]
        same(each.params, found[0].params)


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
    first = weights.load()
    assert first.published and first.title == "pytorch-fid"
    assert first.params.keys() == conversion.fold(small()).keys()
    weights.load()
    assert server.hits == ["/first"]
    assert kept(home) == [f"inception-{weights.PTH_SHA256[:16]}.npz", weights.FILE]
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
    with pytest.raises(download.UnavailableError) as error:
        weights.load()
    assert "\n" not in str(error.value) and error.value.__context__ is None
    assert said in str(error.value)
    assert case != "without end" or server.hung_up.wait(60)
    assert server.hits == ["/first", "/mirror"] and read == [] and kept(home) == []
    server.replies["/mirror"] = (200, raw, len(raw))
    assert weights.find("") == (home / "cache/bloodjax" / weights.FILE, weights.PTH_SHA256)


def test_offline_names_the_ways_out(home, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waits to try again"))
    with pytest.raises(download.UnavailableError) as error:
        weights.load()
    said = str(error.value)
    for part in (weights.FILE, "no connection", weights.INSTALL, weights.URLS[0]):
        assert part in said
    assert f"{weights.VARIABLE}=FILE" in said and str(home / "cache") in said
    assert "\n" not in said and said.count("no connection") == 1 and kept(home) == []


def test_a_silent_server_is_not_waited_for(home, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setattr(weights, "URLS", (f"http://127.0.0.1:{mute.getsockname()[1]}/w",))
        monkeypatch.setattr(download, "TIMEOUT", (0.2, 0.2))
        with pytest.raises(download.UnavailableError, match="(?i)timed out.*read timeout=0.2"):
            weights.load()
    assert kept(home) == []


def test_damaged_copies_are_skipped(home, server, monkeypatch, capsys):
    raw = publish(monkeypatch, legacy(small()))
    server.replies = {"/first": (200, raw, len(raw))}
    hub = write(home / ".cache/torch/hub/checkpoints" / weights.FILE, raw[:-1])
    own = write(home / "cache/bloodjax" / weights.FILE, legacy(small(1)))
    assert weights.load().published and server.hits == ["/first"]
    said = [line for line in heard(capsys) if "damaged" in line]
    assert [str(path) in line for path, line in zip((own, hub), said, strict=True)] == [True] * 2
    assert own.read_bytes() == raw and hub.read_bytes() == raw[:-1]  # another program's: left alone


def test_a_copy_elsewhere_saves_the_download(home, monkeypatch):
    raw = publish(monkeypatch, legacy(small()))
    write(home / ".cache/torch/hub/checkpoints" / weights.MIRRORED, raw)
    assert weights.load().published
    assert kept(home) == [f"inception-{weights.PTH_SHA256[:16]}.npz"]


# ---- the whole network -------------------------------------------------------------------------


def test_full_size(state, tmp_path):
    """566 tensors of 95 MB in the published file's own format."""
    arrays = dict(state) | {f"{name}.bn.num_batches_tracked": np.array(7) for name in CONVS}
    path = write(tmp_path / "w.pth", legacy(arrays))
    assert len(arrays) == 566 and abs(path.stat().st_size - weights.SIZE) < 100_000
    found = conversion.read(path)
    same(found, state)
    folded = conversion.fold(found)
    assert len(folded) == 2 * 94 + 2
    assert sum(x.size for x in folded.values()) == 23_885_486 - 94 - 3 * sum(
        shape[0] for shape in CONVS.values()
    )
