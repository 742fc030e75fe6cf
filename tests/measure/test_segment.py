"""Metrics of segmentation against loops over pixels, the mapping against its table, and other libraries where they are."""

import importlib.util
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from espy.errors import DataError
from espy.labels import CAMVID, CITYSCAPES, Label, plain
from espy.measure.mapping import read_mapping, shipped, table
from espy.measure.segment import VOID, confusion, scores
from espy.measure.sheet import COLUMNS, Row, contact_sheet, matrix_picture

CLASSES = 4
VALUES = st.sampled_from([*range(CLASSES), VOID])


@st.composite
def pairs(draw):
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    return tuple(draw(arrays(np.uint8, shape, elements=VALUES)) for _ in range(2))


def by_loops(truth, prediction, void_counted=False):
    """(mIoU, pixel accuracy, class accuracy, IoUs) counted pixel by pixel, class by class; None where nothing is there."""
    seen = [
        (int(t), int(p)) for t, p in zip(truth.ravel(), prediction.ravel(), strict=True) if void_counted or t != VOID
    ]
    ious, recalls = [], []
    for k in range(CLASSES):
        union = sum(t == k or p == k for t, p in seen)
        both = sum(t == k and p == k for t, p in seen)
        there = sum(t == k for t, _ in seen)
        ious.append(both / union if union else None)
        if there:
            recalls.append(both / there)
    known = [iou for iou in ious if iou is not None]
    right = sum(t == p != VOID for t, p in seen)
    mean = [sum(part) / len(part) if part else None for part in (known, recalls)]
    return mean[0], right / len(seen) if seen else None, mean[1], ious


def same(found, expected):
    return math.isnan(found) if expected is None else math.isclose(found, expected, abs_tol=1e-12)


@given(pairs(), st.booleans())
def test_scores_are_those_of_loops_over_pixels(pair, void_counted):
    found = scores(confusion(*pair, CLASSES), void_counted=void_counted)
    miou, pixels, classes, ious = by_loops(*pair, void_counted)
    assert same(found.miou, miou)
    assert same(found.pixel_accuracy, pixels)
    assert same(found.class_accuracy, classes)
    assert all(same(a, b) for a, b in zip(found.iou, ious, strict=True))


@given(pairs())
def test_the_matrix_counts_every_pixel_where_it_belongs(pair):
    truth, prediction = pair
    matrix = confusion(truth, prediction, CLASSES)
    assert matrix.sum() == truth.size
    for t in range(CLASSES):
        for p in range(CLASSES):
            assert matrix[t, p] == ((truth == t) & (prediction == p)).sum()
        assert matrix[t, -1] == ((truth == t) & (prediction == VOID)).sum()
    assert matrix[-1].sum() == (truth == VOID).sum()


@given(pairs(), pairs())
def test_matrices_of_pictures_add_up(one, other):
    together = [np.concatenate([a.ravel(), b.ravel()]) for a, b in zip(one, other, strict=True)]
    assert np.array_equal(confusion(*one, CLASSES) + confusion(*other, CLASSES), confusion(*together, CLASSES))


@given(pairs())
def test_truth_predicted_is_perfect_and_void_is_no_matter(pair):
    truth, other = pair
    found = scores(confusion(truth, np.where(truth == VOID, other, truth), CLASSES))
    if (truth != VOID).any():
        assert (found.miou, found.pixel_accuracy, found.class_accuracy) == (1, 1, 1)
    else:
        assert math.isnan(found.miou)


def test_all_of_255_classes_are_told_apart_and_void_is_none_of_them():
    values = np.arange(256, dtype=np.uint8)
    assert np.array_equal(confusion(values, values, 255), np.eye(256))


def test_another_size_than_the_truths_is_refused():
    with pytest.raises(ValueError, match="truth's own size"):
        confusion(np.zeros((2, 2), np.uint8), np.zeros((4, 4), np.uint8), 2)


@pytest.mark.skipif(importlib.util.find_spec("torchmetrics") is None, reason="torchmetrics is not installed")
def test_miou_is_that_of_torchmetrics():
    import torch
    from torchmetrics.functional import jaccard_index

    truth, prediction = np.random.default_rng(0).integers(0, CLASSES, (2, 50, 60)).astype(np.uint8)
    truth[:5] = VOID
    theirs = jaccard_index(
        torch.from_numpy(prediction).long(),
        torch.from_numpy(truth).long(),
        "multiclass",
        num_classes=CLASSES,
        ignore_index=VOID,
    )
    assert abs(scores(confusion(truth, prediction, CLASSES)).miou - float(theirs)) < 1e-6


@pytest.mark.skipif(importlib.util.find_spec("cityscapesscripts") is None, reason="cityscapesscripts is not installed")
def test_ious_are_those_of_cityscapesscripts():
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as theirs
    from cityscapesscripts.helpers.labels import labels

    ids = [label.id for label in labels if label.trainId not in (255, -1)]
    truth, prediction = np.random.default_rng(0).integers(0, 19, (2, 50, 60)).astype(np.uint8)
    truth[:5] = VOID
    matrix = theirs.generateMatrix(theirs.args)
    for t, p in zip(truth.ravel(), prediction.ravel(), strict=True):
        matrix[0 if t == VOID else ids[t], ids[p]] += 1
    expected = [theirs.getIouScoreForLabel(value, matrix, theirs.args) for value in ids]
    assert np.allclose(scores(confusion(truth, prediction, 19)).iou, expected, atol=1e-6)


class TestMapping:
    CAMVID = tuple(label for label in CAMVID if not label.ignored)

    def test_the_shipped_one_says_what_every_cityscapes_class_is_in_camvid(self):
        found = table(CITYSCAPES, self.CAMVID, read_mapping("cityscapes-camvid"))
        said = {label.name: self.CAMVID[k].name if k < 11 else k for label, k in zip(CITYSCAPES, found, strict=False)}
        assert said == {
            "road": "road", "sidewalk": "pavement", "building": "building", "wall": "building", "fence": "fence",
            "pole": "pole", "traffic light": "sign_symbol", "traffic sign": "sign_symbol", "vegetation": "tree",
            "terrain": "tree", "sky": "sky", "person": "pedestrian", "rider": "bicyclist", "motorcycle": "bicyclist",
            "bicycle": "bicyclist", "car": "car", "truck": "car", "bus": "car", "train": "car", "background": VOID,
        }  # fmt: skip

    def test_without_one_equal_names_meet_whatever_their_order(self):
        model = (Label("Traffic_Sign", (0, 0, 0)), Label("road", (0, 0, 0)), Label("void", (0, 0, 0), ignored=True))
        data = (Label("road", (0, 0, 0)), Label("traffic sign", (0, 0, 0)))
        assert table(model, data)[:3].tolist() == [1, 0, VOID]

    def test_names_that_differ_by_case_alone_are_classes_of_their_own(self):
        labels = tuple(Label(name, (0, 0, 0)) for name in ("a b", "A b", "a_b", "c"))
        assert table(labels, labels)[:4].tolist() == [0, 1, 2, 3]
        assert table(labels[1:], labels)[:3].tolist() == [1, 2, 3]

    def test_strangers_are_refused_and_the_mapping_that_fits_is_named(self):
        with pytest.raises(DataError, match="--mapping cityscapes-camvid"):
            table(CITYSCAPES, self.CAMVID)
        with pytest.raises(DataError, match="--mapping FILE"):
            table(plain(3), self.CAMVID)

    @pytest.mark.parametrize(
        ("text", "says"),
        [('"a" = ', "not TOML"), ('"class 0" = 1', "not a name"), ('"class 0" = "road"', "no line for the model's 'class 1'"),
         ('"class 0" = "road"\n"class 1" = "rod"', "did you mean 'road'")],
    )  # fmt: skip
    def test_a_file_that_cannot_work_says_why(self, tmp_path, text, says):
        (tmp_path / "m.toml").write_text(text)
        with pytest.raises(DataError, match=says):
            table(plain(2), self.CAMVID, read_mapping(tmp_path / "m.toml"))

    def test_an_unknown_name_lists_those_shipped(self):
        with pytest.raises(DataError, match=shipped()[0]):
            read_mapping("cityscape-camvid")


class TestPictures:
    def test_errors_are_red_where_truth_and_prediction_differ_and_nowhere_on_void(self):
        truth = np.repeat(np.array([0, 0, 1, VOID], np.uint8), 80)[None].repeat(
            240, 0
        )  # 240 x 320: the cell's own size
        prediction = np.repeat(np.array([0, 1, 1, 1], np.uint8), 80)[None].repeat(240, 0)
        sheet = contact_sheet([Row("a", Image.new("RGB", (320, 240), (90, 90, 90)), truth, prediction)], plain(2))
        assert sheet.width == 320 * len(COLUMNS)
        bottom = np.asarray(sheet)[-1].reshape(len(COLUMNS), 4, 80, 3)
        assert all((part == part[0]).all() for column in bottom for part in column)
        colours = bottom[:, :, 0].tolist()
        zero, one = (list(label.colour) for label in plain(2))
        assert colours[1] == [zero, zero, one, [0, 0, 0]]
        assert colours[2] == [zero, one, one, one]
        assert colours[3] == [[45] * 3, [230, 30, 30], [45] * 3, [0, 0, 0]]

    @pytest.mark.parametrize("classes", [1, 11, 200])
    def test_a_matrix_of_any_number_of_classes_is_drawn(self, classes):
        picture = matrix_picture(np.eye(classes + 1, dtype=np.int64), plain(classes))
        assert picture.width == picture.height
        assert np.asarray(picture)[-1, -1].tolist() == [8, 48, 107]
