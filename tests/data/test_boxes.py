"""Boxes of Pascal VOC, COCO and YOLO: read into the upright picture's pixels, and every fault of theirs named."""

import json
import re
import time
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from espy.data.boxes import Statement
from espy.data.check import check
from espy.data.findings import DIAGNOSES
from espy.data.kinds import open_set
from espy.data.yolo import yaml_names
from espy.errors import DataError, EspyError, one_line
from espy.labels import VOC
from espy.picture.read import UPRIGHT
from samples import SHARED, attempt, needs, noise, scene
from trees import CELLS, KINDS_OF_CELL, coco_cells, coco_json, save, shares, voc_cells, xml, yolo_cells

BCCD, COCO128 = SHARED / "data" / "bccd", SHARED / "data" / "coco128"
MAKE = {"voc": voc_cells, "coco": coco_cells, "yolo": yolo_cells}
FOLDER = {"voc": "JPEGImages", "coco": "images", "yolo": "images"}


def found(report):
    """(severity, diagnosis, file) of every finding."""
    return {(f.severity, f.diagnosis, file) for f in report.findings for file in f.files}


def names(data):
    return [label.name for label in data.labels]


def read_all(data):
    """Picture's stem → [(class, x1, y1, x2, y2, crowd)]."""
    truth = {}
    for index, item in enumerate(data.items):
        _, boxes = data.read(index)
        rows = zip(boxes.classes.tolist(), boxes.corners.tolist(), boxes.crowd.tolist(), strict=True)
        truth[item.picture.stem] = [(kind, *corners, crowd) for kind, corners, crowd in rows]
    return truth


def without_crowds(truth):
    return {stem: [(*row[:5], False) for row in rows] for stem, rows in truth.items()}


def close(found, truth):
    """Equal but for the rounding of shares."""
    assert found.keys() == truth.keys()
    for stem, rows in truth.items():
        np.testing.assert_allclose(
            np.array(found[stem], float).reshape(-1, 6), np.array(rows, float).reshape(-1, 6), atol=1e-4
        )


# What all kinds give


@pytest.mark.parametrize("kind", MAKE)
def test_boxes_are_read_in_pixels_with_their_classes_and_crowds(tmp_path, kind):
    data = open_set(f"{kind}:{MAKE[kind](tmp_path)}")
    assert (data.task, data.seeded) == ("detect", True)
    assert names(data) == [*KINDS_OF_CELL]
    close(read_all(data), without_crowds(CELLS) if kind == "yolo" else CELLS)
    picture, boxes = data.read(0)
    assert (picture.mode, picture.size) == ("RGB", (60, 40))
    assert (boxes.corners.dtype, boxes.classes.dtype, boxes.crowd.dtype) == (np.float32, np.int64, np.bool_)
    report = check(data)
    assert report.findings == ()
    assert (report.pictures, report.boxes) == ((2, 1, 2), (2, 1, 2))
    assert (report.pixels, report.sizes) == ({}, {(40, 60): 4})
    learnt = [row for rows in CELLS.values() for row in rows if kind == "yolo" or not row[5]]
    shorter = [min((x2 - x1) / 60, (y2 - y1) / 40) for _, x1, y1, x2, y2, _ in learnt]
    assert report.box_side == pytest.approx(median(shorter))


@pytest.mark.parametrize("kind", MAKE)
def test_a_picture_without_a_box_is_all_background(tmp_path, kind):
    data = open_set(f"{kind}:{MAKE[kind](tmp_path)}")
    (index,) = (k for k, item in enumerate(data.items) if item.picture.stem == "c")
    boxes = data.read(index)[1]
    assert (boxes.corners.shape, boxes.classes.shape, boxes.crowd.shape, len(boxes)) == ((0, 4), (0,), (0,), 0)


@pytest.mark.parametrize("kind", MAKE)
def test_a_set_that_is_not_split_is_split_by_seed(tmp_path, kind):
    truth = {f"p{k}": [(k % 3, 1, 2, 30, 30, False)] for k in range(10)}
    whole = open_set(f"{kind}:{MAKE[kind](tmp_path, truth)}")
    assert whole.splits == {"train": 8, "val": 2}
    held = open_set(f"{kind}:{tmp_path}", "val")
    assert [item.picture for item in held.items] == [item.picture for item in whole.only("val").items]
    assert names(held) == names(whole)
    with pytest.raises(DataError, match="no split 'tset'"):
        open_set(f"{kind}:{tmp_path}", "tset")


@pytest.mark.parametrize("kind", MAKE)
def test_pictures_are_known_by_content_and_of_any_mode(tmp_path, kind):
    MAKE[kind](tmp_path)
    grey = noise(40, 60, channels=0)
    for stem, image, form in [
        ("a", Image.fromarray(grey), "GIF"), ("b", Image.fromarray(noise(40, 60, channels=4), "RGBA"), "PNG"),
        ("c", Image.fromarray(scene(40, 60)), "JPEG"), ("d", Image.fromarray(grey.astype(np.uint16) * 257), "PNG"),
    ]:  # fmt: skip
        image.save(tmp_path / FOLDER[kind] / f"{stem}.png", format=form)
    data = open_set(f"{kind}:{tmp_path}")
    assert check(data).findings == ()
    pictures = {item.picture.stem: data.read(index)[0] for index, item in enumerate(data.items)}
    assert {picture.mode for picture in pictures.values()} == {"RGB"}
    assert np.array_equal(np.asarray(pictures["d"])[..., 1], grey)


@pytest.mark.parametrize("kind", MAKE)
def test_masks_and_classes_are_asked_of_other_kinds(tmp_path, kind):
    MAKE[kind](tmp_path)
    with pytest.raises(DataError, match=r"this kind of set holds|SegmentationClass"):
        open_set(f"{kind}:{tmp_path}", task="segment")
    with pytest.raises(DataError, match=r"for classify open one that has a class a picture: imagefolder"):
        open_set(f"{kind}:{tmp_path}", task="classify")


@given(
    corners=st.lists(st.tuples(*[st.floats(-500, 500)] * 4), max_size=8),
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
)
@settings(max_examples=200, deadline=None)
def test_boxes_lie_within_their_picture_and_have_an_area(corners, size):
    height, width = size
    made = Statement("object")
    for number, one in enumerate(corners, 1):
        made.add(number, one, number, crowd=False)
    stated = made.stated(Path("a.xml"))
    boxes, faults = stated.placed(height, width, 1)
    x1, y1, x2, y2 = boxes.corners.T
    assert ((x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height) & (x1 < x2) & (y1 < y2)).all()
    whole = {number: one for number, one in enumerate(corners, 1) if number in boxes.classes.tolist()}
    for number, placed in zip(boxes.classes.tolist(), boxes.corners, strict=True):
        x1, y1, x2, y2 = whole[number]
        cut = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
        np.testing.assert_allclose(placed, cut, rtol=1e-6, atol=1e-30)
    assert len(corners) - len(boxes) == sum(
        fault.diagnosis in ("box_inverted", "box_empty") or (fault.diagnosis == "box_outside" and not fault.warning)
        for fault in faults
    )


# Photos that EXIF turns

AS_STORED, AS_SEEN, UNSAID = "as stored", "as seen", "unsaid"


def red(image):
    """The corners of what is red in a picture."""
    array = np.asarray(image).astype(int)
    y, x = np.nonzero(array[..., 0] - array[..., 1] > 128)
    return x.min(), y.min(), x.max() + 1, y.max() + 1


@pytest.mark.parametrize("kind", ["voc", "coco"])
@pytest.mark.parametrize("states", [AS_STORED, AS_SEEN, UNSAID])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_stay_on_what_they_were_drawn_around(tmp_path, kind, states, orientation):
    corners = (12, 5, 31, 14)
    stored = Image.new("RGB", (60, 40), "white")
    stored.paste("red", corners)
    seen = stored.transpose(UPRIGHT[orientation]) if orientation > 1 else stored
    drawn = corners if states == AS_STORED and orientation > 4 else red(seen)
    size = {AS_STORED: (40, 60), AS_SEEN: (seen.height, seen.width), UNSAID: (0, 0)}[states]
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == "voc":
        save(tmp_path / "JPEGImages" / "a.png", stored, exif=exif)
        (tmp_path / "Annotations").mkdir()
        (tmp_path / "Annotations" / "a.xml").write_text(xml([(1, *map(int, drawn), False)], size))
    else:
        save(tmp_path / "images" / "a.png", stored, exif=exif)
        (tmp_path / "a.json").write_text(json.dumps(coco_json({"a": [(1, *map(int, drawn), False)]}, size)))
    data = open_set(f"{kind}:{tmp_path}")
    picture, boxes = data.read(0)
    assert boxes.corners.tolist() == [[*red(picture)]]
    unclear = {f.severity for f in check(data).findings if f.diagnosis == "orientation_unclear"}
    sure = orientation == 1 or (orientation > 4 and states != UNSAID)
    assert unclear == (set() if sure else {"warning"})


def test_of_a_square_photo_that_is_turned_the_file_is_named(tmp_path):
    voc_cells(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "JPEGImages" / "a.png", scene(40, 40), exif=exif)
    (tmp_path / "Annotations" / "a.xml").write_text(xml([(0, 1, 2, 30, 30, False)], (40, 40)))
    (finding,) = check(f"voc:{tmp_path}").findings
    assert (finding.severity, finding.diagnosis, finding.files) == (
        "warning", "orientation_unclear", ("Annotations/a.xml",),
    )  # fmt: skip
    assert "EXIF orientation 6" in finding.message


def test_yolos_shares_of_a_photo_that_is_turned_are_of_what_is_seen(tmp_path):
    yolo_cells(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "images" / "a.png", scene(60, 40), exif=exif)
    data = open_set(f"yolo:{tmp_path}")
    close(read_all(data), without_crowds(CELLS))
    assert found(check(data)) == {("warning", "orientation_unclear", "labels/a.txt")}


# Layouts and classes


def test_vocs_lists_decide_splits_and_order_and_the_labels_stay_the_same(tmp_path):
    voc_cells(tmp_path, splits={"train": "dba", "val": "c", "trainval": "abcd", "disc_train": "abcd"})
    data = open_set(f"voc:{tmp_path}")
    assert data.splits == {"train": 3, "val": 1}
    assert [item.picture.stem for item in data.items] == [*"dbac"]
    assert not data.seeded
    assert len(open_set(f"voc:{tmp_path}", "trainval")) == 4
    assert names(open_set(f"voc:{tmp_path}", "val")) == [*KINDS_OF_CELL]
    with pytest.raises(DataError, match="no split 'disc_train'"):
        open_set(f"voc:{tmp_path}", "disc_train")


def test_voc_is_opened_with_masks_where_it_has_any_unless_boxes_are_asked_for(tmp_path):
    voc_cells(tmp_path, splits={"train": "ab", "val": "cd"})
    assert open_set(f"voc:{tmp_path}").task == "detect"
    for stem in "ab":
        save(tmp_path / "SegmentationClass" / f"{stem}.png", np.zeros((40, 60), np.uint8))
    (tmp_path / "ImageSets" / "Segmentation").mkdir()
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text("a\nb\n")
    assert open_set(f"voc:{tmp_path}").task == "segment"
    assert open_set(f"voc:{tmp_path}", task="detect").splits == {"train": 2, "val": 2}


def test_the_published_voc_has_its_twenty_classes_though_few_occur(tmp_path):
    voc_cells(tmp_path, splits={"train": "ab", "val": "cd", "aeroplane_train": "ab"})
    for stem, boxes in CELLS.items():
        text = xml(boxes, names=("tvmonitor", "person", "diningtable"))
        part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
        (tmp_path / "Annotations" / f"{stem}.xml").write_text(text.replace("</object>", part))
    data = open_set(f"voc:{tmp_path}")
    assert names(data) == [label.name for label in VOC[1:]]
    assert [names(data)[row[0]] for row in read_all(data)["a"]] == ["tv/monitor", "dining table"]


def test_vocs_classes_are_those_of_classes_txt(tmp_path):
    voc_cells(tmp_path)
    (tmp_path / "classes.txt").write_text("rod\ncell\ndisc\nplate\n")
    data = open_set(f"voc:{tmp_path}")
    assert [names(data)[row[0]] for row in read_all(data)["a"]] == ["disc", "rod"]
    (finding,) = check(data).findings
    assert (finding.diagnosis, finding.values, finding.files) == ("class_never_seen", (1,), ("classes.txt",))


def test_cocos_splits_are_its_files_without_the_year(tmp_path):
    some = {stem: CELLS[stem] for stem in "ab"}
    coco_cells(tmp_path, CELLS, "annotations/instances_train2017.json", "train2017")
    coco_cells(tmp_path, some, "annotations/instances_val2017.json", "images/val2017")
    (tmp_path / "annotations" / "captions_val2017.json").write_text("{}")
    data = open_set(f"coco:{tmp_path}")
    assert data.splits == {"train": 4, "val": 2}
    assert read_all(open_set(f"coco:{tmp_path}", "val")) == some
    assert check(data).findings == ()
    coco_cells(tmp_path, some, "annotations/instances_val2014.json", "val2014")
    assert open_set(f"coco:{tmp_path}").splits == {"train2017": 4, "val2014": 2, "val2017": 2}


@pytest.mark.parametrize("name", ["images/a.png", "./a.png", "images\\a.png"])
def test_a_file_name_may_begin_with_the_folder_of_the_pictures(tmp_path, name):
    coco_cells(tmp_path)
    (tmp_path / "annotations.json").write_text(json.dumps(coco_json()).replace('"a.png"', json.dumps(name)))
    assert check(f"coco:{tmp_path}").findings == ()


@pytest.mark.parametrize("layout", [("images/{}", "labels/{}"), ("{}/images", "{}/labels")], ids=str)
def test_yolos_folders_that_are_split_stay_so(tmp_path, layout):
    for split, stems in (("train", "abd"), ("valid", "c")):
        yolo_cells(tmp_path, {s: CELLS[s] for s in stems}, *(part.format(split) for part in layout))
    data = open_set(f"yolo:{tmp_path}")
    assert data.splits == {"train": 3, "valid": 1}
    close(read_all(data), without_crowds(CELLS))
    assert len(open_set(f"yolo:{tmp_path}", "valid")) == 1


def test_yolos_classes_without_names_are_counted(tmp_path):
    yolo_cells(tmp_path, names=None)
    assert names(open_set(f"yolo:{tmp_path}")) == ["class 0", "class 1", "class 2"]


def test_yolos_names_may_lie_among_the_labels_and_an_index_may_be_a_float(tmp_path):
    yolo_cells(tmp_path, names="labels/classes.txt")
    text = (tmp_path / "labels" / "a.txt").read_text()
    (tmp_path / "labels" / "a.txt").write_text(re.sub(r"^(\d)", r"\1.000000", text, flags=re.MULTILINE))
    data = open_set(f"yolo:{tmp_path}")
    assert names(data) == [*KINDS_OF_CELL]
    assert len(data) == 4
    assert check(data).findings == ()


YAML = {
    "names: [a, big dog, c]": ["a", "big dog", "c"],
    "nc: 3\nnames: ['a', \"b # c\", 'it''s']  # three\nval: x": ["a", "b # c", "it's"],
    "names: [\n  'a',   # first\n  'b',\n]\ntrain: y": ["a", "b"],
    "names: {0: a, 1: b}": ["a", "b"],
    "names: {1: b, 0: a}": ["a", "b"],
    "names:\n- a\n- b\nnc: 2": ["a", "b"],
    "names:\n  - a\n  # none\n\n  - 'b: c'\n": ["a", "b: c"],
    "# names: [x]\npath: .\nnames:\n  0: a  # one\n  1: T-shirt\n": ["a", "T-shirt"],
    'names: ["a", "b\\"c"]\r\n': ["a", 'b"c'],
    "nc: 3\n": None,
}


@pytest.mark.parametrize(("text", "expected"), YAML.items(), ids=range(len(YAML)))
def test_names_are_found_in_every_usual_form(text, expected):
    assert yaml_names(text, Path("data.yaml")) == expected


@pytest.mark.parametrize("text", ["names: *all", "names: [a, [b]]", "names:\n  0: a\n  2: b", "names:", "names: []",
                                  "names: ['a", "names:\n  - a\n  b", "names: {0: a, 0: b}", "names: [a,, b]"])  # fmt: skip
def test_names_in_another_form_are_refused_with_what_to_do(text):
    with pytest.raises(DataError, match=r"data\.yaml: its names cannot be read: write them into classes\.txt"):
        yaml_names(text, Path("data.yaml"))


def test_yolos_names_are_read_from_its_yaml_file(tmp_path):
    yolo_cells(tmp_path, names=None)
    (tmp_path / "data.yaml").write_text("train: images\nnc: 3\nnames: ['disc', 'plate', 'rod']\n")
    data = open_set(f"yolo:{tmp_path}")
    assert (names(data), data.names) == ([*KINDS_OF_CELL], "data.yaml")


# Faults of one box: what stands in the file, and what is said of it

VOC_BOX = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>10</xmax><ymax>20</ymax></bndbox>"


def voc_text(old, new):
    def spoil(root):
        path = root / "Annotations" / "a.xml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        return "Annotations/a.xml"

    return spoil


def voc_corners(x1, y1, x2, y2):
    return voc_text(VOC_BOX, f"<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>")


def coco_change(change, file="images/a.png"):
    def spoil(root):
        content = coco_json()
        change(content)
        (root / "annotations.json").write_text(json.dumps(content))
        return file

    return spoil


def coco_field(name, value):
    return coco_change(lambda content: content["annotations"][0].update({name: value}))


def yolo_line(line):
    def spoil(root):
        path = root / "labels" / "a.txt"
        path.write_text(line + "\n" + path.read_text().partition("\n")[2])
        return "labels/a.txt"

    return spoil


def names_of_two(root):
    (root / "classes.txt").write_text("disc\nplate\n")
    return "labels/a.txt"


SPOILT = [
    ("voc", voc_corners(70, 1, 90, 20), "fault", "box_outside", "wholly outside its picture: object 1", "another size"),
    ("voc", voc_corners(50, 1, 90, 20), "warning", "box_outside", "cut at the border: object 1", "correct it"),
    ("voc", voc_corners(10, 1, 1, 20), "fault", "box_inverted", "x1, y1, x2, y2 = 10, 1, 1, 20", "exchange the two"),
    ("voc", voc_corners(5, 7, 5, 7), "warning", "box_empty", "no area; left out: object 1", "take it out"),
    ("voc", voc_corners("nan", 1, 9, 9), "fault", "annotation_invalid", "no numbers: object 1", "correct it"),
    ("voc", voc_corners(1, 1, "inf", 9), "fault", "annotation_invalid", "no numbers: object 1", "correct it"),
    ("voc", voc_corners("left", 1, 9, 9), "fault", "annotation_invalid", "no numbers: object 1", "correct it"),
    ("voc", voc_text(VOC_BOX, ""), "fault", "annotation_invalid", "no numbers: object 1", "correct it"),
    ("voc", voc_text("<name>disc</name>", ""), "fault", "annotation_invalid", "without a name: object 1", "correct it"),
    ("voc", voc_text("<width>60<", "<width>99<"), "fault", "size_mismatch", "40 x 99 (height x width), the picture 40 x 60",
     "the size that was annotated"),
    ("voc", voc_text("</annotation>", ""), "fault", "unreadable", "no XML, or cut off", "save it again"),
    ("voc", voc_text("<annotation>", "<!DOCTYPE a><annotation>"), "fault", "unreadable", "declares a document type", "save"),
    ("voc", voc_text("<annotation>", '<?xml version="1.0" encoding="none"?><annotation>'), "fault", "unreadable", "no XML", ""),
    ("coco", coco_field("bbox", [70, 1, 20, 19]), "fault", "box_outside", "wholly outside its picture: annotations.json, "
     "annotation 1100", "another size"),
    ("coco", coco_field("bbox", [50, -9, 20, 29]), "warning", "box_outside", "cut at the border", "correct it"),
    ("coco", coco_field("bbox", [10, 1, -9, 19]), "fault", "box_inverted", "x1, y1, x2, y2 = 10, 1, 1, 20", "exchange"),
    ("coco", coco_field("bbox", [5, 7, 0, 12]), "warning", "box_empty", "no area; left out", "take it out"),
    ("coco", coco_field("bbox", ["5", 7, 1, 12]), "fault", "annotation_invalid", "not four numbers", "x, y, width, height"),
    ("coco", coco_field("bbox", [5, 7, 12]), "fault", "annotation_invalid", "not four numbers", "x, y, width, height"),
    ("coco", coco_field("bbox", [5, 7, None, 12]), "fault", "annotation_invalid", "no numbers", "correct it"),
    ("coco", coco_field("bbox", [5, 7, 10**400, 12]), "fault", "annotation_invalid", "no numbers", "correct it"),
    ("coco", coco_field("bbox", {"x": ["y"] * 10**5}), "fault", "annotation_invalid", "not four numbers", "in pixels"),
    ("coco", coco_field("bbox", "z" * 10**6), "fault", "annotation_invalid", "not four numbers", "in pixels"),
    ("coco", coco_field("category_id", 4), "fault", "class_unknown", "not under categories: annotations.json, annotation "
     "1100, category_id 4", "list the category"),
    ("coco", coco_field("category_id", [[]]), "fault", "class_unknown", "category_id [[]]", "list the category"),
    ("coco", coco_change(lambda c: c["images"][0].update(width=99)), "fault", "size_mismatch", "40 x 99 (height x width)",
     "the size that was annotated"),
    ("yolo", yolo_line("0 1.5 0.5 0.2 0.2"), "fault", "box_outside", "in shares of its width and height: line 1", "0 to 1"),
    ("yolo", yolo_line("0 320 240 20 30"), "fault", "box_outside", "in shares of its width and height: line 1", "0 to 1"),
    ("yolo", yolo_line("0 0.9 0.5 0.4 0.2"), "warning", "box_outside", "cut at the border: line 1", "correct it"),
    ("yolo", yolo_line("0 0.5 0.5 -0.2 0.2"), "fault", "box_inverted", "line 1", "exchange the two"),
    ("yolo", yolo_line("0 0.5 0.5 0 0.2"), "warning", "box_empty", "no area; left out: line 1", "take it out"),
    ("yolo", yolo_line("0 nan 0.5 0.1 0.2"), "fault", "annotation_invalid", "no numbers: line 1", "correct it"),
    ("yolo", yolo_line("0 0.5 0.5 0.1 inf"), "fault", "annotation_invalid", "no numbers: line 1", "correct it"),
    ("yolo", yolo_line("0 half 0.5 0.1 0.2"), "fault", "annotation_invalid", "no numbers: line 1", "correct it"),
    ("yolo", yolo_line("0 0.5 0.5 0.1"), "fault", "annotation_invalid", "line 1, 4 values", "class, centre x"),
    ("yolo", yolo_line("0 0 0 1 0 1 1 0 1"), "fault", "annotation_invalid", "line 1, 9 values", "outlines are not read"),
    ("yolo", yolo_line("3 0.5 0.5 0.1 0.1"), "fault", "class_unknown", "classes are 0 to 2: line 1, 3", "name the class"),
    ("yolo", yolo_line("-1 0.5 0.5 0.1 0.1"), "fault", "class_unknown", "classes are 0 to 2: line 1, -1", "name the class"),
    ("yolo", yolo_line("disc 0.5 0.5 0.1 0.1"), "fault", "class_unknown", "classes are 0 to 2: line 1, disc", "name"),
]  # fmt: skip


def well_said(report):
    for finding in report.findings:
        assert finding.diagnosis in DIAGNOSES
        assert one_line(finding.files[0]) in finding.message
        for line in (finding.message, finding.cure):
            assert line
            assert len(line) < 700
            assert "\n" not in line
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize(("kind", "spoil", "severity", "diagnosis", "says", "cure"), SPOILT,
                         ids=[f"{k}-{number}-{d}" for number, (k, _, _, d, _, _) in enumerate(SPOILT)])  # fmt: skip
def test_what_is_wrong_with_a_box_is_named_with_its_file_and_cure(
    tmp_path, kind, spoil, severity, diagnosis, says, cure
):
    file = spoil(MAKE[kind](tmp_path))
    report = check(f"{kind}:{tmp_path}")
    well_said(report)
    assert found(report) == {(severity, diagnosis, file)}
    (finding,) = report.findings
    assert says in finding.message
    assert cure in finding.cure
    assert report.ok == (severity == "warning")
    read, refused = attempt(DataError, read_all, report.data)
    if severity == "warning":  # usable: the other boxes as they are, this one cut or left out
        kept = {(2, 30, 5, 60, 40)}
        assert len(read) == 4
        assert kept <= {tuple(round(value) for value in row[:5]) for row in read["a"]}
        assert len(read["a"]) == (1 if diagnosis == "box_empty" else 2)
    elif diagnosis != "unreadable":  # never a picture with some of its boxes
        assert finding.cure in refused
        assert "a." in refused
    else:
        assert "a" not in read


@pytest.mark.parametrize("shift", [(-1, -1, -1, -1), (0, 0, 1, 1)])
def test_a_pixel_beyond_the_border_is_no_word_worth(tmp_path, shift):
    """Some tools count from 0 where VOC counts from 1; some round up."""
    corners = np.array([1, 1, 60, 40]) + shift
    voc_corners(*corners)(voc_cells(tmp_path))
    data = open_set(f"voc:{tmp_path}")
    assert check(data).findings == ()
    box = next(row for row in read_all(data)["a"] if row[0] == 0)
    assert all(abs(value - wanted) <= 1 for value, wanted in zip(box[1:5], (0, 0, 60, 40), strict=True))


def test_a_size_of_0_is_none_and_the_pictures_own_counts(tmp_path):
    for stem in voc_cells(tmp_path) and "ab":
        (tmp_path / "Annotations" / f"{stem}.xml").write_text(xml(CELLS[stem], (0, 0)))
    (tmp_path / "Annotations" / "d.xml").write_text(xml(CELLS["d"], None))
    data = open_set(f"voc:{tmp_path}")
    assert check(data).findings == ()
    assert read_all(data) == CELLS


def test_classes_in_small_and_capital_letters_are_said(tmp_path):
    voc_cells(tmp_path)
    (tmp_path / "Annotations" / "a.xml").write_text(xml(CELLS["a"], names=("Disc", "plate", "rod")))
    (finding,) = check(f"voc:{tmp_path}").findings
    assert (finding.severity, finding.diagnosis, finding.files) == ("warning", "class_name_twice", ("Annotations",))
    assert "'disc'" in finding.message


def test_a_name_that_classes_txt_lacks_is_named(tmp_path):
    voc_cells(tmp_path)
    (tmp_path / "classes.txt").write_text("disc\nplate\n")
    report = check(f"voc:{tmp_path}")
    assert found(report) == {("fault", "class_unknown", f"Annotations/{stem}.xml") for stem in "ad"}
    assert "none of the classes: 'rod'" in report.findings[0].message


def test_a_bomb_of_entities_is_refused_before_it_grows(tmp_path):
    voc_cells(tmp_path)
    entities = "".join(f'<!ENTITY e{k} "{f"&e{k - 1};" * 10 if k else "boom" * 10}">' for k in range(12))
    (tmp_path / "Annotations" / "a.xml").write_text(f"<!DOCTYPE x [{entities}]><annotation>&e11;</annotation>")
    start = time.perf_counter()
    report = check(f"voc:{tmp_path}")
    assert time.perf_counter() - start < 2
    assert found(report) == {("fault", "unreadable", "Annotations/a.xml")}
    assert "<!DOCTYPE ...>" in report.findings[0].message


def test_xml_of_another_form_and_of_any_depth_is_named(tmp_path):
    voc_cells(tmp_path)
    (tmp_path / "Annotations" / "a.xml").write_text("<html><body/></html>")
    (tmp_path / "Annotations" / "b.xml").write_text(
        "<annotation>" + "<a>" * 100_000 + "</a>" * 100_000 + "</annotation>"
    )
    (tmp_path / "Annotations" / "c.xml").write_bytes(b"")
    report = check(f"voc:{tmp_path}")
    assert found(report) == {("fault", "unreadable", f"Annotations/{stem}.xml") for stem in "ac"}
    assert ["no <annotation> of Pascal VOC but <html>" in report.findings[0].message,
            "an empty file" in report.findings[1].message] == [True, True]  # fmt: skip


# Faults of files


def test_vocs_partners_that_are_missing_are_named(tmp_path):
    voc_cells(tmp_path, splits={"train": ["a", "b", "c", "d", "nothing"], "val": []})
    (tmp_path / "Annotations" / "a.xml").unlink()
    (tmp_path / "JPEGImages" / "a.png").write_bytes(b"")
    (tmp_path / "JPEGImages" / "b.png").unlink()
    voc = tmp_path / "Annotations" / "b.xml"
    voc.write_text(voc.read_text().replace("<xmin>13<", "<xmin>?<"))
    save(tmp_path / "JPEGImages" / "c.jpg", scene(40, 60))
    report = check(f"voc:{tmp_path}")
    well_said(report)
    assert found(report) == {
        ("fault", "annotation_missing", "JPEGImages/a.png"), ("fault", "unreadable", "JPEGImages/a.png"),
        ("fault", "image_missing", "Annotations/b.xml"), ("fault", "annotation_invalid", "Annotations/b.xml"),
        ("fault", "stem_twice", "JPEGImages/c.png"), ("fault", "stem_twice", "JPEGImages/c.jpg"),
        ("fault", "image_missing", "ImageSets/Main/train.txt"), ("fault", "empty_set", "ImageSets/Main/val.txt"),
        ("warning", "class_never_seen", "."),
    }  # fmt: skip


def test_what_no_list_names_is_passed_over(tmp_path):
    voc_cells(tmp_path, splits={"train": "ab", "val": "d"})
    (tmp_path / "Annotations" / "c.xml").write_text("<annotation>")
    (tmp_path / "JPEGImages" / "e.png").write_bytes(b"")
    assert check(f"voc:{tmp_path}").findings == ()


def test_a_picture_of_an_ending_that_is_not_read_is_named(tmp_path):
    voc_cells(tmp_path)
    (tmp_path / "JPEGImages" / "a.png").rename(tmp_path / "JPEGImages" / "a.heic")
    (finding,) = check(f"voc:{tmp_path}").findings
    assert (finding.diagnosis, finding.files) == ("image_missing", ("Annotations/a.xml",))
    assert ".heic" in finding.message


def test_yolos_partners_that_are_missing_are_named(tmp_path):
    yolo_cells(tmp_path)
    (tmp_path / "labels" / "a.txt").unlink()
    (tmp_path / "images" / "b.png").unlink()
    (tmp_path / "labels" / "b.txt").write_text("9 0.5 0.5 0.1 0.1\n")
    (tmp_path / "labels" / "d.txt").write_bytes(b"\xff\xfe0\x00")
    report = check(f"yolo:{tmp_path}")
    well_said(report)
    assert found(report) == {
        ("warning", "annotation_missing", "images/a.png"), ("fault", "image_missing", "labels/b.txt"),
        ("fault", "class_unknown", "labels/b.txt"), ("fault", "unreadable", "labels/d.txt"),
        ("fault", "empty_set", "classes.txt"),
    }  # fmt: skip
    assert read_all(report.data) == {"a": [], "c": []}


def test_cocos_pictures_and_entries_without_each_other_are_named(tmp_path):
    coco_cells(tmp_path)
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / "z.png")
    content = coco_json()
    content["annotations"] += [{"id": 1, "image_id": 999, "category_id": 3, "bbox": [1, 1, 2, 2]}]
    content["images"] += [{"id": 77, "file_name": "../../../secret.png", "width": 1, "height": 1}]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    save(tmp_path.parent / "secret.png", scene(8, 8))
    report = check(f"coco:{tmp_path}")
    well_said(report)
    assert found(report) == {
        ("fault", "image_missing", "images/a.png"), ("fault", "image_missing", "annotations.json"),
        ("fault", "image_missing", "images/../../../secret.png"), ("warning", "annotation_missing", "images/z.png"),
    }  # fmt: skip
    assert [item.picture.stem for item in report.data.items] == [*"bcd"]


def repeat(key):
    return lambda content: content[key].append(dict(content[key][0]))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (repeat("annotations"), {("warning", "id_twice")}),
        (repeat("categories"), {("fault", "id_twice")}),
        (lambda c: c["categories"][0].update(name="disc"), {("fault", "class_name_twice")}),
        (lambda c: c["images"][0].update(id=[1]), {("fault", "annotation_invalid"), ("fault", "image_missing")}),
        (lambda c: c["images"][0].update(file_name=7), {("fault", "annotation_invalid"), ("fault", "image_missing")}),
        (lambda c: c["categories"].append({"id": {}, "name": "x"}), {("fault", "annotation_invalid")}),
        (lambda c: c["categories"].append({"id": 1, "name": None}), {("fault", "annotation_invalid")}),
        (lambda c: c.pop("images"), {("fault", "unreadable")}),
        (lambda c: c.update(annotations=5), {("fault", "unreadable")}),
        (lambda c: c.update(annotations=[[]]), {("fault", "unreadable")}),
        (lambda c: c.update(categories={"1": "disc"}), {("fault", "unreadable")}),
        (lambda c: c.update(images=[]), {("fault", "empty_set"), ("fault", "image_missing")}),
    ],
)  # fmt: skip
def test_faults_of_cocos_lists_are_those_of_the_file(tmp_path, change, expected):
    coco_change(change)(coco_cells(tmp_path))
    report = check(f"coco:{tmp_path}")
    well_said(report)
    of_file = {(severity, diagnosis) for severity, diagnosis, file in found(report) if file == "annotations.json"}
    assert of_file - {("fault", "empty_set")} == expected - {("fault", "empty_set")}
    assert ("empty_set" in {d for _, d in expected}) <= ("empty_set" in {d for _, d in of_file})


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"images": [' + b"[" * 200_000, b"\xff\xfe{\x00}\x00", b'{"categories": [], "images": [], '
     b'"annotations": [{"bbox": [NaN, 1, 2, 3]}]}'],
    ids=range(7),
)  # fmt: skip
def test_json_that_is_cut_off_or_none_is_named(tmp_path, content):
    coco_cells(tmp_path)
    (tmp_path / "annotations.json").write_bytes(content)
    report = check(f"coco:{tmp_path}")
    well_said(report)
    assert ("fault", "unreadable", "annotations.json") in found(report)


@pytest.mark.parametrize(
    ("change", "diagnosis"),
    [(repeat("images"), "id_twice"), (lambda c: c["images"].append({**c["images"][0], "id": 5}), "stem_twice")],
)
def test_a_picture_that_cocos_list_has_twice_is_named_and_never_given(tmp_path, change, diagnosis):
    coco_change(change)(coco_cells(tmp_path))
    report = check(f"coco:{tmp_path}")
    assert found(report) == {("fault", diagnosis, "images/a.png")}
    assert "annotations.json" in report.findings[0].message
    assert "a.png" in attempt(DataError, read_all, report.data)[1]


def test_of_annotations_with_one_id_each_is_a_box(tmp_path):
    coco_change(repeat("annotations"))(coco_cells(tmp_path))
    assert len(read_all(open_set(f"coco:{tmp_path}"))["a"]) == 3


def test_a_byte_order_mark_before_json_is_no_fault(tmp_path):
    coco_cells(tmp_path)
    (tmp_path / "annotations.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(coco_json()).encode())
    assert check(f"coco:{tmp_path}").findings == ()


def test_an_id_that_means_another_class_in_another_file_is_named(tmp_path):
    coco_cells(tmp_path, CELLS, "annotations/instances_train.json", "train")
    coco_cells(tmp_path, CELLS, "annotations/instances_val.json", "val")
    path = tmp_path / "annotations" / "instances_val.json"
    path.write_text(path.read_text().replace('"disc"', '"ring"'))
    report = check(f"coco:{tmp_path}")
    assert found(report) == {("fault", "id_twice", "annotations/instances_val.json")}
    assert "3 is 'disc' and 'ring'" in report.findings[0].message


@pytest.mark.parametrize("kind", MAKE)
def test_a_picture_that_cannot_be_read_is_named_and_its_boxes_are_looked_at_all_the_same(tmp_path, kind):
    MAKE[kind](tmp_path)
    (tmp_path / FOLDER[kind] / "a.png").write_bytes(b"\x89PNG")
    spoil = {
        "voc": voc_corners(9, 1, 1, 9),
        "coco": coco_field("bbox", [9, 9, -1, -1]),
        "yolo": yolo_line("0 0 0 -1 1"),
    }
    file = spoil[kind](tmp_path)
    assert found(check(f"{kind}:{tmp_path}")) == {
        ("fault", "unreadable", f"{FOLDER[kind]}/a.png"), ("fault", "box_inverted", file),
    }  # fmt: skip


@pytest.mark.parametrize("kind", MAKE)
def test_a_set_without_any_box_is_a_fault(tmp_path, kind):
    MAKE[kind](tmp_path, {"a": [], "b": []})
    assert {(s, d) for s, d, _ in found(check(f"{kind}:{tmp_path}"))} == {("fault", "empty_set")}


@pytest.mark.parametrize(
    ("kind", "folders", "says"),
    [
        ("voc", ["JPEGImages"], "no JPEGImages/ with Annotations/"),
        ("coco", ["images"], "one JSON file beside images/"),
        ("yolo", ["images"], "no labels/"),
        ("yolo", ["images/train", "images/val", "labels/train"], "no labels/val/"),
    ],
)
def test_half_a_set_is_refused_with_what_is_missing(tmp_path, kind, folders, says):
    for name in folders:
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(DataError, match=re.escape(says)):
        open_set(f"{kind}:{tmp_path}")


def test_two_json_files_beside_the_pictures_are_one_too_many(tmp_path):
    coco_cells(tmp_path)
    (tmp_path / "more.json").write_text("{}")
    with pytest.raises(DataError, match="2 JSON files"):
        open_set(f"coco:{tmp_path}")


# Whatever a file holds

VALID = {"voc": xml(CELLS["a"]).encode(), "coco": json.dumps(coco_json()).encode(), "yolo": shares(CELLS["a"]).encode()}
FILES = {"voc": "Annotations/a.xml", "coco": "annotations.json", "yolo": "labels/a.txt"}


@st.composite
def damaged(draw, content):
    """Bytes, some of them changed, cut out, doubled or put in; or any bytes."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.binary(max_size=200))
    for _ in range(draw(st.integers(1, 4))):
        at, to = sorted(draw(st.tuples(*[st.integers(0, len(content))] * 2)))
        to = min(to, at + 40)
        content = (
            content[:at]
            + draw(st.sampled_from([b"", content[at:to] * 2, b"-", b"1e999", b"\xff", b"&x;"]))
            + content[to:]
        )
    return content


@pytest.mark.parametrize("kind", MAKE)
@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_whatever_bytes_an_annotation_holds_they_are_read_or_named(tmp_path_factory, kind, data):
    root = tmp_path_factory.getbasetemp() / f"any-{kind}"
    if not root.exists():
        MAKE[kind](root, {stem: CELLS[stem] for stem in "ac"})
    (root / FILES[kind]).write_bytes(data.draw(damaged(VALID[kind])))
    report, _ = attempt(EspyError, check, f"{kind}:{root}")
    if report is not None:
        well_said(report)
        read, _ = attempt(EspyError, read_all, report.data)
        assert read is not None or not report.ok


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda v: st.lists(v, max_size=4),
    max_leaves=6,
)


@given(part=st.sampled_from(["images", "annotations", "categories"]), data=st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_a_field_of_cocos_holds_it_is_read_or_named(tmp_path_factory, part, data):
    root = tmp_path_factory.getbasetemp() / "any-field"
    content = coco_json({stem: CELLS[stem] for stem in "ac"})
    if not root.exists():
        coco_cells(root, {stem: CELLS[stem] for stem in "ac"})
    row = data.draw(st.sampled_from(content[part]))
    row[data.draw(st.sampled_from(sorted(row)))] = data.draw(JSON)
    (root / "annotations.json").write_text(json.dumps(content))
    report = check(f"coco:{root}")
    well_said(report)
    if report.ok:
        read_all(report.data)


@given(text=st.text("names:[]{}'\"\\,-# 01ab\n", max_size=40))
@settings(max_examples=300, deadline=None)
def test_whatever_a_yaml_file_holds_its_names_are_read_or_refused(text):
    read, refused = attempt(DataError, yaml_names, f"names:{text}", Path("data.yaml"))
    assert refused or read is None or (all(read) and len(read) > 0)


# The published sets


@needs(BCCD)
def test_the_published_bccd_counts_as_stated():
    stated = {"train": (205, 2382, 214, 209), "val": (87, 968, 87, 83), "test": (72, 805, 71, 69)}
    left_out = {"train": 0, "val": 0, "test": 0}
    for split, (pictures, rbc, wbc, platelets) in stated.items():
        report = check(f"voc:{BCCD}", split=split)
        assert names(report.data) == ["Platelets", "RBC", "WBC"]
        assert len(report.data) == pictures
        empty = [file for _, diagnosis, file in found(report) if diagnosis == "box_empty"]
        left_out[split] = len(empty)
        assert report.ok
        assert found(report) == {("warning", "box_empty", file) for file in empty}
        assert report.boxes == (platelets, rbc - len(empty), wbc)
    assert sum(left_out.values()) == 2
    assert open_set(f"voc:{BCCD}").splits == {"train": 205, "val": 87}


@needs(BCCD)
def test_bccds_boxes_reach_the_border_and_no_further():
    data = open_set(f"voc:{BCCD}", "trainval")
    corners = np.concatenate([boxes[1].corners for boxes in map(data.read, range(0, len(data), 4))])
    assert corners[:, :2].min() == 0
    assert corners[:, 2:].max(0).tolist() == [640, 480]


@needs(COCO128)
def test_the_published_coco128_counts_as_stated():
    report = check(f"coco:{COCO128}")
    assert len(report.data) == 64
    assert len(report.data.labels) == 80
    assert sum(report.boxes) == 547
    assert sum(number > 0 for number in report.boxes) == 61
    by_name = dict(zip(names(report.data), report.boxes, strict=True))
    assert [by_name[name] for name in ("person", "cup", "car", "bowl", "spoon")] == [143, 30, 29, 24, 20]
    assert found(report) == {("warning", "class_never_seen", "annotations.json")}
    truth = {item.picture.stem: report.data.read(index) for index, item in enumerate(report.data.items)}
    crowds = {stem: int(boxes.crowd.sum()) for stem, (_, boxes) in truth.items() if boxes.crowd.any()}
    assert crowds == {"000000000149": 1, "000000000257": 1, "000000000357": 1, "000000000315": 2}
    assert len(truth["000000000250"][1]) == 0
    assert len(truth["000000000196"][1]) == 42
    assert truth["000000000086"][0].mode == "RGB"


@needs(COCO128)
def test_coco128s_boxes_are_those_of_its_file():
    content = json.loads((COCO128 / "annotations.json").read_text("utf-8"))
    wanted = {image["file_name"]: [] for image in content["images"]}
    files = {image["id"]: image["file_name"] for image in content["images"]}
    called = {category["id"]: category["name"] for category in content["categories"]}
    for one in content["annotations"]:
        x, y, width, height = one["bbox"]
        wanted[files[one["image_id"]]].append((called[one["category_id"]], x, y, x + width, y + height))
    data = open_set(f"coco:{COCO128}")
    for index, item in enumerate(data.items):
        boxes = data.read(index)[1]
        rows = wanted[item.picture.name]
        assert [names(data)[k] for k in boxes.classes] == [row[0] for row in rows]
        np.testing.assert_allclose(boxes.corners, np.array([row[1:] for row in rows]).reshape(-1, 4), atol=1e-4)
