"""A check names all that is wrong with a set, in one report, and nothing of what is right."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from espy.data.check import check
from espy.data.findings import DIAGNOSES, MOST_VALUES, Fault, gather
from espy.data.kinds import open_set
from espy.errors import DataError
from espy.labels import CITYSCAPES
from samples import SHARED, needs, noise, scene
from trees import class_folders, coco_cells, counts, folder, mask, save, voc_cells, yolo_cells

BADMASKS = SHARED / "data" / "badmasks"
SETS = json.loads((BADMASKS / "manifest.json").read_text("utf-8"))["sets"] if BADMASKS.is_dir() else []


def found(report, severity=None):
    """(diagnosis, file) of every finding."""
    return {(f.diagnosis, file) for f in report.findings for file in f.files if severity in (None, f.severity)}


def well_said(report):
    for finding in report.findings:
        assert finding.diagnosis in DIAGNOSES
        assert finding.files
        assert finding.files[0] in finding.message
        for line in (finding.message, finding.cure):
            assert line
            assert "\n" not in line
            assert "{" not in line
    json.dumps(report.to_dict(), allow_nan=False)


def pixels(report):
    return {str(value): times for value, times in report.pixels.items()}


# The shared sets


@needs(BADMASKS)
def test_the_manifest_of_shared_sets_is_there():
    assert len(SETS) == 39


@needs(BADMASKS)
@pytest.mark.parametrize("entry", SETS, ids=lambda entry: entry["set"])
def test_the_verdict_over_a_shared_set_is_met(entry):
    report = check(f"folder:{BADMASKS / entry['set']}")
    well_said(report)
    planted = {(entry.get("diagnosis"), file) for file in entry.get("files", [])}
    planted |= {(diagnosis, file) for file, diagnosis in entry.get("diagnoses", {}).items()}
    if entry["verdict"] == "ok":
        assert report.findings == ()
        assert len(report.data) == entry["pairs"]
        assert pixels(report) == entry["pixels"]
    elif entry["verdict"] == "fault":
        assert found(report) == planted
        assert found(report, "fault") == planted
        if "values" in entry:
            assert [list(f.values) for f in report.findings] == [entry["values"]]
    elif entry["verdict"] == "warn":
        assert found(report, "warning") == planted
        assert report.ok
        assert pixels(report) == entry["pixels"]
    else:  # handled, and said
        assert entry["verdict"] == "fault_or_handled"
        assert found(report, "warning") == planted
        assert report.ok
        assert pixels(report) == entry["pixels"]


@needs(BADMASKS)
def test_hints_that_the_manifest_asks_for_are_given():
    said = {name: check(f"folder:{BADMASKS / name}").findings[0] for name in
            ("exif_stored_mask", "one_based", "label_ids", "names_with_suffix")}  # fmt: skip
    assert "without EXIF the sizes agree" in said["exif_stored_mask"].message
    assert "count classes from 1" in said["one_based"].cure
    assert "labelIds" in said["label_ids"].message
    assert "p0_mask.png" in said["names_with_suffix"].message


# Sets made here


def test_a_set_in_order_is_counted_and_nothing_is_said(tmp_path):
    truth = folder(tmp_path)
    report = check(f"folder:{tmp_path}")
    assert report.ok
    assert report.findings == ()
    assert report.pixels == counts(truth.values())
    assert report.sizes == {(24, 32): 4}
    held = check(f"folder:{tmp_path}", split="val")
    assert held.pixels == counts(truth[item.picture.stem] for item in held.data.items)


def spoil_size(root):
    save(root / "masks" / "p1.png", mask(24, 30))
    return {("size_mismatch", "masks/p1.png")}


def spoil_value(root):
    save(root / "masks" / "p1.png", mask(values=(0, 1, 7)))
    return {("value_out_of_range", "masks/p1.png")}


def spoil_colours(root):
    save(root / "masks" / "p1.png", noise(24, 32))
    return {("rgb_mask", "masks/p1.png")}


def spoil_format(root):
    save(root / "masks" / "p1.png", mask(), format="JPEG")
    return {("lossy_mask", "masks/p1.png")}


def spoil_mask_file(root):
    (root / "masks" / "p1.png").write_bytes(b"")
    return {("unreadable", "masks/p1.png")}


def spoil_picture_file(root):
    data = (root / "images" / "p2.jpg").read_bytes()
    (root / "images" / "p2.jpg").write_bytes(data[: len(data) // 2])
    return {("unreadable", "images/p2.jpg")}


def spoil_mask_name(root):
    (root / "masks" / "p3.png").unlink()
    return {("mask_missing", "images/p3.jpg")}


def spoil_picture_name(root):
    (root / "images" / "p4.jpg").unlink()
    return {("image_missing", "masks/p4.png")}


def spoil_stem(root):
    shutil.copy(root / "masks" / "p5.png", root / "masks" / "p5.bmp")
    return {("stem_twice", "masks/p5.png"), ("stem_twice", "masks/p5.bmp")}


def spoil_void(root):
    save(root / "masks" / "p6.png", np.full((24, 32), 255, np.uint8))
    return {("all_void", "masks/p6.png")}


def spoil_names(root):
    (root / "classes.txt").write_text("background\ndisc\ndisc\n")
    return {("class_name_twice", "classes.txt")}


FILES_OF_P1 = [spoil_size, spoil_value, spoil_colours, spoil_format, spoil_mask_file]
OTHERS = [spoil_picture_file, spoil_mask_name, spoil_picture_name, spoil_stem, spoil_void, spoil_names]


@given(first=st.sampled_from(FILES_OF_P1), others=st.sets(st.sampled_from(OTHERS)))
@settings(max_examples=40, deadline=None)
def test_faults_planted_together_are_all_found_and_no_others(tmp_path_factory, first, others):
    root = tmp_path_factory.mktemp("set")
    folder(root, pairs=8)
    planted = set().union(*(spoil(root) for spoil in (first, *others)))
    report = check(f"folder:{root}")
    assert found(report) == planted
    assert not report.ok
    well_said(report)


# Files in no pair


@given(spoil=st.sampled_from(FILES_OF_P1[1:]))
@settings(deadline=None)
def test_a_mask_without_a_picture_is_read_as_a_mask_all_the_same(tmp_path_factory, spoil):
    """So that bringing the picture shows nothing new."""
    root = tmp_path_factory.mktemp("set")
    folder(root, pairs=8)
    planted = spoil(root)
    (root / "images" / "p1.jpg").rename(root / "p1.jpg")
    alone = check(f"folder:{root}")
    assert found(alone) == planted | {("image_missing", "masks/p1.png")}
    well_said(alone)
    (root / "p1.jpg").rename(root / "images" / "p1.jpg")
    assert found(check(f"folder:{root}")) == planted


def test_a_picture_without_a_mask_is_decoded_all_the_same(tmp_path):
    truth = folder(tmp_path)
    planted = spoil_picture_file(tmp_path)
    (tmp_path / "masks" / "p2.png").unlink()
    report = check(f"folder:{tmp_path}")
    assert found(report) == planted | {("mask_missing", "images/p2.jpg")}
    assert report.pixels == counts(truth[f"p{k}"] for k in (0, 1, 3))
    assert report.sizes == {(24, 32): 3}


def test_of_files_with_one_name_each_is_read(tmp_path):
    """Whichever is kept, its faults are known, and so are those of the partner that had to choose."""
    folder(tmp_path)
    (tmp_path / "masks" / "p1.bmp").write_bytes(b"BM")
    save(tmp_path / "images" / "p2.webp", scene(24, 32))
    save(tmp_path / "masks" / "p2.png", mask(values=(0, 1, 7)))
    assert found(check(f"folder:{tmp_path}")) == {
        ("stem_twice", "masks/p1.png"), ("stem_twice", "masks/p1.bmp"), ("unreadable", "masks/p1.bmp"),
        ("stem_twice", "images/p2.jpg"), ("stem_twice", "images/p2.webp"), ("value_out_of_range", "masks/p2.png"),
    }  # fmt: skip


def test_masks_whose_names_fit_no_picture_are_judged_together(tmp_path):
    for values, classes, diagnosis in (((0, 255), "a\nb\n", "binary_0_255"), ((1, 2), "a\nb\n", "value_out_of_range")):
        folder(tmp_path, classes=classes, values=values)
        for path in sorted((tmp_path / "masks").iterdir()):
            path.rename(path.with_name(f"{path.stem}_mask.png"))
        report = check(f"folder:{tmp_path}")
        assert [finding.diagnosis for finding in report.findings] == ["mask_missing", diagnosis]
        assert all(len(finding.files) == 4 for finding in report.findings)
        shutil.rmtree(tmp_path)


def test_a_mask_without_a_picture_does_not_hide_what_the_pairs_show(tmp_path):
    folder(tmp_path, classes="a\nb\nc\n", values=(0, 255))
    save(tmp_path / "masks" / "stray.png", mask(values=(0, 1, 2)))
    diagnoses = {diagnosis for diagnosis, _ in found(check(f"folder:{tmp_path}"))}
    assert diagnoses == {"image_missing", "binary_0_255"}


def test_a_mask_without_a_picture_names_no_classes_where_masks_do(tmp_path):
    truth = folder(tmp_path, classes=None)
    save(tmp_path / "masks" / "stray.png", mask(values=(0, 5)))
    save(tmp_path / "masks" / "grey.png", np.arange(24 * 32).reshape(24, 32).astype(np.uint8))
    report = check(f"folder:{tmp_path}")
    assert found(report) == {
        ("image_missing", "masks/stray.png"), ("image_missing", "masks/grey.png"),
        ("value_out_of_range", "masks/grey.png"),
    }  # fmt: skip
    assert len(report.data.labels) == 3
    assert report.pixels == counts(truth.values())


def test_what_is_above_the_limit_of_pixels_is_to_be_shrunk(tmp_path):
    folder(tmp_path)
    large = Image.new("1", (10000, 10001))
    save(tmp_path / "images" / "p1.png", large)
    (tmp_path / "images" / "p1.jpg").unlink()
    save(tmp_path / "masks" / "p1.png", large)
    data = open_set(f"folder:{tmp_path}")
    (finding,) = check(data).findings
    assert (finding.diagnosis, set(finding.files)) == ("unreadable", {"images/p1.png", "masks/p1.png"})
    assert "above the limit of 100 megapixels: 10000x10001" in finding.message
    index = next(k for k, item in enumerate(data.items) if item.picture.stem == "p1")
    with pytest.raises(DataError) as caught:
        data.read(index)
    for said in (finding.cure, str(caught.value)):
        assert "shrink picture and mask alike" in said
        assert "--max-pixels" not in said  # which only `predict` has


# Together


def test_hidden_files_and_notes_are_passed_over(tmp_path):
    folder(tmp_path)
    for name in ("images", "masks"):
        for junk in ("Thumbs.db", ".DS_Store", "._p0.png", "notes.txt"):
            (tmp_path / name / junk).write_bytes(b"no picture")
        save(tmp_path / name / ".cache" / "p0.png", mask())
    assert check(f"folder:{tmp_path}").findings == ()


@pytest.mark.parametrize(
    "names", [("{}_mask.png", "{}.jpg"), ("seg-{}.png", "{}.jpg"), ("{}.png", "{}_rgb.jpg")], ids=str
)
def test_names_that_differ_by_what_all_have_in_common_are_explained_once(tmp_path, names):
    folder(tmp_path)
    for k in range(4):
        (tmp_path / "masks" / f"p{k}.png").rename(tmp_path / "masks" / names[0].format(f"p{k}"))
        (tmp_path / "images" / f"p{k}.jpg").rename(tmp_path / "images" / names[1].format(f"p{k}"))
    (finding,) = check(f"folder:{tmp_path}").findings
    assert finding.diagnosis == "mask_missing"
    assert len(finding.files) == 4
    assert names[0].format("p0") in finding.message


def test_a_partner_of_an_ending_that_is_not_read_is_named(tmp_path):
    folder(tmp_path)
    (tmp_path / "masks" / "p2.png").rename(tmp_path / "masks" / "p2.npy")
    (finding,) = check(f"folder:{tmp_path}").findings
    assert ".npy" in finding.message


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_lie_as_they_are_seen_and_masks_with_them(tmp_path, orientation):
    folder(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "images" / "p1.jpg", scene(24, 32), exif=exif)
    report = check(f"folder:{tmp_path}")
    if orientation < 5:
        assert report.findings == ()
    else:
        (finding,) = report.findings
        assert (finding.diagnosis, finding.files) == ("size_mismatch", ("masks/p1.png",))
        assert f"EXIF orientation {orientation}" in finding.message
        save(tmp_path / "masks" / "p1.png", mask(32, 24))
        assert check(f"folder:{tmp_path}").findings == ()


def test_masks_of_0_and_255_are_named_with_names_and_without(tmp_path):
    for classes in ("ground\nthing\n", None, "a\nb\nc\n"):
        shutil.rmtree(tmp_path)
        folder(tmp_path, classes=classes, values=(0, 255))
        save(tmp_path / "masks" / "p3.png", np.full((24, 32), 255, np.uint8))  # a thing that fills the picture
        report = check(f"folder:{tmp_path}")
        assert [f.diagnosis for f in report.findings if f.severity == "fault"] == ["binary_0_255"]
        assert len(report.findings[0].files) == 4


def test_two_ways_to_write_two_classes_in_one_set_are_said(tmp_path):
    folder(tmp_path, classes="ground\nthing\n", values=(0, 1))
    save(tmp_path / "masks" / "p1.png", mask(values=(0, 255)))
    report = check(f"folder:{tmp_path}")
    assert found(report, "warning") == {("binary_0_255", "masks/p1.png")}
    assert report.ok
    save(tmp_path / "masks" / "p2.png", mask(values=(0, 1, 255)))  # 255 is void here after all
    assert check(f"folder:{tmp_path}").findings == ()


def test_masks_that_count_from_1_are_recognised(tmp_path):
    folder(tmp_path, values=(1, 2, 3))
    (finding,) = check(f"folder:{tmp_path}").findings
    assert (finding.diagnosis, finding.values, len(finding.files)) == ("value_out_of_range", (3,), 4)
    assert "from 1" in finding.cure


def test_label_ids_are_recognised_by_the_names_of_the_classes(tmp_path):
    names = "\n".join(label.name.replace(" ", "_").title() for label in CITYSCAPES[:19])
    folder(tmp_path, classes=names, values=(0, 7, 26))
    (finding,) = check(f"folder:{tmp_path}").findings
    assert (finding.diagnosis, finding.values) == ("label_ids", (26,))
    shutil.rmtree(tmp_path)
    folder(tmp_path, classes=names, values=(0, 7, 40))
    assert [f.diagnosis for f in check(f"folder:{tmp_path}").findings] == ["value_out_of_range"]
    shutil.rmtree(tmp_path)
    folder(tmp_path, classes=names, values=(0, 13, 255))  # train ids; a few pictures never show all 19
    assert check(f"folder:{tmp_path}").findings == ()


def test_classes_that_never_occur_are_said(tmp_path):
    folder(tmp_path, classes="a\nb\nc\nghost\n[red]\n")
    (finding,) = check(f"folder:{tmp_path}").findings
    assert (finding.severity, finding.diagnosis, finding.values) == ("warning", "class_never_seen", (3, 4))
    assert "'ghost', '[red]'" in finding.message
    (tmp_path / "classes.txt").unlink()
    for k in range(4):
        save(tmp_path / "masks" / f"p{k}.png", mask(values=(0, 1, 2, 5)))
    report = check(f"folder:{tmp_path}")
    assert [f.values for f in report.findings] == [(3, 4)]
    assert report.ok


def test_levels_of_grey_are_no_classes_unless_they_are_named(tmp_path):
    folder(tmp_path, classes=None, values=(0, 128, 255))
    (finding,) = check(f"folder:{tmp_path}").findings
    assert (finding.severity, finding.diagnosis, finding.values) == ("fault", "value_out_of_range", (0, 128))
    save(tmp_path / "masks" / "p1.png", np.arange(24 * 32).reshape(24, 32).astype(np.uint8))
    (finding,) = check(f"folder:{tmp_path}").findings
    assert (finding.severity, finding.diagnosis, finding.files) == ("fault", "value_out_of_range", ("masks/p1.png",))
    assert "256 of them" in finding.message


def test_masks_of_many_sizes_are_one_finding(tmp_path):
    folder(tmp_path)
    for k in range(4):
        save(tmp_path / "masks" / f"p{k}.png", mask(20 + k, 30))
    (finding,) = check(f"folder:{tmp_path}").findings
    assert len(finding.files) == 4
    assert "20 x 30 (height x width), the picture 24 x 32" in finding.message


@pytest.mark.parametrize("left", ["nothing", "a note", "masks"])
def test_a_set_without_pictures_is_a_fault(tmp_path, left):
    folder(tmp_path)
    for path in [*(tmp_path / "images").iterdir(), *((tmp_path / "masks").iterdir() if left != "masks" else [])]:
        path.unlink()
    if left == "a note":
        (tmp_path / "images" / "note.txt").write_text("soon")
    report = check(f"folder:{tmp_path}")
    assert found(report, "fault") == {("empty_set", "images")}
    assert len(report.data) == 0


def test_a_dangling_link_and_a_folder_named_like_a_picture(tmp_path):
    folder(tmp_path)
    (tmp_path / "images" / "p1.jpg").unlink()
    (tmp_path / "images" / "p1.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "images" / "p7.jpg").mkdir()
    report = check(f"folder:{tmp_path}")
    assert found(report) == {("unreadable", "images/p1.jpg")}


def test_names_that_break_lines_and_braces_stay_one_line(tmp_path):
    folder(tmp_path, pairs=1)
    for name in ("a\nb", "{values}", "[bold]"):
        save(tmp_path / "images" / f"{name}.png", scene(24, 32))
    report = check(f"folder:{tmp_path}")
    assert len(report.findings) == 1
    assert "\n" not in report.findings[0].message
    assert "images/a\nb.png" in report.findings[0].files


def test_two_faults_of_one_mask_are_both_said(tmp_path):
    folder(tmp_path)
    save(tmp_path / "masks" / "p1.png", mask(20, 30, values=(0, 1, 7)))
    save(tmp_path / "masks" / "p2.png", noise(20, 30))
    assert found(check(f"folder:{tmp_path}")) == {
        ("size_mismatch", "masks/p1.png"), ("value_out_of_range", "masks/p1.png"),
        ("size_mismatch", "masks/p2.png"), ("rgb_mask", "masks/p2.png"),
    }  # fmt: skip


def test_values_of_a_finding_are_bounded(tmp_path):
    folder(tmp_path)
    save(tmp_path / "masks" / "p1.png", np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) + 300)
    (finding,) = check(f"folder:{tmp_path}").findings
    assert len(finding.values) == MOST_VALUES
    assert len(finding.message) < 200


def test_findings_hold_the_same_fault_of_all_files_together():
    cut, odd = Fault("unreadable", "cut", "c"), Fault("value_out_of_range", "holds {values}", "c", (9,))
    note = Fault("all_void", "void", "c", warning=True)
    rows = [
        (note, "m"),
        (cut, "a"),
        (odd, "x"),
        (cut, "b"),
        (Fault("value_out_of_range", "holds {values}", "c", (7,)), "y"),
    ]
    findings = gather(rows)
    assert [(f.diagnosis, f.files, f.values) for f in findings] == [
        ("unreadable", ("a", "b"), ()), ("value_out_of_range", ("x", "y"), (7, 9)), ("all_void", ("m",), ()),
    ]  # fmt: skip
    assert [f.message for f in findings] == ["a and 1 more: cut", "x and 1 more: holds 7, 9", "m: void"]


def test_each_pair_is_announced_once_and_so_are_files_in_none(tmp_path):
    folder(tmp_path, pairs=6)
    (tmp_path / "masks" / "p2.png").unlink()
    (tmp_path / "images" / "p4.jpg").unlink()
    names = []
    check(f"folder:{tmp_path}", advance=names.append)
    assert names == ["p0.jpg", "p1.jpg", "p3.jpg", "p5.jpg", "p2.jpg", "p4.png"]


@pytest.mark.parametrize(
    ("kind", "make", "counted"),
    [
        ("folder", folder, {}), ("imagefolder", class_folders, {"pictures": [6, 6, 6]}),
        ("voc", voc_cells, {"pictures": [2, 1, 2], "boxes": [2, 1, 2]}),
        ("coco", coco_cells, {"pictures": [2, 1, 2], "boxes": [2, 1, 2]}),
        ("yolo", yolo_cells, {"pictures": [2, 1, 2], "boxes": [2, 1, 2]}),
    ],
)  # fmt: skip
def test_a_report_counts_what_its_task_is_about(tmp_path, kind, make, counted):
    make(tmp_path)
    announced = []
    report = check(f"{kind}:{tmp_path}", advance=announced.append)
    assert announced == [item.picture.name for item in report.data.items]
    printed = report.to_dict()
    assert {name: printed[name] for name in ("pictures", "boxes") if name in printed} == counted
    assert printed["task"] == report.data.task
    assert bool(printed["pixels"]) == (kind == "folder")
    assert printed["pairs"] == len(report.data)
    assert printed["findings"] == []


def test_a_set_of_masks_and_boxes_is_checked_for_the_task_that_is_asked_for(tmp_path):
    voc_cells(tmp_path, splits={"train": "abd"})
    save(tmp_path / "SegmentationClass" / "a.png", np.zeros((40, 60), np.uint8))
    (tmp_path / "ImageSets" / "Segmentation").mkdir()
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    assert check(f"voc:{tmp_path}").pixels == {0: 40 * 60}
    assert check(f"voc:{tmp_path}", task="segment").boxes == ()
    assert check(f"voc:{tmp_path}", task="detect", split="train").boxes == (2, 1, 2)


def test_checking_needs_no_torch():
    code = "import sys, espy.data.check; sys.exit(any(name in sys.modules for name in ('torch', 'onnxruntime')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_diagnosis_stands_in_the_guide_and_the_schema():
    root = Path(__file__).resolve().parents[2]
    guide = (root / "docs" / "data.md").read_text("utf-8")
    assert re.findall(r"^\| `(\w+)` \|", guide.partition("## Diagnoses")[2], re.MULTILINE) == list(DIAGNOSES)
    schema = json.loads((root / "docs" / "schema" / "check.json").read_text("utf-8"))
    assert schema["$defs"]["finding"]["properties"]["diagnosis"]["enum"] == list(DIAGNOSES)
