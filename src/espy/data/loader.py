"""From a set to batches: decoded once, varied anew in every epoch, in an order that depends on (seed, epoch) alone."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from espy.data.augment import Augment, view
from espy.data.boxes import Boxes
from espy.data.sets import THREADS, Dataset
from espy.errors import DataError, EspyError
from espy.priors import match, priors

if TYPE_CHECKING:
    import torch

SHARE_OF_MEMORY = 0.5  # of what is free that the decoded set may take
UNKNOWN_MEMORY = 4 << 30  # bytes assumed free where the system does not say
MEMORY = Path("/proc/meminfo")  # Linux: how much there is
LIMIT = Path("/sys/fs/cgroup/memory.max")  # and how much a container may take (cgroup 2)

Pair = tuple[np.ndarray, Any]
Sample = tuple[np.ndarray, np.ndarray, int]
Key = tuple[int, int, int]
SIZES = 1 << 32  # sets the draws of a step's size apart from those of pictures


@dataclass(frozen=True)
class Batch:
    """`images` uint8 [N, h, w, 3] RGB, `truth`, `indices` in the set.

    Truth, a torch tensor: masks uint8 [N, h, w] with 255 void (segment), classes int64 [N] (classify), or what each prior is to
    learn, float32 [N, P, 5], as `espy.priors.match` gives it (detect).
    """

    images: torch.Tensor
    truth: torch.Tensor
    indices: tuple[int, ...]

    def pin_memory(self) -> Batch:
        """The same in memory that a GPU copies from without waiting; torch's loader asks for it."""
        return Batch(self.images.pin_memory(), self.truth.pin_memory(), self.indices)


class Samples:
    """The pictures of a set with their truth as (epoch, index, step) → sample, for any number of processes.

    `covering`: at scale 1 a picture covers `size` and keeps its shape, as it is classified; else it is stretched to it.
    `threshold`: from which overlap on a prior learns a box. Pictures are kept decoded, at the largest size that `choices` can
    ask for, where all fit into half of the free memory (`kept`); else each is read again every time. `bytes`: what keeping
    takes. `sharing`: processes of the machine that each keep the set.
    """

    def __init__(
        self, data: Dataset, size: tuple[int, int], choices: Augment, seed: int, sharing: int = 1, *,
        covering: bool = False, threshold: float = 0.45,
    ) -> None:  # fmt: skip
        self.sharing, self.covering, self.threshold = sharing, covering, threshold
        self.data, self.size, self.choices, self.seed = data, size, choices, seed
        self._pairs: list[Pair] = []
        self.bytes = 0
        self.kept = False

    def __len__(self) -> int:
        return len(self.data)

    def keep(self, advance: Callable[[str], None] = lambda name: None) -> bool:
        """Decode the set into memory; False, and nothing kept, where it does not fit."""
        free = free_memory() * SHARE_OF_MEMORY / self.sharing
        pairs: list[Pair] = []
        self.bytes = 0
        with ThreadPoolExecutor(THREADS, thread_name_prefix="espy-keep") as pool:
            for index, pair in enumerate(pool.map(self._read, range(len(self.data)))):
                pairs.append(pair)
                self.bytes += pair[0].nbytes + getattr(pair[1], "nbytes", 0)
                if self.bytes / len(pairs) * len(self.data) > free:
                    self.bytes = int(self.bytes / len(pairs) * len(self.data))
                    pool.shutdown(cancel_futures=True)
                    return False
                advance(self.data.items[index].picture.name)
        self._pairs, self.kept = pairs, True
        return True

    def __getitem__(self, key: Key) -> Sample:
        epoch, index, step = key
        image, truth = self._pairs[index] if self.kept else self._read(index)
        rng = np.random.default_rng([self.seed, epoch, index])
        size, crop = self._full(image.shape[0], image.shape[1]), self.choices.crop or self.size
        if self.choices.sizes:
            sides = self.choices.sizes
            side = sides[np.random.default_rng([self.seed, SIZES, step]).integers(len(sides))]
            size, crop = (side, side), (side, side)
        seen, truth = view(image, truth, size, self.choices, rng, crop)
        return seen, self._target(truth, crop), index

    def _full(self, height: int, width: int) -> tuple[int, int]:
        """What scale 1 is for a picture of height and width."""
        if not self.covering:
            return self.size
        scale = max(self.size[0] / height, self.size[1] / width)
        return round(scale * height), round(scale * width)

    def _target(self, truth: Any, crop: tuple[int, int]) -> np.ndarray:
        """What the network is to learn of a view's truth."""
        if isinstance(truth, Boxes):
            shares = truth.corners / np.array([crop[1], crop[0]] * 2, np.float32)
            return match(shares, truth.classes, truth.crowd, _priors(crop[0]), self.threshold)
        return np.asarray(truth)

    def _read(self, index: int) -> Pair:
        """A picture with its truth, no larger than the largest scale needs."""
        image, truth = self.data.read(index)
        sides = self.choices.sizes
        full = (max(sides), max(sides)) if sides else self._full(image.height, image.width)
        largest = [int(np.ceil(side * self.choices.scale[1] * self.choices.stretch**0.5)) for side in full]
        h, w = min(image.height, largest[0]), min(image.width, largest[1])
        if (h, w) != (image.height, image.width):
            across, down = image.width / w, image.height / h
            image = image.resize((w, h), Image.Resampling.BILINEAR)  # smooths when shrinking, as in deployment
            if isinstance(truth, np.ndarray):
                truth = np.asarray(Image.fromarray(truth).resize((w, h), Image.Resampling.NEAREST))
            elif isinstance(truth, Boxes):
                truth = replace(truth, corners=truth.corners / np.array([across, down] * 2, np.float32))
        return np.asarray(image), truth


@lru_cache(maxsize=32)
def _priors(side: int) -> np.ndarray:
    return priors(side)


def free_memory() -> int:
    """Bytes of memory that may be taken: with what the system's cache of files would give back, within a container's limit."""
    found = []
    with suppress(OSError, ValueError):
        lines = MEMORY.read_text().splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):  # no file, or `max`: no limit
        found.append(int(LIMIT.read_text()))
    return min(found, default=UNKNOWN_MEMORY)


def steps_in_epoch(pictures: int, batch: int) -> int:
    """Whole batches in an epoch; one where there are fewer pictures than a batch takes."""
    return max(1, pictures // batch)


def order(pictures: int, batch: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [steps · batch]: the pictures of an epoch in order, every one at most once unless a batch needs more."""
    places = np.random.default_rng([seed, epoch]).permutation(pictures)
    return np.resize(places, steps_in_epoch(pictures, batch) * batch)


@dataclass(frozen=True)
class Order:
    """The (epoch, index, step) keys of every micro-batch from step `start` to `end`, as process `rank` of `world` sees them.

    A step takes `batch` pictures, dealt to the processes in equal parts, each part in `parts` micro-batches.
    """

    pictures: int
    batch: int
    seed: int
    start: int
    end: int
    rank: int = 0
    world: int = 1
    parts: int = 1

    def __iter__(self) -> Iterator[list[Key]]:
        steps = steps_in_epoch(self.pictures, self.batch)
        micro = self.batch // (self.world * self.parts)
        for step in range(self.start, self.end):
            epoch, place = divmod(step, steps)
            if step == self.start or place == 0:
                places = order(self.pictures, self.batch, self.seed, epoch)
            own = (place * self.world + self.rank) * self.parts * micro
            for first in range(own, own + self.parts * micro, micro):
                yield [(epoch, int(index), step) for index in places[first : first + micro]]

    def __len__(self) -> int:
        return (self.end - self.start) * self.parts


@dataclass(frozen=True)
class _Told:
    """Samples whose errors are values: a worker's exception arrives as a traceback in a message, or not at all."""

    samples: Samples

    def __getitem__(self, key: Key) -> Sample | DataError:
        try:
            return self.samples[key]
        except EspyError as error:
            return DataError(str(error))


def collate(samples: list[Sample | DataError]) -> Batch | DataError:
    """Samples as one batch, or the first error among them."""
    import torch

    for sample in samples:
        if isinstance(sample, DataError):
            return sample
    images, truths, indices = zip(*samples, strict=True)
    return Batch(torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(truths)), indices)


def _ignore_signals(worker: int) -> None:
    """A signal to the whole group of processes is the main one's to act on; workers end when it does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(1)  # killed already: torch, which watches the parent from here on, would take its heir for it


@contextmanager
def lost_worker() -> Iterator[None]:
    """Torch tells of a worker that died by a RuntimeError amid whatever goes on; here it becomes a DataError."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise DataError(
            f"a process that varies pictures was ended from outside ({' '.join(str(error).split())}): where memory is short, go "
            "on with --resume and fewer train.workers"
        ) from None


def batches(samples: Samples, order: Order, *, workers: int, pin: bool = False) -> Generator[Batch, None, None]:
    """The batches of an order; `workers` processes vary pictures ahead of the network, 0: this process does.

    Close it where it is left early: the workers, which heed no signal, end then. Raises DataError for
    a picture that can be read no more.
    """
    from torch.utils.data import DataLoader

    shared = workers and sys.platform == "linux"  # a fork sees the pictures kept; other ways copy them to every worker
    loader: DataLoader[Batch | DataError] = DataLoader(
        _Told(samples), batch_sampler=order, num_workers=workers, collate_fn=collate, pin_memory=pin,  # type: ignore[arg-type]
        prefetch_factor=4 if workers else None, worker_init_fn=_ignore_signals,
        multiprocessing_context="fork" if shared else None,
    )  # fmt: skip
    source: Any = iter(loader)

    def end() -> None:
        if workers:
            source._shutdown_workers()

    atexit.register(end)  # else Python's exit would wait for workers that heed no signal
    try:
        for batch in source:
            if isinstance(batch, DataError):
                raise batch
            yield batch
    finally:
        atexit.unregister(end)
        end()
