"""Small sets made on the spot, each with its truth."""

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
