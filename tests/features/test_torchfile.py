"""Foreign weight files are read as their makers meant, or refused; nothing in them runs."""

import io
import os
import pickle
import struct
import types
import zipfile

import numpy as np
import pytest
from helpers.torch_files import (
    CONTAINERS,
    FORMATS,
    ORDERED,
    SYSTEM,
    Call,
    Items,
    Name,
    Pid,
    Raw,
    Set,
    encode,
    legacy,
    legacy_file,
    module,
    pickled,
    safetensors,
    safetensors_file,
    same,
    script,
    some,
    stored,
    view,
    whole,
    zip_file,
    zipped,
)

from bloodjax.features.inception import torchfile


@pytest.fixture(params=FORMATS)
def form(request):
    return FORMATS[request.param]


@pytest.fixture(params=CONTAINERS)
def container(request):
    return CONTAINERS[request.param]


def read(tmp_path, raw):
    path = tmp_path / "weights.bin"
    path.write_bytes(raw)
    return torchfile.read(path)


def refused(tmp_path, raw, *said):
    """Reading says in one line which file, what was found and what was expected."""
    with pytest.raises(ValueError) as error:
        read(tmp_path, raw)
    message = str(error.value)
    for part in (f"{tmp_path / 'weights.bin'}: ", *said, "expected a whole .pth or .safetensors"):
        assert part in message
    assert "\n" not in message and len(message) < 600


# ---- what is read ------------------------------------------------------------------------------


def test_arrays_come_back(tmp_path, form):
    same(read(tmp_path, form(some())), some())


def test_what_is_read_cannot_be_written(tmp_path, form):
    assert not any(x.flags.writeable for x in read(tmp_path, form(some())).values())


def test_views_parameters_and_wrappings(tmp_path, container):
    x = np.arange(24, dtype=np.float32)
    storage = stored("0", 24)
    parameter = Call(
        Name("torch._utils", "_rebuild_parameter"),
        (view(storage, 4, (2, 3), (6, 2)), True, ORDERED),
    )
    tree = {
        "turned": view(storage, 0, (6, 4), (1, 6)),
        "slice": view(storage, 23, (), (), version=""),
        "parameter": parameter,
        "cuda": view(
            Pid(("storage", Name("torch.cuda", "FloatStorage"), "0", "cuda:0", 24)), 1, [], []
        ),
        "long step": view(storage, 3, (1, 2), (99, 1)),
    }
    expected = {
        "turned": x.reshape(4, 6).T,
        "slice": x[23],
        "parameter": np.stack([x[4:10:2], x[10:16:2]]),
        "cuda": x[1],
        "long step": x[None, 3:5],
    }
    named = Set(Items(ORDERED, tree), {"_metadata": Items(ORDERED, {"": {"version": 1}})})
    for wrapped in (tree, named, {"epoch": 3, "state_dict": named}):
        same(read(tmp_path, container(wrapped, {"0": x})), expected)


def test_a_module_of_torchscript(tmp_path):
    arrays = {f"net.layers.{name}": x for name, x in some().items()} | {"more": np.ones(3, "f")}
    found = read(tmp_path, script(arrays))
    same(found, arrays)
    assert list(found) == list(arrays)


def test_a_module_that_torch_saves(tmp_path):
    torch = pytest.importorskip("torch", reason="writes the file")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, (1, 7)), torch.nn.BatchNorm2d(4))
    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        scripted = torch.jit.script(torch.nn.Sequential(net, torch.nn.MaxPool2d(3)))
    scripted.save(tmp_path / "net.pt")
    same(
        torchfile.read(tmp_path / "net.pt"),
        {f"0.{k}": x.numpy() for k, x in net.state_dict().items()},
    )


@pytest.mark.parametrize("zipfile_format", [False, True])
def test_what_torch_writes(tmp_path, zipfile_format):
    torch = pytest.importorskip("torch", reason="writes the files")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, (1, 7)), torch.nn.BatchNorm2d(4))
    tensors = net.state_dict() | {f"of {x.dtype}": torch.from_numpy(x) for x in some().values()}
    tensors |= {
        "turned": tensors["0.weight"].permute(3, 2, 1, 0),
        "part": tensors["0.weight"][1:, 2],
    }
    tensors |= {"parameter": net[0].weight}
    path = tmp_path / "weights.pth"
    for wrapped in (tensors, {"state_dict": tensors}):
        torch.save(wrapped, path, _use_new_zipfile_serialization=zipfile_format)
        loaded = torch.load(path, weights_only=True)
        loaded = loaded.get("state_dict", loaded)
        same(torchfile.read(path), {name: x.detach().numpy() for name, x in loaded.items()})


@pytest.mark.parametrize("name", CONTAINERS)
def test_torch_reads_what_is_made_here(tmp_path, name):
    """Else the files by hand prove nothing."""
    torch = pytest.importorskip("torch", reason="the reference reader")
    path = tmp_path / "weights.pth"
    path.write_bytes(FORMATS[name](some()))
    loaded = torch.load(path, weights_only=True)
    same({name: x.numpy() for name, x in loaded.items()}, some())


def test_safetensors_by_its_own_package(tmp_path):
    package = pytest.importorskip("safetensors.numpy", reason="writes the file")
    arrays = some()
    package.save_file(arrays, tmp_path / "weights.pth", {"format": "pt"})  # the suffix is no matter
    same(torchfile.read(tmp_path / "weights.pth"), arrays)
    same(package.load(safetensors(arrays)), arrays)


# ---- what is refused ---------------------------------------------------------------------------


def test_other_files_are_refused(tmp_path):
    npz = io.BytesIO()
    np.savez(npz, kernel=np.zeros(3))
    shrunk = io.BytesIO()
    with zipfile.ZipFile(shrunk, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickled({"x": view(stored("0", 10**6), 0, [9], [1])}))
        archive.writestr("a/data/0", bytes(4 * 10**6))
    refused(tmp_path, b"", "empty")
    refused(tmp_path, b"<!DOCTYPE html>\n<html>not found</html>", "<!DOCTYPE html>")
    refused(tmp_path, b"version https://git-lfs.github.com/spec/v1", "version https:/")
    refused(tmp_path, npz.getvalue(), "kernel.npy")
    refused(tmp_path, shrunk.getvalue(), "compressed")
    refused(tmp_path, pickle.dumps({"x": 1}), "not one that PyTorch")
    refused(tmp_path, pickle.dumps({"x": np.zeros(3)}), "numpy", "refused")
    refused(tmp_path, legacy_file({}, {}, magic=torchfile.MAGIC + 1), "not one that PyTorch")
    refused(tmp_path, legacy_file({}, {}, protocol=1000), "not one that PyTorch")
    refused(tmp_path, legacy_file({}, {}, system=SYSTEM | {"little_endian": False}), "byte order")
    refused(tmp_path, zip_file({}, {}, byteorder="big"), "byte order b'big'")
    with pytest.raises(ValueError, match="folder"):
        torchfile.read(tmp_path)
    with pytest.raises(FileNotFoundError, match="gone.pth"):
        torchfile.read(tmp_path / "gone.pth")


@pytest.mark.parametrize("tree", [[], 3, None, "text", {"x": 3}, {"x": [1]}, {3: "x"}, {"x": {}}])
def test_only_state_dicts(tmp_path, container, tree):
    refused(tmp_path, container(tree, {}), "not a")


def test_names_are_text(tmp_path, container):
    x = np.zeros(1, np.float32)
    refused(tmp_path, container({3: whole("0", x)}, {"0": x}), "3 is a", "not a tensor")
    refused(tmp_path, container({"y\nz": 3}, {}), r"'y\nz' is a int, not a tensor")


def few():
    return dict(list(some().items())[:2])


def test_truncated_anywhere(tmp_path, form):
    raw = form(few())
    for length in range(len(raw)):
        refused(tmp_path, raw[:length])


def test_any_byte_flipped_is_refused_or_read_as_arrays(tmp_path, form):
    raw = form(few())
    for at in range(len(raw)):
        spoilt = bytearray(raw)
        spoilt[at] ^= 1 << at % 8
        try:
            found = read(tmp_path, bytes(spoilt))
        except ValueError as error:
            assert "expected a whole" in str(error)
        else:
            assert all(type(x) is np.ndarray for x in found.values())


def test_any_byte_of_a_zip_s_content_counts(tmp_path):
    raw = zipped(few())
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = [m for m in archive.infolist() if m.file_size and "version" not in m.filename]
    for member in members:
        for at in range(member.file_size):
            spoilt = bytearray(raw)
            spoilt[member.header_offset + 30 + len(member.filename) + at] ^= 4
            refused(tmp_path, bytes(spoilt))


def test_modules_in_a_circle_or_twice_are_refused(tmp_path):
    inner = module({"x": 1})
    memo = Raw(encode(inner) + b"q\x05")
    again = Raw(b"h\x05")
    refused(tmp_path, zip_file(module({"a": memo, "b": again}), {}), "twice")
    circle = Set(
        Raw(encode(Call(Name("__torch__.net", "Net"), (), b"\x81")) + b"q\x06"),
        {"self": Raw(b"h\x06")},
    )
    refused(tmp_path, zip_file(circle, {}), "twice")


@pytest.mark.parametrize("state", [3, None, "text", [1], (None, {"state": {}})])
def test_a_module_without_a_plain_state_is_refused(tmp_path, state):
    refused(tmp_path, zip_file(module(state), {}))
    refused(tmp_path, zip_file(Call(Name("__torch__.net", "Net"), (), b"\x81"), {}))


def attacks(canary):
    """Pickles that would touch the file `canary`, or get hold of what could."""
    system, touch = Name("os", "system"), (f"touch {canary}",)
    code = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    text = b"X" + struct.pack("<I", len(touch[0])) + touch[0].encode()
    ordered = Name("collections", "OrderedDict")
    rebuild = Name("torch._utils", "_rebuild_tensor_v2")
    yield from {
        "os.system": Call(system, touch),
        "posix.system": Call(Name(os.name, "system"), touch),
        "eval": Call(Name("builtins", "eval"), (code,)),
        "exec, the old name": Call(Name("__builtin__", "exec"), (code,)),
        "nested": Items(ORDERED, {"x": [(Call(Name("builtins", "exec"), (code,)),)]}),
        "as an argument": Call(ordered, (Call(system, touch),)),
        "as a key": {Call(system, touch): 1},
        "in a storage": view(Pid(("storage", Call(system, touch), "0", "cpu", 1)), 0, [1], [1]),
        "in a wrapping": {"state_dict": {}, "x": Call(system, touch)},
        "NEWOBJ": Call(Name("subprocess", "Popen"), (["touch", str(canary)],), b"\x81"),
        "INST": Raw(b"(" + text + b"ios\nsystem\n"),
        "OBJ": Raw(b"(" + encode(system) + text + b"o"),
        "STACK_GLOBAL": Raw(encode("os") + encode("system") + b"\x93" + text + b"\x85R"),
        "dotted": Raw(encode("collections") + encode("OrderedDict.fromkeys") + b"\x93"),
        "dotted module": Name("torch._utils.os", "system"),
        "getattr": Call(Name("builtins", "getattr"), (rebuild, "__globals__")),
        "numpy": Name("numpy.core.multiarray", "_reconstruct"),
        "codecs": Call(Name("_codecs", "encode"), ("x", "latin1")),
        "another of torch's": Name("torch", "load"),
        "another of collections'": Name("collections", "namedtuple"),
        "storage by its module": Name("torch.storage", "FloatStorage"),
        "BUILD of a class": Set(ordered, (None, {"__setitem__": ordered})),
        "BUILD of a class's dict": Set(ordered, {"__init__": ordered}),
        "BUILD of a module's class": Set(Name("__torch__.net", "Net"), (None, {"x": system})),
        "a module's arguments": Call(Name("__torch__.net", "Net"), (Call(system, touch),), b"\x81"),
        "a module by call": Call(Name("__torch__.os", "system"), touch),
        "a module's state": module({"x": Call(system, touch)}),
        "BUILD of text": Set(Name("torch", "FloatStorage"), {"x": 1}),
        "text is not callable": Call(Name("torch", "FloatStorage"), (1,)),
        "EXT": Raw(b"\x82\x01"),
        "a huge memo": Raw(b"Nr" + struct.pack("<I", 2**31)),
        "a huge memo, as text": Raw(b"Np2147483648\n"),
    }.items()


ATTACKS = [name for name, _ in attacks("")]
REAL = ["os.system", "eval", "nested", "INST", "OBJ", "STACK_GLOBAL"]


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_refused(tmp_path, container, name):
    canary = tmp_path / "canary"
    tree = dict(attacks(canary))[name]
    refused(tmp_path, container(tree, {}))
    refused(tmp_path, container({"x": tree}, {}))
    refused(tmp_path, container(Set(ORDERED, {"_metadata": tree}), {}))
    assert not canary.exists()


@pytest.mark.parametrize("part", ["magic", "protocol", "system", "tree", "keys"])
def test_every_pickle_of_a_legacy_file_is_guarded(tmp_path, part):
    canary = tmp_path / "canary"
    for name in REAL:
        parts = {"tree": {}, part: dict(attacks(canary))[name]}
        refused(tmp_path, legacy_file(storages={}, **parts), "refused")
    assert not canary.exists()


@pytest.mark.parametrize("name", REAL)
def test_the_attacks_are_real(tmp_path, name):
    pickle.loads(pickled(dict(attacks(tmp_path / "canary"))[name]))
    assert (tmp_path / "canary").exists()


def test_what_a_pickle_calls_leaves_no_trace(tmp_path):
    """Functions that are found take attributes: they are the file's own."""
    x, before = np.ones(2, np.float32), functions()
    rebuild = Name("torch._utils", "_rebuild_tensor_v2")
    spoilt = Set(rebuild, (None, {"__defaults__": (1, 2, 3), "__kwdefaults__": {"a": 1}}))
    hidden = Set(Items(ORDERED, {"x": whole("0", x)}), {"items": 3, "get": 4, "_metadata": spoilt})
    same(read(tmp_path, zip_file(hidden, {"0": x})), {"x": x})
    assert functions() == before


def functions():
    """Everything that can be set of torchfile's functions."""
    found = {name: x for name, x in vars(torchfile).items() if isinstance(x, types.FunctionType)}
    assert "_tensor" in found
    return {name: (f.__defaults__, f.__kwdefaults__, dict(vars(f))) for name, f in found.items()}


LIES = {
    "beyond the end": view(stored("0", 6), 1, (2, 3), (3, 1)),
    "one beyond": view(stored("0", 6), 6, (), ()),
    "strides too long": view(stored("0", 6), 0, (2, 3), (4, 1)),
    "strides of the other sign": view(stored("0", 6), 5, (6,), (-1,)),
    "offset of the other sign": view(stored("0", 6), -1, (2, 3), (3, 1)),
    "shape of the other sign": view(stored("0", 6), 0, (-2, -3), (3, 1)),
    "one number, seen often": view(stored("0", 6), 0, (10**9, 10**9), (0, 0)),
    "overflow": view(stored("0", 6), 0, (2**33, 2**33), (2**33, 2**33)),
    "a long step": view(stored("0", 6), 0, (1,), (2**70,)),
    "empty far away": view(stored("0", 6), 7, (0,), (1,)),
    "more strides": view(stored("0", 6), 0, (6,), (1, 1)),
    "fewer strides": view(stored("0", 6), 0, (2, 3), (1,)),
    "hundred dimensions": view(stored("0", 6), 0, [1] * 100, [1] * 100),
    "half an offset": view(stored("0", 6), 0.5, (6,), (1,)),
    "true": view(stored("0", 6), 0, (True,), (1,)),
    "text for a shape": view(stored("0", 6), 0, "6", "1"),
    "a tensor for a storage": view(view(stored("0", 6), 0, (6,), (1,)), 0, (6,), (1,)),
    "text for a storage": view("0", 0, (6,), (1,)),
    "no arguments": Call(Name("torch._utils", "_rebuild_tensor_v2"), ()),
    "a storage with more": view(stored("0", 7), 0, (6,), (1,)),
    "a storage with less": view(stored("0", 5), 0, (5,), (1,)),
    "a storage with huge count": view(stored("0", 2**70), 0, (6,), (1,)),
    "a storage below nothing": view(stored("0", -6), 0, (0,), (1,)),
    "of another type": view(stored("0", 6, "DoubleStorage"), 0, (6,), (1,)),
    "of an unknown type": view(stored("0", 6, "BFloat16Storage"), 0, (6,), (1,)),
    "that is not there": view(stored("1", 6), 0, (6,), (1,)),
    "elsewhere": view(stored("../data/0", 6), 0, (6,), (1,)),
    "a view of a storage": view(stored("0", 6, tail=(("1", 0, 3),)), 0, (6,), (1,)),
    "a module": Pid(("module", Name("collections", "OrderedDict"), "0", "cpu", 6)),
    "numbered": view(Pid(("storage", Name("torch", "FloatStorage"), 0, "cpu", 6)), 0, (6,), (1,)),
    "a type that is a function": Pid(
        ("storage", Name("torch._utils", "_rebuild_tensor"), "0", "", 6)
    ),
    "text as a type": view(Pid(("storage", "<U1", "0", "cpu", 6)), 0, (6,), (1,)),
    "objects as a type": view(Pid(("storage", "|O", "0", "cpu", 3)), 0, (3,), (1,)),
    "counted in text": Pid(("storage", Name("torch", "FloatStorage"), "0", "cpu", "6")),
    "short": Pid(("storage",)),
    "a number": Pid(6),
    "text": Pid("storage"),
    "text, the old way": Raw(b"P0\n"),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_about_tensors_are_refused(tmp_path, container, name):
    refused(tmp_path, container({"x": LIES[name]}, {"0": np.zeros(6, np.float32)}))


SAID = {
    "beyond the end": "in a storage of 6 numbers",
    "one beyond": "in a storage of 6 numbers",
    "strides too long": "in a storage of 6 numbers",
    "one number, seen often": "in a storage of 6 numbers",
    "empty far away": "in a storage of 6 numbers",
    "strides of the other sign": "not a view into a storage",
    "a tensor for a storage": "not a view into a storage",
    "text for a storage": "not a view into a storage",
    "a storage with more": "x in 24 bytes, announced as 28",
    "a number": "no storage",
}


@pytest.mark.parametrize("name", SAID)
def test_lies_are_told_apart(tmp_path, name):
    refused(tmp_path, zip_file({"x": LIES[name]}, {"0": np.zeros(6, np.float32)}), SAID[name])


@pytest.mark.parametrize("name", ["a huge memo", "a huge memo, as text"])
def test_memory_is_not_asked_for(tmp_path, container, name):
    refused(tmp_path, container(dict(attacks(""))[name], {}), "numbers an object 2147483648")


def test_lies_about_storages_are_refused(tmp_path):
    x = np.zeros(6, np.float32)
    raw = legacy({"x": x})
    for count in (-1, 0, 5, 7, 2**40, -(2**63)):
        spoilt = raw[: -8 - x.nbytes] + struct.pack("<q", count) + x.tobytes()
        refused(tmp_path, spoilt, f"{count} numbers")
    tree = {"x": whole("0", x, (None,))}
    for keys in ([], ["1"], [["0"]], 3, [None]):
        refused(tmp_path, legacy_file(tree, {"0": x}, keys=keys))


def test_overlapping_members_are_refused(tmp_path):
    """A small file is not to fill the memory: 20 names for what is there once."""
    x = np.zeros(1000, np.float32)
    raw = zip_file(
        {f"{i}": view(stored(f"{i}", 1000), 0, (1000,), (1,)) for i in range(20)}, {"0": x}
    )
    out = io.BytesIO(raw)
    with zipfile.ZipFile(out, "a") as archive:
        for i in range(1, 20):
            archive.writestr(f"archive/data/{i}", b"")
            member = archive.infolist()[-1]
            member.file_size = member.compress_size = x.nbytes
    refused(tmp_path, out.getvalue(), "grow")


ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
TENSORS = {
    "dtype": {"dtype": "BF16"},
    "no dtype": {"dtype": None},
    "longer": {"data_offsets": [0, 20]},
    "shorter": {"data_offsets": [0, 24], "shape": [2, 2]},
    "outside": {"data_offsets": [4, 28]},
    "before": {"data_offsets": [-4, 20]},
    "backwards": {"data_offsets": [24, 0]},
    "three": {"data_offsets": [0, 12, 24]},
    "text": {"data_offsets": ["0", "24"]},
    "half": {"data_offsets": [0.0, 24.0]},
    "shape of the other sign": {"shape": [-2, -3]},
    "shape of halves": {"shape": [2.0, 3.0]},
    "shape of text": {"shape": "23"},
    "huge": {"shape": [2**40, 2**40]},
    "empty and huge": {"shape": [0, 2**62, 2**62]},
}


@pytest.mark.parametrize("case", TENSORS)
def test_lies_in_safetensors_are_refused(tmp_path, case):
    same(read(tmp_path, safetensors_file({"x": ENTRY}, bytes(24))), {"x": np.zeros((2, 3), "f")})
    refused(tmp_path, safetensors_file({"x": ENTRY | TENSORS[case]}, bytes(24)))
    if case == "outside":
        refused(tmp_path, (tmp_path / "weights.bin").read_bytes(), "at bytes 4 to 28 of 24")
    refused(tmp_path, safetensors_file({"bad\nname" * 999: ENTRY | TENSORS[case]}, bytes(24)))


def test_headers_of_safetensors_are_checked(tmp_path):
    for header in (b"{", b'{"x": 3}', b'{"x": {}}', b'{"x": ' * 10**5, b"{\xff}", b'{"x":[]}\0'):
        refused(tmp_path, safetensors_file(header, bytes(24)))
    whole = safetensors_file({"x": ENTRY}, bytes(24))
    for length in (0, 1, len(whole), 2**63, 2**64 - 1):
        refused(tmp_path, struct.pack("<Q", length) + whole[8:])
