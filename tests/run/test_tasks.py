"""Classification and detection from a model file to results: the same on every engine, in the picture's own pixels."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import espy
from espy import load
from espy.errors import EngineError, EspyError, ModelError, OutputError
from espy.header import read_onnx_header, read_safetensors, to_json
from espy.picture.draw import BAR
from espy.picture.frame import Frame
from espy.run import nms
from samples import PHOTOS, scene

NAMES = ("china.jpg", "dog.jpg", "person.jpg", "street_city.jpg")
ENGINES = {"onnxruntime": ".onnx", "openvino": ".onnx", "torch": ".safetensors"}


@pytest.fixture(scope="module")
def by_engine(tiny_classifier, tiny_classifier_onnx, tiny_detector, tiny_detector_onnx):
    """task → engine → its results for the bundled photos."""
    files = {
        "classify": {".onnx": tiny_classifier_onnx, ".safetensors": tiny_classifier},
        "detect": {".onnx": tiny_detector_onnx, ".safetensors": tiny_detector},
    }
    found = {}
    for task, endings in files.items():
        for engine, ending in ENGINES.items():
            with load(endings[ending], engine=engine) as model:
                assert (model.task, model.engine.task) == (task, task)
                found.setdefault(task, {})[engine] = [model(PHOTOS / name) for name in NAMES]
    return found


def test_all_engines_give_the_same_probabilities(by_engine):
    for engine in ("openvino", "torch"):
        for one, two in zip(by_engine["classify"][engine], by_engine["classify"]["onnxruntime"], strict=True):
            assert np.allclose(one.probabilities, two.probabilities, atol=1e-5)
            assert one.top(1)[0][0] == two.top(1)[0][0]


def alike(one, two, within_px):
    """Whether each of both has one of the same kind at the same place, scored the same; rounding may exchange neighbours."""
    same = (one.classes[:, None] == two.classes) & (np.abs(one.scores[:, None] - two.scores) < 1e-5)
    same &= (np.abs(one.boxes[:, None] - two.boxes) < within_px).all(2)
    return len(one) == len(two) and same.any(1).all() and same.any(0).all()


def test_all_engines_give_the_same_boxes(by_engine):
    for engine in ("openvino", "torch"):
        for one, two in zip(by_engine["detect"][engine], by_engine["detect"]["onnxruntime"], strict=True):
            assert len(one) > 20
            assert alike(one, two, within_px=0.05)


def test_a_classification_has_what_the_contract_says(by_engine):
    result = by_engine["classify"]["onnxruntime"][1]
    assert result.task == "classify"
    assert result.probabilities.shape == (7,)
    assert result.probabilities.dtype == np.float32
    assert result.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert result.size == (576, 768)
    top = result.top(3)
    assert [name for name, _ in top] == [f"class {k}" for k in np.argsort(-result.probabilities)[:3]]
    assert [p for _, p in top] == sorted(map(float, result.probabilities), reverse=True)[:3]
    assert len(result.top(99)) == 7
    said = result.to_dict()
    assert said["top"][0] == {"label": top[0][0], "probability": round(top[0][1], 6)}
    assert len(said["top"]) == 5
    assert set(said["timing"]) == {"decode", "prepare", "engine", "finish"}


def test_detections_have_what_the_contract_says(by_engine):
    result = by_engine["detect"]["onnxruntime"][1]
    assert result.task == "detect"
    assert (result.boxes.dtype, result.scores.dtype, result.classes.dtype) == (np.float32, np.float32, np.int64)
    assert result.boxes.shape == (len(result), 4)
    assert (np.diff(result.scores) <= 0).all()
    assert (result.scores > 0.01).all()
    assert set(result.classes) <= {0, 1, 2}
    height, width = result.size
    assert (result.boxes >= 0).all()
    assert (result.boxes[:, [0, 2]] <= width).all()
    assert (result.boxes[:, [1, 3]] <= height).all()
    assert (result.boxes[:, 2:] >= result.boxes[:, :2]).all()
    said = result.to_dict()["boxes"]
    assert len(said) == (result.scores > 0.3).sum()
    x1, y1, x2, y2 = map(float, result.boxes[0])
    assert said[0]["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.01)
    assert said[0]["label"] == f"class {result.classes[0]}"


def test_boxes_are_in_the_pictures_own_pixels(tiny_detector_onnx):
    """The engine's boxes for the picture as the network sees it, scaled by hand."""
    with load(tiny_detector_onnx) as model:
        picture = scene(200, 320)
        rows = model.engine.run(Frame.of(model.preprocess, (200, 320)).to_network(picture)[None])["detections"]
        result = model(picture)
        expected = rows[:, 3:] * [320 / 96, 200 / 96, 320 / 96, 200 / 96]
        assert np.allclose(result.boxes, expected.clip(0, [320, 200, 320, 200]), atol=1e-3)
        assert np.array_equal(result.scores, rows[:, 2])


def test_the_middle_of_a_picture_is_classified(tiny_classifier_onnx):
    """The short side is brought to the network's and the rest cut off at both ends: what lies there changes nothing."""
    with load(tiny_classifier_onnx) as model:
        picture = scene(64, 160)
        changed = picture.copy()
        changed[:, :44], changed[:, 116:] = 0, 255
        assert np.array_equal(model(picture).probabilities, model(changed).probabilities)
        assert not np.array_equal(model(picture).probabilities, model(picture[:, ::-1]).probabilities)


@pytest.mark.parametrize("task", ["classify", "detect"])
def test_pictures_of_a_batch_are_those_seen_one_by_one(task, tiny_classifier_onnx, tiny_detector_onnx):
    with load(tiny_classifier_onnx if task == "classify" else tiny_detector_onnx) as model:
        pictures = [scene(80, 80, seed) for seed in range(5)]
        together = [item.result for item in model.map(pictures, batch=3)]
        for picture, found in zip(pictures, together, strict=True):
            alone = model(picture)
            if task == "classify":
                assert np.allclose(found.probabilities, alone.probabilities, atol=1e-6)
            else:
                assert alike(found, alone, within_px=0.01)


@pytest.mark.parametrize("task", ["classify", "detect"])
def test_results_are_saved_by_their_ending_and_nothing_is_overwritten(by_engine, tmp_path, task):
    result = by_engine[task]["onnxruntime"][0]
    for name in ("a.png", "a.jpg", "a.webp", "a.json"):
        result.save(tmp_path / name)
        with pytest.raises(OutputError):
            result.save(tmp_path / name)
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == json.loads(json.dumps(result.to_dict()))
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), np.asarray(result.overlay()))
    with pytest.raises(OutputError, match="webp"):
        result.save(tmp_path / "a.txt")
    assert result._repr_png_().startswith(b"\x89PNG")


def test_drawing_leaves_the_picture_as_it_was_and_shows_what_scores_enough(by_engine):
    result = by_engine["detect"]["onnxruntime"][1]
    before = np.asarray(result.image).copy()
    drawn = np.asarray(result.overlay())
    assert np.array_equal(np.asarray(result.image), before)
    assert (drawn != before).any()
    assert np.array_equal(np.asarray(result.overlay(min_score=1.0)), before)
    side = result.view("side")
    assert side.size == (2 * result.image.width, result.image.height)
    colours = {label.colour for label in result.labels}
    x1, y1 = np.round(result.boxes[0, :2]).astype(int)
    assert tuple(drawn[min(y1 + 30, 575), min(x1, 767)]) in colours  # the best box's left edge


def test_a_bar_is_as_long_as_its_class_is_likely(by_engine):
    result = by_engine["classify"]["onnxruntime"][1]
    drawn = np.asarray(result.overlay())
    rows = (drawn == BAR).all(2).sum(1)
    longest = max(rows) / (768 - 15)
    assert longest == pytest.approx(result.top(1)[0][1], abs=0.02)


# What cannot work


def test_tiles_and_scores_are_for_masks(tiny_detector_onnx, tiny_classifier, tmp_path):
    with pytest.raises(EngineError, match="tiles are for segmentation, this model's task is detect"):
        load(tiny_detector_onnx, tile=(96, 96))
    with pytest.raises(EspyError, match="second output, this model's task is classify"):
        espy.export(tiny_classifier, path=tmp_path / "m.onnx", scores=True)


def test_a_detector_has_one_size(tiny_detector_onnx):
    with pytest.raises(EngineError, match="only height 96, width 96"):
        load(tiny_detector_onnx, size=(128, 128))


def test_a_header_of_another_task_than_its_graph_is_refused(tiny_detector, tiny_onnx, tmp_path):
    header = json.loads(to_json(read_safetensors(tiny_detector)[0]))
    (tmp_path / "h.json").write_text(json.dumps(header))
    with pytest.raises(ModelError, match="header says task 'detect', its graph is for 'segment'"):
        load(tiny_onnx, header=tmp_path / "h.json")


def test_the_exported_file_says_its_task_and_sizes(tiny_classifier_onnx, tiny_detector_onnx):
    header = read_onnx_header(tiny_detector_onnx, Path(tiny_detector_onnx).read_bytes())
    assert (header.task, header.sizes, len(header.labels)) == ("detect", [(96, 96)], 3)
    header = read_onnx_header(tiny_classifier_onnx, Path(tiny_classifier_onnx).read_bytes())
    assert (header.task, header.sizes) == ("classify", {"multiple": 32})


def test_a_graph_that_gives_other_boxes_is_not_written(tiny_detector, tmp_path, monkeypatch):
    rule = nms.suppress
    monkeypatch.setattr(nms, "suppress", lambda scores, boxes: rule(scores, boxes)[::2])
    with pytest.raises(ModelError, match=r"differs from the network \(equal boxes"):
        espy.export(tiny_detector, path=tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()
