"""Suppression of boxes: the engine's own and the deployed graph's, against the rule written out in loops."""

from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espy.run import nms
from espy.run.nms import detections, iou
from espy.ship.onnx import append_suppression


def area(box):
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def overlap(one, two):
    shared = area((max(one[0], two[0]), max(one[1], two[1]), min(one[2], two[2]), min(one[3], two[3])))
    together = area(one) + area(two) - shared
    return shared / together if together > 0 else 0.0


def oracle(scores, boxes):
    """Networks 4, in words: per kind, scores above 0.01, greedy at IoU 0.45, the best 200; per picture the best first."""
    found = []
    for picture in range(len(scores)):
        of_picture = []
        for kind in range(scores.shape[1]):
            order = sorted(range(scores.shape[2]), key=lambda p: (-scores[picture, kind, p], p))
            kept = []
            for prior in order:
                if scores[picture, kind, prior] <= 0.01 or len(kept) == 200:
                    continue
                box = boxes[picture, prior].astype(np.float64)
                if all(overlap(box, boxes[picture, other].astype(np.float64)) <= 0.45 for other in kept):
                    kept.append(prior)
            of_picture += [(picture, kind, scores[picture, kind, p], *boxes[picture, p]) for p in kept]
        found += sorted(of_picture, key=lambda row: -row[2])
    return np.array(found, np.float32).reshape(-1, 7)


def random_input(seed, pictures, kinds, priors, spread=60.0):
    """Boxes that crowd each other, scores of which some are below the least; places on a grid, so that overlaps are exact."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, spread, (pictures, priors, 2))
    boxes = np.concatenate([corners, corners + rng.integers(1, 30, (pictures, priors, 2))], 2).astype(np.float32)
    scores = rng.permutation(pictures * kinds * priors).reshape(pictures, kinds, priors)
    return (scores / scores.size * rng.choice([0.02, 1.0])).astype(np.float32), boxes


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 4), st.integers(1, 60), st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_boxes_that_stay_are_those_of_the_rule_however_many_are_compared_at_a_time(
    seed, pictures, kinds, priors, block
):
    scores, boxes = random_input(seed, pictures, kinds, priors)
    with patch.object(nms, "BLOCK", block):
        assert np.array_equal(detections(scores, boxes), oracle(scores, boxes))


def test_at_most_200_of_a_kind_stay():
    scores, boxes = random_input(3, 1, 2, 900, spread=4000.0)
    found = detections(scores, boxes)
    assert np.bincount(found[:, 1].astype(int)).tolist() == [200, 200]
    assert np.array_equal(found, oracle(scores, boxes))


def test_equal_scores_keep_the_order_of_kinds_and_priors():
    boxes = np.array([[[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]]], np.float32)
    found = detections(np.full((1, 2, 3), 0.5, np.float32), boxes)
    assert found[:, 1].tolist() == [0, 0, 0, 1, 1, 1]
    assert found[:, 3].tolist() == [0, 20, 40, 0, 20, 40]


def test_nothing_above_the_least_score_is_no_box():
    assert detections(np.full((2, 3, 5), 0.01, np.float32), np.zeros((2, 5, 4), np.float32)).shape == (0, 7)


def test_boxes_without_area_overlap_nothing():
    flat = np.array([[5, 5, 5, 9], [5, 5, 5, 9]], np.float32)
    assert iou(flat, flat).tolist() == [[0, 0], [0, 0]]


def test_numbers_that_are_not_finite_end_nothing():
    scores = np.array([[[0.9, np.nan, 0.8]]], np.float32)
    boxes = np.array([[[0, 0, np.inf, 5], [0, 0, 1, 1], [0, 0, 4, np.nan]]], np.float32)
    with np.errstate(invalid="ignore"):
        assert len(detections(scores, boxes)) == 2  # a score that is no number is above nothing


# The deployed graph's


@pytest.fixture(scope="module")
def graph():
    """A graph that does nothing but suppress."""
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
             for name, shape in (("scores", ["n", "k", "p"]), ("boxes", ["n", "p", 4]))]  # fmt: skip
    model = onnx.helper.make_model(
        onnx.helper.make_graph([], "suppression", ports, ports), opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=10,
    )  # fmt: skip
    append_suppression(model)
    onnx.checker.check_model(model)
    return model.SerializeToString()


CASES = [(0, 1, 1, 1), (1, 1, 3, 40), (2, 3, 2, 80), (3, 2, 20, 60), (4, 2, 4, 300)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_graph_in_onnx_runtime_equals_the_rule(graph, case):
    scores, boxes = random_input(*case)
    (found,) = onnxruntime.InferenceSession(graph).run(None, {"scores": scores, "boxes": boxes})
    assert np.array_equal(found, oracle(scores, boxes))


def test_the_graph_in_openvino_equals_the_rule(graph, tmp_path):
    """But for overlaps of exactly 0.45, such as 9 pixels of 20: there it lets the worse box go. Sides off the grid have none."""
    (tmp_path / "m.onnx").write_bytes(graph)
    compiled = openvino.Core().compile_model(tmp_path / "m.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for case in CASES:
        scores, boxes = random_input(*case)
        boxes += np.random.default_rng(5).random(boxes.shape, np.float32)
        found = compiled.create_infer_request().infer({"scores": scores, "boxes": boxes})["detections"]
        assert np.array_equal(found, oracle(scores, boxes)), case


def test_the_graph_finds_nothing_where_nothing_is(graph):
    scores, boxes = np.zeros((2, 3, 10), np.float32), np.ones((2, 10, 4), np.float32)
    (found,) = onnxruntime.InferenceSession(graph).run(None, {"scores": scores, "boxes": boxes})
    assert found.shape == (0, 7)
