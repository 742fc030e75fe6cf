"""`espy recipe` as a user meets it: what it says, what it writes, when it refuses, and that its recipe trains."""

from pathlib import Path

import numpy as np
import pytest

from espy.header import read_safetensors
from espy.learn.recipe import read_recipe
from samples import SHARED, needs, one_line
from trees import CELLS, boxed_shapes, coco_cells, coloured_folders, folder, mask, save, voc_cells

CAMVID = SHARED / "data" / "camvid"


@pytest.fixture
def photos(tmp_path):
    """A set in order, photos/ in the folder to stand in."""
    return folder(tmp_path / "photos")


def test_it_writes_a_recipe_and_says_what_was_found_chosen_and_comes_next(espy, photos):
    outcome = espy("recipe", "folder:photos", "-o", "my.toml")
    assert outcome.code == 0, outcome
    text = Path("my.toml").read_text(encoding="utf-8")
    told = [line.removeprefix("- ") for line in outcome.out.splitlines() if line.startswith("- ")]
    assert len(told) >= 8
    comment = " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    for sentence in told:
        assert sentence in comment
    assert outcome.out.endswith(
        "written: my.toml; it trains, evaluates and deploys with\n  espy train my.toml\n"
        "  espy eval runs/my/best.safetensors folder:photos\n"
        "  espy export runs/my/best.safetensors --to onnx -o my.onnx\n"
    )
    assert read_recipe("my.toml").data.set == "folder:photos"


def test_the_recipe_trains_as_it_stands(espy, photos):
    """On the weights it names, of a whole ESPNetv2; the overrides keep it short."""
    assert espy("recipe", "folder:photos", "-o", "my.toml").code == 0
    outcome = espy("train", "my.toml", "epochs=1", "train.threads=1")
    assert outcome.code == 0, outcome
    assert "background <- background, disc <- fresh, box <- fresh" in outcome.err
    assert Path("runs/my/best.safetensors").is_file()


@pytest.mark.parametrize(
    ("kind", "make", "task", "short"),
    [
        ("imagefolder", lambda root: coloured_folders(root, 2), "classify", ("batch=4",)),
        ("yolo", lambda root: boxed_shapes(root, 4), "detect", ("batch=2", "size=[128, 128]")),
        ("voc", lambda root: voc_cells(root, splits={"train": "abcd", "val": "a"}), "detect", ("batch=2", "size=[128, 128]")),
        ("coco", lambda root: coco_cells(root, dict.fromkeys("abcde", CELLS["a"])), "detect", ("batch=2", "size=[128, 128]")),
    ],
    ids=["imagefolder", "yolo", "voc", "coco"],
)  # fmt: skip
def test_recipes_for_classes_and_boxes_train_two_steps(espy, kind, make, task, short):
    """As they stand but for what keeps it short: a whole ESPNetv2 on the weights it names."""
    make(Path("things"))
    outcome = espy("recipe", f"{kind}:things", "-o", "my.toml")
    assert outcome.code == 0, outcome
    assert read_recipe("my.toml").network["task"] == task
    outcome = espy("train", "my.toml", "epochs=1", "train.threads=1", *short)
    assert outcome.code == 0, outcome
    assert "step 2/2" in outcome.err
    assert "objects: 312 tensors taken as they are" in outcome.err
    header, _ = read_safetensors("runs/my/best.safetensors")
    assert header.task == task
    assert header.card.terms.startswith("Started from objects: ")


def test_a_folder_of_masks_and_boxes_gets_a_recipe_for_the_task_that_is_asked_for(espy):
    voc_cells(Path("both"), splits={"train": "ad", "val": "b"})
    for stem in "ab":
        save(f"both/SegmentationClass/{stem}.png", mask(40, 60))
    Path("both/ImageSets/Segmentation").mkdir()
    Path("both/ImageSets/Segmentation/train.txt").write_text("a\n")
    Path("both/ImageSets/Segmentation/val.txt").write_text("b\n")
    for words, task in ((), "segment"), (("--task", "segment"), "segment"), (("--task", "detect"), "detect"):
        outcome = espy("recipe", "voc:both", "-o", "my.toml", "--force", *words)
        assert outcome.code == 0, outcome
        assert read_recipe("my.toml").network.get("task", "segment") == task


def test_a_network_that_segments_alone_is_refused_before_the_set_is_read(espy):
    boxed_shapes(Path("things"), 1)
    Path("things/images/train/p0.png").write_bytes(b"")
    message = one_line(espy("recipe", "yolo:things", "-o", "my.toml", "--network", "espnet"))
    assert "--network 'espnet': has no task 'detect', which yolo:things is for: take espnetv2" in message


def test_a_set_with_faults_gets_none_and_is_told_as_by_check(espy, photos):
    save("photos/masks/p1.png", mask(24, 30))
    save("photos/masks/p2.png", mask(values=(0, 1, 7)))
    checked, outcome = espy("check", "folder:photos"), espy("recipe", "folder:photos", "-o", "my.toml")
    assert (checked.code, outcome.code) == (1, 2)
    assert outcome.out == checked.out
    assert outcome.err == "espy: folder:photos: has faults, told above: cure them first; no recipe was written\n"
    assert not Path("my.toml").exists()


def test_warnings_are_said_and_a_recipe_is_written(espy, photos):
    save("photos/masks/p2.png", np.full((24, 32), 255, np.uint8))
    outcome = espy("recipe", "folder:photos", "-o", "my.toml")
    assert outcome.code == 0, outcome
    assert "- warning: masks/p2.png: all void" in outcome.out


def test_a_file_that_exists_is_kept_unless_forced(espy, photos):
    Path("my.toml").write_text("mine")
    assert "--force" in one_line(espy("recipe", "folder:photos", "-o", "my.toml"))
    assert Path("my.toml").read_text() == "mine"
    assert espy("recipe", "folder:photos", "-o", "my.toml", "--force").code == 0
    assert read_recipe("my.toml").train.init == "street"
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["my.toml", "photos"]


def test_the_network_can_be_chosen(espy, photos):
    assert espy("recipe", "folder:photos", "-o", "my.toml", "--network", "espnet").code == 0
    assert read_recipe("my.toml").network == {"network": "espnet"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["folder:photos", "-o", "my.txt"], "NAME.toml"), (["folder:photos"], "-o"),
        (["folder:none", "-o", "a.toml"], "no such folder"), (["photos", "-o", "a.toml"], "KIND:PATH"),
        (["folder:photos", "-o", "a.toml", "--network", "espnet2"], "'espnetv2'"),
        (["folder:photos", "-o", "a.toml", "--task", "detect"], "boxes"),
    ],
    ids=str,
)  # fmt: skip
def test_a_call_that_cannot_work_is_one_line_and_exits_2(espy, photos, arguments, says):
    assert says in one_line(espy("recipe", *arguments))


@needs(CAMVID)
def test_of_camvid_it_finds_classes_films_and_the_mapping(espy):
    outcome = espy("recipe", f"camvid:{CAMVID}", "-o", "camvid.toml")
    assert outcome.code == 0, outcome
    for words in (
        "train 367, val 101", "every picture has height 360, width 480", "pedestrian 0.66 %", "3.46 % of all pixels are void",
        "0016E5_00390 to 0016E5_08640 (305 pictures) and 2 more such rows", "0001TP_*",
    ):  # fmt: skip
        assert words in outcome.out
    recipe = read_recipe("camvid.toml")
    assert recipe.train.init_mapping == "cityscapes-camvid"
    assert recipe.loss.class_weights == "frequency"
    assert (recipe.data.size, recipe.augment.crop) == ((352, 480), None)
