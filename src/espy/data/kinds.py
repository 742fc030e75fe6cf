"""The kinds of sets, and opening one by `KIND:PATH`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from espy.data.camvid import open_camvid
from espy.data.cityscapes import open_cityscapes
from espy.data.folder import open_folder
from espy.data.sets import Dataset, missing
from espy.data.voc import open_voc
from espy.errors import DataError
from espy.spec import nearest

KINDS: dict[str, Callable[[Path, str | None], Dataset]] = {
    "camvid": open_camvid,
    "cityscapes": open_cityscapes,
    "folder": open_folder,
    "voc": open_voc,
}


def open_set(where: str, split: str | None = None) -> Dataset:
    """The set of `KIND:PATH`, of one split or of all that it has.

    Files are paired, few of them read; `check` reads all. Raises DataError where the kind is unknown, the folder not laid
    out as the kind has it, or the split not there.

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
        return KINDS[kind](root, split)
    except PermissionError:
        raise missing(root, "a folder in it cannot be listed") from None
