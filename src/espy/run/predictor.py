"""From a model file and a picture to a result."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from espy import bundle
from espy.errors import EngineError, EspyError, ModelError
from espy.header import (
    Card,
    Header,
    Preprocess,
    describe_sizes,
    from_json,
    read_header,
    size_fits,
    to_json,
)
from espy.labels import Label
from espy.picture.frame import Frame, Size, resized
from espy.picture.read import MAX_PIXELS, Picture, Source, read
from espy.run.choice import candidates, fastest
from espy.run.engines import PRECISIONS, load_engine
from espy.run.result import Classification, Detections, Result, Segmentation
from espy.run.tile import Tiling, run_tiled
from espy.spec import Spec

SMALLEST_SCALE, LARGEST_SCALE = 0.1, 8.0  # of several at which a picture is seen
AHEAD = 2  # pictures that are decoded while the engine runs
LARGE = 25_000_000  # pixels; beside pictures larger than this none is decoded ahead, so that memory stays bounded


@dataclass(frozen=True)
class Item:
    """One of many pictures: its `result`, or the `error` that kept it from one."""

    source: Source
    result: Result | None = None
    error: EspyError | None = None


@dataclass(frozen=True)
class _Prepared:
    picture: Picture
    frame: Frame
    network: np.ndarray | None  # uint8 [h, w, 3]; None where tiles are cut later
    decode_ms: float
    prepare_ms: float


def load(
    model: str | Path = "street",
    *,
    engine: str = "auto",
    threads: int | None = None,
    precision: str = "auto",
    size: Size = None,
    tile: tuple[int, int] | None = None,
    overlap: int | None = None,
    header: str | Path | dict[str, Any] | Header | None = None,
    max_pixels: int = MAX_PIXELS,
    remark: Callable[[str], None] = lambda line: None,
) -> Model:
    """A model ready to look at pictures.

    `model`: a bundled name (`street`, `street-small`, `camvid`, `objects`), a `.safetensors` file or a deployed one of any format
    (docs/model-file.md), or a run folder. `engine`: `onnxruntime`, `openvino`, `native`, `torch`, `pt2`, `executorch`, `ncnn`,
    `litert`, or `auto`, the fastest of those installed by a measurement that is made once, which takes seconds, and kept
    (docs/performance.md): of one picture, of the tile's or given size, else of that in the header. `remark` is called with a line
    where one is made.
    `threads`: all unless given. `precision`: `auto` is the file's own, int8 where it was quantised, else float32; `bfloat16` where
    an engine has it. `size`: (height, width) that the network sees, `"native"` for the picture's own; as the model's
    header says unless given. `tile`: (height, width) of overlapping tiles, for pictures of any size in bounded memory; at the
    picture's own size unless `size` is given. `overlap`: pixels that tiles share. `header`: for a foreign file, its header as
    JSON file, dict or Header.
    Raises EspyError, one line, for what cannot work.
    """
    check_size(size, max_pixels)
    files = resolve(model, engine)
    path = next(iter(files.values()))
    found = header_of(path, header)
    if size is None and tile is not None:
        size = "native"
    if tile is not None and found.task != "segment":
        raise EngineError(f"{path}: tiles are for segmentation, this model's task is {found.task}: leave them out")
    tiling = Tiling.of(tile, found.spec, found.preprocess.multiple, overlap) if tile else None
    if size is not None and size != "native" and tiling is None:
        check_fits(found, size, str(path))
    seen = tile or (size if isinstance(size, tuple) else found.preprocess.size)
    computes = precision_of(found, precision, str(path))
    name = fastest(files, seen, threads, computes, remark)
    if files[name] != path:
        path = files[name]
        found = header_of(path, header)
    running = load_engine(name)(path, threads=threads, precision=computes)
    if running.task != found.task:
        raise ModelError(f"{path}: its header says task {found.task!r}, its graph is for {running.task!r}")
    return Model(path, found, running, size, tiling, max_pixels)


def resolve(model: str | Path, engine: str = "auto") -> dict[str, Path]:
    """The engines that may run a model, each with the file that it opens: one, where it is asked for (espy.run.choice)."""
    path = Path(model)
    files = [path]
    if str(model) in bundle.NAMES and not path.is_file():
        files = [bundle.path(str(model), suffix) for suffix in (".onnx", ".safetensors")]
    elif path.is_dir():
        files = [path / "best.safetensors"]
    if not files[0].is_file():
        raise ModelError(f"{model}: no such model file; bundled: {', '.join(bundle.NAMES)}")
    if path.suffix in (".pth", ".pt"):
        raise ModelError(
            f"{path}: a published checkpoint: convert it first with `espy convert {path} -o MODEL.safetensors`"
        )
    return candidates(model, files, engine)


def header_of(path: Path, given: str | Path | dict[str, Any] | Header | None = None) -> Header:
    """What a model file says of itself, or what is `given` in its place."""
    if isinstance(given, Header):
        return from_json(to_json(given), "header")
    if isinstance(given, dict):
        return from_json(json.dumps(given), "header")
    if given is not None:
        try:
            return from_json(Path(given).read_bytes(), given)
        except OSError as error:
            raise ModelError(f"{given}: cannot be read: {error.strerror or error}") from None
    header = read_header(path)
    if header is None:
        raise ModelError(
            f"{path}: no espy header in it or beside it; give one with --header FILE.json (docs/model-file.md says what it holds)"
        )
    return header


def precision_of(header: Header, asked: str, where: str) -> str:
    """The precision that is meant; `auto` is the file's own. Raises EngineError where it computes in int8 and another is asked
    for, or the other way round, or one that none has.
    """
    own = header.precision
    if asked == "auto" or asked == own:
        return own
    if own == "int8":
        raise EngineError(
            f"{where}: is quantised, it computes in int8, not in {asked!r}: take the file that was exported"
        )
    if asked == "int8":
        raise EngineError(f"{where}: computes in {own}: espy quantize makes a file in int8 of its plain weights")
    if asked not in PRECISIONS:
        raise EngineError(f"{where}: no engine computes in {asked!r}: float32, or bfloat16 where an engine has it")
    return asked


def check_size(size: Any, max_pixels: int) -> None:
    """Raise EngineError for what is no size: None, "native" or (height, width)."""
    if size is None or size == "native":
        return
    if not (isinstance(size, tuple) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise EngineError(f"size is (height, width) in whole pixels, or 'native', not {size!r}")
    if size[0] * size[1] > max_pixels:
        raise EngineError(
            f"height {size[0]}, width {size[1]} is above the limit of {max_pixels / 1e6:g} megapixels (--max-pixels)"
        )


def check_fits(header: Header, size: tuple[int, int], where: str) -> None:
    """Raise EngineError where a model does not take pictures of (height, width)."""
    if not size_fits(header.sizes, size):
        raise EngineError(
            f"{where}: height {size[0]}, width {size[1]} does not fit: it takes {describe_sizes(header.sizes)}"
        )


class Model:
    """A loaded model. Call it with a picture, or `map` it over many; close it when done (or use `with`)."""

    def __init__(
        self, path: Path, header: Header, engine: Any, size: Size, tiling: Tiling | None, max_pixels: int
    ) -> None:
        self.path, self.header, self.engine = path, header, engine
        self.size, self.tiling, self.max_pixels = size, tiling, max_pixels

    @property
    def task(self) -> str:
        """What it does: "segment", "classify" or "detect"."""
        return self.header.task

    @property
    def labels(self) -> tuple[Label, ...]:
        """The classes, in the order of the mask's values."""
        return self.header.labels

    @property
    def spec(self) -> Spec:
        """The network."""
        return self.header.spec

    @property
    def preprocess(self) -> Preprocess:
        """How pictures are prepared."""
        return self.header.preprocess

    @property
    def card(self) -> Card:
        """What people should know of the model."""
        return self.header.card

    def __call__(self, source: Source) -> Any:
        """The result for one picture: a path, bytes, an open file, a Pillow image, uint8 [H, W, 3] RGB or [H, W].

        Segmentation, Classification or Detections, by the model's task. Raises PictureError for what cannot be read.
        """
        return self._run([self._prepare(source)])[0]

    def map(self, sources: Iterable[Source], batch: int = 1) -> Iterator[Item]:
        """Items in the order of the sources, lazily; the next pictures are decoded while the engine runs.

        A source that fails becomes an item with an `error`; the others are done. `batch` pictures of one size go through
        the engine together.
        """
        if batch < 1:
            raise EspyError(f"batch must be at least 1, not {batch}")
        with ThreadPoolExecutor(AHEAD, thread_name_prefix="espy-read") as pool:
            waiting: deque[tuple[Source, Future[_Prepared]]] = deque()
            left, ahead = iter(sources), 0  # none ahead before a size is known
            try:
                while True:
                    for source in islice(left, batch + ahead - len(waiting)):
                        waiting.append((source, pool.submit(self._prepare, source)))
                    if not waiting:
                        return
                    group = [waiting.popleft() for _ in range(min(batch, len(waiting)))]
                    for item in self._run_group(group):
                        yield item
                        ahead = 0 if item.result is not None and large(item.result) else AHEAD
            finally:
                for _, future in waiting:
                    future.cancel()

    def averaging(self, flip: bool, scales: Sequence[float]) -> Callable[[Image.Image], np.ndarray]:
        """What gives the mask, uint8 [H, W], of an upright RGB picture seen at several scales, `flip`: and mirrored too.

        The arg-max of the classes' mean probabilities, each view's brought to the size of scale 1. A scaled side is rounded to
        what the network takes. Raises EngineError for tiles, and when it is called for a file that gives no scores.
        """
        if self.tiling is not None:
            raise EngineError("several scales and flip see the whole picture: leave out the tiles")
        if not scales or not all(SMALLEST_SCALE <= scale <= LARGEST_SCALE for scale in scales):
            raise EngineError(f"scales must be {SMALLEST_SCALE} to {LARGEST_SCALE}, not {tuple(scales)}")

        def predict(image: Image.Image) -> np.ndarray:
            size = (image.height, image.width)
            frame = Frame.of(self.preprocess, size, self.size)
            total: Any = 0.0
            for scale in scales:
                step = self.preprocess.multiple
                h, w = (max(step, round(scale * side / step) * step) for side in frame.network)
                check_fits(self.header, (h, w), str(self.path))
                seen = Frame.of(self.preprocess, size, (h, w)).to_network(image)
                total += resized(self._probabilities(seen), frame.network)
                if flip:
                    total += resized(self._probabilities(seen[:, ::-1])[..., ::-1], frame.network)
            return frame.mask_back(total.argmax(0).astype(np.uint8))

        return predict

    def _probabilities(self, image: np.ndarray) -> np.ndarray:
        """float32 [C, h, w] of uint8 [h, w, 3]: the softmax of the scores."""
        found = self.engine.run(np.ascontiguousarray(image[None]), scores=True)
        if "scores" not in found:
            raise EngineError(
                f"{self.path}: gives no scores of the classes, which several scales and flip need: export it with "
                "`espy export MODEL --scores`, or use engine torch"
            )
        scores = found["scores"][0]
        powers = np.exp(scores - scores.max(0))
        return powers / powers.sum(0)

    def close(self) -> None:
        """Give back what the engine holds."""
        self.engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Model({self.path.name!r}, task={self.task!r}, classes={len(self.labels)}, engine={self.engine.name!r})"

    def _prepare(self, source: Source) -> _Prepared:
        start = time.perf_counter()
        picture = read(source, max_pixels=self.max_pixels)
        decoded = time.perf_counter()
        frame = Frame.of(self.preprocess, picture.size, self.size)
        network = None
        if self.tiling is None:
            check_fits(self.header, frame.network, picture.source)
            network = frame.to_network(picture.image)
        prepared = time.perf_counter()
        return _Prepared(picture, frame, network, 1e3 * (decoded - start), 1e3 * (prepared - decoded))

    def _run_group(self, group: list[tuple[Source, Future[_Prepared]]]) -> Iterator[Item]:
        """Items of a group in order; neighbours of one size share an engine run."""
        together: list[tuple[Source, _Prepared]] = []
        for source, future in group:
            try:
                prepared = future.result()
            except EspyError as error:
                yield from self._run_together(together)
                together = []
                yield Item(source, error=error)
                continue
            alike = together and prepared.network is not None and together[0][1].frame.network == prepared.frame.network
            if together and not alike:
                yield from self._run_together(together)
                together = []
            together.append((source, prepared))
        yield from self._run_together(together)

    def _run_together(self, together: list[tuple[Source, _Prepared]]) -> Iterator[Item]:
        if not together:
            return
        try:
            results = self._run([prepared for _, prepared in together])
        except EspyError as error:
            yield from (Item(source, error=error) for source, _ in together)
            return
        for (source, _), result in zip(together, results, strict=True):
            yield Item(source, result)

    def _run(self, group: list[_Prepared]) -> list[Result]:
        start = time.perf_counter()
        networks = [prepared.network for prepared in group if prepared.network is not None]
        found: Sequence[np.ndarray]
        if self.tiling is not None:
            found = [run_tiled(self._tile, p.picture.image, p.frame, self.tiling) for p in group]
        else:
            images = networks[0][None] if len(networks) == 1 else np.stack(networks)
            found = _of_pictures(self.engine.run(images), len(group))
        engine_ms = 1e3 * (time.perf_counter() - start) / len(group)
        return [self._finish(prepared, one, engine_ms) for prepared, one in zip(group, found, strict=True)]

    def _tile(self, image: np.ndarray) -> np.ndarray:
        check_fits(self.header, (image.shape[1], image.shape[2]), str(self.path))
        mask: np.ndarray = self.engine.run(image)["mask"]
        return mask

    def _finish(self, prepared: _Prepared, found: np.ndarray, engine_ms: float) -> Result:
        start = time.perf_counter()
        frame, image, note = prepared.frame, prepared.picture.image, prepared.picture.note
        timing = {"decode": prepared.decode_ms, "prepare": prepared.prepare_ms, "engine": engine_ms, "finish": 0.0}
        result: Result
        if self.task == "segment":
            result = Segmentation(self.labels, image, timing, frame.mask_back(found), note=note)
        elif self.task == "classify":
            result = Classification(self.labels, image, timing, found, note=note)
        else:
            kinds, scores, boxes = found[:, 1].astype(np.int64), found[:, 2], frame.boxes_back(found[:, 3:])
            result = Detections(self.labels, image, timing, boxes, scores, kinds, note=note)
        timing["finish"] = 1e3 * (time.perf_counter() - start)
        return result


def _of_pictures(found: dict[str, np.ndarray], pictures: int) -> Sequence[np.ndarray]:
    """What an engine gave for a batch, picture by picture."""
    if "detections" in found:
        rows = found["detections"]
        return [rows[rows[:, 0] == picture] for picture in range(pictures)]
    return list(found["mask"] if "mask" in found else found["scores"])


def large(result: Result) -> bool:
    """Whether another picture beside it would take too much memory."""
    return result.size[0] * result.size[1] > LARGE
