"""Metrics of detection against pycocotools, loops over the rules of VOC's program, and what must hold of any average precision."""

import contextlib
import importlib.util
import io
import math
import subprocess
import sys
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espy.errors import EngineError, ModelError
from espy.measure.detect import Found, Truth, coco, overlaps, voc

KINDS = 6  # of which the last two occur in no truth
SIDE = 640
QUICK = settings(deadline=None, database=None, max_examples=100)
needs_pycocotools = pytest.mark.skipif(
    importlib.util.find_spec("pycocotools") is None, reason="pycocotools is not installed"
)


def picture(rng, *, apart, most=40):
    """Objects and detections of a picture: displaced ones, doubles, ones of another kind, and ones of nothing.

    `apart`: no two objects overlap, each in its own cell of a grid. Scores are in steps of 1 / 20, so many are equal.
    """
    number = 0 if rng.random() < 0.1 else rng.integers(1, 17)
    if apart:
        cells = rng.permutation(16)[:number]
        size = rng.uniform(8, SIDE / 4, (number, 2))
        corner = np.stack([cells % 4, cells // 4], 1) * SIDE / 4 + rng.random((number, 2)) * (SIDE / 4 - size)
    else:
        size = np.exp(rng.uniform(np.log(8), np.log(300), (number, 2)))
        corner = rng.uniform(0, SIDE - 300, (number, 2))
    boxes = np.concatenate([corner, corner + size], 1)
    kinds, crowd = rng.integers(0, KINDS - 2, number), rng.random(number) < 0.15
    seen = 0 if rng.random() < 0.1 or not number else rng.integers(1, most)
    of = rng.integers(0, max(1, number), seen)
    moved = boxes[of] + rng.normal(0, 0.12, (seen, 4)) * np.tile(size[of], 2)
    low = np.minimum(moved[:, :2], moved[:, 2:])
    moved = np.concatenate([low, np.maximum(moved[:, 2:], low + 1)], 1)
    nothing = rng.random(seen) < 0.2
    moved[nothing] += rng.uniform(-200, 200, (int(nothing.sum()), 1))
    found_kinds = np.where(rng.random(seen) < 0.15, rng.integers(0, KINDS, seen), kinds[of])
    scores = (rng.integers(1, 21, seen) / 20).astype(np.float32)
    return Found(moved.astype(np.float32), scores, found_kinds), Truth(boxes.astype(np.float32), kinds, crowd)


def pictures(seed, number=40, **how):
    rng = np.random.default_rng(seed)
    return [list(part) for part in zip(*[picture(rng, **how) for _ in range(number)], strict=True)]


def pycocotools(found, truth, most=100):
    """An evaluation by pycocotools, run, of at most `most` detections a picture."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def xywh(box):
        x1, y1, x2, y2 = map(float, box)
        return [x1, y1, x2 - x1, y2 - y1]

    objects, detections = [], []
    for i, (seen, there) in enumerate(zip(found, truth, strict=True)):
        for b, box in enumerate(there.boxes):
            crowd = bool(there.crowd is not None and there.crowd[b])
            area = xywh(box)[2] * xywh(box)[3] if there.area is None else float(there.area[b])
            objects.append(
                {"id": len(objects) + 1, "image_id": i + 1, "category_id": int(there.classes[b]) + 1,
                 "bbox": xywh(box), "area": area, "iscrowd": int(crowd)}
            )  # fmt: skip
        detections += [
            {"image_id": i + 1, "category_id": int(kind) + 1, "bbox": xywh(box), "score": float(score)}
            for box, score, kind in zip(seen.boxes, seen.scores, seen.classes, strict=True)
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {
            "info": {}, "annotations": objects, "images": [{"id": i + 1} for i in range(len(truth))],
            "categories": [{"id": k + 1} for k in range(KINDS)],
        }  # fmt: skip
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(detections), "bbox")
        evaluation.params.maxDets = [1, 10, most]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize() if most == 100 else None
    return evaluation


def numbers(found):
    """COCO's twelve."""
    return np.array(astuple(found)[2:])


def same(found, theirs):
    """Equal to 1e-6, where theirs says nothing by -1 and ours by nan."""
    theirs = np.asarray(theirs)
    return np.allclose(found, np.where(theirs < 0, np.nan, theirs), rtol=0, atol=1e-6, equal_nan=True)


@needs_pycocotools
class TestCoco:
    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("apart", [False, True])
    def test_all_twelve_numbers_and_those_of_each_kind_are_pycocotools(self, seed, apart):
        found, truth = pictures(seed, apart=apart)
        assert any(not len(there.boxes) for there in truth)
        assert any(not len(seen.boxes) and len(there.boxes) for seen, there in zip(found, truth, strict=True))
        assert sum(int(there.crowd.sum()) for there in truth) > 20
        ours, theirs = coco(found, truth, KINDS), pycocotools(found, truth)
        assert same(numbers(ours), theirs.stats)
        assert len(set(numbers(ours).round(6))) > 8, "the numbers should differ, to be told apart"
        precision = theirs.eval["precision"][:, :, :, 0, -1]
        assert same(ours.kinds, precision.mean((0, 1)))
        assert same(ours.kinds50, precision[0].mean(0))
        assert np.isnan(ours.kinds).tolist() == [False] * 4 + [True] * 2

    def test_more_than_a_hundred_detections_of_a_kind_in_a_picture(self):
        found, truth = pictures(7, 6, apart=False, most=30)
        rng = np.random.default_rng(0)
        many = rng.integers(0, len(truth[-1].boxes), 400)
        boxes = truth[-1].boxes[many] + rng.normal(0, 3, (400, 4)).astype(np.float32)
        scores = rng.permutation(400) / 400  # the best of an object may come after a hundred others
        found[-1] = Found(boxes, scores, np.zeros(400, np.int64))
        truth[-1] = replace(truth[-1], classes=np.zeros_like(truth[-1].classes))
        assert same(numbers(coco(found, truth, KINDS)), pycocotools(found, truth).stats)
        best = np.argsort(-scores)[:100]
        cut = [*found[:-1], Found(boxes[best], scores[best], np.zeros(100, np.int64))]
        assert coco(cut, truth, KINDS).map == coco(found, truth, KINDS).map
        assert voc(cut, truth, KINDS)[0] != voc(found, truth, KINDS)[0], "VOC's counts all of them"

    def test_objects_are_small_or_large_by_the_area_that_is_given(self):
        found, truth = pictures(8, 20, apart=True)
        outlines = [replace(there, area=areas(there.boxes) * 0.4) for there in truth]
        ours = coco(found, outlines, KINDS)
        assert same(numbers(ours), pycocotools(found, outlines).stats)
        assert ours.map == coco(found, truth, KINDS).map
        assert ours.map_small != coco(found, truth, KINDS).map_small

    def test_a_difficult_object_counts_as_a_crowd(self):
        found, truth = pictures(9, 20, apart=False)
        crowds = coco(found, truth, KINDS)
        marked = [Truth(there.boxes, there.classes, difficult=there.crowd) for there in truth]
        assert np.array_equal(numbers(coco(found, marked, KINDS)), numbers(crowds))


def areas(boxes):
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


# VOC, by loops


def voc_by_loops(found, truth, kind, points=False):
    """The rules of VOCevaldet.m as loops over boxes of whole pixels, first and last of each included; crowds beside it.

    The area is written otherwise: with n objects, the mean over k = 1 .. n of the best precision with k or more hits.
    """
    rows = [
        (float(score), i, inclusive(box))
        for i, seen in enumerate(found)
        for score, box, k in zip(seen.scores, seen.boxes, seen.classes, strict=True)
        if k == kind
    ]
    rows.sort(key=lambda row: -row[0])
    objects = [
        [
            {"box": inclusive(box), "crowd": bool(c), "difficult": bool(d), "taken": False}
            for box, k, c, d in zip(there.boxes, there.classes, there.crowd, there.difficult, strict=True)
            if k == kind
        ]
        for there in truth
    ]
    count = sum(not o["crowd"] and not o["difficult"] for of in objects for o in of)
    if not count:
        return math.nan
    hits, false, curve = 0, 0, [(0, 0.0)]
    for _, i, box in rows:
        best, most = None, -1.0
        for one in objects[i]:
            both = shared(box, one["box"])
            union = pixels(box) + pixels(one["box"]) - both
            if not one["crowd"] and both / union > most:
                best, most = one, both / union
        if most >= 0.5 and best["difficult"]:
            continue
        if most >= 0.5 and not best["taken"]:
            best["taken"] = True
            hits += 1
        elif any(one["crowd"] and shared(box, one["box"]) / pixels(box) >= 0.5 for one in objects[i]):
            continue
        else:
            false += 1
        curve.append((hits, hits / (hits + false)))
    if points:  # recall of at least tenths / 10, in whole numbers
        return sum(max([p for h, p in curve if 10 * h >= t * count], default=0) for t in range(11)) / 11
    return sum(max([p for h, p in curve if h >= k], default=0) for k in range(1, count + 1)) / count


def inclusive(box):
    """The first and the last pixel, counted from 1."""
    x1, y1, x2, y2 = (int(value) for value in box)
    return x1 + 1, y1 + 1, x2, y2


def pixels(box):
    return max(0, box[2] - box[0] + 1) * max(0, box[3] - box[1] + 1)


def shared(one, other):
    return pixels((max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])))


def whole(seen, there, rng):
    """The same in whole pixels, some objects difficult."""
    difficult = ~there.crowd & (rng.random(len(there.crowd)) < 0.25)
    return replace(seen, boxes=seen.boxes.round()), replace(there, boxes=there.boxes.round(), difficult=difficult)


class TestVoc:
    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("points", [False, True])
    def test_it_is_what_the_rules_of_vocs_program_give_on_whole_pixels(self, seed, points):
        rng = np.random.default_rng(seed)
        scenes = zip(*pictures(seed, 25, apart=seed % 2 == 0), strict=True)
        found, truth = zip(*[whole(*scene, rng) for scene in scenes], strict=True)
        expected = [voc_by_loops(found, truth, kind, points) for kind in range(KINDS)]
        assert len(set(np.round(expected[:4], 3))) == 4
        assert np.allclose(voc(found, truth, KINDS, points=points), expected, rtol=0, atol=1e-12, equal_nan=True)

    @needs_pycocotools
    @pytest.mark.parametrize("seed", range(4))
    def test_it_is_the_area_under_the_curve_of_pycocotools_own_matches(self, seed):
        """Where no two objects overlap a detection is close to one at most, so that both programs match alike.

        What pycocotools matched at IoU 0.5, of any area, gives the curve; its own 101 points are not used.
        """
        found, truth = pictures(seed, apart=True)
        theirs = pycocotools(found, truth, most=1000)
        expected = []
        for kind in range(KINDS):
            of_kind = [
                e
                for e in theirs.evalImgs
                if e and e["category_id"] == kind + 1 and e["aRng"] == theirs.params.areaRng[0]
            ]
            objects = sum(np.count_nonzero(e["gtIgnore"] == 0) for e in of_kind)
            rows = [
                (-score, match > 0)
                for e in of_kind
                for score, match, ignored in zip(e["dtScores"], e["dtMatches"][0], e["dtIgnore"][0], strict=True)
                if not ignored
            ]
            curve, hits = [], 0
            for n, (_, hit) in enumerate(sorted(rows, key=lambda row: row[0]), 1):
                hits += bool(hit)
                curve.append((hits, hits / n))
            steps = [max([p for h, p in curve if h >= k], default=0) for k in range(1, objects + 1)]
            expected.append(sum(steps) / objects if objects else math.nan)
        assert np.allclose(voc(found, truth, KINDS), expected, rtol=0, atol=1e-6, equal_nan=True)

    def test_a_second_detection_of_an_object_is_wrong_even_where_another_object_is_close(self):
        """COCO's would give it the other one."""
        objects = Truth(boxes_of((0, 0, 100, 100), (10, 0, 110, 100)), np.zeros(2, np.int64))
        seen = Found(boxes_of((0, 0, 100, 100), (2, 0, 102, 100)), np.array([0.9, 0.8]), np.zeros(2, np.int64))
        assert voc([seen], [objects], 1) == 0.5
        assert math.isclose(coco([seen], [objects], 1).ap50, 1)

    def test_an_object_in_a_crowd_is_found_all_the_same_and_the_rest_of_the_crowd_is_left_out(self):
        objects = Truth(
            boxes_of((0, 0, 40, 40), (0, 0, 400, 400)), np.zeros(2, np.int64), crowd=np.array([False, True])
        )
        others = boxes_of(
            (100, 100, 140, 140), (0, 0, 40, 40), (300, 300, 500, 340)
        )  # crowd, object, half in the crowd
        seen = Found(others, np.array([0.9, 0.5, 0.7]), np.zeros(3, np.int64))
        assert voc([seen], [objects], 1) == 1
        far = replace(seen, boxes=others + np.array([[0], [0], [1]], np.float32))
        assert voc([far], [objects], 1) == 0.5


def boxes_of(*rows):
    return np.array(rows, np.float32).reshape(-1, 4)


# What must hold of any

# four places, six boxes in each: the same, nearly the same, larger, inside
BOXES = np.array(
    [
        (x + dx, y + dy, x + dx + w, y + dy + h)
        for x in (0, 40)
        for y in (0, 40)
        for dx, dy, w, h in [
            (0, 0, 30, 30),
            (2, 0, 30, 30),
            (6, 3, 30, 30),
            (0, 9, 30, 20),
            (0, 0, 60, 50),
            (10, 10, 15, 15),
        ]
    ],
    np.float32,
)
PICTURES, MARKS, STEPS = 3, ("", "", "", "crowd", "difficult"), 50
OBJECTS, SEEN = (PICTURES, 3, len(BOXES), len(MARKS)), (PICTURES, 3, len(BOXES), STEPS)


def numbered(shape, most, key):
    """Lists of up to `most` places in an array of this shape, all different by `key`."""
    places = st.lists(st.integers(0, math.prod(shape) - 1), max_size=most, unique_by=key)
    return places.map(lambda found: np.stack(np.unravel_index(np.array(found, np.intp), shape)))


@st.composite
def scenes(draw):
    """Three pictures: objects, each of another box than those of its kind, and detections of scores that all differ."""
    image, kind, box, mark = draw(numbered(OBJECTS, 12, lambda place: place // len(MARKS)))
    flags = [np.array([MARKS[m] == name for m in mark], bool) for name in ("crowd", "difficult")]
    truth = [
        Truth(BOXES[box[image == i]], kind[image == i], *[flag[image == i] for flag in flags]) for i in range(PICTURES)
    ]
    image, kind, box, step = draw(numbered(SEEN, 15, lambda place: place % STEPS))
    scores = (step + 1) / (STEPS + 1)
    found = [Found(BOXES[box[image == i]], scores[image == i], kind[image == i]) for i in range(PICTURES)]
    return found, truth


def all_of(found, truth):
    """Every kind's AP, by all rules, in one array."""
    of_coco = coco(found, truth, 3)
    return np.stack(
        [voc(found, truth, 3), voc(found, truth, 3, points=True), of_coco.kinds, of_coco.kinds50, [of_coco.map] * 3]
    )


def wanted(there):
    return ~(there.crowd | there.difficult)


class TestProperties:
    @QUICK
    @given(scenes())
    def test_it_is_1_for_perfect_detections_and_nan_for_kinds_that_nobody_had_to_find(self, scene):
        _, truth = scene
        perfect = [Found(t.boxes[wanted(t)], np.ones(wanted(t).sum()), t.classes[wanted(t)]) for t in truth]
        there = set(np.concatenate([t.classes[wanted(t)] for t in truth]).tolist())
        expected = np.array([1.0 if kind in there else np.nan for kind in range(3)])
        found = all_of(perfect, truth)
        assert np.allclose(found[:4], [expected] * 4, atol=1e-12, equal_nan=True)
        assert np.allclose(found[4], 1.0 if there else np.nan, equal_nan=True)

    @QUICK
    @given(scenes())
    def test_it_is_0_without_detections(self, scene):
        _, truth = scene
        none = [Found(boxes_of(), np.zeros(0), np.zeros(0, np.int64)) for _ in truth]
        found = all_of(none, truth)
        assert np.nan_to_num(found).max() == 0
        assert np.array_equal(np.isnan(found), np.isnan(all_of(*scene)))

    @QUICK
    @given(scenes(), st.integers(0, 2))
    def test_it_is_never_more_with_a_false_detection_of_top_score(self, scene, kind):
        found, truth = scene
        last = found[-1]
        false = Found(
            np.concatenate([last.boxes, boxes_of((900, 900, 950, 950))]),
            np.append(last.scores, 1),
            np.append(last.classes, kind),
        )
        before, after = all_of(found, truth), all_of([*found[:-1], false], truth)
        assert np.array_equal(np.isnan(before), np.isnan(after))
        assert (np.nan_to_num(after) <= np.nan_to_num(before) + 1e-12).all()

    @QUICK
    @given(scenes(), st.randoms(use_true_random=False))
    def test_the_order_of_pictures_and_of_detections_is_no_matter(self, scene, random):
        pairs = [(shuffled(seen, random), there) for seen, there in zip(*scene, strict=True)]
        random.shuffle(pairs)
        assert np.allclose(all_of(*zip(*pairs, strict=True)), all_of(*scene), rtol=0, atol=1e-12, equal_nan=True)


def shuffled(seen, random):
    order = list(range(len(seen.scores)))
    random.shuffle(order)
    return Found(seen.boxes[order], seen.scores[order], seen.classes[order])


def test_overlaps_are_counted_pixels():
    def mask(box):
        out = np.zeros((100, 100), bool)
        out[box[1] : box[3], box[0] : box[2]] = True
        return out

    masks = [mask(box) for box in BOXES.astype(int)]
    for found, whole in (
        (overlaps(BOXES, BOXES), np.logical_or),
        (overlaps(BOXES, BOXES, within=True), lambda a, b: a),
    ):
        expected = [[(a & b).sum() / whole(a, b).sum() for b in masks] for a in masks]
        assert np.allclose(found, expected, rtol=0, atol=1e-12)
        assert len(np.unique(found)) > 5
    assert overlaps(BOXES, BOXES[:0]).shape == (len(BOXES), 0)


# Around it


def test_no_pictures_and_no_objects_are_nan():
    nothing = Found(boxes_of(), np.zeros(0), np.zeros(0, np.int64)), Truth(boxes_of(), np.zeros(0, np.int64))
    for found, truth in (([], []), ([nothing[0]], [nothing[1]])):
        seen = coco(found, truth, 2)
        assert np.isnan(numbers(seen)).all()
        assert np.isnan([*seen.kinds, *seen.kinds50, *voc(found, truth, 2)]).all()


def test_the_module_is_light_and_measuring_prints_nothing():
    code = """if True:
        import sys
        import espy.measure.detect as detect
        assert not {"faster_coco_eval", "torch"} & sys.modules.keys()
        import numpy as np
        boxes, kind = np.array([[10.0, 10, 50, 50]], np.float32), np.array([0])
        pair = [detect.Found(boxes, np.ones(1), kind)], [detect.Truth(boxes, kind)]
        assert detect.coco(*pair, 1).map > 0.99 and detect.voc(*pair, 1)[0] == 1
        assert "torch" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_the_package_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(EngineError, match=r"^measuring detections needs faster_coco_eval: .*'espy-vision\[train\]'$"):
        coco([], [], 1)
    assert np.isnan(voc([], [], 1)).all(), "VOC's needs no package"


class TestRefused:
    SEEN = Found(boxes_of((0, 0, 9, 9)), np.ones(1), np.zeros(1, np.int64))
    THERE = Truth(boxes_of((0, 0, 9, 9)), np.zeros(1, np.int64))

    @pytest.mark.parametrize("measure", [coco, voc])
    @pytest.mark.parametrize(
        ("seen", "there", "says"),
        [
            (replace(SEEN, scores=np.ones(2)), THERE, "detections of picture 1: boxes are"),
            (replace(SEEN, boxes=np.zeros(4)), THERE, "detections of picture 1: boxes are"),
            (replace(SEEN, classes=np.array([2])), THERE, r"detections of picture 1: classes are 2\.\.2, not 0\.\.1"),
            (SEEN, replace(THERE, classes=np.array([-1])), "objects of picture 1: classes are -1"),
            (SEEN, replace(THERE, crowd=np.zeros(3, bool)), "objects of picture 1: boxes are"),
        ],
    )
    def test_arrays_that_do_not_belong_together_are_refused_by_picture(self, measure, seen, there, says):
        with pytest.raises(ValueError, match=says):
            measure([self.SEEN, seen], [self.THERE, there], 2)

    @pytest.mark.parametrize("measure", [coco, voc])
    def test_another_number_of_pictures_is_refused(self, measure):
        with pytest.raises(ValueError, match="detections of 1 pictures, the truth of 2"):
            measure([self.SEEN], [self.THERE] * 2, 2)

    @pytest.mark.parametrize("measure", [coco, voc])
    @pytest.mark.parametrize("change", [{"boxes": boxes_of((0, 0, np.inf, 9))}, {"scores": np.array([np.nan])}])
    def test_what_is_no_finite_number_is_refused(self, measure, change):
        with pytest.raises(ModelError, match="picture 0 has detections"):
            measure([replace(self.SEEN, **change)], [self.THERE], 2)
