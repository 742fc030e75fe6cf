"""Pictures in a folder a class: which class, which split, and what is said of folders that do not fit."""

import numpy as np
import pytest

from espy.data.check import check
from espy.data.kinds import open_set
from espy.errors import DataError
from samples import SHARED, needs, scene
from trees import class_folders, save

IMAGENETTE = SHARED / "data" / "imagenette128"


def found(report):
    """(severity, diagnosis, file) of every finding."""
    return {(f.severity, f.diagnosis, file) for f in report.findings for file in f.files}


def names(data):
    return [label.name for label in data.labels]


def test_a_pictures_class_is_its_folder_in_the_order_of_the_names(tmp_path):
    truth = class_folders(tmp_path, names=("dog", "Cat", "bird"))
    data = open_set(f"imagefolder:{tmp_path}")
    assert data.task == "classify"
    assert names(data) == ["Cat", "bird", "dog"]
    assert data.splits == {"train": 9, "val": 9}
    for index, item in enumerate(data.items):
        path = item.picture.relative_to(tmp_path)
        picture, kind = data.read(index)
        assert isinstance(kind, int)
        assert (item.split, names(data)[kind]) == path.parts[:2]
        assert picture.mode == "RGB"
        assert np.array_equal(np.asarray(picture), truth[path.as_posix()])
    report = check(data)
    assert report.findings == ()
    assert report.pictures == (6, 6, 6)
    assert (report.pixels, report.boxes, report.sizes) == ({}, (), {(16, 20): 18})


def test_classes_are_those_of_all_splits_whichever_is_opened(tmp_path):
    class_folders(tmp_path, names=("bird", "cat"), splits=("train", "test"))
    class_folders(tmp_path, names=("cat",), splits=("val",))
    for split in ("train", "val", "test", None):
        assert names(open_set(f"imagefolder:{tmp_path}", split)) == ["bird", "cat"]
    with pytest.raises(DataError, match="no split 'vall': did you mean 'val'"):
        open_set(f"imagefolder:{tmp_path}", "vall")


def test_folders_at_the_top_are_split_by_a_seed_each_class_by_itself(tmp_path):
    class_folders(tmp_path, splits=(), pictures=10)
    data = open_set(f"imagefolder:{tmp_path}")
    assert data.seeded
    assert data.splits == {"train": 24, "val": 6}
    assert [sum(item.index == k and item.split == "val" for item in data.items) for k in range(3)] == [2, 2, 2]
    assert open_set(f"imagefolder:{tmp_path}", "val").items == data.only("val").items
    assert check(data).findings == ()


def test_a_class_called_train_is_a_class(tmp_path):
    class_folders(tmp_path, names=("bus", "car", "train"), splits=())
    assert names(open_set(f"imagefolder:{tmp_path}")) == ["bus", "car", "train"]


def test_pictures_in_folders_within_a_class_belong_to_it(tmp_path):
    class_folders(tmp_path)
    save(tmp_path / "train" / "cat" / "grey" / "old" / "9.jpg", scene(16, 20))
    data = open_set(f"imagefolder:{tmp_path}", "train")
    assert [item.index for item in data.items if item.picture.name == "9.jpg"] == [1]


def test_files_that_are_no_pictures_and_hidden_ones_are_passed_over(tmp_path):
    class_folders(tmp_path)
    for name in ("Thumbs.db", ".DS_Store", "notes.txt"):
        (tmp_path / "train" / "cat" / name).write_bytes(b"none")
    (tmp_path / "train" / ".cache").mkdir()
    assert check(f"imagefolder:{tmp_path}").findings == ()


def test_a_folder_of_pictures_alone_is_refused_with_what_lies_there(tmp_path):
    save(tmp_path / "a.png", scene(16, 20))
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match=r"no folders of pictures in it.*; it holds a\.png, cat"):
        open_set(f"imagefolder:{tmp_path}")


# What is said


def test_a_class_that_train_does_not_have_is_a_fault(tmp_path):
    class_folders(tmp_path)
    (tmp_path / "val" / "dog").rename(tmp_path / "val" / "dogs")
    report = check(f"imagefolder:{tmp_path}")
    assert found(report) == {
        ("fault", "class_not_trained", "val/dogs"), ("warning", "class_never_seen", "val/dog"),
    }  # fmt: skip
    assert "call its folder as in train/" in report.findings[0].cure
    assert not report.ok


def test_an_empty_folder_is_a_class_that_is_never_seen(tmp_path):
    class_folders(tmp_path)
    (tmp_path / "train" / "whale").mkdir()
    report = check(f"imagefolder:{tmp_path}")
    assert found(report) == {("warning", "class_never_seen", "train/whale")}
    assert "a folder without pictures" in report.findings[0].message
    assert report.pictures == (6, 6, 6, 0)
    for path in (tmp_path / "train" / "dog").iterdir():
        path.unlink()
    assert found(check(f"imagefolder:{tmp_path}")) == {
        ("warning", "class_never_seen", "train/whale"), ("fault", "class_not_trained", "val/dog"),
    }  # fmt: skip


def test_a_picture_beside_the_folders_of_classes_has_none(tmp_path):
    class_folders(tmp_path)
    save(tmp_path / "train" / "stray.png", scene(16, 20))
    (tmp_path / "val" / "cut.png").write_bytes(b"")
    report = check(f"imagefolder:{tmp_path}")
    assert found(report) == {
        ("fault", "class_missing", "train/stray.png"), ("fault", "class_missing", "val/cut.png"),
        ("fault", "unreadable", "val/cut.png"),
    }  # fmt: skip


def test_a_picture_that_cannot_be_read_is_named_and_never_given(tmp_path):
    class_folders(tmp_path)
    whole = (tmp_path / "train" / "cat" / "1.png").read_bytes()
    (tmp_path / "train" / "cat" / "1.png").write_bytes(whole[: len(whole) // 2])
    report = check(f"imagefolder:{tmp_path}")
    assert found(report) == {("fault", "unreadable", "train/cat/1.png")}
    assert report.pictures == (6, 5, 6)
    (index,) = (k for k, item in enumerate(report.data.items) if item.picture.parts[-3:] == ("train", "cat", "1.png"))
    with pytest.raises(DataError, match=r"cat.1\.png: damaged"):
        report.data.read(index)


def test_the_same_file_in_two_classes_or_two_splits_is_said(tmp_path):
    truth = class_folders(tmp_path)
    save(tmp_path / "train" / "dog" / "again.png", truth["train/cat/0.png"])
    save(tmp_path / "val" / "bird" / "again.png", truth["train/bird/1.png"])
    save(tmp_path / "train" / "bird" / "twice.png", truth["train/bird/2.png"])  # in one class and split: harmless
    report = check(f"imagefolder:{tmp_path}")
    assert found(report) == {
        ("warning", "picture_twice", "train/cat/0.png"), ("warning", "picture_twice", "train/dog/again.png"),
        ("warning", "picture_twice", "train/bird/1.png"), ("warning", "picture_twice", "val/bird/again.png"),
    }  # fmt: skip
    assert report.ok
    messages = [finding.message for finding in report.findings]
    assert "the same picture in another class: train/dog/again.png" in messages[1]
    assert "the same picture in another split" in messages[0]


# The published set


@needs(IMAGENETTE)
def test_the_published_imagenette_counts_as_stated():
    data = open_set(f"imagefolder:{IMAGENETTE}")
    assert data.splits == {"train": 9469, "val": 2000}
    assert names(data) == [
        "cassette_player", "chain_saw", "church", "english_springer", "french_horn", "garbage_truck", "gas_pump",
        "golf_ball", "parachute", "tench",
    ]  # fmt: skip
    assert data.findings == ()
    of_val = check(data, split="val")
    assert of_val.findings == ()
    assert of_val.pictures == (200,) * 10
    of_train = [sum(item.index == k for item in data.only("train").items) for k in range(10)]
    assert (min(of_train), max(of_train)) == (858, 993)
