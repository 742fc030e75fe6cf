"""What of a set looks like films, by the names of its pictures: their frames are nearly alike."""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from itertools import pairwise, takewhile

from espy.data.sets import VAL_SHARE, Item

FEW = 8  # numbered pictures that are not yet a film


@dataclass(frozen=True)
class Film:
    """Pictures whose names share a prefix and are numbered evenly, as a film's frames are. `splits`: where they lie."""

    prefix: str
    first: str
    last: str
    pictures: int
    splits: frozenset[str]


def films(items: Sequence[Item]) -> list[Film]:
    """What of a set looks like films, the longest first."""
    stems = [item.picture.stem for item in items]
    ends = [stem[::-1] for stem in stems]
    alike = [one for one, other in takewhile(lambda two: two[0] == two[1], zip(min(ends), max(ends), strict=False))]
    ending = "".join(reversed(alike)).lstrip(string.digits)  # of all names, such as _leftImg8bit
    numbered: dict[str, dict[int, Item]] = defaultdict(dict)
    for item, stem in zip(items, stems, strict=True):
        if match := re.fullmatch(r"(.*?)([0-9]+)[^0-9]*", stem.removesuffix(ending)):
            numbered[match[1]][int(match[2])] = item
    found = []
    for prefix, frames in numbered.items():
        numbers = sorted(frames)
        gaps = Counter(after - before for before, after in pairwise(numbers))
        if len(numbers) >= FEW and 2 * max(gaps.values()) >= len(numbers) - 1:
            first, last = (frames[numbers[end]].picture.stem for end in (0, -1))
            found.append(Film(prefix, first, last, len(numbers), frozenset(item.split for item in frames.values())))
    return sorted(found, key=lambda film: -film.pictures)


def hold_out_pattern(found: Sequence[Film], names: Sequence[str]) -> str:
    """The pattern of names of the film that is nearest to VAL_SHARE of these pictures, at most half of them; "" without one."""
    patterns = [f"{escape(film.prefix)}*" for film in found]
    held = {pattern: sum(fnmatchcase(name, pattern) for name in names) for pattern in patterns}
    usable = [pattern for pattern, times in held.items() if 0 < times <= len(names) / 2]
    return min(usable, key=lambda pattern: abs(held[pattern] / len(names) - VAL_SHARE), default="")
