"""Read tensors from PyTorch's and safetensors' files, without PyTorch and without trust.

A .pth file holds pickles, and a pickle may call anything when it is loaded. Here it finds only the
few names that tensors and modules consist of, as inert records, and every number is checked.

Formats: torch/serialization.py (`_legacy_save` to PyTorch 1.6, `_save` since); safetensors' README.
"""

import io
import json
import math
import pickle
import pickletools
import struct
import textwrap
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two objects of a legacy file
MOST_MEMOS = 1 << 20  # objects that a pickle may number; a state dict has some ten a tensor
STORAGES = {"DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2"}
STORAGES |= {"LongStorage": "<i8", "IntStorage": "<i4"}
SAFETENSORS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4"}


class _Storage(NamedTuple):
    """`length` numbers of `dtype` elsewhere in the file, under `key`."""

    dtype: str
    key: str
    length: int


class _Tensor(NamedTuple):
    """A view into a storage; offset and strides count numbers, as in PyTorch."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Module:
    """A module of TorchScript: its state, and no behaviour."""

    __slots__ = ("state",)

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read(file: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a state dict, of {"state_dict": state dict}, or of a TorchScript module.

    The content decides the format: .pth, before or since PyTorch 1.6, .pt of TorchScript, or
    .safetensors.

    Returns:
        {name: read-only array of the file's dtype, in PyTorch's layout}, in the order of the file;
        names of a module are dotted paths.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another format, a damaged file, or one that asks for more than tensors.
    """
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file")
    if not file.is_file():
        raise ValueError(f"{file}: not a file but a folder or device")
    raw = file.read_bytes()
    try:
        return _format(raw)(raw)
    except Exception as error:  # any error that foreign bytes cause in the parsers below
        name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        reason = textwrap.shorten(f"{name}{error}", 200)
    raise ValueError(f"{file}: {reason}; expected a whole .pth or .safetensors file")


def _format(raw: bytes) -> Callable[[bytes], dict[str, np.ndarray]]:
    if raw.startswith(b"PK\3\4"):
        return _zip
    if raw.startswith(b"\x80"):
        return _legacy
    if raw[8:9] == b"{":
        return _safetensors
    raise ValueError(f"begins with {raw[:16]!r}" if raw else "empty")


# ---- the three formats -------------------------------------------------------------------------


def _zip(raw: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        names = archive.namelist()
        roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError(f"a zip file of {', '.join(names[:3])}, not of one data.pkl")
        root = roots[0]
        order = f"{root}byteorder"
        used = (f"{root}data.pkl", order, f"{root}data/")  # not TorchScript's code
        if sum(m.file_size for m in archive.infolist() if m.filename.startswith(used)) > len(raw):
            raise ValueError("a zip file that would grow: compressed, or its parts overlap")
        if order in names and archive.read(order) != b"little":
            raise ValueError(f"byte order {archive.read(order)[:16]!r}, not little")
        with io.BytesIO(archive.read(f"{root}data.pkl")) as stream:
            tree, storages = _unpickle(stream)
        return _tensors(tree, {s: archive.read(f"{root}data/{s.key}") for s in storages})


def _legacy(raw: bytes) -> dict[str, np.ndarray]:
    stream = io.BytesIO(raw)
    if _unpickle(stream)[0] != MAGIC or _unpickle(stream)[0] != PROTOCOL:
        raise ValueError("a pickle, but not one that PyTorch begins a file with")
    if _unpickle(stream)[0]["little_endian"] is not True:
        raise ValueError("byte order not little")
    tree, storages = _unpickle(stream)
    by_key = {storage.key: storage for storage in storages}
    content: dict[_Storage, bytes] = {}
    for key in _unpickle(stream)[0]:
        storage = by_key[key]
        (count,) = struct.unpack("<q", stream.read(8))
        if count != storage.length:
            raise ValueError(f"storage {key!r} of {count} numbers, announced as {storage.length}")
        content[storage] = stream.read(count * np.dtype(storage.dtype).itemsize)
    return _tensors(tree, content)


def _safetensors(raw: bytes) -> dict[str, np.ndarray]:
    start = 8 + int.from_bytes(raw[:8], "little")
    header, body = json.loads(raw[8:start]), memoryview(raw)[start:]
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, (begin, end) = (entry[key] for key in ("dtype", "shape", "data_offsets"))
        if dtype not in SAFETENSORS:
            raise ValueError(f"{name} is {dtype}, not one of {', '.join(SAFETENSORS)}")
        if begin < 0 or end > len(body):
            raise ValueError(f"{name} {shape} at bytes {begin} to {end} of {len(body)}")
        x = np.ndarray(shape, SAFETENSORS[dtype], body, begin)
        if x.nbytes != end - begin:
            raise ValueError(f"{name} {dtype} {shape} in {end - begin} bytes")
        tensors[name] = x
    return tensors


# ---- pickles -----------------------------------------------------------------------------------


class _Unpickler(pickle.Unpickler):
    """Finds only the parts of tensors and modules, and collects the storages they refer to."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream)
        self.storages: set[_Storage] = set()

    def find_class(self, module: str, name: str) -> Any:
        """Return an inert stand-in for a global name; refuse names that tensors do not need."""
        # The file may call the result and set its attributes. So it is text, a new function or
        # class, or a class that cannot be changed.
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2":
                return lambda *args: _tensor(*args[:4])
            case "torch._utils", "_rebuild_parameter":
                return lambda tensor, *_: tensor
            case "torch" | "torch.cuda", _ if name in STORAGES:
                return STORAGES[name]
            case "torch.jit._pickle", "build_intlist":
                return lambda *_: None
            case _ if module.startswith("__torch__."):
                return type("_Module", (_Module,), {"__slots__": ()})
        raise ValueError(f"asks for {f'{module}.{name}'[:100]!r}, refused: not part of a tensor")

    def persistent_load(self, pid: Any) -> _Storage:
        """Return the record of a storage; refuse every other reference."""
        match pid:
            case ("storage", str(dtype), str(key), _, int(length), *view) if (
                dtype in STORAGES.values() and not any(view)
            ):
                storage = _Storage(dtype, key, length)
                self.storages.add(storage)
                return storage
        raise ValueError("refers to something outside the pickle that is no storage")


def _unpickle(stream: BinaryIO) -> tuple[Any, set[_Storage]]:
    """Read the next pickled object of the stream, and the storages that it refers to."""
    start = stream.tell()
    for opcode, value, _ in pickletools.genops(stream):
        # CPython allocates room for twice that number at once
        if opcode.name in ("PUT", "LONG_BINPUT") and isinstance(value, int) and value > MOST_MEMOS:
            raise ValueError(f"numbers an object {value}, more than a state dict has")
    stream.seek(start)
    unpickler = _Unpickler(stream)
    return unpickler.load(), unpickler.storages


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> _Tensor:
    """Return a view; refuse one that leaves its storage or is larger, and would take memory."""
    if type(storage) is not _Storage or min([offset, *shape, *strides]) < 0:
        raise ValueError("a tensor that is not a view into a storage")
    last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    size = math.prod(shape)
    if size > storage.length or offset + (last if size else -1) >= storage.length:
        layout = f"{list(shape)} with strides {list(strides)} from {offset}"
        raise ValueError(f"a tensor {layout} in a storage of {storage.length} numbers")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _tensors(tree: Any, content: Mapping[_Storage, bytes]) -> dict[str, np.ndarray]:
    """Return the arrays of a state dict or module.

    It calls `dict.get(x)`, not `x.get()`, which the file may have replaced.
    """
    if isinstance(tree, _Module):
        tree = dict(_flatten(tree, "", set()))
    if isinstance(tree, dict) and isinstance(dict.get(tree, "state_dict"), dict):
        tree = dict.get(tree, "state_dict")
    if not isinstance(tree, dict):
        raise ValueError(f"holds a {type(tree).__name__}, not a state dict")
    tensors = {}
    for name, tensor in dict.items(tree):
        if type(name) is not str or type(tensor) is not _Tensor:
            raise ValueError(f"{name!r:.80} is a {type(tensor).__name__}, not a tensor")
        storage, offset, shape, strides = tensor
        raw, size = content.get(storage, b""), np.dtype(storage.dtype).itemsize
        if len(raw) != storage.length * size:
            raise ValueError(f"{name} in {len(raw)} bytes, announced as {storage.length * size}")
        steps = [size * stride for stride in strides]
        tensors[name] = np.ndarray(shape, storage.dtype, raw, size * offset, steps)
    return tensors


def _flatten(module: _Module, prefix: str, visited: set[int]) -> Iterator[tuple[str, _Tensor]]:
    """Yield the tensors of a module and of those inside it, by dotted path."""
    if id(module) in visited:  # a few that hold each other twice would have billions of paths
        raise ValueError(f"{prefix!r:.80} is a module that the file has twice")
    visited.add(id(module))
    for name, value in dict.items(module.state):
        if type(value) is _Tensor:
            yield f"{prefix}{name}", value
        elif isinstance(value, _Module):
            yield from _flatten(value, f"{prefix}{name}.", visited)
