"""A first recipe for a set: what a look at it shows, the choices that follow, and both in words; no torch."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import msgspec

from espy import bundle
from espy import spec as specs
from espy.data.check import Report
from espy.data.loader import steps_in_epoch
from espy.data.masks import VOID
from espy.data.sets import Item
from espy.errors import DataError, one_line
from espy.header import Header, read_safetensors
from espy.labels import compared
from espy.learn.films import films, hold_out_pattern
from espy.learn.recipe import About, Data, Loss, Recipe, Train, Validate, to_toml
from espy.learn.tasks import MOST_TRAINED, TASKS, Task, area, median_size
from espy.measure.mapping import fitting, read_mapping
from espy.output import shown

STEPS = 7500  # in a run: of 8 pictures, 60,000 of MOST_TRAINED pixels are a night's work
LOOKS = 50  # validations in a run
WIDTH = 2.0  # of ESPNetv2: the accurate one
MOST_NAMED = 20  # classes that are listed
FEW = 50  # pictures to train on, below which it is said that they are few
FEW_EACH = 10  # the same of a class

COMMENT = textwrap.TextWrapper(116, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)

STEP_S = 0.07  # seconds of a step whatever its pictures: hundreds of small operations, the optimiser, the average


@dataclass(frozen=True)
class Suggestion:
    """A recipe; what was `found` and `chosen` for it, in sentences; the `hours` on two cores with bfloat16."""

    recipe: Recipe
    found: tuple[str, ...]
    chosen: tuple[str, ...]
    hours: float

    def to_toml(self, path: Path) -> str:
        """The text of the recipe's file: what to run, how long it takes, why it is as it is, every field with its meaning."""
        head = [f"A first recipe for {self.recipe.data.set}, by espy recipe: change what you know better.", ""]
        head += [*commands(self.recipe, path), ""]
        for title, sentences in (("Found", self.found), ("Chosen", self.chosen)):
            head.append(f"{title}:")
            for sentence in sentences:
                head += COMMENT.wrap(f"- {sentence}")
            head.append("")
        lines = [f"# {one_line(line)}".rstrip() for line in head[:-1]]
        return "\n".join([*lines, "", to_toml(self.recipe, notes=True)])


def suggest(report: Report, where: str, network: str = "espnetv2") -> Suggestion:
    """A first recipe for the set `where` (KIND:PATH), of which `report` is the check.

    `network`: espnetv2, started from bundled weights, or for masks espnetv2_first or espnet, which start from none. Raises
    DataError for a set that cannot be trained on, SpecError where the network has not its task.
    """
    data, task = report.data, TASKS[report.data.task]
    if not report.ok:
        raise DataError(f"{where}: has faults, cure them first: see espy check {where}")
    if where != shown(where):
        raise DataError(f"{shown(where)}: a recipe cannot hold a name that is no Unicode: rename the folder")
    if reason := task.unfit(report):
        raise DataError(f"{where}: {reason}")
    labels, counts = [label.name for label in data.labels], task.counts(report)
    shares = [n / sum(counts) for n in counts]
    train, validate = pick_splits(data.splits)
    size = task.size(report)
    batch = min(task.batch, data.splits[train])
    epochs = max(1, round(STEPS / steps_in_epoch(data.splits[train], batch)))
    choices: dict[str, Any] = {"network": network}
    if data.task != "segment":  # what every network does unless told otherwise
        choices["task"] = data.task
    if network != "espnet":
        choices["width"] = WIDTH
    start = Start.best(data.task, labels) if network == "espnetv2" else None
    if start and start.whole:
        choices["projection"] = start.header.spec.pyramid_width  # type: ignore[union-attr]
    whole_view = specs.make(**choices, classes=len(labels)).receptive_field_px is None
    weighted = min(share for share in shares if share) < task.rare(len(labels))
    augment = task.augment(size)
    recipe = Recipe(
        choices,
        Data(where, size, 32 if whole_view else 1, train, validate),
        Train(
            init=start.name if start else "", init_mapping=start.mapping if start else "", epochs=epochs, batch=batch
        ),
        Loss(smoothing=task.smoothing, class_weights="frequency" if weighted else "none"),
        msgspec.structs.replace(augment, flip=0.0) if sided(labels) else augment,
        Validate(every=max(1, round(epochs / LOOKS))),
        About(terms=f"Started from {start.name}: {start.header.card.terms}" if start else ""),
    )
    found = [*_pictures(report, recipe), *_films(data.items, train, validate), *_classes(report, shares)]
    found += [f"{finding.severity}: {finding.message}; {finding.cure}" for finding in report.findings]
    took = hours(recipe, data.splits)
    chosen = [*_network(recipe, start, labels), *_choices(recipe, labels, shares), *_run(recipe, data.splits, took)]
    return Suggestion(recipe, tuple(found), tuple(chosen), took)


def commands(recipe: Recipe, path: Path) -> list[str]:
    """What trains, evaluates and deploys a recipe that lies at `path`."""
    best, data = str(Path("runs", path.stem, "best.safetensors")), recipe.data
    split = [] if data.validate == "val" else ["--split", data.validate or data.train]
    return [
        shlex.join(["espy", *words])
        for words in (
            ["train", str(path)],
            ["eval", best, data.set, *split],
            ["export", best, "--to", "onnx", "-o", f"{path.stem}.onnx"],
        )
    ]


# Choices


def pick_splits(splits: Collection[str]) -> tuple[str, str]:
    """The splits to train and to validate on, "" where none is meant for that.

    >>> pick_splits(["test", "train", "valid"])
    ('train', 'valid')
    """

    def named(start: str) -> str:
        return next((name for name in sorted(splits, key=len) if name.startswith(start)), "")

    train = named("train") or next(iter(splits))
    return train, named("val") if named("val") != train else ""


def sided(labels: Collection[str]) -> list[str]:
    """The classes that tell left from right, so that a mirrored picture would be labelled wrongly.

    >>> sided(["left_hand", "Right hand", "bright"])
    ['left_hand', 'Right hand']
    """
    return [name for name in labels if re.search(r"\b(left|right)\b", compared(name))]


def hours(recipe: Recipe, splits: dict[str, int]) -> float:
    """Hours that a run takes on two cores that multiply bfloat16, reckoned from the pixels and the steps."""
    looks = ceil(recipe.train.epochs / recipe.validate.every)
    trained = steps(recipe, splits) * recipe.train.batch / pictures_a_second(recipe)
    looked = looks * splits.get(recipe.data.validate, 0) * _seconds(recipe, recipe.data.size) * _task(recipe).looking
    return (trained + looked) / 3600


def pictures_a_second(recipe: Recipe) -> float:
    """How many such a machine trains on, as `espy train` counts them."""
    return 1 / (_seconds(recipe, recipe.augment.crop or recipe.data.size) + STEP_S / recipe.train.batch)


def steps(recipe: Recipe, splits: dict[str, int]) -> int:
    """Steps of a run."""
    return recipe.train.epochs * steps_in_epoch(splits[recipe.data.train], recipe.train.batch)


def _seconds(recipe: Recipe, size: tuple[int, int]) -> float:
    """What a crop of this size takes in training."""
    return area(size) / MOST_TRAINED / _task(recipe).speed[recipe.network["network"]]


def _task(recipe: Recipe) -> Task:
    return TASKS[recipe.network.get("task", "segment")]


@dataclass(frozen=True)
class Start:
    """Bundled weights to start from: their name and header, whether all of them are taken (`whole`) or, of another task, the
    encoder, the shipped mapping to the set's labels ("": equal names), and the set's classes whose rows are taken."""

    name: str
    header: Header
    whole: bool
    mapping: str = ""
    known: tuple[str, ...] = ()

    @classmethod
    def best(cls, task: str, labels: Sequence[str]) -> Start:
        """Of a task's starts the one of which most of these classes are taken, the first of equals."""
        starts = []
        for name in TASKS[task].starts:
            header = read_safetensors(bundle.path(name, ".safetensors"))[0]
            if header.task != task:
                starts.append(cls(name, header, whole=False))
                continue
            mapping = fitting([label.name for label in header.labels], labels)
            meant = read_mapping(mapping) if mapping else {label.name: label.name for label in header.labels}
            known = {compared(meaning) for meaning in meant.values()}
            starts.append(cls(name, header, True, mapping, tuple(n for n in labels if compared(n) in known)))
        return max(starts, key=lambda start: len(start.known))


# Words


def _pictures(report: Report, recipe: Recipe) -> Iterator[str]:
    data, chosen = report.data, recipe.data
    splits = ", ".join(f"{name} {pictures}" for name, pictures in data.splits.items())
    drawn = "; the folder has no splits, so a fifth is val by a hash of the names, the same on every machine"
    yield (
        f"{_several(len(data), 'picture')} {_task(recipe).truth}: {splits}"
        f"{drawn if data.seeded and chosen.validate else ''}"
    )
    if not chosen.validate:
        yield (
            "no split to validate on: the weights of the last epoch are kept, and nothing tells how good they are; "
            "label more pictures for a split val"
        )
    if data.splits[chosen.train] < FEW:
        yield (
            f"{_several(data.splits[chosen.train], 'picture')} to train on: fewer than {FEW} show little of what there is, so "
            "expect mistakes on others; label more that differ from these"
        )
    sizes = list(report.sizes)
    height, width = median_size(report)
    if len(sizes) == 1:
        yield f"every picture has height {sizes[0][0]}, width {sizes[0][1]}"
    else:
        high, wide = ([size[side] for size in sizes] for side in (0, 1))
        yield (
            f"heights from {min(high)} to {max(high)}, median {height:g}; "
            f"widths from {min(wide)} to {max(wide)}, median {width:g}"
        )
    yield from _task(recipe).seen(report, chosen.size)


def _classes(report: Report, shares: Sequence[float]) -> Iterator[str]:
    data, task = report.data, TASKS[report.data.task]
    ordered = sorted(zip(shares, [label.name for label in data.labels], strict=True), reverse=True)
    listed = [f"{name} {100 * share:.2f} %" for share, name in ordered]
    if len(listed) > MOST_NAMED:
        listed[MOST_NAMED - 1 : -1] = ["..."]
    looked = f"; {task.looked}" if data.looked else ""
    yield f"{_several(len(data.labels), 'class', 'classes')}, of the {task.unit}: {', '.join(listed)}{looked}"
    few = [f"{label.name} {n}" for label, n in zip(data.labels, report.pictures, strict=False) if 0 < n < FEW_EACH]
    if few:
        named = ", ".join(few[:MOST_NAMED]) + (", ..." if len(few) > MOST_NAMED else "")
        yield f"pictures of some classes are fewer than {FEW_EACH}, too few to learn much from: {named}; add some"
    if report.pixels:
        void = report.pixels.get(VOID, 0) / sum(report.pixels.values())
        yield f"{100 * void:.2f} % of all pixels are void, neither learnt nor counted" if void else "no pixel is void"


def _films(items: Sequence[Item], train: str, validate: str) -> Iterator[str]:
    found = films(items)
    both = [film for film in found if {train, validate} <= film.splits]
    if not (both or (found and not validate)):
        return
    longest = (both or found)[0]
    rows = "" if len(found) == 1 else f" and {_several(len(found) - 1, 'more such row')}"
    flatters = f", so with some in {train} and some in {validate} its figure flatters" if both else ""
    pattern = hold_out_pattern(found, [item.picture.name for item in items if item.split == train])
    cure = "validate on one end of it, as a split of its own by folders"
    if pattern:
        cure = f'hold_out = ["{pattern}"] in [data] validates on one that is not trained on'
    yield (
        f"names run on: {longest.first} to {longest.last} ({_several(longest.pictures, 'picture')}){rows}; where these are "
        f"frames of a film, neighbours are nearly alike{flatters}: {cure}"
    )


def _network(recipe: Recipe, start: Start | None, labels: Sequence[str]) -> Iterator[str]:
    said = (f"{choice} {value}" for choice, value in recipe.network.items() if choice in ("task", "width"))
    name = ", ".join([recipe.network["network"], *said])
    if start is None:
        yield f"{name}, from random weights: espnetv2 starts from bundled ones and needs fewer pictures"
        return
    if start.whole:
        by = f"the mapping {start.mapping}" if start.mapping else "name"
        known = (
            f", which knows by {by}: {', '.join(start.known[:MOST_NAMED])}"
            if start.known
            else ", which knows none of these classes"
        )
        fresh = [label for label in labels if label not in start.known]
        rest = f"; afresh: {', '.join(fresh[:MOST_NAMED])}" if fresh and start.known else ""
        yield f"{name}, started from the bundled {start.name}{known}{rest}"
    else:
        yield f"{name}, its encoder started from the bundled {start.name}; afresh: the encoder's last level and what follows"
    yield f"terms that go with {start.name}: {start.header.card.terms}"


def _choices(recipe: Recipe, labels: Sequence[str], shares: Sequence[float]) -> Iterator[str]:
    (h, w), augment, task = recipe.data.size, recipe.augment, _task(recipe)
    parts = f"parts of height {augment.crop[0]}, width {augment.crop[1]}" if augment.crop else "parts of that size"
    varied = f"scaled by {augment.scale[0]:g} to {augment.scale[1]:g}"
    if augment.stretch > 1:
        varied += f" and stretched by up to {augment.stretch:g}"
    if augment.overlap:
        *others, last = (f"{share:g}" for share in augment.overlap)
        varied += f", each part overlapping a box by at least {', '.join(others)} or {last}"
    yield f"the network sees {task.part}height {h}, width {w}; it is trained on {parts} of pictures {varied}"
    if recipe.loss.class_weights == "frequency":
        share, rarest = min((share, name) for share, name in zip(shares, labels, strict=True) if share)
        yield f"classes are weighted by frequency, as {rarest} has {100 * share:.2f} % of the {task.unit}"
    elif rare := task.rare(len(labels)):
        yield f"classes are not weighted, as each has {100 * rare:.3g} % of the {task.unit} or more"
    if recipe.loss.smoothing:
        yield f"labels are smoothed by {recipe.loss.smoothing:g}, so that a wrong or doubtful one does less harm"
    if names := sided(labels):
        yield f"pictures are not mirrored, as classes tell left from right: {', '.join(names[:MOST_NAMED])}"


def _run(recipe: Recipe, splits: dict[str, int], took: float) -> Iterator[str]:
    train, task = recipe.train, _task(recipe)
    if train.batch < task.batch:
        yield f"batch {train.batch}, as there are no more pictures to train on"
    every = recipe.validate.every
    looks = ("after every one" if every == 1 else f"every {every}") if recipe.data.validate else "never"
    yield (
        f"{_several(train.epochs, 'epoch')}, {steps(recipe, splits):,} steps of {_several(train.batch, 'picture')}; "
        f"validated {looks}"
    )
    speed, (h, w) = pictures_a_second(recipe), recipe.augment.crop or recipe.data.size
    yield (
        f"about {duration(took)} on two cores that multiply bfloat16 (flags avx512_bf16 or amx_bf16 of the processor), "
        f"{duration(task.float32 * took)} on two that do not, by {speed:.2g} pictures of height {h}, width {w} a second "
        f"({speed / task.float32:.2g} in float32); espy train --profile measures yours"
    )


def duration(hours: float) -> str:
    """Hours in words.

    >>> duration(0.3), duration(8.6)
    ('20 min', '9 h')
    """
    return f"{hours:.0f} h" if hours >= 1.5 else f"{max(1, round(6 * hours)) * 10} min"


def _several(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
