"""The kinds of sets, and opening one by `KIND:PATH`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from espy.data.camvid import open_camvid
from espy.data.cityscapes import open_cityscapes
from espy.data.coco import open_coco
from espy.data.folder import open_folder
from espy.data.imagefolder import open_imagefolder
from espy.data.sets import Dataset, missing
from espy.data.voc import open_voc, open_voc_boxes
from espy.data.yolo import open_yolo
from espy.errors import DataError
from espy.spec import nearest

Opener = Callable[[Path, str | None], Dataset]

KINDS: dict[str, dict[str, Opener]] = {
    "camvid": {"segment": open_camvid},
    "cityscapes": {"segment": open_cityscapes},
    "coco": {"detect": open_coco},
    "folder": {"segment": open_folder},
    "imagefolder": {"classify": open_imagefolder},
    "voc": {"segment": open_voc, "detect": open_voc_boxes},
    "yolo": {"detect": open_yolo},
}
"""Kind → task → what opens a folder of this kind for this task."""

TRUTHS = {"segment": "masks", "classify": "a class a picture", "detect": "boxes"}
"""What a set holds for a task."""


def open_set(where: str, split: str | None = None, task: str | None = None) -> Dataset:
    """The set of `KIND:PATH`, of one split or of all that it has.

    `task`: "segment", "classify" or "detect", for kinds that are made for several; that of the kind unless given. Pictures
    and truth are paired, few files read; `check` reads all. Raises DataError where the kind is unknown or not made for the
    task, the folder not laid out as the kind has it, or the split not there.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name, mode in (("images", "RGB"), ("masks", "L")):
    ...         Path(root, name).mkdir()
    ...         Image.new(mode, (4, 2)).save(Path(root, name, "street.png"))
    ...     _ = Path(root, "classes.txt").write_text("road\\n")
    ...     data = open_set(f"folder:{root}")
    ...     picture, mask = data.read(0)
    >>> len(data), data.labels[0].name, picture.size, mask.tolist()
    (1, 'road', (4, 2), [[0, 0, 0, 0], [0, 0, 0, 0]])
    """
    kind, colon, path = where.partition(":")
    if not colon or not path:
        raise DataError(f"{where!r} is no set: write KIND:PATH, such as folder:photos/ (kinds: {', '.join(KINDS)})")
    if kind not in KINDS:
        raise DataError(f"unknown kind of set {kind!r}: {nearest(kind, list(KINDS))}")
    root = Path(path)
    try:
        if not root.is_dir():
            raise DataError(f"{root}: is a file: name its folder" if root.is_file() else f"{root}: no such folder")
        return _opener(kind, root, task)(root, split)
    except PermissionError:
        raise missing(root, "a folder in it cannot be listed") from None


def _opener(kind: str, root: Path, task: str | None) -> Opener:
    openers = KINDS[kind]
    if task is None:
        with_masks = kind != "voc" or (root / "SegmentationClass").is_dir()
        task = next(name for name in openers if with_masks or name != "segment")
    if task not in TRUTHS:
        raise DataError(f"unknown task {task!r}: {nearest(task, list(TRUTHS))}")
    if task not in openers:
        others = ", ".join(name for name, made in KINDS.items() if task in made)
        holds = " or ".join(TRUTHS[made] for made in openers)
        raise DataError(
            f"{kind}:{root}: this kind of set holds {holds}; for {task} open one that has {TRUTHS[task]}: {others}"
        )
    return openers[task]
