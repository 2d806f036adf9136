"""Weight files by hand: a pickle of anything, in PyTorch's two formats, and safetensors."""

import io
import json
import pickle
import struct
import zipfile
from typing import NamedTuple

import numpy as np

from bloodjax.features.inception.torchfile import MAGIC

NUMPY = {"FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16}
NUMPY |= {"LongStorage": np.int64, "IntStorage": np.int32}


class Name(NamedTuple):
    """A class or function, called what the reader is to look for."""

    module: str
    name: str


class Call(NamedTuple):
    """What `function(*args)` gives; `code` is the opcode that calls."""

    function: object
    args: tuple
    code: bytes = b"R"


class Set(NamedTuple):
    """`target` with its state set: __setstate__ or attributes."""

    target: object
    state: object


class Pid(NamedTuple):
    """A reference to something outside the pickle."""

    args: object


class Items(NamedTuple):
    """`target` with items added."""

    target: object
    items: dict


class Raw(NamedTuple):
    """Opcodes."""

    code: bytes


def encode(x):
    """The opcodes that make x, protocol 2."""
    match x:
        case Raw():
            return x.code
        case Name():
            return b"c%s\n%s\n" % (x.module.encode(), x.name.encode())
        case Call():
            return encode(x.function) + encode(tuple(x.args)) + x.code
        case Set():
            return encode(x.target) + encode(x.state) + b"b"
        case Pid():
            return encode(x.args) + b"Q"
        case Items():
            items = b"".join(encode(key) + encode(value) for key, value in x.items.items())
            return encode(x.target) + b"(" + items + b"u"
        case tuple():
            return b"(" + b"".join(map(encode, x)) + b"t"
        case list():
            return b"](" + b"".join(map(encode, x)) + b"e"
        case dict():
            return encode(Items(Raw(b"}"), x))
        case _:  # text, numbers, None: as pickle has them, without protocol and end
            return pickle.dumps(x, 2)[2:-1].replace(b"q\x00", b"")


def pickled(x):
    return b"\x80\x02" + encode(x) + b"."


ORDERED = Call(Name("collections", "OrderedDict"), ())
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}


def stored(key, count, kind="FloatStorage", tail=()):
    return Pid(("storage", Name("torch", kind), key, "cpu", count, *tail))


def view(storage, offset, shape, strides, version="_v2"):
    rest = (False, ORDERED) if version else ()
    args = (storage, offset, tuple(shape), tuple(strides), *rest)
    return Call(Name("torch._utils", f"_rebuild_tensor{version}"), args)


def whole(key, x, tail=()):
    """x as a tensor that fills its storage."""
    kind = next(kind for kind, dtype in NUMPY.items() if dtype == x.dtype)
    strides = [step // x.itemsize for step in x.strides]
    return view(stored(key, x.size, kind, tail), 0, x.shape, strides)


def legacy_file(tree, storages, **head):
    parts = {"magic": MAGIC, "protocol": 1001, "system": SYSTEM, "tree": tree}
    parts = parts | {"keys": list(storages)} | head
    content = [struct.pack("<q", x.size) + x.tobytes() for x in storages.values()]
    return b"".join([*map(pickled, parts.values()), *content])


def zip_file(tree, storages, root="archive", **more):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(f"{root}/data.pkl", pickled(tree))
        for name, content in ({"byteorder": "little", "version": "3\n"} | more).items():
            archive.writestr(f"{root}/{name}", content)
        for key, x in storages.items():
            archive.writestr(f"{root}/data/{key}", x.tobytes())
    return out.getvalue()


def legacy(arrays):
    tree = {name: whole(name, x, (None,)) for name, x in arrays.items()}
    return legacy_file(Items(ORDERED, tree), arrays)


def zipped(arrays):
    return zip_file(Items(ORDERED, {name: whole(name, x) for name, x in arrays.items()}), arrays)


def module(state, name="Module"):
    """A module of TorchScript."""
    return Set(Call(Name("__torch__.net", name), (), b"\x81"), state)


def script(arrays):
    """The arrays as tensors of nested modules, by dotted path, as TorchScript saves them."""
    tree = {}
    for path, x in arrays.items():
        *folders, name = path.split(".")
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {"training": False, "hook": None})
        inner[name] = whole(path, x)

    def wrap(inner):
        return module({k: wrap(x) if isinstance(x, dict) else x for k, x in inner.items()})

    sizes = Call(Name("torch.jit._pickle", "build_intlist"), ([3, 3],))
    return zip_file(wrap(tree | {"kernel_size": sizes}), arrays)


def safetensors_file(header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def safetensors(arrays):
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, x in arrays.items():
        ends = [len(body), len(body) + x.nbytes]
        dtype = {"f": "F", "i": "I"}[x.dtype.kind] + str(8 * x.itemsize)
        header[name] = {"dtype": dtype, "shape": x.shape, "data_offsets": ends}
        body += x.tobytes()
    return safetensors_file(header, body)


FORMATS = {"legacy": legacy, "zip": zipped, "safetensors": safetensors}
CONTAINERS = {"legacy": legacy_file, "zip": zip_file}


def some():
    """Arrays of every type and of odd shapes."""
    sized = zip(NUMPY.values(), ((2, 3), (), (4,), (1, 2, 1, 3), (0, 2)), strict=True)
    rng = np.random.default_rng(0)
    return {f"a.{i}": np.asarray(9 * rng.random(s), t) for i, (t, s) in enumerate(sized)}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == x.dtype
        np.testing.assert_array_equal(found[name], x)
