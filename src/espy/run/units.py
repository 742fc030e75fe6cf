"""What the units of the native engine's programs compute and move, counted as native/include/espy_engine.h defines them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

NAMES = (
    "FIRST", "POOL", "CONV", "EESP", "DOWN", "ESP", "AFFINE", "RESIZE", "UP2", "MERGE", "PYRAMID", "SEGMENT", "SEGMENT2", "MEAN",
    "SCORES",
)  # fmt: skip
"""Kinds of units, the first of which is number 1."""

SMALLEST = 5  # least side of a pyramid's scaled map
Size = tuple[int, int, int]  # channels, height, width


@dataclass(frozen=True)
class Unit:
    """`macs`: multiply-accumulates, each convolution at the size of its output as the network defines it. `reads`, `writes`:
    bytes of maps, float32, each once; the picture and the mask are bytes."""

    kind: str
    made: str
    macs: int
    reads: int
    writes: int

    @property
    def traffic(self) -> int:
        return self.reads + self.writes


def units_of(program: np.ndarray, height: int, width: int) -> list[Unit]:
    """The units of a program, in order, for a picture of that size. `made`: what each writes, channels x height x width."""
    sizes: dict[int, Size] = {}
    found = []
    for number, integers in _split(program):
        kind = NAMES[number - 1]
        read, written, macs = _COUNT[kind](integers, sizes, (3, height, width))
        reads, writes = (sum(4 * c * h * w for c, h, w in maps) for maps in (read, written))
        if kind == "FIRST":
            reads += 3 * height * width
        if kind.startswith("SEGMENT"):
            made, writes = f"{height}x{width}", height * width
        else:
            made = " + ".join("x".join(map(str, size)) for size in written)
        found.append(Unit(kind, made, macs, reads, writes))
    return found


def stages_of(program: np.ndarray, height: int, width: int) -> list[tuple[Unit, list[int]]]:
    """The same as the engine runs them, each with the places that its parts have among the units: the mask (SEGMENT) of a PYRAMID
    is made with it, so that what lies between the two is not moved."""
    found: list[tuple[Unit, list[int]]] = []
    for place, unit in enumerate(units_of(program, height, width)):
        if unit.kind == "SEGMENT" and found[-1][0].kind == "PYRAMID":
            before, places = found.pop()
            unit = Unit("PYRAMID + SEGMENT", unit.made, before.macs + unit.macs, before.reads, unit.writes)
            found.append((unit, [*places, place]))
        else:
            found.append((unit, [place]))
    return found


def _split(program: np.ndarray) -> Iterator[tuple[int, list[int]]]:
    at = 3  # after the format, the precision and the number of units
    for _ in range(int(program[2])):
        kind, count = (int(value) for value in program[at : at + 2])
        yield kind, [int(value) for value in program[at + 2 : at + 2 + count]]
        at += 2 + count


# Each: (integers, sizes of the maps so far, size of the picture) → (maps read, maps written, multiply-accumulates)
Counted = tuple[list[Size], list[Size], int]
Maps = dict[int, Size]


def _half(size: Size, channels: int) -> Size:
    return channels, (size[1] + 1) // 2, (size[2] + 1) // 2


def _pixels(size: Size) -> int:
    return size[1] * size[2]


def _first(i: list[int], maps: Maps, picture: Size) -> Counted:
    out, pooled, co, _ = i
    maps[out] = _half(picture, co)
    written = [maps[out]]
    if pooled >= 0:
        maps[pooled] = _half(picture, 3)
        written.append(maps[pooled])
    return [], written, 27 * co * _pixels(maps[out])


def _pool(i: list[int], maps: Maps, picture: Size) -> Counted:
    maps[i[1]] = _half(maps[i[0]], maps[i[0]][0])
    return [maps[i[0]]], [maps[i[1]]], 0


def _joined(i: list[int], maps: Maps) -> tuple[list[Size], int, list[int]]:
    """The maps that n, in*n name, their channels together, and the integers behind."""
    read = [maps[number] for number in i[1 : 1 + i[0]]]
    return read, sum(size[0] for size in read), i[1 + i[0] :]


def _conv(i: list[int], maps: Maps, picture: Size) -> Counted:
    read, ci, (out, co, k, _, stride, groups) = _joined(i, maps)
    maps[out] = (co, *read[0][1:]) if stride == 1 else _half(read[0], co)
    return read, [maps[out]], ci // groups * co * k * k * _pixels(maps[out])


def _eesp(i: list[int], maps: Maps, picture: Size) -> Counted:
    x, out, n, branches, k = i[:5]
    size = maps[x]
    maps[out] = (branches * n, *size[1:])
    return [size], [maps[out]], (size[0] // branches * n + branches * n * (k * k + n)) * _pixels(size)


def _down(i: list[int], maps: Maps, picture: Size) -> Counted:
    x, small, out, n, branches, k = i[:6]
    size = maps[x]
    maps[out] = _half(size, size[0] + branches * n)
    fed = [maps[small]] if small >= 0 else []
    each = branches * n * (k * k + n) + 3 * len(fed) * maps[out][0]
    return [size, *fed], [maps[out]], size[0] // branches * n * _pixels(size) + each * _pixels(maps[out])


def _esp(i: list[int], maps: Maps, picture: Size) -> Counted:
    read, ci, (out, n, n1, branches, k, _, _, stride, entry, primary) = _joined(i, maps)
    channels = n1 + (branches - 1) * n
    maps[out] = (channels, *read[0][1:]) if stride == 1 else _half(read[0], channels)
    each = entry * entry * ci * (n + primary * n1) + k * k * ((n1 if primary else n) * n1 + (branches - 1) * n * n)
    return read, [maps[out]], each * _pixels(maps[out])


def _affine(i: list[int], maps: Maps, picture: Size) -> Counted:
    read, channels, (out,) = _joined(i, maps)
    maps[out] = (channels, *read[0][1:])
    return read, [maps[out]], 0


def _resize(i: list[int], maps: Maps, picture: Size) -> Counted:
    maps[i[2]] = (maps[i[0]][0], *maps[i[1]][1:])
    return [maps[i[0]]], [maps[i[2]]], 0


def _up2(i: list[int], maps: Maps, picture: Size) -> Counted:
    x, like, out, co = i
    maps[out] = (co, *maps[like][1:])
    return [maps[x]], [maps[out]], 4 * maps[x][0] * co * _pixels(maps[x])


def _merge(i: list[int], maps: Maps, picture: Size) -> Counted:
    skip, coarse, out, co, groups, p = i
    size = maps[skip]
    maps[out] = (p, *size[1:])
    return [size, maps[coarse]], [maps[out]], (9 * size[0] // groups * co + co * p) * _pixels(size) + size[0] * co


def _pyramid(i: list[int], maps: Maps, picture: Size) -> Counted:
    x, out, co, count = i[:4]
    p, h, w = maps[x]
    maps[out] = (co, h, w)
    macs = (9 * count * p + p * co) * h * w
    for a, b in zip(i[4::2], i[5::2], strict=True):
        macs += 9 * p * (h * w if a == b else max(SMALLEST, -(-h * a // b)) * max(SMALLEST, -(-w * a // b)))
    return [maps[x]], [maps[out]], macs


def _segment(i: list[int], maps: Maps, picture: Size) -> Counted:
    return [maps[i[0]]], [], 0


def _segment2(i: list[int], maps: Maps, picture: Size) -> Counted:
    return [maps[i[0]]], [], 4 * maps[i[0]][0] * i[1] * _pixels(maps[i[0]])


def _mean(i: list[int], maps: Maps, picture: Size) -> Counted:
    maps[i[1]] = (maps[i[0]][0], 1, 1)
    return [maps[i[0]]], [maps[i[1]]], 0


def _scores(i: list[int], maps: Maps, picture: Size) -> Counted:
    read, _, _ = _joined(i, maps)
    return read, read, 0


_COUNT = dict(
    zip(
        NAMES,
        (
            _first, _pool, _conv, _eesp, _down, _esp, _affine, _resize, _up2, _merge, _pyramid, _segment, _segment2, _mean, _scores,
        ),
        strict=True,
    )
)  # fmt: skip
