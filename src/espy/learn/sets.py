"""The pictures of a run: opened, checked whole, and held out by sequence where the recipe says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from espy.data.check import check
from espy.data.kinds import open_set
from espy.data.sets import Dataset
from espy.errors import DataError
from espy.labels import Label
from espy.learn.recipe import Data


@dataclass(frozen=True)
class Sets:
    """`train`, `validate` (None: nothing to validate on), and how often each class occurs in training: `counts`, in pixels of
    masks, else in pictures.
    """

    train: Dataset
    validate: Dataset | None
    counts: tuple[int, ...]

    @property
    def labels(self) -> tuple[Label, ...]:
        """The classes that are learnt: class k is label k, of a mask the value k."""
        return self.train.labels


def open_sets(
    choices: Data, task: str = "segment", *, say: Callable[[str], None] = lambda line: None,
    advance: Callable[[str], None] = lambda name: None,
) -> Sets:  # fmt: skip
    """Open and check a recipe's sets for a task. Raises DataError, all faults told by `say`, where one must not be trained on."""
    train = open_set(choices.set, choices.train, task)
    validate = None
    if choices.validate and not choices.hold_out:
        validate = open_set(choices.set, choices.validate, task)
    if choices.hold_out:
        held = {item for item in train.items if any(fnmatchcase(item.picture.name, p) for p in choices.hold_out)}
        for pattern in choices.hold_out:
            if not any(fnmatchcase(item.picture.name, pattern) for item in train.items):
                raise DataError(f"{choices.set}: hold_out {pattern!r} is the name of no picture of {choices.train}")
        validate = replace(train, items=tuple(item for item in train.items if item in held))
        train = replace(train, items=tuple(item for item in train.items if item not in held))
        if not train.items:
            raise DataError(f"{choices.set}: hold_out leaves no picture to train on")
    if validate is not None and choices.validate == choices.train and not choices.hold_out:
        say(f"{choices.set}: validates on the pictures that it trains on")
    counts: tuple[int, ...] = ()
    faults: list[str] = []
    for part in (train, validate):
        if part is None:
            continue
        report = check(part, advance=advance)
        for finding in report.findings:
            line = f"{finding.severity}: {finding.message}; {finding.cure}"
            if finding.severity == "fault":
                faults.append(line)
            elif part is train:
                say(line)
        if part is train:
            counts = report.pictures or tuple(report.pixels.get(value, 0) for value in range(len(train.labels)))
    for line in dict.fromkeys(faults):
        say(line)
    if faults:
        number = len(dict.fromkeys(faults))
        raise DataError(
            f"{choices.set}: {number} {'fault' if number == 1 else 'faults'}, first {faults[0].removeprefix('fault: ')}: "
            f"nothing was trained; see espy check {choices.set}"
        )
    return Sets(train, validate, counts)
