"""The deployed graph: made from any network, the same as the network, or not written at all."""

import json
import logging
import shutil

import msgspec
import numpy as np
import onnx
import pytest
import torch

from espy import build, bundle, export, load, load_published
from espy.errors import EspyError, ModelError, OutputError
from espy.header import read_onnx_header, read_safetensors, write_safetensors
from espy.nn.deployed import deploy
from espy.run.engines.onnxruntime import OnnxRuntime
from samples import WEIGHTS, needs, scene


def header_of(path):
    return read_onnx_header(path, path.read_bytes())


def shapes(path):
    """Name → (type, dimensions) of a graph's inputs and outputs; a dimension that varies is a string."""
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    return {
        value.name: (
            onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type),
            [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim],
        )
        for value in (*model.graph.input, *model.graph.output)
    }


def scores_of_torch(model, image):
    """uint8 [N, H, W, 3] → logits at the picture's size, by the plain network and the preparation written out."""
    p = model.preprocess
    x = torch.from_numpy(image.astype(np.float32)).permute(0, 3, 1, 2)
    x = x[:, [2, 1, 0]] if p.order == "BGR" else x
    x = (x * p.scale - torch.tensor(p.mean).view(1, 3, 1, 1)) / torch.tensor(p.std).view(1, 3, 1, 1)
    with torch.inference_mode():
        scores = model.network(x)
        if scores.shape[2:] != x.shape[2:]:
            scores = torch.nn.functional.interpolate(scores, x.shape[2:], mode="bilinear", align_corners=True)
    return scores.numpy()


def run(path, image):
    return OnnxRuntime(path, threads=1, precision="float32").run(image, scores=True)


# From whatever there is


def test_weights_become_a_graph_of_the_contract_of_any_size(tiny_onnx, tiny_espnet):
    found = shapes(tiny_onnx)
    assert set(found) == {"image", "mask"}
    assert found["image"][0] == found["mask"][0] == "UINT8"
    n, h, w, channels = found["image"][1]
    assert channels == 3
    assert all(isinstance(d, str) for d in (n, h, w))
    assert len(found["mask"][1]) == 3
    assert msgspec.structs.replace(header_of(tiny_onnx), export=None) == read_safetensors(tiny_espnet)[0]


@pytest.mark.parametrize("size", [(64, 96), (17, 23), (16, 16), (131, 97), (200, 300)])
def test_a_dynamic_graph_runs_at_sizes_it_was_not_traced_at(tiny_onnx, tiny_espnet, size):
    images = np.stack([scene(*size, seed=k) for k in range(3)])
    found = run(tiny_onnx, images)["mask"]
    assert found.shape == (3, *size)
    with load(tiny_espnet, engine="torch") as model:
        expected = model.engine.run(images)["mask"]
    assert (found == expected).mean() >= 0.999
    assert np.array_equal(run(tiny_onnx, images[1:2])["mask"][0], found[1])


def test_a_graph_carries_no_traces_of_the_machine_that_made_it(tiny_onnx):
    model = onnx.load(tiny_onnx)
    assert model.producer_name == "espy"
    assert {p.key for p in model.metadata_props} == {"espy", "espy_sha256"}
    assert all(not node.metadata_props and not node.doc_string for node in model.graph.node)
    assert b"/site-packages/" not in tiny_onnx.read_bytes()


@pytest.fixture(scope="module")
def with_scores(tmp_path_factory):
    """(file, network) of a network from `build`, one size, logits as well."""
    path = tmp_path_factory.mktemp("scores") / "m.onnx"
    network = build("espnet", widths=(8, 16, 24), branches=2, alpha2=1, alpha3=1, classes=3, seed=2).eval()
    return path, network, export(network, path=path, size=(64, 96), scores=True)


def test_scores_are_a_second_output(with_scores):
    path, _, report = with_scores
    found = shapes(path)
    assert set(found) == {"image", "mask", "scores"}
    assert found["image"][1][1:] == [64, 96, 3]
    assert found["mask"][1][1:] == [64, 96]
    assert (found["scores"][0], found["scores"][1][1:]) == ("FLOAT", [3, 64, 96])
    assert report.path == path
    assert report.bytes == path.stat().st_size
    assert report.equal >= 0.999
    assert report.score_error <= 1e-4
    assert report.pictures >= 4


def test_the_mask_is_where_the_scores_are_largest(with_scores):
    path, network, _ = with_scores
    images = np.stack([scene(64, 96, seed=k) for k in range(2)])
    found = run(path, images)
    assert np.array_equal(found["mask"], found["scores"].argmax(1))

    class Model:
        preprocess = header_of(path).preprocess

    Model.network = network
    expected = scores_of_torch(Model, images)
    assert np.abs(found["scores"] - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_scores_are_given_on_request(with_scores, tiny_onnx, engine):
    images = np.stack([scene(64, 96, seed=k) for k in range(2)])
    with load(with_scores[0], engine=engine) as model:
        found = model.engine.run(images, scores=True)
        assert set(model.engine.run(images)) == {"mask"}
        assert np.array_equal(found["mask"], found["scores"].argmax(1))
    with load(tiny_onnx, engine=engine) as model:
        assert set(model.engine.run(images, scores=True)) == {"mask"}


def test_a_graph_of_one_size_takes_no_other(with_scores):
    path = with_scores[0]
    header = header_of(path)
    assert [tuple(size) for size in header.sizes] == [(64, 96)]
    assert header.preprocess.size == (64, 96)
    assert load(path)(scene(200, 100)).mask.shape == (200, 100)
    with pytest.raises(EspyError, match="only height 64, width 96"):
        load(path, size=(64, 128))
    with pytest.raises(EspyError, match="only height 64, width 96"):
        load(path, size="native")(scene(200, 100))


def test_a_classifier_of_one_size_still_sees_the_middle_of_a_picture(tiny_classifier, tmp_path):
    header, arrays = read_safetensors(tiny_classifier)
    preprocess = msgspec.structs.replace(header.preprocess, crop=0.5)
    write_safetensors(tmp_path / "m.safetensors", msgspec.structs.replace(header, preprocess=preprocess), arrays)
    export(tmp_path / "m.safetensors", path=tmp_path / "m.onnx", size=(96, 64))
    found = header_of(tmp_path / "m.onnx")
    assert (found.preprocess.size, found.preprocess.resize, found.preprocess.crop) == ((96, 64), "short", 0.5)
    picture = scene(192, 128)
    with load(tmp_path / "m.onnx") as model, load(tmp_path / "m.safetensors", engine="torch") as reference:
        expected = reference.engine.run(picture[None, 48:144, 32:96])["scores"][0]  # half of each side
        assert np.allclose(model(picture).probabilities, expected, atol=1e-5)


def test_exporting_leaves_the_network_in_the_mode_it_was_in(tmp_path, monkeypatch):
    network = build("espnet", widths=(8, 16, 24), branches=2, alpha2=1, alpha3=1, classes=3, seed=2)
    assert network.training
    (tmp_path / "taken.onnx").write_bytes(b"")
    with pytest.raises(OutputError):
        export(network, path=tmp_path / "taken.onnx", size=(64, 96))
    assert network.training


@needs(WEIGHTS)
@pytest.mark.parametrize(
    ("file", "size", "classes"),
    [("espnet_encoder_p2_q8.pth", (64, 104), 20), ("espnet_decoder_p2_q8_camvid.pth", (64, 80), 12)],
)
def test_a_published_checkpoint_becomes_a_graph_with_its_own_preparation(file, size, classes, tmp_path):
    path = tmp_path / "m.onnx"
    export(WEIGHTS / file, path=path, size=size, scores=True)
    published = load_published(WEIGHTS / file)
    header = header_of(path)
    assert header.spec == published.spec
    assert header.labels == published.labels
    assert len(header.labels) == classes
    assert (header.preprocess.order, header.preprocess.filter) == ("BGR", "plain")
    images = scene(*size, seed=8)[None]
    found, expected = run(path, images), scores_of_torch(published, images)
    assert np.abs(found["scores"] - expected).max() <= 1e-4 * np.abs(expected).max()
    assert (found["mask"] == expected.argmax(1)).mean() >= 0.999


def test_a_bundled_model_is_exported_by_name_and_fits_its_multiple(tmp_path):
    path = tmp_path / "m.onnx"
    report = export("street-small", path=path, size=(64, 96))
    assert report.equal >= 0.999
    header = header_of(path)
    assert header.labels == header_of(bundle.path("street-small", ".onnx")).labels
    picture = scene(64, 96)
    assert (load(path)(picture).mask == load("street-small", size=(64, 96))(picture).mask).mean() >= 0.999


# What is refused


@pytest.fixture
def wrong(monkeypatch):
    """Networks whose exported weights differ from those that the file is compared with."""
    from espy.ship import onnx as ship

    make = ship.make

    def changed(deployed, header, size):
        with torch.no_grad():
            for parameter in deployed.parameters():
                parameter.mul_(0.9)
        return make(deployed, header, size)

    monkeypatch.setattr(ship, "make", changed)


def test_a_graph_that_differs_from_its_network_is_refused_and_not_written(wrong, tiny_espnet, tmp_path):
    for scores in (True, False):
        with pytest.raises(ModelError, match="differs from the network"):
            export(tiny_espnet, path=tmp_path / "m.onnx", size=(64, 96), scores=scores)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept_without_force(tiny_espnet, tmp_path):
    path = shutil.copy(tiny_espnet, tmp_path / "m.safetensors")
    (tmp_path / "m.onnx").write_bytes(b"mine")
    with pytest.raises(OutputError, match="--force"):
        export(path)
    with pytest.raises(OutputError, match="--force"):
        export(path, path=tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == b"mine"


def test_what_cannot_be_exported_is_refused_in_one_line(tiny_espnet, tmp_path):
    cases = [
        ((tiny_espnet, "onxx"), {}, "did you mean 'onnx'"), ((tiny_espnet, "coreml"), {}, "known: onnx"),
        ((torch.nn.Conv2d(3, 3, 1),), {"path": tmp_path / "m.onnx"}, "build"),
        ((build("espnet", alpha2=1, alpha3=1),), {}, "path"), ((tmp_path / "none.safetensors",), {}, "none.safetensors"),
        ((tiny_espnet,), {"path": tmp_path / "m.onnx", "size": (8, 8)}, "16"),
    ]  # fmt: skip
    for arguments, keywords, says in cases:
        with pytest.raises(EspyError, match=says) as caught:
            export(*arguments, **keywords)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_exporting_says_nothing_and_leaves_logging_alone(with_scores, capfd):
    before = logging.root.manager.disable
    assert before == 0
    assert capfd.readouterr().err == ""


def test_the_header_of_the_graph_is_the_contracts_json(tiny_onnx):
    properties = {p.key: p.value for p in onnx.load(tiny_onnx).metadata_props}
    data = json.loads(properties["espy"])
    assert data["format"] == 1
    assert data["sizes"] == "any"


def test_the_deployed_network_is_argmax_of_the_scores(tiny_espnet):
    network = build("espnet", widths=(8, 16, 24), branches=2, alpha2=1, alpha3=1, classes=4, seed=0).eval()
    mask, scores = deploy(network, header_of_file(tiny_espnet).preprocess)(torch.from_numpy(scene(64, 96)[None]))
    assert mask.dtype == torch.uint8
    assert torch.equal(mask.long(), scores.argmax(1))


def header_of_file(path):
    return read_safetensors(path)[0]
