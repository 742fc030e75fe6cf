"""Label sets: names, colours and ids on disk of the data sets that the networks were published for.

Sources: cityscapesScripts' label table, CamVid as the ESPNet authors used it, the Pascal VOC development kit, COCO's
list of categories.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

Colour = tuple[int, int, int]


class Label(msgspec.Struct, frozen=True):
    """One class: its name, its colour (R, G, B), and whether metrics leave it out (`ignored`: still drawn and counted)."""

    name: str
    colour: Colour
    ignored: bool = False


def voc_colour(index: int) -> Colour:
    """Pascal VOC's colour of a class: the bits of its index, lowest first, dealt to R, G, B from the highest bit down.

    >>> voc_colour(15)
    (192, 128, 128)
    """
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (index >> channel & 1) << (7 - bit)
        index >>= 3
    return channels[0], channels[1], channels[2]


CITYSCAPES = (
    Label("road", (128, 64, 128)),
    Label("sidewalk", (244, 35, 232)),
    Label("building", (70, 70, 70)),
    Label("wall", (102, 102, 156)),
    Label("fence", (190, 153, 153)),
    Label("pole", (153, 153, 153)),
    Label("traffic light", (250, 170, 30)),
    Label("traffic sign", (220, 220, 0)),
    Label("vegetation", (107, 142, 35)),
    Label("terrain", (152, 251, 152)),
    Label("sky", (70, 130, 180)),
    Label("person", (220, 20, 60)),
    Label("rider", (255, 0, 0)),
    Label("car", (0, 0, 142)),
    Label("truck", (0, 0, 70)),
    Label("bus", (0, 60, 100)),
    Label("train", (0, 80, 100)),
    Label("motorcycle", (0, 0, 230)),
    Label("bicycle", (119, 11, 32)),
    Label("background", (0, 0, 0), ignored=True),
)

CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33, 0)
"""The labelIds of the classes above on disk."""

CAMVID = (
    Label("sky", (128, 128, 128)),
    Label("building", (128, 0, 0)),
    Label("pole", (192, 192, 128)),
    Label("road", (128, 64, 128)),
    Label("pavement", (60, 40, 222)),
    Label("tree", (128, 128, 0)),
    Label("sign_symbol", (192, 128, 128)),
    Label("fence", (64, 64, 128)),
    Label("car", (64, 0, 128)),
    Label("pedestrian", (64, 64, 0)),
    Label("bicyclist", (0, 128, 192)),
    Label("void", (0, 0, 0), ignored=True),
)

_VOC_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table",
    "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv/monitor",
)  # fmt: skip
VOC = tuple(Label(name, voc_colour(index)) for index, name in enumerate(_VOC_NAMES))

_COCO_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light", "fire hydrant",
    "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra",
    "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork",
    "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut",
    "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote",
    "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
COCO = tuple(Label(name, voc_colour(index)) for index, name in enumerate(_COCO_NAMES, 1))
"""The 80 kinds of things that have boxes; colours as Pascal VOC's, whose first, black, is the background's."""


def plain(classes: int) -> tuple[Label, ...]:
    """Labels of a network that brings none: class 0, class 1, ... in VOC's colours, which differ up to 256 classes."""
    return tuple(Label(f"class {index}", voc_colour(index % 256)) for index in range(classes))


def compared(name: str) -> str:
    """A class's name as names are compared: case and `_` for a blank do not matter.

    >>> compared("Traffic_Light")
    'traffic light'
    """
    return name.lower().replace("_", " ")


def find(name: str, labels: Sequence[Label]) -> int | None:
    """The place of the first label of this very name, else of the first whose name compares equal; None without one.

    >>> find("a", plain(2)), find("CLASS_1", plain(2))
    (None, 1)
    """
    names = [label.name for label in labels]
    if name not in names:
        names, name = [compared(one) for one in names], compared(name)
    return names.index(name) if name in names else None
