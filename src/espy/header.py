"""What every model file says of itself, and how each format carries it.

The header is a JSON object: network, labels, how pictures are prepared, which sizes the file takes, a card. It stands under
the key `espy` in the metadata of a `.safetensors`, behind the graph of an `.onnx`, in the `rt_info` of an OpenVINO `.xml`,
among the extra files of a `.pt2`, and for formats that hold nothing but a network in `NAME.json` beside the file `NAME`. A
second entry, `espy_sha256`, covers header and content; a file that has it and does not match is damaged and refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable
from html import escape, unescape
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_safetensors

from espy import eightbits
from espy import spec as specs
from espy.errors import ModelError, SpecError
from espy.labels import Label
from espy.output import write_bytes
from espy.spec import Spec
from espy.version import VERSION

FORMAT = 1
KEY, SUM = "espy", "espy_sha256"
STEP = ":step"  # behind the name of a tensor whose weights are multiples of it
SMALLEST_SIDE = 16
LARGEST_SIDE = 32768
MASK_CLASSES = 256  # a mask is uint8
OPTIONAL = ("card", "tool", "export")  # keys that a header may lack

Sizes = Literal["any"] | dict[str, int] | list[tuple[int, int]]


class Preprocess(msgspec.Struct, frozen=True):
    """How a picture becomes what the network sees.

    `size` (height, width). `resize`: `stretch` to it, `short` side to it and centre crop, or `native`, the picture's own size.
    `crop`: with `short`, the share of the largest centre crop that is seen, 0.875 where 224 pixels are cut out of 256.
    `filter`: `antialias` smooths when shrinking (Pillow's bilinear), `plain` does not (two taps at pixel centres).
    `multiple`: native sizes are rounded down to it. A value v becomes (v·scale − mean) / std, channels in `order`.
    """

    size: tuple[int, int]
    order: Literal["RGB", "BGR"] = "RGB"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    filter: Literal["antialias", "plain"] = "antialias"
    resize: Literal["stretch", "short", "native"] = "stretch"
    multiple: int = 32
    crop: float = 1.0

    def __post_init__(self) -> None:
        for side in self.size:
            if not SMALLEST_SIDE <= side <= LARGEST_SIDE:
                raise ValueError(f"size must be {SMALLEST_SIDE} to {LARGEST_SIDE} pixels a side, not {side}")
        if not 1 <= self.multiple <= 1024:
            raise ValueError(f"multiple must be 1 to 1024, not {self.multiple}")
        if not 0.01 <= self.crop <= 1:
            raise ValueError(f"crop must be 0.01 to 1, not {self.crop}")
        if self.crop != 1 and self.resize != "short":
            raise ValueError(f"crop {self.crop} needs resize 'short', not {self.resize!r}")
        if not all(abs(v) < 1e6 for v in (self.scale, *self.mean)) or not all(0 < s < 1e6 for s in self.std):
            raise ValueError("scale, mean and std must be finite, std above 0")


class Metric(msgspec.Struct, frozen=True):
    """A measured number: on which set and how."""

    name: str
    value: float
    set: str = ""
    protocol: str = ""


class Card(msgspec.Struct, frozen=True):
    """What people should know of a model."""

    title: str = ""
    data: str = ""
    terms: str = ""
    metrics: tuple[Metric, ...] = ()


class Quantized(msgspec.Struct, frozen=True):
    """What eight bits cost and bring: a file in int8 beside the float one of the same format, on the same pictures.

    `calibrated` so many pictures of `train`, judged on all `images` of `val` of the set `data` by `metric`: `float32` and `int8`,
    0..1, `drop` in points of a hundred. `layers` compute in int8, those named in `kept` in float. `bytes` and `ms` (median and
    least of runs in turns, `Export` says with what) are [float, int8]; `ratio` is that of the medians: below 1 int8 is faster.
    """

    data: str
    calibrated: int
    images: int
    metric: str
    float32: float
    int8: float
    drop: float
    layers: int
    kept: tuple[str, ...]
    bytes: tuple[int, int]
    median_ms: tuple[float, float]
    least_ms: tuple[float, float]
    ratio: float


class Export(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a deployed file compared with its network when it was made: the worst over `pictures` (photo, size) pairs.

    `tools`: package → version that made it. `what` is compared: mask pixels, likeliest classes or detected boxes, of which a
    share `equal` is the same. `score_error`: largest difference of a logit, relative to the largest one, or of a probability.
    `bytes`: all that was written but this header. `ms`: `engine` on one picture of `size` (height, width), median.
    `precision`: float32 or int8, that of `espy quantize`, which also says what is `quantized`.
    """

    format: str
    tools: dict[str, str]
    pictures: int
    what: str
    equal: float
    score_error: float
    bytes: int
    ms: float
    size: tuple[int, int]
    engine: str
    threads: int
    processor: str
    precision: str = "float32"
    quantized: Quantized | None = None


class Header(msgspec.Struct, frozen=True):
    """The header of a model file; `export` is a deployed one's. `extra` is what a file said under keys unknown here; it is kept."""

    task: str
    spec: Spec
    labels: tuple[Label, ...]
    preprocess: Preprocess
    sizes: Any
    card: Card = Card()
    tool: str = f"espy {VERSION}"
    export: Export | None = None
    extra: dict[str, Any] = msgspec.field(default_factory=dict)

    @classmethod
    def of(cls, spec: Spec, labels: tuple[Label, ...], preprocess: Preprocess, card: Card) -> Header:
        """The header of plain weights: the sizes are what the network takes."""
        return cls(spec.task, spec, labels, preprocess, sizes_of(spec.task, preprocess), card)

    @property
    def precision(self) -> str:
        """What the file computes in unless told otherwise: int8 of a quantised one, else float32."""
        return self.export.precision if self.export else "float32"


def sizes_of(task: str, preprocess: Preprocess) -> Sizes:
    """The sizes that plain weights take: a detector's one, to which its priors belong, else all that fit the network."""
    if task == "detect":
        return [preprocess.size]
    return "any" if preprocess.multiple == 1 else {"multiple": preprocess.multiple}


def size_fits(sizes: Sizes, size: tuple[int, int]) -> bool:
    """Whether a (height, width) is one that the header's `sizes` allows."""
    if sizes == "any":
        return min(size) >= SMALLEST_SIDE
    if isinstance(sizes, dict):
        return all(side >= sizes["multiple"] and side % sizes["multiple"] == 0 for side in size)
    return tuple(size) in [tuple(s) for s in sizes]


def describe_sizes(sizes: Sizes) -> str:
    """The header's `sizes` for people."""
    if sizes == "any":
        return f"any height and width from {SMALLEST_SIDE}"
    if isinstance(sizes, dict):
        return f"heights and widths that are multiples of {sizes['multiple']}"
    return "only " + ", ".join(f"height {h}, width {w}" for h, w in sizes)


# JSON


def to_json(header: Header) -> str:
    """The JSON form of a header."""
    data = {
        "format": FORMAT,
        "task": header.task,
        "spec": specs.to_dict(header.spec),
        **{key: msgspec.to_builtins(getattr(header, key)) for key in ("labels", "preprocess", "sizes", "card", "tool")},
    }
    if header.export is not None:
        data["export"] = msgspec.to_builtins(header.export)
    return json.dumps(_merged(header.extra, data), ensure_ascii=False)


def _merged(old: Any, new: Any) -> Any:
    """`new` with the keys that only `old` has, at every depth."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [_merged(*pair) for pair in zip(old, new, strict=True)]
    return new


def from_json(text: str | bytes, where: str | Path) -> Header:
    """The header of a JSON text. Raises ModelError, one line, where it is not one."""
    try:
        data = json.loads(text)
        json.dumps(data, ensure_ascii=False).encode()  # no halves of characters
    except (ValueError, RecursionError):
        raise ModelError(f"{where}: its header is not JSON: the file is damaged") from None
    if not isinstance(data, dict):
        raise ModelError(f"{where}: its header is not a JSON object")
    if data.get("format") != FORMAT or type(data["format"]) is not int:
        raise ModelError(
            f"{where}: header format {data.get('format')!r} is unknown, this version reads {FORMAT}: update espy"
        )
    try:
        fields = {
            "labels": (tuple[Label, ...]),
            "preprocess": Preprocess,
            "card": Card,
            "task": str,
            "tool": str,
            "export": Export,
        }
        values: dict[str, Any] = {
            key: msgspec.convert(data[key], kind) for key, kind in fields.items() if key in data or key not in OPTIONAL
        }  # fmt: skip
        spec = specs.from_dict(data.get("spec"))
        sizes = _sizes(data.get("sizes"))
    except KeyError as error:
        raise ModelError(f"{where}: its header lacks {error.args[0]!r}") from None
    except (msgspec.ValidationError, SpecError, ValueError) as error:
        raise ModelError(f"{where}: its header is not valid: {error}") from None
    header = Header(spec=spec, sizes=sizes, **values)
    header = msgspec.structs.replace(header, extra=_beyond(data, json.loads(to_json(header))) or {})
    _check(header, where)
    return header


def _beyond(old: Any, known: Any) -> Any:
    """What of `old` stands under keys that `known` does not have, at every depth; None where nothing does."""
    if isinstance(old, dict) and isinstance(known, dict):
        rest = {key: _beyond(value, known[key]) if key in known else value for key, value in old.items()}
        return {key: value for key, value in rest.items() if value is not None} or None
    if isinstance(old, list) and isinstance(known, list) and len(old) == len(known):
        parts = [_beyond(*pair) for pair in zip(old, known, strict=True)]
        return parts if any(part is not None for part in parts) else None
    return None


def _sizes(value: Any) -> Sizes:
    if value == "any":
        return "any"
    if (
        isinstance(value, dict)
        and set(value) == {"multiple"}
        and type(value["multiple"]) is int
        and value["multiple"] > 0
    ):
        return value
    if isinstance(value, list) and value and all(
        isinstance(s, list) and len(s) == 2 and all(type(n) is int and n >= SMALLEST_SIDE for n in s) for s in value
    ):  # fmt: skip
        return [(h, w) for h, w in value]
    raise ValueError('sizes must be "any", {"multiple": n} or a list of [height, width]')


def _check(header: Header, where: str | Path) -> None:
    if header.task != header.spec.task:
        raise ModelError(f"{where}: its header says task {header.task!r} but its network is for {header.spec.task!r}")
    if len(header.labels) != header.spec.classes:
        raise ModelError(f"{where}: its header has {len(header.labels)} labels for {header.spec.classes} classes")
    if len({label.name for label in header.labels}) != len(header.labels):
        raise ModelError(f"{where}: its header has two labels of one name")
    if any(not 0 <= v <= 255 for label in header.labels for v in label.colour):
        raise ModelError(f"{where}: its header has a colour outside 0..255")
    if header.task == "segment" and len(header.labels) > MASK_CLASSES:
        raise ModelError(f"{where}: its header has {len(header.labels)} classes, a mask holds at most {MASK_CLASSES}")
    if header.preprocess.resize != "native" and not size_fits(header.sizes, header.preprocess.size):
        size, sizes = header.preprocess.size, describe_sizes(header.sizes)
        raise ModelError(f"{where}: its header prepares height {size[0]}, width {size[1]}, but takes {sizes}")
    if header.preprocess.resize == "short" and header.task != "classify":
        what = "a mask covers" if header.task == "segment" else "a detector sees"
        raise ModelError(f"{where}: its header crops (resize 'short'), but {what} the whole picture")
    if header.task == "detect":
        height, width = header.preprocess.size
        if height != width or header.sizes != [(height, width)] or header.preprocess.resize == "native":
            raise ModelError(
                f"{where}: its header takes {describe_sizes(header.sizes)} (size {height}x{width}, resize "
                f"{header.preprocess.resize!r}), but a detector takes one size, square: its boxes start from it"
            )


# Files


BESIDE = {".xml": (".bin",), ".param": (".bin",)}
"""Endings of a model's other files, the weights; the header that stands beside is NAME.ENDING.json."""


def parts(path: Path) -> list[Path]:
    """The files that a model of this name consists of, the one that is opened last."""
    weights = [path.with_suffix(ending) for ending in BESIDE.get(path.suffix, ())]
    return [*weights, *([] if path.suffix in INSIDE else [beside(path)]), path]


def beside(path: Path) -> Path:
    """The file of a header that stands beside."""
    return path.with_name(f"{path.name}.json")


def read_header(path: Path) -> Header | None:
    """The header of a model file of any format, None where it has none. Raises ModelError, one line, where the file is damaged."""
    missing = next((part for part in parts(path) if not part.is_file() and part != beside(path)), None)
    if missing is not None:
        raise ModelError(f"{missing}: no such file{'' if missing == path else f'; it belongs to {path.name}'}")
    try:
        return INSIDE[path.suffix][0](path) if path.suffix in INSIDE else read_beside(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from None


def attach(path: Path, header: Header) -> None:
    """Give a deployed file that has no header yet its own, inside or beside it."""
    put = INSIDE[path.suffix][1] if path.suffix in INSIDE else attach_beside
    assert put is not None, "plain weights are written with their header"
    put(path, header)


def _refuse_other(path: str | Path, total: Any, found: str) -> None:
    if total is not None and total != found:
        raise ModelError(f"{path}: damaged: its content does not match its checksum; make or fetch it again")


# NAME.json beside NAME: a JSON object of both entries


def attach_beside(path: Path, header: Header) -> None:
    """Write the header and its checksum beside a file."""
    text = to_json(header)
    entries = {KEY: json.loads(text), SUM: _sum_beside(path, text)}
    beside(path).write_text(json.dumps(entries, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_beside(path: Path) -> Header | None:
    """The header that stands beside a file, None where there is none."""
    where = beside(path)
    if not where.is_file():
        return None
    try:
        entries = json.loads(where.read_bytes())
        text = json.dumps(entries[KEY], ensure_ascii=False)
    except (ValueError, RecursionError, KeyError, TypeError):
        raise ModelError(f"{where}: damaged, or no header of a model file") from None
    header = from_json(text, where)
    _refuse_other(path, entries.get(SUM), _sum_beside(path, text))
    return header


def _sum_beside(path: Path, text: str) -> str:
    total = hashlib.sha256()
    for part in parts(path):
        if part != beside(path):
            total.update(part.read_bytes())
    total.update(text.encode())
    return total.hexdigest()


# .xml of OpenVINO: two elements at the end of <rt_info>, which ends the file; the weights lie in NAME.bin

RT_INFO = re.compile(
    rf'\s*<{KEY} value="(?P<text>[^"]*)"\s*/>\s*<{SUM} value="(?P<sum>[^"]*)"\s*/>(?=\s*</rt_info>\s*</net>\s*$)'.encode()
)


def attach_openvino(path: Path, header: Header) -> None:
    """Put the header into the .xml of an OpenVINO model."""
    xml, text = (
        path.read_bytes(),
        json.dumps(json.loads(to_json(header))),
    )  # ASCII: XML has no place for some characters
    place = xml.rindex(b"</rt_info>")
    total = _sum_openvino(xml, path, text)
    entries = "".join(f'\t<{key} value="{escape(value)}" />\n\t' for key, value in ((KEY, text), (SUM, total)))
    path.write_bytes(xml[:place].rstrip() + b"\n\t" + entries.encode() + xml[place:])


def read_openvino(path: Path) -> Header | None:
    """The header of an OpenVINO model, None where it has none."""
    xml = path.read_bytes()
    if not xml.rstrip().endswith(b"</net>"):
        raise ModelError(f"{path}: damaged or truncated, or no OpenVINO model")
    found = RT_INFO.search(xml, max(0, xml.rfind(f"<{KEY} value=".encode()) - 64))
    if found is None:
        return None
    text = unescape(found["text"].decode("utf-8", "replace"))
    header = from_json(text, path)
    rest = xml[: found.start()] + xml[found.end() :]
    _refuse_other(path, found["sum"].decode("utf-8", "replace"), _sum_openvino(rest, path, text))
    return header


def _sum_openvino(xml: bytes, path: Path, text: str) -> str:
    """Of what is not space in the .xml without the header, of the weights and the header's text."""
    return hashlib.sha256(b"".join(xml.split()) + path.with_suffix(".bin").read_bytes() + text.encode()).hexdigest()


# .pt2: a zip archive; what stands under ROOT/extra/ is for others


def attach_pt2(path: Path, header: Header) -> None:
    """Put the header among the extra files of a torch.export archive."""
    text = to_json(header)
    with zipfile.ZipFile(path) as archive:
        root, total = archive.namelist()[0].split("/")[0], _sum_pt2(archive, text)
    with zipfile.ZipFile(path, "a") as archive:
        for key, value in ((KEY, text), (SUM, total)):
            archive.writestr(zipfile.ZipInfo(f"{root}/extra/{key}"), value)


def read_pt2(path: Path) -> Header | None:
    """The header of a torch.export archive, None where it has none."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {_inner(name): name for name in archive.namelist()}
            if f"extra/{KEY}" not in names:
                return None
            text = archive.read(names[f"extra/{KEY}"]).decode()
            total = archive.read(names[f"extra/{SUM}"]).decode() if f"extra/{SUM}" in names else None
            found = _sum_pt2(archive, text)
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError):
        raise ModelError(f"{path}: damaged or truncated, or no .pt2 archive") from None
    header = from_json(text, path)
    _refuse_other(path, total, found)
    return header


def _inner(name: str) -> str:
    return name.partition("/")[2]


def _sum_pt2(archive: zipfile.ZipFile, text: str) -> str:
    """Of name and content of every other entry, sorted, and of the header's text."""
    total = hashlib.sha256()
    for name in sorted(archive.namelist()):
        if _inner(name) not in (f"extra/{KEY}", f"extra/{SUM}"):
            total.update(f"{_inner(name)} {archive.getinfo(name).file_size}\n".encode())
            total.update(archive.read(name))
    total.update(text.encode())
    return total.hexdigest()


# .safetensors


def write_safetensors(path: str | Path, header: Header, arrays: dict[str, np.ndarray], *, force: bool = False) -> None:
    """Plain weights and header as one file, written atomically; what fewer bits hold is kept in fewer."""
    text = to_json(header)
    arrays = _packed({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)})
    metadata = {KEY: text, SUM: digest(text, arrays)}
    write_bytes(path, in_order(save_safetensors(arrays, metadata)), force=force)


def _packed(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays as they are stored: of weights in eight bits the multiples, and the steps beside them."""
    stored: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        pair = eightbits.packed(array)
        stored |= {name: eightbits.half(array)} if pair is None else {name: pair[0], name + STEP: pair[1]}
    return stored


def _unpacked(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays again. Raises KeyError or ValueError where steps belong to nothing."""
    steps = {name.removesuffix(STEP): array for name, array in stored.items() if name.endswith(STEP)}
    arrays = {
        name: array.astype(np.float32) if array.dtype == np.float16 else array
        for name, array in stored.items() if not name.endswith(STEP)
    }  # fmt: skip
    return arrays | {name: eightbits.unpacked(arrays[name], step) for name, step in steps.items()}


def in_order(file: bytes) -> bytes:
    """The file with its metadata sorted: the library writes them in any order, and equal models should be equal files."""
    start = 8 + int.from_bytes(file[:8], "little")
    head = json.loads(file[8:start])
    head["__metadata__"] = dict(sorted(head["__metadata__"].items()))
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text + file[start:]


def read_safetensors(path: str | Path) -> tuple[Header, dict[str, np.ndarray]]:
    """Header and weights of a `.safetensors` model file. Raises ModelError, one line, for anything else."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if KEY not in metadata:
                raise ModelError(f"{path}: no espy header in it: convert the published checkpoint with `espy convert`")
            header = from_json(metadata[KEY], path)
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            arrays = _unpacked(stored)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path}: damaged or truncated, or no safetensors file ({_first_line(error)})") from None
    if SUM in metadata:
        _refuse_other(path, metadata[SUM], digest(metadata[KEY], stored))
    return header, arrays


def digest(text: str, arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of a file's text and arrays, whatever the order and layout they are stored in."""
    total = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        total.update(f"{name} {array.dtype.str} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


# .onnx: a protobuf message; its metadata properties are field 14, a key (field 1) and a value (field 2) each


def attach_onnx(graph: bytes, header: Header) -> bytes:
    """The bytes of an ONNX model with the header behind it; the model must carry no metadata properties yet."""
    text = to_json(header)
    total = hashlib.sha256(graph + text.encode()).hexdigest()
    return graph + _onnx_property(KEY, text) + _onnx_property(SUM, total)


def read_onnx_header(path: str | Path, data: bytes) -> Header | None:
    """The header of an ONNX model's bytes, None where it has none. Raises ModelError where the file is damaged."""
    try:
        properties, end = _onnx_properties(data)
        text = properties.get(KEY)
        total = properties.get(SUM)
    except (IndexError, ValueError):
        raise ModelError(f"{path}: damaged or truncated, or no ONNX file") from None
    if text is None:
        return None
    header = from_json(text, path)
    _refuse_other(path, total, hashlib.sha256(data[:end] + text.encode()).hexdigest())
    return header


def _onnx_property(key: str, value: str) -> bytes:
    entry = b"".join(_field(n, text.encode()) for n, text in ((1, key), (2, value)))
    return _field(14, entry)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _onnx_properties(data: bytes) -> tuple[dict[str, str], int]:
    """The metadata properties, and where the header's entry starts."""
    properties: dict[str, str] = {}
    end = len(data)
    for number, start, content in _fields(data):
        if number == 14:
            entry = {n: c for n, _, c in _fields(content)}
            key = entry.get(1, b"").decode()
            properties[key] = entry.get(2, b"").decode()
            if key == KEY:
                end = start
    return properties, end


def _fields(data: bytes) -> list[tuple[int, int, bytes]]:
    """(number, start, content) of a protobuf message's fields; numbers that are not length-delimited have no content."""
    fields, position = [], 0
    while position < len(data):
        start = position
        tag, position = _read_varint(data, position)
        kind, content = tag & 7, b""
        if kind == 0:
            _, position = _read_varint(data, position)
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        elif kind == 2:
            length, position = _read_varint(data, position)
            content = data[position : position + length]
            position += length
        else:
            raise ValueError("no protobuf message")
        if position > len(data):
            raise ValueError("truncated")
        fields.append((tag >> 3, start, content))
    return fields


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
    raise ValueError("no protobuf message")


INSIDE: dict[str, tuple[Callable[[Path], Header | None], Callable[[Path, Header], Any] | None]] = {
    # ending: how the header is read from a file, and how it is put into one that has none yet
    ".safetensors": (lambda path: read_safetensors(path)[0], None),
    ".onnx": (
        lambda path: read_onnx_header(path, path.read_bytes()),
        lambda path, header: path.write_bytes(attach_onnx(path.read_bytes(), header)),
    ),
    ".xml": (read_openvino, attach_openvino),
    ".pt2": (read_pt2, attach_pt2),
}
"""Formats that hold a header; every other has it beside."""
