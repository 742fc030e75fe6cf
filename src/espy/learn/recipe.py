"""A recipe: everything that a training run depends on, as TOML.

Sections `[network] [data] [train] [loss] [augment] [validate] [card]`; every field is typed, has a meaning and a value unless
given. Unknown fields are refused with the nearest known one.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from espy import spec as specs
from espy.data.augment import Augment, Share
from espy.errors import EspyError, SpecError
from espy.header import LARGEST_SIDE, SMALLEST_SIDE
from espy.output import write_bytes
from espy.spec import nearest

Count = Annotated[int, Meta(ge=1)]


class RecipeError(EspyError):
    """A recipe that cannot be followed."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of a recipe."""


class Data(Section, frozen=True):
    """The pictures."""

    set: Annotated[str, Meta(description="KIND:PATH, such as folder:photos")]
    size: Annotated[tuple[int, int], Meta(description="(height, width) that the network sees")] = (512, 1024)
    multiple: Annotated[
        Literal[1, 32], Meta(description="what the deployed file's sizes must be a multiple of; 1 = any size")
    ] = 32
    train: Annotated[str, Meta(description="the split that is trained on")] = "train"
    validate: Annotated[str, Meta(description="the split that decides which weights are best; empty: none")] = "val"
    hold_out: Annotated[
        tuple[str, ...],
        Meta(
            description="patterns of names, such as 0006R0*: these pictures of the training split are not trained on, and "
            "validate instead of the validation split"
        ),
    ] = ()
    resize: Annotated[
        Literal["auto", "stretch", "short"],
        Meta(
            description="to size: stretch, whatever the shape; short, of classes: short side and centre crop; auto: by the task"
        ),
    ] = "auto"

    def __post_init__(self) -> None:
        if any(side % self.multiple or not SMALLEST_SIDE <= side <= LARGEST_SIDE for side in self.size):
            raise ValueError(
                f"size must be {SMALLEST_SIDE} to {LARGEST_SIDE} pixels a side and a multiple of {self.multiple}, not {self.size}"
            )


class Train(Section, frozen=True):
    """The run."""

    init: Annotated[
        str, Meta(description="starting weights: a bundled name, a model file, a checkpoint, a run folder; empty: none")
    ] = ""
    init_mapping: Annotated[
        str,
        Meta(
            description="what the labels of `init` mean here: a mapping file or shipped name; by equal names unless given"
        ),
    ] = ""
    epochs: Annotated[Count, Meta(description="passes over the training pictures")] = 100
    batch: Annotated[Count, Meta(description="pictures a step, over all processes")] = 8
    accumulate: Annotated[
        Count, Meta(description="parts in which a batch goes through the network, to save memory")
    ] = 1
    optimiser: Annotated[Literal["sgd", "adamw"], Meta(description="how a gradient becomes a step")] = "adamw"
    rate: Annotated[float, Meta(gt=0, description="the highest learning rate")] = 1e-3
    momentum: Annotated[Share, Meta(description="of sgd")] = 0.9
    weight_decay: Annotated[float, Meta(ge=0, description="of convolutions; norms, slopes and biases have none")] = 1e-2
    schedule: Annotated[Literal["cosine", "poly"], Meta(description="how the rate falls to 0")] = "cosine"
    power: Annotated[float, Meta(gt=0, description="of poly: (1 - progress) ** power")] = 0.9
    warm_up: Annotated[float, Meta(ge=0, description="epochs over which the rate rises from 0")] = 1.0
    clip: Annotated[float, Meta(ge=0, description="largest norm of the gradient; 0: any")] = 1.0
    ema: Annotated[
        float,
        Meta(ge=0, lt=1, description="decay of the average of the weights a step, which is what is kept; 0: none"),
    ] = 0.99
    freeze_norm: Annotated[bool, Meta(description="batch norms keep the statistics they start with")] = False
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Meta(
            description="of the network's arithmetic; weights stay float32; auto: the fastest that the device multiplies"
        ),
    ] = "auto"
    channels_last: Annotated[bool, Meta(description="on a GPU, maps lie in memory as [N, H, W, C]")] = True
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Meta(description="auto: cuda where there is one")] = "auto"
    threads: Annotated[int, Meta(ge=0, description="of the processor; 0: all. The results' last bits depend on it")] = 0
    workers: Annotated[
        int, Meta(ge=-1, description="processes that vary pictures; -1: none on a CPU, else its cores")
    ] = -1
    seed: Annotated[int, Meta(ge=0, lt=2**32, description="of every random choice")] = 0
    save_minutes: Annotated[float, Meta(gt=0, description="a checkpoint is written at least this often")] = 10.0


class Loss(Section, frozen=True):
    """What is made small: of masks cross_entropy · CE + dice · Dice, over the labelled pixels, plus the auxiliary head's; of
    classes CE; of boxes CE + boxes · smooth L1.
    """

    cross_entropy: Annotated[float, Meta(ge=0, description="weight of cross-entropy")] = 1.0
    dice: Annotated[float, Meta(ge=0, description="weight of the Dice loss")] = 0.0
    ohem: Annotated[
        float,
        Meta(gt=0, le=1, description="share of each picture's labelled pixels, those of the largest loss, that count"),
    ] = 1.0
    smoothing: Annotated[float, Meta(ge=0, lt=1, description="of the labels, of cross-entropy")] = 0.0
    class_weights: Annotated[
        Literal["none", "frequency"] | tuple[float, ...],
        Meta(description="none; frequency: 1 / ln(1.1 + the class's share of the pixels); or one number a class"),
    ] = "none"
    auxiliary: Annotated[
        float,
        Meta(ge=0, description="weight of the same loss of a 1x1 head on the deepest maps, which is not kept; 0: none"),
    ] = 0.0

    mixup: Annotated[
        float,
        Meta(ge=0, description="of classified pictures: two are mixed by a share from Beta(a, a) with this a; 0: off"),
    ] = 0.0
    cutmix: Annotated[
        float,
        Meta(ge=0, description="of classified pictures: a part of one is another's, share from Beta(a, a); 0: off"),
    ] = 0.0
    match: Annotated[
        float, Meta(gt=0, lt=1, description="of boxes: a prior learns the box that it overlaps by at least this")
    ] = 0.45
    negatives: Annotated[
        float, Meta(ge=0, description="of boxes: background priors that count, for each one of a thing")
    ] = 3.0
    boxes: Annotated[float, Meta(ge=0, description="of boxes: weight of smooth L1 of the offsets")] = 1.0

    def __post_init__(self) -> None:
        if not self.cross_entropy and not self.dice:
            raise ValueError("cross_entropy and dice are both 0: nothing would be learnt")


class Validate(Section, frozen=True):
    """How often to look, and at what."""

    every: Annotated[Count, Meta(description="epochs between two validations; the last epoch always has one")] = 1
    pictures: Annotated[int, Meta(ge=0, description="pictures whose prediction is drawn each time")] = 4


class About(Section, frozen=True):
    """What the model file says of itself."""

    title: Annotated[str, Meta(description="network and set unless given")] = ""
    data: Annotated[str, Meta(description="what it was trained on; the set unless given")] = ""
    terms: Annotated[str, Meta(description="on what terms it may be used; those of the pictures")] = ""


class Recipe(msgspec.Struct, frozen=True):
    """A recipe, checked. `network`: the choices of a spec, `classes` as the set has them unless given."""

    network: dict[str, Any]
    data: Data
    train: Train = Train()
    loss: Loss = Loss()
    augment: Augment = Augment()
    validate: Validate = Validate()
    card: About = About()


SECTIONS: dict[str, type[msgspec.Struct]] = {
    "data": Data, "train": Train, "loss": Loss, "augment": Augment, "validate": Validate, "card": About,
}  # fmt: skip
CHOICES = {
    "network": f"one of {', '.join(specs.NETWORKS)}; every choice of a network may stand here (docs/python.md)",
    "task": "segment, classify or detect: masks, a class a picture, boxes",
    "width": "s: more is more accurate, larger and slower",
    "projection": "width of the decoder's pyramids; as the starting weights have it, so that they fit",
}
"""What a suggested recipe says of its network."""

HOMES: dict[str, str] = {
    **{choice: "network" for tasks in specs.NETWORKS.values() for kind in tasks.values()
       for choice in ("network", *kind.__struct_fields__)},
    **{field: section for section, kind in SECTIONS.items() for field in kind.__struct_fields__},
}  # fmt: skip
"""Field → its section: no two sections have a field of one name, so an override needs no section."""

FOR = {
    ("loss", "cross_entropy"): ("segment",), ("loss", "dice"): ("segment",), ("loss", "ohem"): ("segment",),
    ("loss", "auxiliary"): ("segment",), ("loss", "smoothing"): ("segment", "classify"),
    ("loss", "class_weights"): ("segment", "classify"), ("loss", "mixup"): ("classify",), ("loss", "cutmix"): ("classify",),
    ("loss", "match"): ("detect",), ("loss", "negatives"): ("detect",), ("loss", "boxes"): ("detect",),
    ("augment", "overlap"): ("detect",), ("augment", "sizes"): ("detect",),
}  # fmt: skip
"""(section, field) → the tasks that it is for, where it is not for all."""

FREE_TO_CHANGE = {("train", "workers"), ("train", "save_minutes"), ("validate", "pictures"), ("card", "title"),
                  ("card", "data"), ("card", "terms")}  # fmt: skip
"""Fields that a resumed run may have otherwise: they change no weight."""


def read_recipe(path: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Recipe:
    """The recipe of a TOML file, with overrides as `section.field=value` (or `field=value`) texts, or a mapping.

    Raises RecipeError, one line that says what, where and what to do.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: is not TOML: {error}") from None
    return from_dict(data, overrides, str(path))


def from_dict(data: dict[str, Any], overrides: Iterable[str] | Mapping[str, Any] = (), where: str = "recipe") -> Recipe:
    """The recipe of a dict of sections, with overrides. Raises RecipeError."""
    known = ["network", *SECTIONS]
    for section, table in data.items():
        if section in known and not isinstance(table, dict):
            raise RecipeError(f"{where}: {section} is a section: write [{section}] and its fields below it")
    tables = {section: dict(table) if isinstance(table, dict) else {} for section, table in data.items()}
    pairs = overrides.items() if isinstance(overrides, Mapping) else (_parse(text) for text in overrides)
    for key, value in pairs:
        section, name = _place(key, where)
        tables.setdefault(section, {})[name] = value
    for section in tables:
        if section not in known:
            cure = f"it belongs below [{HOMES[section]}]" if section in HOMES else nearest(section, known)
            raise RecipeError(f"{where}: no section [{section}]: {cure}")
    for section, needed, such in (("network", "network", "espnetv2"), ("data", "set", "folder:photos")):
        if needed not in tables.get(section, {}):
            raise RecipeError(f'{where}: [{section}] lacks {needed!r}: add a line such as {needed} = "{such}"')
    parts: dict[str, Any] = {}
    for section, kind in SECTIONS.items():
        table = tables.get(section, {})
        _check(section, table, where)
        try:
            parts[section] = msgspec.convert(table, kind)
        except msgspec.ValidationError as error:
            raise RecipeError(f"{where}: [{section}] {_plain(str(error), table)}") from None
    try:
        specs.from_dict({"classes": 2, **tables["network"]})
    except SpecError as error:
        raise RecipeError(f"{where}: [network] {error}") from None
    return Recipe(network=tables["network"], **parts)


def _check(section: str, table: dict[str, Any], where: str) -> None:
    """Raise RecipeError, with what is known, for names and values that a type alone does not explain."""
    hints = get_type_hints(SECTIONS[section])
    for name, value in table.items():
        at = f"{where}: [{section}] {name}"
        if name not in hints:
            raise RecipeError(f"{where}: [{section}] has no field {name!r}: {nearest(name, list(hints))}")
        choices = [
            c for part in (hints[name], *get_args(hints[name])) if get_origin(part) is Literal for c in get_args(part)
        ]
        if choices and type(value) is type(choices[0]) and value not in choices:
            close = nearest(value, choices) if isinstance(value, str) else f"known: {', '.join(map(str, choices))}"
            raise RecipeError(f"{at} = {_value(value)}: {close}")
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, float) and not isfinite(one):
                raise RecipeError(f"{at} is {one}: give a finite number")
            if isinstance(one, str) and not one.isascii() and one != one.encode(errors="replace").decode():
                raise RecipeError(f"{at} holds characters that are no Unicode text: a recipe cannot carry them")


def _plain(message: str, table: Mapping[str, Any]) -> str:
    """msgspec's 'Expected `int` >= 1 - at `$.epochs`' as 'epochs = 0: expected int >= 1'."""
    text, _, at = message.replace("`", "").partition(" - at $.")
    found = table.get(at)
    shown = f" = {_value(found)}" if isinstance(found, str | int | float) else ""
    return f"{at}{shown}: {text[0].lower()}{text[1:]}" if at else text


def _parse(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"{text!r}: write key=value, such as train.epochs=50")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        return key.strip(), value.strip()  # a bare word


def _place(key: str, where: str) -> tuple[str, str]:
    """(section, field) of an override's key."""
    section, dot, name = key.partition(".")
    if dot:
        return section, name
    if key not in HOMES:
        raise RecipeError(f"{where}: no field {key!r}: {nearest(key, list(HOMES))}")
    return HOMES[key], key


def to_dict(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Sections and fields as JSON and TOML have them; fields without a value are left out."""
    data: dict[str, dict[str, Any]] = json.loads(json.dumps(msgspec.to_builtins(recipe)))  # tuples become lists
    return {section: {k: v for k, v in table.items() if v is not None} for section, table in data.items()}


def to_toml(recipe: Recipe, notes: bool = False) -> str:
    """The recipe as TOML, every field written out, with `notes` each one's meaning beside it."""
    lines = []
    for section, table in to_dict(recipe).items():
        lines.append(f"[{section}]")
        meanings = meaning(SECTIONS[section]) if section in SECTIONS else CHOICES
        for name, value in table.items():
            note = f"  # {meanings[name]}" if notes and meanings.get(name) else ""
            lines.append(f"{name} = {_value(value)}{note}")
        if notes and section in SECTIONS:
            lines += [f"# {name}: {text}" for name, text in meanings.items() if name not in table]
        lines.append("")
    return "\n".join(lines)


def meaning(section: type[msgspec.Struct]) -> dict[str, str]:
    """Field → what it means, in words."""
    hints = get_type_hints(section, include_extras=True)
    metas = {
        name: [m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Meta)] for name, hint in hints.items()
    }
    return {name: next((m.description for m in found if m.description), "") for name, found in metas.items()}


def _value(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(v) for v in value)}]"
    return repr(value)


def write_recipe(path: Path, recipe: Recipe, *, force: bool = False) -> None:
    """The recipe, resolved, as a file."""
    write_bytes(path, to_toml(recipe).encode(), force=force)


def differences(old: Recipe, new: Recipe) -> Iterator[str]:
    """`section.field: old -> new` of fields that change weights and are not the same."""
    one, two = to_dict(old), to_dict(new)
    for section in one | two:
        for name in one[section] | two[section]:
            was, now = one[section].get(name), two[section].get(name)
            if was != now and (section, name) not in FREE_TO_CHANGE:
                yield f"{section}.{name}: {was} -> {now}"
