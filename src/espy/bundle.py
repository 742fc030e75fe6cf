"""The bundled models: which there are and where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from espy.errors import ModelError

FOLDER = Path(__file__).parent / "bundled"

NAMES = {
    "street": "streets: 19 classes of Cityscapes and background, the accurate one (default)",
    "street-small": "streets: the same classes with a tenth of the weights",
    "camvid": "streets: 11 classes of CamVid, trained by a recipe of this project, any size",
    "imagenette": "photos: which of ten things they show, trained by a recipe of this project",
    "bccd": "blood smears: boxes around red cells, white cells and platelets, trained by a recipe of this project",
    "objects": "people, animals, vehicles and furniture: 20 classes of Pascal VOC and background",
}


class Bundled(NamedTuple):
    """A bundled model: its files and its card as Markdown."""

    name: str
    about: str
    onnx: Path
    safetensors: Path
    card: str


def path(name: str, suffix: str) -> Path:
    """The file of a bundled model; `suffix` is `.onnx`, `.safetensors` or `.md`."""
    if name not in NAMES:
        raise ModelError(f"{name}: no bundled model; there are {', '.join(NAMES)}")
    return FOLDER / f"{name}{suffix}"


def models() -> list[Bundled]:
    """All bundled models."""
    return [
        Bundled(n, about, path(n, ".onnx"), path(n, ".safetensors"), path(n, ".md").read_text(encoding="utf-8"))
        for n, about in NAMES.items()
    ]
