"""What a check says: faults and warnings of single files, gathered into findings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from espy.errors import one_line

DIAGNOSES = {
    "mask_missing": "a picture without a mask",
    "image_missing": "a mask or annotation without a picture",
    "stem_twice": "two pictures, or two masks, of one name",
    "size_mismatch": "a mask of another size than its upright picture, or an annotation that states one",
    "value_out_of_range": "a mask holds values that are no class",
    "rgb_mask": "a mask in colours where indices are needed",
    "binary_0_255": "masks hold 0 and 255 where 0 and 1 are meant",
    "lossy_mask": "a mask in a format that changes values",
    "mask_16bit": "a mask of more than 8 bits a pixel",
    "alpha_mask": "a mask with transparency",
    "float_mask": "a mask of floating-point numbers",
    "label_ids": "masks hold Cityscapes' labelIds where train ids are needed",
    "unreadable": "a file that cannot be read whole",
    "all_void": "a mask in which no pixel counts",
    "class_never_seen": "a class that nothing shows",
    "class_name_twice": "two classes of one name",
    "empty_set": "no pictures",
    "class_missing": "a picture in no folder of a class",
    "class_not_trained": "a class that train does not have",
    "class_unknown": "an annotation of a class that is not named",
    "picture_twice": "the same file in two classes or two splits",
    "annotation_missing": "a picture without an annotation",
    "annotation_invalid": "a field of an annotation that is missing or makes no sense",
    "id_twice": "ids that are given twice",
    "box_outside": "a box outside its picture, or beyond its border",
    "box_inverted": "a box whose right or lower edge comes before its left or upper one",
    "box_empty": "a box of no area",
    "orientation_unclear": "boxes of a photo that EXIF turns: as stored, or as seen?",
}
"""Every key that a finding's `diagnosis` can have, and what it means. They are part of the JSON form and do not change."""

MOST_VALUES = 256  # of a finding; a 16-bit picture that is no mask holds tens of thousands


@dataclass(frozen=True)
class Fault:
    """What is wrong with one file. `what` may hold `{values}`; `warning`: usable, but said.

    `detail` differs from file to file: of files with the same fault that of the first is told.
    """

    diagnosis: str
    what: str
    cure: str
    values: tuple[int | float, ...] = ()
    warning: bool = False
    detail: str = field(default="", compare=False)

    def text(self) -> str:
        """`what` with its values and detail in words."""
        shown = ", ".join(f"{value:g}" for value in self.values[:8])
        what = self.what.replace("{values}", shown + (", ..." if len(self.values) > 8 else ""))
        return f"{what}: {self.detail}" if self.detail else what


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a set.

    `diagnosis`: a key of DIAGNOSES. `severity`: "fault" (must be cured before training) or "warning". `files`: relative to
    the set. `values`: the odd pixel values, or class ids. `message`: what and where, `cure`: what to do, a line each.
    """

    diagnosis: str
    severity: str
    files: tuple[str, ...]
    values: tuple[int | float, ...]
    message: str
    cure: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "diagnosis": self.diagnosis, "severity": self.severity, "files": list(self.files),
            "values": list(self.values), "message": self.message, "cure": self.cure,
        }  # fmt: skip


def gather(rows: Iterable[tuple[Fault, str]]) -> tuple[Finding, ...]:
    """(fault, file) rows as findings: files with the same fault together, faults before warnings.

    >>> cut = Fault("unreadable", "an empty file", "replace it")
    >>> [finding.message for finding in gather([(cut, "a.png"), (cut, "b.png")])]
    ['a.png and 1 more: an empty file']
    """
    groups: dict[Fault, tuple[list[str], set[int | float]]] = {}
    for fault, file in rows:
        files, values = groups.setdefault(replace(fault, values=()), ([], set()))
        if file not in files[-1:]:
            files.append(file)
        values.update(fault.values)
    findings = [_finding(replace(f, values=tuple(sorted(v)[:MOST_VALUES])), files) for f, (files, v) in groups.items()]
    return tuple(sorted(findings, key=lambda finding: finding.severity != "fault"))


def _finding(fault: Fault, files: list[str]) -> Finding:
    where = files[0] + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    return Finding(
        fault.diagnosis, "warning" if fault.warning else "fault", tuple(files), fault.values,
        one_line(f"{where}: {fault.text()}"), one_line(fault.cure),
    )  # fmt: skip
