"""Each kind finds its pairs, its splits and its classes, and reads what was written."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from espy.data.check import check
from espy.data.kinds import KINDS, open_set
from espy.data.sets import Dataset
from espy.errors import DataError, EspyError
from espy.labels import CAMVID, CITYSCAPES, VOC, voc_colour
from samples import SHARED, needs, scene
from trees import counts, folder, mask, save

PUBLISHED = SHARED / "data" / "camvid"


def refusal(where, split=None):
    with pytest.raises(DataError) as caught:
        open_set(where, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def stems(data, split=None):
    return [item.picture.stem for item in data.items if split in (None, item.split)]


def assert_masks_are(truth, data):
    """Each mask that is read is the truth of its picture's stem."""
    for index, item in enumerate(data.items):
        assert np.array_equal(data.read(index)[1], truth[item.picture.stem])


# What all share


@pytest.mark.parametrize("where", ["photos", "folder", "folder:", ":photos", ""], ids=repr)
def test_a_set_is_named_by_kind_and_path(where):
    assert "kind" in refusal(where).lower()


def test_the_nearest_known_kind_is_named():
    assert "did you mean 'cityscapes'?" in refusal("cityscape:photos")


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_another_layout_is_refused_with_what_lies_there(tmp_path, kind):
    (tmp_path / "holidays").mkdir()
    assert "holidays" in refusal(f"{kind}:{tmp_path}")
    assert "no such folder" in refusal(f"{kind}:{tmp_path}/none")
    assert "is a file" in refusal(f"{kind}:{save(tmp_path / 'a.png', mask())}")


def test_a_task_that_a_kind_is_not_made_for_is_refused_with_those_that_are(tmp_path):
    folder(tmp_path)
    assert open_set(f"folder:{tmp_path}", task="segment").task == "segment"
    with pytest.raises(
        DataError, match=r"^folder:.*: this kind of set holds masks; for detect open one that has boxes"
    ):
        open_set(f"folder:{tmp_path}", task="detect")
    with pytest.raises(DataError, match="unknown task 'segmentation': did you mean 'segment'"):
        open_set(f"folder:{tmp_path}", task="segmentation")


def test_reading_gives_the_upright_picture_and_its_mask(tmp_path):
    truth = folder(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = scene(24, 40, seed=9)
    save(tmp_path / "images" / "p9.png", stored, exif=exif)
    truth["p9"] = mask(40, 24)
    save(tmp_path / "masks" / "p9.png", truth["p9"])
    data = open_set(f"folder:{tmp_path}")
    assert isinstance(data, Dataset)
    assert len(data) == 5
    assert_masks_are(truth, data)
    for index in range(len(data)):
        picture, found = data.read(index)
        assert picture.mode == "RGB"
        assert found.dtype == np.uint8
        assert (picture.height, picture.width) == found.shape
    assert np.array_equal(np.asarray(data.read(4)[0]), np.rot90(stored, -1))


def test_reading_never_gives_a_wrong_pair(tmp_path):
    folder(tmp_path, pairs=1)
    save(tmp_path / "masks" / "p0.png", mask(24, 30))
    with pytest.raises(DataError, match=r"p0\.png: 24 x 30 .*24 x 32"):
        open_set(f"folder:{tmp_path}").read(0)
    (tmp_path / "images" / "p0.jpg").write_bytes(b"")
    with pytest.raises(EspyError, match="empty"):
        open_set(f"folder:{tmp_path}").read(0)


# folder


def test_classes_are_named_by_line(tmp_path):
    folder(tmp_path, classes="ground\nround thing\nbox [small]\n\n")
    labels = open_set(f"folder:{tmp_path}").labels
    assert [label.name for label in labels] == ["ground", "round thing", "box [small]"]
    assert [label.colour for label in labels] == [voc_colour(k) for k in range(3)]


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfa\r\nb\r\nc\r\n", b"a\rb\rc", b"a\nb\nc \n \n"], ids=repr)
def test_class_names_survive_every_editor(tmp_path, content):
    folder(tmp_path, classes=None)
    (tmp_path / "classes.txt").write_bytes(content)
    assert [label.name for label in open_set(f"folder:{tmp_path}").labels] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "0 classes"), (b"a\n\nb\n", "line 2"), (b"\xffa\n", "UTF-8"), (b"a\n" * 300, "300 classes")],
    ids=["empty", "gap", "another encoding", "300"],
)
def test_names_that_cannot_be_counted_are_refused(tmp_path, content, says):
    folder(tmp_path, classes=None)
    (tmp_path / "classes.txt").write_bytes(content)
    assert says in refusal(f"folder:{tmp_path}")


def test_without_names_the_classes_are_found_by_looking(tmp_path):
    folder(tmp_path, classes=None, values=(0, 1, 2, 3, 255))
    data = open_set(f"folder:{tmp_path}")
    assert [label.name for label in data.labels] == ["class 0", "class 1", "class 2", "class 3"]
    assert check(data).findings == ()


def test_a_seed_splits_by_name_alone(tmp_path):
    folder(tmp_path / "a", pairs=25)
    folder(tmp_path / "b", pairs=25)
    first, second = (open_set(f"folder:{tmp_path / name}") for name in "ab")
    assert first.splits == {"train": 20, "val": 5}
    assert stems(first, "val") == stems(second, "val")
    assert stems(open_set(f"folder:{tmp_path / 'a'}", "val")) == stems(first, "val")
    assert stems(first, "val") not in ([f"p{k}" for k in range(5)], [f"p{k}" for k in range(20, 25)])


@pytest.mark.parametrize(
    ("pairs", "held"), [(1, {"train": 1}), (2, {"train": 1, "val": 1}), (7, {"train": 6, "val": 1})]
)
def test_small_sets_are_split_too(tmp_path, pairs, held):
    folder(tmp_path, pairs=pairs)
    assert open_set(f"folder:{tmp_path}").splits == held


@pytest.mark.parametrize(
    "layout", [("{}/images", "{}/masks"), ("images/{}", "masks/{}")], ids=["split first", "kind first"]
)
def test_folders_that_are_split_stay_so(tmp_path, layout):
    for split, pairs in (("train", 3), ("val", 2), ("test", 1)):
        folder(tmp_path, pairs, images=layout[0].format(split), masks=layout[1].format(split))
    data = open_set(f"folder:{tmp_path}")
    assert data.splits == {"train": 3, "test": 1, "val": 2}
    assert len(open_set(f"folder:{tmp_path}", "val")) == 2
    assert "known: " in refusal(f"folder:{tmp_path}", "other")


def test_folders_within_folders_are_paired_by_their_path(tmp_path):
    for city in ("bern", "oslo"):
        folder(tmp_path, 2, images=f"images/{city}", masks=f"masks/{city}")
    data = open_set(f"folder:{tmp_path}")
    assert len(data) == 4
    assert all(item.picture.parent.name == item.mask.parent.name for item in data.items)
    assert check(data).findings == ()


def test_a_half_split_set_is_refused(tmp_path):
    folder(tmp_path / "train")
    folder(tmp_path / "val")
    for path in (tmp_path / "val" / "masks").iterdir():
        path.unlink()
    (tmp_path / "val" / "masks").rmdir()
    assert "no val/masks/" in refusal(f"folder:{tmp_path}")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    folder(tmp_path)
    walk = os.walk

    def refusing(top, onerror):
        if str(top).endswith("masks"):
            onerror(PermissionError(13, "Permission denied", str(top)))
        return walk(top, onerror=onerror)

    monkeypatch.setattr(os, "walk", refusing)
    assert "masks: this folder cannot be listed: Permission denied" in refusal(f"folder:{tmp_path}")


# camvid


def camvid(root, lists=True, prefix=""):
    truth = {}
    for split, pairs in (("train", 3), ("val", 2)):
        lines = []
        for k in range(pairs):
            values = mask(values=range(12), seed=k)
            save(root / split / f"{split}{k}.png", scene(24, 32, seed=k))
            save(root / f"{split}annot" / f"{split}{k}.png", values)
            truth[f"{split}{k}"] = np.where(values == 11, 255, values)
            lines.append(f"{prefix}{split}/{split}{k}.png {prefix}{split}annot/{split}{k}.png")
        if lists:
            (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return truth


@pytest.mark.parametrize(("lists", "prefix"), [(True, ""), (True, "/SegNet/CamVid/"), (False, "")])
def test_camvid_is_paired_by_list_or_stem_and_11_is_void(tmp_path, lists, prefix):
    truth = camvid(tmp_path, lists, prefix)
    data = open_set(f"camvid:{tmp_path}")
    assert data.splits == {"train": 3, "val": 2}
    assert data.labels == CAMVID[:11]
    assert_masks_are(truth, data)
    report = check(data)
    assert report.findings == ()
    assert report.pixels == counts(truth.values())


def test_camvids_list_decides_order_and_members(tmp_path):
    camvid(tmp_path)
    (tmp_path / "train.txt").write_text(
        "train/train2.png trainannot/train2.png\ntrain/train0.png\ttrainannot/train0.png\n"
    )
    assert stems(open_set(f"camvid:{tmp_path}", "train")) == ["train2", "train0"]


def test_faults_of_a_list_are_findings_and_a_line_that_is_none_is_an_error(tmp_path):
    camvid(tmp_path)
    lines = ["train/train0.png trainannot/none.png", "train/none.png trainannot/train1.png"]
    lines += 2 * ["train/train2.png trainannot/train2.png"]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    (tmp_path / "val.txt").write_text("")
    found = {(f.diagnosis, f.files) for f in open_set(f"camvid:{tmp_path}").findings}
    assert found == {
        ("mask_missing", ("train/train0.png",)), ("image_missing", ("trainannot/train1.png",)),
        ("stem_twice", ("train/train2.png",)), ("empty_set", ("val.txt",)),
    }  # fmt: skip
    lines = [
        "train/train0.png trainannot/none.png",
        "train/none.png trainannot/train1.png",
        "train/no.png trainannot/no.png",
    ]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    (tmp_path / "train" / "train0.png").write_bytes(b"")
    save(tmp_path / "trainannot" / "train1.png", mask(values=(0, 11, 12)))
    assert {(f.diagnosis, f.files) for f in check(f"camvid:{tmp_path}", split="train").findings} == {
        ("mask_missing", ("train/train0.png",)), ("unreadable", ("train/train0.png",)),
        ("image_missing", ("trainannot/train1.png",)), ("value_out_of_range", ("trainannot/train1.png",)),
        ("image_missing", ("train.txt",)),
    }  # fmt: skip
    (tmp_path / "train.txt").write_text("train/train0.png\n")
    assert "train.txt, line 1" in refusal(f"camvid:{tmp_path}")


@needs(PUBLISHED)
def test_the_published_camvid_is_in_order_and_counts_as_stated():
    stats = json.loads((PUBLISHED / "stats.json").read_text("utf-8"))
    for split in ("train", "val"):
        report = check(f"camvid:{PUBLISHED}", split=split)
        assert report.findings == ()
        assert len(report.data) == stats[split]["pictures"]
        pixels = [report.pixels[k] for k in (*range(11), 255)]
        assert pixels == [stats[split]["pixels"][label.name] for label in CAMVID]


# cityscapes


def cityscapes(root, ids=True, train_ids=False):
    truth = {}
    for split, city, pairs in (
        ("train", "aachen", 2),
        ("train", "bochum", 1),
        ("val", "lindau", 2),
        ("test", "berlin", 1),
    ):
        for k in range(pairs):
            base = f"{city}_{k:06}_000019"
            classes = mask(values=(*range(19), 255), seed=k)
            table = np.full(256, 4, np.uint8)  # id 4: static, void
            table[:19] = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
            save(root / "leftImg8bit" / split / city / f"{base}_leftImg8bit.png", scene(24, 32, seed=k))
            where = root / "gtFine" / split / city
            if ids:
                save(where / f"{base}_gtFine_labelIds.png", table[classes])
            if train_ids:
                save(where / f"{base}_gtFine_labelTrainIds.png", classes)
            save(where / f"{base}_gtFine_color.png", scene(24, 32))
            save(where / f"{base}_gtFine_instanceIds.png", table[classes].astype(np.uint16) * 1000)
            truth[f"{base}_leftImg8bit"] = classes
    return truth


@pytest.mark.parametrize(("ids", "train_ids"), [(True, False), (False, True), (True, True)])
def test_cityscapes_is_read_as_train_ids_from_either_file(tmp_path, ids, train_ids):
    truth = cityscapes(tmp_path, ids, train_ids)
    data = open_set(f"cityscapes:{tmp_path}")
    assert data.splits == {"train": 3, "val": 2}
    assert data.labels == CITYSCAPES[:19]
    assert_masks_are(truth, data)
    assert check(data).findings == ()
    assert len(open_set(f"cityscapes:{tmp_path}", "test")) == 1
    assert "known: test, train, val" in refusal(f"cityscapes:{tmp_path}", "x")


def test_cityscapes_names_what_has_no_partner_and_ids_that_are_none(tmp_path):
    cityscapes(tmp_path)
    place = tmp_path / "gtFine" / "train" / "aachen"
    (place / "aachen_000000_000019_gtFine_labelIds.png").unlink()
    save(place / "aachen_000001_000019_gtFine_labelIds.png", mask(values=(7, 40)))
    found = {f.diagnosis: (f.files, f.values) for f in check(f"cityscapes:{tmp_path}").findings}
    assert found == {
        "mask_missing": (("leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png",), ()),
        "value_out_of_range": (("gtFine/train/aachen/aachen_000001_000019_gtFine_labelIds.png",), (40,)),
    }


def test_cityscapes_masks_without_a_picture_are_read_as_the_ids_that_they_hold(tmp_path):
    cityscapes(tmp_path)
    pictures, masks = (tmp_path / part / "train" / "aachen" for part in ("leftImg8bit", "gtFine"))
    for k in range(2):
        (pictures / f"aachen_00000{k}_000019_leftImg8bit.png").unlink()
    (masks / "aachen_000001_000019_gtFine_labelIds.png").unlink()
    save(masks / "aachen_000001_000019_gtFine_labelTrainIds.png", mask(values=(18, 33)))
    found = {f.diagnosis: (f.files, f.values) for f in check(f"cityscapes:{tmp_path}").findings}
    lone = tuple(f"gtFine/train/aachen/aachen_00000{name}.png" for name in
                 ("0_000019_gtFine_labelIds", "1_000019_gtFine_labelTrainIds"))  # fmt: skip
    assert found == {"image_missing": (lone, ()), "value_out_of_range": (lone[1:], (33,))}


def test_label_ids_in_files_of_train_ids_are_recognised(tmp_path):
    cityscapes(tmp_path, ids=False, train_ids=True)
    path = tmp_path / "gtFine" / "val" / "lindau" / "lindau_000000_000019_gtFine_labelTrainIds.png"
    save(path, mask(values=(7, 26, 33)))
    (finding,) = check(f"cityscapes:{tmp_path}").findings
    assert (finding.diagnosis, finding.values) == ("label_ids", (26, 33))


# voc


def voc(root):
    truth = {}
    for k in range(5):
        truth[f"2007_{k}"] = values = mask(values=(*range(21), 255), seed=k)
        image = Image.fromarray(values)
        image.putpalette([channel for index in range(256) for channel in voc_colour(index)])
        save(root / "JPEGImages" / f"2007_{k}.jpg", scene(24, 32, seed=k))
        save(root / "SegmentationClass" / f"2007_{k}.png", image)
    save(root / "JPEGImages" / "boxes_only.jpg", scene(24, 32))
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name, members in {"train": [2, 0, 3], "val": [1, 4], "trainval": range(5)}.items():
        (lists / f"{name}.txt").write_text("".join(f"2007_{k}\n" for k in members))
    return truth


def test_voc_is_paired_by_its_lists_and_its_border_is_void(tmp_path):
    truth = voc(tmp_path)
    data = open_set(f"voc:{tmp_path}")
    assert data.labels == VOC
    assert data.splits == {"train": 3, "val": 2}
    assert stems(data, "train") == ["2007_2", "2007_0", "2007_3"]
    assert_masks_are(truth, data)
    report = check(data)
    assert report.findings == ()
    assert report.pixels == counts(truth.values())
    assert len(open_set(f"voc:{tmp_path}", "trainval")) == 5
    assert "did you mean 'trainval'?" in refusal(f"voc:{tmp_path}", "trainvall")


def test_voc_names_listed_files_that_are_not_there(tmp_path):
    voc(tmp_path)
    (tmp_path / "SegmentationClass" / "2007_2.png").unlink()
    (tmp_path / "JPEGImages" / "2007_2.jpg").write_bytes(b"")
    (tmp_path / "JPEGImages" / "2007_1.jpg").unlink()
    save(tmp_path / "SegmentationClass" / "2007_1.png", mask(values=(0, 21)))
    (tmp_path / "JPEGImages" / "boxes_only.jpg").write_bytes(b"")  # in no list
    with (tmp_path / "ImageSets" / "Segmentation" / "val.txt").open("a") as file:
        file.write("2007_99\n")
    found = {(f.diagnosis, f.files) for f in check(f"voc:{tmp_path}").findings}
    assert found == {
        ("mask_missing", ("JPEGImages/2007_2.jpg",)), ("image_missing", ("SegmentationClass/2007_1.png",)),
        ("image_missing", ("ImageSets/Segmentation/val.txt",)), ("unreadable", ("JPEGImages/2007_2.jpg",)),
        ("value_out_of_range", ("SegmentationClass/2007_1.png",)),
    }  # fmt: skip


def test_voc_with_trainval_alone_and_coloured_masks(tmp_path):
    voc(tmp_path)
    for name in ("train", "val"):
        (tmp_path / "ImageSets" / "Segmentation" / f"{name}.txt").unlink()
    assert open_set(f"voc:{tmp_path}").splits == {"trainval": 5}
    path = tmp_path / "SegmentationClass" / "2007_0.png"
    with Image.open(path) as image:
        image.convert("RGB").save(path)
    assert [f.diagnosis for f in check(f"voc:{tmp_path}").findings] == ["rgb_mask"]
