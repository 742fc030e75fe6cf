"""Reads the tensors of a PyTorch checkpoint without running anything in it.

A checkpoint is a pickle, and a pickle is a program. This reader walks its opcodes on a small stack machine of its own: the
names it may refer to are an allow-list mapped to inert stand-ins, nothing is imported, nothing is called, and what is not
on the list is refused by name. Both layouts are read: the old one (pickles, then raw storages) and the zip archive.
Source: `torch.serialization` of PyTorch 0.3 to 2.x.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from espy.errors import ModelError

LARGEST_FILE = 2**28  # bytes; the largest published checkpoint of the family has 24 MB
OLD_MAGIC = 0x1950A86A20F9469CFC6C
OLD_PROTOCOL = 1001

DTYPES = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16, "LongStorage": np.int64,
    "IntStorage": np.int32, "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}  # fmt: skip
CALLABLE = {
    ("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor"), ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
}  # fmt: skip
MODULES = ("torch", "torch.cuda", "torch.storage")


class _Refused(Exception):
    """What the file holds that is not read."""


class _Mark:
    """The stack's mark."""


@dataclass(frozen=True)
class _Name:
    """A name the pickle refers to; never the thing itself."""

    module: str
    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: Any
    count: int
    offset: int = 0


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Name → array of a checkpoint's state dict, in the file's order; arrays may be read-only views of one buffer.

    A state dict wrapped as `{"state_dict": ..., ...}` is unwrapped. Raises ModelError, one line, for anything else: an
    empty or cut file, a pickle with code in it, a whole model, another kind of file.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise _Refused(f"a file of {size / 1e6:.0f} MB, no checkpoint of this family is that large")
        data = path.read_bytes()
        return _state_dict(_load(data))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from None
    except _Refused as error:
        raise ModelError(f"{path}: {error}; expected a published ESPNet or ESPNetv2 checkpoint (.pth)") from None


def _load(data: bytes) -> Any:
    if not data:
        raise _Refused("an empty file")
    if data[:4] == b"PK\x03\x04":
        return _load_zip(data)
    if data[:1] != b"\x80":
        raise _Refused(_looks_like(data))
    return _load_old(data)


def _looks_like(data: bytes) -> str:
    start = data[:512].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<")):
        return "an HTML page, not a checkpoint: download the raw file"
    if not data.strip(b"\x00"):
        return "nothing but zero bytes"
    return f"not a PyTorch checkpoint (it starts with {bytes(data[:8])!r})"


def _load_old(data: bytes) -> Any:
    """Magic, protocol, system, object, storage keys (a pickle each), then a count and raw bytes for each storage."""
    stream = io.BytesIO(data)
    magic = _unpickle(stream)
    if magic != OLD_MAGIC:
        raise _Refused(f"a pickle, but not a PyTorch checkpoint (it holds {_describe(magic)})")
    if (protocol := _unpickle(stream)) != OLD_PROTOCOL:
        raise _Refused(f"a checkpoint of protocol {_describe(protocol)}, {OLD_PROTOCOL} is known")
    system = _unpickle(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _Refused("a checkpoint written on a big-endian machine")
    content = _unpickle(stream)
    keys = _unpickle(stream)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise _Refused("a damaged checkpoint: no list of storages")
    declared = {t.storage.key: t.storage for t in _tensors(content)}
    buffers: dict[str, np.ndarray] = {}
    position = stream.tell()
    for key in keys:
        storage = declared.get(key)
        if len(data) < position + 8 or storage is None:
            raise _Refused(_cut(len(data)) if storage else "a damaged checkpoint: a storage that no tensor uses")
        (count,) = struct.unpack_from("<q", data, position)
        position += 8
        if count != storage.count:
            raise _Refused("a damaged checkpoint: a storage of another length than declared")
        end = position + count * np.dtype(storage.dtype).itemsize
        if end > len(data):
            raise _Refused(_cut(len(data)))
        buffers[key] = np.frombuffer(data, storage.dtype, count, position)
        position = end
    return _fill(content, buffers)


def _load_zip(data: bytes) -> Any:
    """An archive of one folder: data.pkl, and data/KEY for each storage, stored uncompressed."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = {info.filename: info for info in archive.infolist()}
            pickles = [name for name in names if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise _Refused("a zip archive, but not a PyTorch checkpoint (no data.pkl in it)")
            folder = pickles[0][: -len("data.pkl")]
            if f"{folder}constants.pkl" in names:
                raise _Refused("a TorchScript program, not a checkpoint: it holds code")
            if any(info.compress_type != zipfile.ZIP_STORED for info in names.values()):
                raise _Refused("a compressed archive: PyTorch stores its tensors uncompressed")
            if sum(info.file_size for info in names.values()) > len(data):
                raise _Refused("an archive that unpacks to more than its size")
            if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
                raise _Refused("a checkpoint written on a big-endian machine")
            content = _unpickle(io.BytesIO(archive.read(pickles[0])))
            buffers: dict[str, np.ndarray] = {}
            for storage in {t.storage.key: t.storage for t in _tensors(content)}.values():
                name = f"{folder}data/{storage.key}"
                if name not in names:
                    raise _Refused(f"a damaged checkpoint: storage {storage.key!r} is missing")
                raw = archive.read(name)
                if len(raw) != storage.count * np.dtype(storage.dtype).itemsize:
                    raise _Refused("a damaged checkpoint: a storage of another length than declared")
                buffers[storage.key] = np.frombuffer(raw, storage.dtype)
            return _fill(content, buffers)
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        ValueError,
        OverflowError,
        struct.error,
    ) as error:
        raise _Refused(f"a damaged or truncated zip archive ({error})") from None


def _cut(size: int) -> str:
    return f"a truncated checkpoint: it ends after {size} bytes, before its last tensor"


def _unpickle(stream: io.BytesIO) -> Any:
    """The value of one pickle, built of plain containers, numbers, strings and the stand-ins above."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in names
            for opcode, argument, _ in pickletools.genops(stream):
                _step(opcode.name, argument, stack, memo)
        if len(stack) != 1:
            raise _Refused("a damaged pickle")
        return stack[0]
    except _Refused:
        raise
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, struct.error, OverflowError) as error:
        if "exhausted" in str(error) or "expected" in str(error) or "remain" in str(error):
            raise _Refused("a truncated checkpoint: its pickle ends in the middle") from None
        raise _Refused("a damaged pickle") from None


IGNORED = {"PROTO", "FRAME", "STOP"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT", "BINUNICODE", "BINUNICODE8",
    "SHORT_BINUNICODE", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "STRING",
}  # fmt: skip


def _step(op: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    """One opcode. Containers are built, names become stand-ins, calls are recorded or refused."""
    if op in IGNORED:
        return
    if op in VALUES:
        stack.append(argument)
    elif op in CONSTANTS:
        stack.append(CONSTANTS[op])
    elif op == "EMPTY_DICT":
        stack.append({})
    elif op == "EMPTY_LIST":
        stack.append([])
    elif op == "EMPTY_TUPLE":
        stack.append(())
    elif op == "MARK":
        stack.append(_Mark)
    elif op in ("BINPUT", "LONG_BINPUT", "PUT"):
        memo[argument] = stack[-1]
    elif op == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif op in ("BINGET", "LONG_BINGET", "GET"):
        stack.append(memo[argument])
    elif op == "TUPLE":
        stack.append(tuple(_since_mark(stack)))
    elif op in ("TUPLE1", "TUPLE2", "TUPLE3"):
        items = [stack.pop() for _ in range(int(op[-1]))]
        stack.append(tuple(reversed(items)))
    elif op == "APPEND":
        item = stack.pop()
        _of(stack[-1], list).append(item)
    elif op == "APPENDS":
        items = _since_mark(stack)
        _of(stack[-1], list).extend(items)
    elif op == "SETITEM":
        value, key = stack.pop(), stack.pop()
        _set(stack[-1], [key, value])
    elif op == "SETITEMS":
        items = _since_mark(stack)
        _set(stack[-1], items)
    elif op == "GLOBAL":
        stack.append(_name(*str(argument).split(" ", 1)))
    elif op == "STACK_GLOBAL":
        name, module = stack.pop(), stack.pop()
        stack.append(_name(_of(module, str), _of(name, str)))
    elif op == "REDUCE":
        arguments, function = _of(stack.pop(), tuple), _of(stack.pop(), _Name)
        stack.append(_call(function, arguments))
    elif op == "BUILD":
        stack.pop()  # a state dict's versions, a parameter's attributes: nothing that tensors need
        _of(stack[-1], (dict, _Tensor))
    elif op == "BINPERSID":
        stack.append(_storage(_of(stack.pop(), tuple)))
    else:
        raise _Refused(f"a pickle that holds more than tensors (operation {op})")


def _of(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise _Refused(f"a damaged pickle, or one that holds code ({_describe(value)} where it does not belong)")
    return value


def _since_mark(stack: list[Any]) -> list[Any]:
    items = []
    while (item := stack.pop()) is not _Mark:
        items.append(item)
    return items[::-1]


def _set(target: Any, items: list[Any]) -> None:
    _of(target, dict)
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[_of(key, (str, int))] = value


def _name(module: str, name: str) -> _Name:
    known = (module, name) in CALLABLE or (module in MODULES and name in DTYPES)
    if not known:
        raise _Refused(
            f"a pickle that refers to {module}.{name}: it holds objects or code, not only tensors; refused unrun"
        )
    return _Name(module, name)


def _call(function: _Name, arguments: tuple[Any, ...]) -> Any:
    if function.name == "OrderedDict":
        items = arguments[0] if arguments else []
        return {_of(k, (str, int)): v for k, v in _of(items, (list, tuple))}
    if function.name == "_rebuild_parameter":
        return _of(arguments[0], _Tensor)
    if function.name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
        storage, offset, size, stride = arguments[:4]
        size, stride = _whole(size), _whole(stride)
        if len(size) != len(stride) or len(size) > 8 or not isinstance(offset, int) or offset < 0:
            raise _Refused("a damaged checkpoint: a tensor of impossible shape")
        return _Tensor(_of(storage, _Storage), offset, size, stride)
    raise _Refused(f"a pickle that calls {function.module}.{function.name}")


def _whole(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(type(n) is int and 0 <= n < 2**40 for n in value):
        raise _Refused("a damaged checkpoint: a tensor of impossible shape")
    return value


def _storage(identity: tuple[Any, ...]) -> _Storage:
    """('storage', class, key, device, count) and, in the old layout, None or the part of a storage that is meant."""
    if len(identity) not in (5, 6) or identity[0] != "storage":
        raise _Refused("a damaged checkpoint: a storage without its description")
    kind, key, count = _of(identity[1], _Name), identity[2], identity[4]
    view = identity[5] if len(identity) == 6 else None
    if kind.name not in DTYPES or type(count) is not int or count < 0:
        raise _Refused("a damaged checkpoint: a storage without its description")
    offset = view[1] if isinstance(view, tuple) and len(view) == 3 else 0
    return _Storage(str(_of(key, (str, int))), DTYPES[kind.name], count, _of(offset, int))


def _tensors(content: Any) -> list[_Tensor]:
    found: list[_Tensor] = []
    waiting, seen = [content], {0}
    while waiting:
        value = waiting.pop()
        if isinstance(value, _Tensor):
            found.append(value)
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return found


def _fill(content: Any, buffers: dict[str, np.ndarray]) -> Any:
    """The state dict with arrays in the place of tensors. Only the top two levels of dicts can hold one."""
    if not isinstance(content, dict):
        raise _Refused(f"a checkpoint of {_describe(content)}, not of named tensors")
    filled: dict[Any, Any] = {}
    for key, value in content.items():
        if isinstance(value, _Tensor):
            filled[key] = _array(value, buffers)
        elif isinstance(value, dict):
            filled[key] = {k: _array(v, buffers) if isinstance(v, _Tensor) else v for k, v in value.items()}
        else:
            filled[key] = value
    return filled


def _array(tensor: _Tensor, buffers: dict[str, np.ndarray]) -> np.ndarray:
    buffer = buffers.get(tensor.storage.key)
    if buffer is None:
        raise _Refused("a damaged checkpoint: a tensor without its storage")
    start = tensor.offset + tensor.storage.offset
    count = math.prod(tensor.size)
    if count == 0 and max(tensor.size) <= LARGEST_FILE:
        return np.zeros(tensor.size, buffer.dtype)
    reach = start + sum((n - 1) * s for n, s in zip(tensor.size, tensor.stride, strict=True)) + 1
    if count == 0 or reach > len(buffer) or count > len(buffer) or start < 0:
        raise _Refused("a damaged checkpoint: a tensor that its storage does not hold")
    strides = [s * buffer.itemsize for s in tensor.stride]
    return np.lib.stride_tricks.as_strided(buffer[start:], tensor.size, strides, writeable=False)


def _state_dict(content: Any) -> dict[str, np.ndarray]:
    wrapped = content.get("state_dict")
    if isinstance(wrapped, dict):
        content = wrapped
    arrays = {str(key): value for key, value in content.items() if isinstance(value, np.ndarray)}
    if not arrays:
        raise _Refused("a checkpoint without tensors")
    return arrays


def _describe(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= 2**64:
        return "a huge number"
    plain = isinstance(value, int | float | str | None)
    text = repr(value) if plain else type(value).__name__.strip("_").lower()
    return text if len(text) <= 40 else f"{text[:40]}..."
