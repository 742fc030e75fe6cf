"""A model's labels as those of a set: by name, or by a mapping file.

The file is TOML, one line a label of the model: `"traffic light" = "sign_symbol"`, or `= "void"` for none of the set's.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from espy import bundle
from espy.errors import DataError
from espy.labels import Label, compared, find
from espy.measure.segment import VOID
from espy.spec import nearest

NOTHING = "void"  # what a mapping calls none of the set's classes
FOLDER = bundle.FOLDER / "mappings"


def shipped() -> list[str]:
    """The names of the mappings that come with espy.

    >>> shipped()
    ['cityscapes-camvid']
    """
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_mapping(name: str | Path) -> dict[str, str]:
    """The mapping of a file, or a shipped one by its name. Raises DataError.

    >>> read_mapping("cityscapes-camvid")["rider"]
    'bicyclist'
    """
    path = Path(name)
    if str(name) in shipped() and not path.is_file():
        path = FOLDER / f"{name}.toml"
    try:
        mapping = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(
            f"{name}: no such mapping; shipped: {', '.join(shipped())}, or write one: docs/evaluate.md"
        ) from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f'{name}: is not TOML ({error}): one line a label, such as "wall" = "building"') from None
    for label, meant in mapping.items():
        if not isinstance(meant, str):
            raise DataError(
                f'{name}: {label!r} is {meant!r}, not a name: one line a label, such as "wall" = "building"'
            )
    return mapping


def table(model: Sequence[Label], data: Sequence[Label], mapping: Mapping[str, str] | None = None) -> np.ndarray:
    """uint8 [256]: the model's label -> place in `data`, 255 for none of them.

    Without a mapping names must agree (`espy.labels.find`); an `ignored` label of the model may lack a partner.
    Raises DataError where a label has no partner.
    """
    out = np.full(256, VOID, np.uint8)
    for index, label in enumerate(model):
        meant = label.name if mapping is None else mapping.get(label.name)
        place = None if meant is None else find(meant, data)
        if place is not None:
            out[index] = place
        elif mapping is None and not label.ignored:
            raise DataError(_stranger(label.name, model, data))
        elif mapping is not None and meant is None:
            raise DataError(f'the mapping has no line for the model\'s {label.name!r}: add one, or = "void"')
        elif mapping is not None and meant != NOTHING:
            raise DataError(
                f"the mapping's {meant!r} is no class of the set: {nearest(str(meant), [d.name for d in data])}"
            )
    return out


def _stranger(name: str, model: Sequence[Label], data: Sequence[Label]) -> str:
    cure = "say with --mapping FILE what the model's labels mean (docs/evaluate.md)"
    if fits := fitting([label.name for label in model], [label.name for label in data]):
        cure = f"a shipped mapping fits, --mapping {fits}"
    classes = ", ".join(label.name for label in data[:12]) + (", ..." if len(data) > 12 else "")
    return f"the model's label {name!r} is no class of the set, which has {classes}: {cure}"


def fitting(model: Collection[str], data: Collection[str]) -> str:
    """The shipped mapping of all these labels of a model that means nothing but classes of the set; "" where there is none."""
    known = {NOTHING, *map(compared, data)}
    for name in shipped():
        mapping = read_mapping(name)
        if set(model) <= mapping.keys() and {compared(meant) for meant in mapping.values()} <= known:
            return name
    return ""
