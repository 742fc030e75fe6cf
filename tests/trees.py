"""Small sets made on the spot, each with its truth."""

import json
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from samples import scene


def save(path, array, **options):
    """An array as a picture file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(path, **options)
    return path


def mask(height=24, width=32, values=(0, 1, 2, 255), seed=0):
    """Random values, each at least once."""
    array = np.random.default_rng(seed).choice(np.array(values, np.uint8), (height, width))
    array.flat[: len(values)] = values
    return array


def folder(root, pairs=4, classes="background\ndisc\nbox\n", images="images", masks="masks", **keywords):
    """A set of kind `folder`; gives its masks by stem."""
    truth = {}
    for k in range(pairs):
        truth[f"p{k}"] = mask(seed=k, **keywords)
        save(root / images / f"p{k}.jpg", scene(*truth[f"p{k}"].shape, seed=k))
        save(root / masks / f"p{k}.png", truth[f"p{k}"])
    if classes is not None:
        (root / "classes.txt").write_text(classes)
    return truth


def counts(masks):
    """Value -> how often it occurs, without the code under test."""
    values, times = np.unique(np.concatenate([m.ravel() for m in masks]), return_counts=True)
    return dict(zip(values.tolist(), times.tolist(), strict=True))


def shapes(root, pairs=40, height=96, width=128):
    """A set that can be learnt in seconds: a reddish disc and a bluish box on a smooth background; void around the disc."""
    y, x = np.mgrid[:height, :width]
    for k in range(pairs):
        rng = np.random.default_rng(k)
        picture = scene(height, width, seed=k) // 3 + 80
        truth = np.zeros((height, width), np.uint8)
        top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
        box = (y >= top) & (y < top + height // 3) & (x >= left) & (x < left + width // 3)
        distance = np.hypot(
            y - rng.integers(height // 4, 3 * height // 4), x - rng.integers(width // 4, 3 * width // 4)
        )
        for value, where, colour in ((2, box, (60, 60, 220)), (1, distance < height / 5, (220, 60, 60))):
            picture[where] = np.clip(np.array(colour) + rng.integers(-30, 30, (height, width, 3)), 0, 255)[where]
            truth[where] = value
        truth[(distance >= height / 5) & (distance < height / 5 + 1)] = 255
        save(root / "images" / f"shape {k}.jpg", picture)
        save(root / "masks" / f"shape {k}.png", truth)
    (root / "classes.txt").write_text("background\ndisc\nbox\n")


def clear_shapes(root, pairs=8, height=64, width=96, seed=0, split=""):
    """A set of kind `folder` that a network can learn: a disc, a box and a bar of clear colours on grey, slightly noisy.

    `split`: all pictures are of this one; two splits by seed unless given.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    for k in range(pairs):
        truth = np.zeros((height, width), np.uint8)
        radius, side, thick = (rng.integers(height // 5, height // 3) for _ in range(3))
        row, column = rng.integers(radius, height - radius), rng.integers(radius, width - radius)
        truth[(y > (top := rng.integers(height - thick))) & (y <= top + thick)] = 3
        truth[(abs(y - rng.integers(height)) <= side) & (abs(x - rng.integers(width)) <= side)] = 2
        truth[(y - row) ** 2 + (x - column) ** 2 <= radius**2] = 1
        colours = np.array([[120, 120, 120], [220, 40, 40], [40, 200, 60], [50, 70, 230]])[truth]
        noisy = (colours + rng.integers(-20, 21, colours.shape)).clip(0, 255).astype(np.uint8)
        save(Path(root, "images", split, f"p{k}.png"), noisy)
        save(Path(root, "masks", split, f"p{k}.png"), truth)
    Path(root, "classes.txt").write_text("grey\ndisc\nbox\nbar\n")
    return root


def coloured_folders(root, pictures=4, height=48, width=48):
    """A set of kind `imagefolder` of four classes that are told by shape and colour; val holds other pictures of them."""
    y, x = np.mgrid[:height, :width]
    for kind, colour in enumerate(((220, 40, 40), (40, 200, 60), (50, 70, 230), (230, 200, 40))):
        for k in range(pictures):
            rng = np.random.default_rng(10 * kind + k)
            row, column, size = rng.integers(12, height - 12), rng.integers(12, width - 12), rng.integers(6, 12)
            far = np.hypot(y - row, x - column) if kind % 2 else np.maximum(abs(y - row), abs(x - column))
            picture = np.where((far <= size)[..., None], colour, 120) + rng.integers(-20, 21, (height, width, 3))
            for split in ("train", "val"):
                save(Path(root, split, f"kind {kind}", f"{k}.png"), picture.clip(0, 255).astype(np.uint8))
    return root


def boxed_shapes(root, pictures=6, side=96, kinds=("disc", "box")):
    """A set of kind `yolo`: one or two things of clear colours on grey a picture; val holds the same."""
    y, x = np.mgrid[:side, :side]
    for k in range(pictures):
        rng = np.random.default_rng(k)
        picture = np.full((side, side, 3), 120) + rng.integers(-15, 16, (side, side, 3))
        lines = []
        for place in range(1 + k % 2):
            kind = (k + place) % 2
            radius = rng.integers(10, 18)
            row, column = rng.integers(20, side - 20), (24, 70)[place] + rng.integers(-4, 5)
            far = np.maximum(abs(y - row), abs(x - column)) if kind else np.hypot(y - row, x - column)
            picture[far <= radius] = ((220, 40, 40), (40, 60, 220))[kind]
            width = (2 * radius + 1) / side
            lines.append(f"{kind} {(column + 0.5) / side} {(row + 0.5) / side} {width} {width}\n")
        for split in ("train", "val"):
            save(Path(root, "images", split, f"p{k}.png"), picture.clip(0, 255).astype(np.uint8))
            labels = Path(root, "labels", split, f"p{k}.txt")
            labels.parent.mkdir(parents=True, exist_ok=True)
            labels.write_text("".join(lines))
    Path(root, "classes.txt").write_text("".join(f"{kind}\n" for kind in kinds))
    return root


def class_folders(root, names=("bird", "cat", "dog"), splits=("train", "val"), pictures=3):
    """A set of kind `imagefolder`; without splits its classes lie at the top. Gives the pixels by path below the root."""
    truth = {}
    for seed, (split, name, k) in enumerate(product(splits or ("",), names, range(pictures))):
        path = Path(split, name, f"{k}.png")
        truth[path.as_posix()] = scene(16, 20, seed)
        save(root / path, truth[path.as_posix()])
    return truth


# Boxes: {picture's stem: [(class, x1, y1, x2, y2, crowd), ...]}, in pixels of pictures 60 wide and 40 high

KINDS_OF_CELL = ("disc", "plate", "rod")
CELLS = {
    "a": [(0, 0, 0, 10, 20, False), (2, 30, 5, 60, 40, False)],
    "b": [(1, 12, 8, 20, 16, True)],
    "c": [],
    "d": [(2, 1, 1, 59, 39, False), (0, 7, 9, 9, 11, False)],
}


def xml(boxes, size=(40, 60), names=KINDS_OF_CELL):
    """Boxes as Pascal VOC writes them: the first and the last pixel, counted from 1."""
    text = "" if size is None else "<size><width>{1}</width><height>{0}</height><depth>3</depth></size>".format(*size)
    for index, x1, y1, x2, y2, crowd in boxes:
        corners = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        text += (
            f"<object><name>{names[index]}</name><difficult>{int(crowd)}</difficult><bndbox>{corners}</bndbox></object>"
        )
    return f"<annotation><folder>nowhere</folder><filename>other.jpg</filename>{text}</annotation>"


def voc_cells(root, truth=CELLS, splits=None):
    """Of kind `voc`. `splits`: {name: stems}, lists to write."""
    for seed, (stem, boxes) in enumerate(truth.items()):
        save(root / "JPEGImages" / f"{stem}.png", scene(40, 60, seed))
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{stem}.xml").write_text(xml(boxes))
    for name, stems in (splits or {}).items():
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    return root


def coco_json(truth=CELLS, size=(40, 60), ids=(3, 7, 90)):
    """Boxes as COCO writes them, as Python values; ids of categories have gaps and do not stand in order."""
    images = [
        {"id": k, "file_name": f"{stem}.png", "height": size[0], "width": size[1]} for k, stem in enumerate(truth, 11)
    ]
    annotations = [
        {"id": 100 * k + n, "image_id": k, "category_id": ids[index], "bbox": [x1, y1, x2 - x1, y2 - y1],
         "iscrowd": int(crowd), "segmentation": [[x1, y1, x2, y2, x1, y2]], "area": 1.5}
        for k, boxes in enumerate(truth.values(), 11) for n, (index, x1, y1, x2, y2, crowd) in enumerate(boxes)
    ]  # fmt: skip
    categories = [
        {"id": key, "name": name, "supercategory": "cell"} for key, name in zip(ids, KINDS_OF_CELL, strict=True)
    ]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories[::-1]}


def coco_cells(root, truth=CELLS, file="annotations.json", images="images"):
    """Of kind `coco`."""
    for seed, stem in enumerate(truth):
        save(root / images / f"{stem}.png", scene(40, 60, seed))
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(coco_json(truth)))
    return root


def shares(boxes, size=(40, 60)):
    """Boxes as YOLO writes them, which knows no crowds."""
    height, width = size
    return "".join(
        f"{index} {(x1 + x2) / 2 / width!r} {(y1 + y2) / 2 / height!r} {(x2 - x1) / width!r} {(y2 - y1) / height!r}\n"
        for index, x1, y1, x2, y2, crowd in boxes
    )


def yolo_cells(root, truth=CELLS, images="images", labels="labels", names="classes.txt"):
    """Of kind `yolo`."""
    for seed, (stem, boxes) in enumerate(truth.items()):
        save(root / images / f"{stem}.png", scene(40, 60, seed))
        (root / labels).mkdir(parents=True, exist_ok=True)
        (root / labels / f"{stem}.txt").write_text(shares(boxes))
    if names:
        (root / names).write_text("".join(f"{name}\n" for name in KINDS_OF_CELL))
    return root
