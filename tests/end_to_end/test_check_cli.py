"""`espy check` as a user meets it: what it prints, in which words, with which exit code it ends."""

import contextlib
import json
import os
import pty
import subprocess
import sys
import time

import numpy as np
import pytest
from test_readme import blocks, faults, schema

from samples import SHARED, needs, one_line
from trees import class_folders, counts, folder, mask, save, voc_cells, yolo_cells

CAMVID = SHARED / "data" / "camvid"


@pytest.fixture
def photos(tmp_path):
    """A set in order, photos/ in the folder to stand in, and its masks."""
    return folder(tmp_path / "photos")


def test_a_set_in_order_is_summed_up_and_exits_0(espy, photos):
    outcome = espy("check", "folder:photos")
    assert outcome.code == 0, outcome
    assert "4 pairs (train 3, val 1), 3 classes; height x width 24 x 32 (4): in order" in outcome.out
    total = sum(counts(photos.values()).values())
    for value, name in [(0, "background"), (1, "disc"), (2, "box"), (255, "void, not counted")]:
        share = f"{100 * counts(photos.values())[value] / total:.2f} %"
        assert f"{value}  {name}" in outcome.out
        assert share in outcome.out
    assert "fault" not in outcome.out
    assert "folder:photos: read in " in outcome.err


def test_faults_are_printed_with_file_and_cure_and_exit_1(espy, photos):
    save("photos/masks/p1.png", mask(24, 30))
    save("photos/masks/p2.png", np.full((24, 32), 255, np.uint8))
    outcome = espy("check", "folder:photos")
    assert outcome.code == 1, outcome
    for words in ("fault", "size_mismatch", "masks/p1.png", "24 x 30", "warning", "all_void", "1 fault, 1 warning"):
        assert words in outcome.out


def test_warnings_alone_exit_0(espy, photos):
    save("photos/masks/p2.png", np.full((24, 32), 255, np.uint8))
    outcome = espy("check", "folder:photos")
    assert outcome.code == 0, outcome
    assert "1 warning" in outcome.out


def test_brackets_in_names_are_no_markup(espy, photos):
    save("photos/images/[bold]x[/].png", mask())  # a folder "[bold]x[" and a file "].png"
    outcome = espy("check", "folder:photos")
    assert outcome.code == 1
    assert "images/[bold]x[/].png" in outcome.out


def test_one_split_is_checked_alone(espy, photos):
    outcome = espy("check", "folder:photos", "--split", "val", "--json")
    assert outcome.code == 0, outcome
    assert json.loads(outcome.out)["pairs"] == 1


def test_what_is_wrong_with_another_split_is_not_said_of_one(espy, tmp_path):
    for split in ("train", "val"):
        folder(tmp_path / "split" / split)
    save("split/val/masks/stray.png", mask())
    assert espy("check", "folder:split", "--split", "train").code == 0
    assert "val/masks/stray.png" in espy("check", "folder:split", "--split", "val").out


@pytest.mark.parametrize("spoilt", [False, True])
def test_json_is_one_object_as_its_schema_says(espy, photos, spoilt):
    if spoilt:
        save("photos/masks/p1.png", mask(values=(0, 1, 7)))
        save("photos/masks/p2.tif", mask().astype(np.float32))
        save("photos/images/ä\nb.png", mask())
    outcome = espy("check", "folder:photos", "--json")
    assert outcome.code == int(spoilt)
    assert outcome.out.count("\n") == 1
    printed, rule = json.loads(outcome.out), schema("check.json")
    assert faults(printed, rule, rule) == []
    assert printed["classes"] == ["background", "disc", "box"]
    assert bool(printed["findings"]) == spoilt
    if spoilt:
        assert {"images/ä\nb.png", "masks/p1.png"} <= {file for f in printed["findings"] for file in f["files"]}
    else:
        assert printed["pixels"] == {str(value): times for value, times in counts(photos.values()).items()}


@pytest.mark.parametrize(
    ("make", "where", "summary", "row"),
    [
        (class_folders, "imagefolder:set", "18 pictures (train 9, val 9), 3 classes; height x width 16 x 20 (18): in order",
         "1  cat           6"),
        (yolo_cells, "yolo:set", "4 pictures (train 3, val 1), 3 classes, 5 boxes; height x width 40 x 60 (4): in order",
         "2  rod           2      2"),
        (voc_cells, "voc:set", "4 pictures (train 3, val 1), 3 classes, 5 boxes; height x width 40 x 60 (4): in order",
         "1  plate         1      1"),
    ],
    ids=["imagefolder", "yolo", "voc"],
)  # fmt: skip
def test_classes_of_pictures_and_boxes_are_counted(espy, photos, tmp_path, make, where, summary, row):
    make(tmp_path / "set")
    outcome = espy("check", where)
    assert outcome.code == 0, outcome
    assert summary in outcome.out
    assert row in outcome.out
    printed, rule = json.loads(espy("check", where, "--json").out), schema("check.json")
    assert faults(printed, rule, rule) == []


def test_a_fault_of_a_box_is_printed_with_its_file_and_cure(espy, photos, tmp_path):
    voc_cells(tmp_path / "cells")
    path = tmp_path / "cells" / "Annotations" / "a.xml"
    path.write_text(path.read_text().replace("<xmin>1<", "<xmin>90<"))
    outcome = espy("check", "voc:cells", "--task", "detect")
    assert outcome.code == 1, outcome
    for words in ("fault", "box_inverted", "Annotations/a.xml", "exchange the two", "1 fault"):
        assert words in outcome.out
    printed, rule = json.loads(espy("check", "voc:cells", "--json").out), schema("check.json")
    assert faults(printed, rule, rule) == []


def test_what_needs_masks_refuses_other_sets_in_one_line(espy, photos, tmp_path):
    class_folders(tmp_path / "set")
    outcome = espy("eval", "street-small", "imagefolder:set")
    assert outcome.code == 2, outcome
    assert outcome.err.count("\n") == 1
    assert "for segment open one that has masks" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["folder:photos", "--task", "detect"], "boxes"), (["folder:photos", "--task", "x"], "unknown task 'x'"),
        (["photos"], "KIND:PATH"), (["foldr:photos"], "folder"), (["folder:none"], "no such folder"),
        (["camvid:photos"], "trainannot"), (["folder:photos", "--split", "vall"], "'val'"), ([], "KIND:PATH"),
    ],
    ids=str,
)  # fmt: skip
def test_a_call_that_cannot_work_is_one_line_and_exits_2(espy, photos, arguments, says):
    assert says in one_line(espy("check", *arguments))


def on_a_terminal(*arguments, cwd):
    """What a command writes to a terminal on stderr."""
    code = f"from espy.cli import main; main({list(arguments)!r})"
    terminal, end = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=end, cwd=cwd):
        os.close(end)
        written = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while part := os.read(terminal, 4096):
                written += part
    os.close(terminal)
    return written.decode()


def test_a_bar_is_shown_on_a_terminal_and_nowhere_else(espy, photos, tmp_path):
    assert "4/4" in on_a_terminal("check", "folder:photos", cwd=tmp_path)
    assert "/4" not in espy("check", "folder:photos").err


def test_the_guides_python_runs_and_its_json_fits_the_schema(espy, photos, capsys):
    save("photos/masks/p1.png", mask(24, 30))
    (block,) = blocks("docs/data.md", "python")
    exec(compile(block, "docs/data.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("3 ['background', 'disc', 'box']\nFalse {")
    assert "size_mismatch" in printed
    (example,) = blocks("docs/data.md", "json")
    rule = schema("check.json")
    assert faults(json.loads(example), rule, rule) == []


@needs(CAMVID)
def test_camvid_is_in_order_and_checked_in_seconds(espy):
    start = time.perf_counter()
    outcome = espy("check", f"camvid:{CAMVID}")
    assert outcome.code == 0
    assert "468 pairs (train 367, val 101), 11 classes; height x width 360 x 480 (468): in order" in outcome.out
    assert time.perf_counter() - start < 30
