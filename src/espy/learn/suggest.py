"""A first recipe for a set: what a look at it shows, the choices that follow, and both in words; no torch."""

from __future__ import annotations

import re
import shlex
import statistics
import textwrap
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, sqrt
from pathlib import Path
from typing import Any

from espy import bundle
from espy import spec as specs
from espy.data.augment import Augment
from espy.data.check import Report
from espy.data.loader import steps_in_epoch
from espy.data.masks import VOID
from espy.data.sets import Item
from espy.errors import DataError, one_line
from espy.header import Header, read_safetensors
from espy.labels import compared
from espy.learn.films import films, hold_out_pattern
from espy.learn.recipe import About, Data, Loss, Recipe, Train, Validate, to_toml
from espy.measure.mapping import fitting, read_mapping
from espy.output import shown

STEP = 32  # sides are multiples of it, as the deployed ESPNetv2 needs them
LONGEST = 16  # width by height, or height by width
MOST_PIXELS = 512 * 1024  # that the network sees; as many as `street`
MOST_TRAINED = 384 * 640  # pixels of a crop in training, which takes half the time and memory
BATCH = 8
STEPS = 7500  # in a run: 60,000 pictures of MOST_TRAINED pixels are a night's work
LOOKS = 50  # validations in a run
WIDTH = 2.0  # of ESPNetv2: the accurate one
STARTS = ("street", "objects")  # bundled ESPNetv2 of this width that were trained on thousands of pictures
RARE = 0.01  # share of the labelled pixels below which a class makes all be weighted
MUCH_LARGER = 2.0  # times what the network sees: from here on it is said that small things vanish
ONE_SHAPE = 1.2  # widest shape by narrowest: from here on it is said that pictures are stretched
MOST_NAMED = 20  # classes that are listed

COMMENT = textwrap.TextWrapper(116, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)

SPEED = {"espnetv2": 2.0, "espnetv2_first": 2.6, "espnet": 6.0}
"""Crops of MOST_TRAINED pixels that two cores train on in a second in bfloat16; in float32 half as many."""

STEP_S = 0.07  # seconds of a step whatever its pictures: hundreds of small operations, the optimiser, the average
LOOKING = 1 / 3  # time of a validated picture by that of a crop of its size trained on: there is no way back


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

    `network`: espnetv2, started from bundled weights, or espnetv2_first or espnet, which start from none. Raises DataError
    for a set that cannot be trained on.
    """
    data = report.data
    if not report.ok:
        raise DataError(f"{where}: has faults, cure them first: see espy check {where}")
    if len(data.labels) < 2:
        raise DataError(f"{where}: has one class, so there is nothing to tell apart: name two or more in classes.txt")
    if where != shown(where):
        raise DataError(f"{shown(where)}: a recipe cannot hold a name that is no Unicode: rename the folder")
    labels, shares = [label.name for label in data.labels], class_shares(report)
    if not any(shares):
        raise DataError(f"{where}: every pixel is void, so there is nothing to learn: label some")
    train, validate = pick_splits(data.splits)
    size = network_size(*median_size(report), MOST_PIXELS)
    crop = network_size(*size, MOST_TRAINED)
    batch = min(BATCH, data.splits[train])
    epochs = max(1, round(STEPS / steps_in_epoch(data.splits[train], batch)))
    choices: dict[str, Any] = {"network": network} | ({"width": WIDTH} if network != "espnet" else {})
    weighted = min(share for share in shares if share) < RARE
    varied: dict[str, Any] = {"flip": 0.0} if sided(labels) else {}
    if crop != size:
        low, high = Augment().scale
        whole = floor(100 * sqrt(_pixels(crop) / _pixels(size))) / 100  # the scale at which a crop is the whole picture
        varied |= {"crop": crop, "scale": (min(low, whole), high)}
    start = Start.best(labels) if network == "espnetv2" else None
    if start:
        choices["projection"] = start.header.spec.pyramid_width  # type: ignore[union-attr]
    whole_view = specs.make(**choices).receptive_field_px is None
    recipe = Recipe(
        choices,
        Data(where, size, 32 if whole_view else 1, train, validate),
        Train(
            init=start.name if start else "", init_mapping=start.mapping if start else "", epochs=epochs, batch=batch
        ),
        Loss(class_weights="frequency" if weighted else "none"),
        Augment(**varied),
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


def network_size(height: float, width: float, most: int) -> tuple[int, int]:
    """The largest (height, width) of this shape, sides multiples of STEP, at most `most` pixels and no larger than given.

    A side of the given size counts as rounded to STEP, so that 360 x 480 gives 352 x 480, and one longer than LONGEST times
    the other as that.

    >>> network_size(1080, 1920, MOST_PIXELS), network_size(360, 480, MOST_PIXELS)
    ((544, 960), (352, 480))
    """

    def near(side: float) -> int:
        return max(1, round(side / STEP)) * STEP

    height, width = min(height, LONGEST * width), min(width, LONGEST * height)
    fitting = [
        (high, wide)
        for high in range(STEP, near(height) + 1, STEP)
        if (wide := min(near(high * width / height), near(width))) * high <= most
    ]
    return max(fitting, key=lambda size: size[0] * size[1])


def pick_splits(splits: Collection[str]) -> tuple[str, str]:
    """The splits to train and to validate on, "" where none is meant for that.

    >>> pick_splits(["test", "train", "valid"])
    ('train', 'valid')
    """

    def named(start: str) -> str:
        return next((name for name in sorted(splits, key=len) if name.startswith(start)), "")

    train = named("train") or next(iter(splits))
    return train, named("val") if named("val") != train else ""


def class_shares(report: Report) -> list[float]:
    """Each class's share of the labelled pixels."""
    pixels = [report.pixels.get(value, 0) for value in range(len(report.data.labels))]
    return [n / max(1, sum(pixels)) for n in pixels]


def median_size(report: Report) -> tuple[float, float]:
    """(height, width) of the median picture."""
    sizes = list(Counter(report.sizes).elements())
    height, width = (statistics.median(size[side] for size in sizes) for side in (0, 1))
    return height, width


def sided(labels: Collection[str]) -> list[str]:
    """The classes that tell left from right, so that a mirrored picture would be labelled wrongly.

    >>> sided(["left_hand", "Right hand", "bright"])
    ['left_hand', 'Right hand']
    """
    return [name for name in labels if re.search(r"\b(left|right)\b", compared(name))]


def hours(recipe: Recipe, splits: dict[str, int]) -> float:
    """Hours that a run takes on two cores that multiply bfloat16, reckoned from SPEED, the pixels and the steps."""
    size, looks = recipe.data.size, ceil(recipe.train.epochs / recipe.validate.every)
    trained = steps(recipe, splits) * recipe.train.batch * _pixels(recipe.augment.crop or size)
    looked = looks * splits.get(recipe.data.validate, 0) * _pixels(size) * LOOKING
    seconds = (trained + looked) / MOST_TRAINED / SPEED[recipe.network["network"]]
    return (seconds + steps(recipe, splits) * STEP_S) / 3600


def steps(recipe: Recipe, splits: dict[str, int]) -> int:
    """Steps of a run."""
    return recipe.train.epochs * steps_in_epoch(splits[recipe.data.train], recipe.train.batch)


def _pixels(size: tuple[int, int]) -> int:
    return size[0] * size[1]


@dataclass(frozen=True)
class Start:
    """Bundled weights to start from: their name and header, the shipped mapping to the set's labels ("": equal names), and
    the set's classes whose rows they have."""

    name: str
    header: Header
    mapping: str
    known: tuple[str, ...]

    @classmethod
    def best(cls, labels: Sequence[str]) -> Start:
        """Of STARTS the one that knows most of these classes, the first of equals."""
        starts = []
        for name in STARTS:
            header = read_safetensors(bundle.path(name, ".safetensors"))[0]
            mapping = fitting([label.name for label in header.labels], labels)
            meant = read_mapping(mapping) if mapping else {label.name: label.name for label in header.labels}
            known = {compared(meaning) for meaning in meant.values()}
            starts.append(cls(name, header, mapping, tuple(n for n in labels if compared(n) in known)))
        return max(starts, key=lambda start: len(start.known))


# Words


def _pictures(report: Report, recipe: Recipe) -> Iterator[str]:
    data, chosen = report.data, recipe.data
    splits = ", ".join(f"{name} {pairs}" for name, pairs in data.splits.items())
    drawn = "; the folder has no splits, so a fifth is val by a hash of the names, the same on every machine"
    yield f"{_several(len(data), 'picture')} with masks: {splits}{drawn if data.seeded and chosen.validate else ''}"
    if not chosen.validate:
        yield (
            "no split to validate on: the weights of the last epoch are kept, and nothing tells how good they are; "
            "label more pictures for a split val"
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
    shapes = [w / h for h, w in sizes]
    if max(shapes) > ONE_SHAPE * min(shapes):
        yield (
            f"width / height goes from {min(shapes):.2f} to {max(shapes):.2f}: all are stretched to one shape, in training "
            "as in use"
        )
    times = sqrt(height * width / _pixels(chosen.size))
    if times > MUCH_LARGER:
        yield (
            f"the median picture is {times:.1f} times as high and wide as what the network sees, so small things vanish: where "
            "they matter, cut pictures and masks into parts, or raise size and crop, which takes longer"
        )


def _classes(report: Report, shares: Sequence[float]) -> Iterator[str]:
    labels = report.data.labels
    ordered = sorted(zip(shares, [label.name for label in labels], strict=True), reverse=True)
    listed = [f"{name} {100 * share:.2f} %" for share, name in ordered]
    if len(listed) > MOST_NAMED:
        listed[MOST_NAMED - 1 : -1] = ["..."]
    looked = "; counted in the masks and named by number: name them in classes.txt" if report.data.looked else ""
    yield f"{len(labels)} classes, of the labelled pixels: {', '.join(listed)}{looked}"
    void = report.pixels.get(VOID, 0) / max(1, sum(report.pixels.values()))
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
    name = ", ".join([recipe.network["network"], *(f"width {w}" for k, w in recipe.network.items() if k == "width")])
    if start is None:
        yield f"{name}, from random weights: espnetv2 starts from bundled ones and needs fewer pictures"
        return
    by = f"the mapping {start.mapping}" if start.mapping else "name"
    known = (
        f", which knows by {by}: {', '.join(start.known[:MOST_NAMED])}"
        if start.known
        else ", which knows none of these classes"
    )
    fresh = [label for label in labels if label not in start.known]
    rest = f"; afresh: {', '.join(fresh[:MOST_NAMED])}" if fresh and start.known else ""
    yield f"{name}, started from the bundled {start.name}{known}{rest}"
    yield f"terms that go with {start.name}: {start.header.card.terms}"


def _choices(recipe: Recipe, labels: Sequence[str], shares: Sequence[float]) -> Iterator[str]:
    (h, w), crop = recipe.data.size, recipe.augment.crop
    low, high = recipe.augment.scale
    parts = f"parts of height {crop[0]}, width {crop[1]}" if crop else "parts of that size"
    yield f"the network sees height {h}, width {w}; it is trained on {parts} of pictures scaled by {low:g} to {high:g}"
    if recipe.loss.class_weights == "frequency":
        share, rarest = min((share, name) for share, name in zip(shares, labels, strict=True) if share)
        yield f"classes are weighted by frequency, as {rarest} has {100 * share:.2f} % of the pixels"
    else:
        yield f"classes are not weighted, as each has {100 * RARE:g} % of the pixels or more"
    if names := sided(labels):
        yield f"pictures are not mirrored, as classes tell left from right: {', '.join(names[:MOST_NAMED])}"


def _run(recipe: Recipe, splits: dict[str, int], took: float) -> Iterator[str]:
    train, speed = recipe.train, SPEED[recipe.network["network"]]
    if train.batch < BATCH:
        yield f"batch {train.batch}, as there are no more pictures to train on"
    every = recipe.validate.every
    looks = ("after every one" if every == 1 else f"every {every}") if recipe.data.validate else "never"
    yield (
        f"{_several(train.epochs, 'epoch')}, {steps(recipe, splits):,} steps of {_several(train.batch, 'picture')}; "
        f"validated {looks}"
    )
    yield (
        f"about {duration(took)} on two cores that multiply bfloat16 (flags avx512_bf16 or amx_bf16 of the processor), "
        f"{duration(2 * took)} on two that do not, by {speed:g} crops of 384 x 640 a second ({speed / 2:g} in float32); "
        "espy train --profile measures yours"
    )


def duration(hours: float) -> str:
    """Hours in words.

    >>> duration(0.3), duration(8.6)
    ('20 min', '9 h')
    """
    return f"{hours:.0f} h" if hours >= 1.5 else f"{max(1, round(6 * hours)) * 10} min"


def _several(number: int, one: str) -> str:
    return f"{number:,} {one}{'' if number == 1 else 's'}"
