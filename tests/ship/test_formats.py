"""Every deployed format: what the network gives, a header that says so, and no file where either is not so.

OpenVINO's and PyTorch's own files of a small network are made in every run of the tests, the others by `make test-export`.
"""

import importlib.util
import io
import json
import pickle
import shutil
import sys
import zipfile

import msgspec
import numpy as np
import pytest
import torch

from espy import export, load
from espy.errors import EngineError, EspyError, ModelError, OutputError
from espy.header import attach, parts, read_header, read_safetensors
from espy.ship.export import FORMATS
from samples import scene

pytestmark = pytest.mark.filterwarnings("ignore")  # the converters' own

TOOLS = {
    "openvino": ("openvino",),
    "pt2": (),
    "executorch": ("executorch",),
    "ncnn": ("pnnx", "ncnn"),
    "litert": ("litert_torch", "ai_edge_litert"),
}
MODELS = ("tiny_espnet", "tiny_v2", "tiny_classifier", "tiny_detector")
QUICK = ("openvino", "pt2")
ONE_SIZE = ("executorch", "ncnn", "litert")


def marks(to, model):
    missing = [name for name in TOOLS[to] if importlib.util.find_spec(name) is None]
    found = [pytest.mark.skipif(bool(missing), reason=f"no {missing}: pip install 'espy-vision[{FORMATS[to][2]}]'")]
    return found if to in QUICK and model == "tiny_espnet" else [*found, pytest.mark.export]


def cases(formats, models):
    return [pytest.param((to, model), marks=marks(to, model), id=f"{to}-{model}") for to in formats for model in models]


EVERY = cases(TOOLS, MODELS)
SMALL = cases(TOOLS, MODELS[:1])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(format, source) → report of its file, made once."""
    reports = {}

    def make(to, source):
        if (to, source) not in reports:
            path = tmp_path_factory.mktemp(to) / f"m{FORMATS[to][0]}"
            reports[to, source] = export(source, to, path)
        return reports[to, source]

    return make


@pytest.fixture
def case(request, made):
    """(format, source, report) of a case."""
    to, model = request.param
    source = request.getfixturevalue(model)
    return to, source, made(to, source)


def moved(report, folder):
    """A copy of a file and of those that belong to it."""
    for part in parts(report.path):
        if part.is_file():
            shutil.copy(part, folder / part.name)
    return folder / report.path.name


# What a file is


@pytest.mark.parametrize("case", EVERY, indirect=True)
def test_a_file_gives_what_the_network_gives_through_the_same_calls(case):
    _, source, report = case
    images = [scene(90, 130, seed) for seed in range(3)]
    with load(report.path) as model, load(source, engine="torch") as reference:
        assert model.task == reference.task
        pairs = [(model(image), reference(image)) for image in images]
        for found, expected in pairs:
            if model.task == "segment":
                assert (found.mask == expected.mask).mean() >= 0.999
            elif model.task == "classify":
                assert np.allclose(found.probabilities, expected.probabilities, atol=1e-5)
            else:
                assert len(found.boxes) == len(expected.boxes) > 10
                assert np.allclose(np.sort(found.scores), np.sort(expected.scores), atol=1e-5)
        size = model.header.preprocess.size
        batch = np.stack([scene(*size, seed) for seed in range(3)])
        together, alone = model.engine.run(batch), [model.engine.run(batch[k : k + 1]) for k in range(3)]
        for name, array in together.items():
            if name == "detections":
                assert [len(one[name]) for one in alone] == [int((array[:, 0] == k).sum()) for k in range(3)]
            else:
                assert np.allclose(array, np.concatenate([one[name] for one in alone]), atol=1e-5)


@pytest.mark.parametrize("case", EVERY, indirect=True)
def test_the_header_is_the_models_and_says_how_the_file_compared(case):
    to, source, report = case
    found, plain = read_header(report.path), read_safetensors(source)[0]
    sizes = [plain.preprocess.size] if to in ONE_SIZE else plain.sizes
    assert msgspec.structs.replace(found, export=None, preprocess=plain.preprocess, sizes=plain.sizes) == plain
    assert [tuple(size) for size in found.sizes] == sizes if isinstance(sizes, list) else found.sizes == sizes
    said = found.export
    assert (said.format, said.what, said.size) == (to, report.what, plain.preprocess.size)
    assert said.equal >= 0.999
    assert said.score_error <= 1e-4
    assert said.ms > 0
    assert said.pictures >= 4
    assert said.tools["torch"] == torch.__version__
    sizes = [part.stat().st_size for part in parts(report.path) if part.is_file()]
    assert report.bytes == sum(sizes) > said.bytes > 10_000


@pytest.mark.parametrize("case", SMALL, indirect=True)
def test_logits_are_given_on_request_by_formats_that_always_have_them(case):
    to, source, report = case
    image = scene(64, 96)[None]
    with load(report.path) as model, load(source, engine="torch") as reference:
        assert set(model.engine.run(image)) == {"mask"}
        found = model.engine.run(image, scores=True)
        if to == "openvino":  # exported without --scores
            assert set(found) == {"mask"}
        else:
            expected = reference.engine.run(image, scores=True)["scores"]
            assert np.abs(found["scores"] - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("case", SMALL, indirect=True)
def test_a_file_runs_at_the_sizes_that_its_header_allows_and_at_no_other(case):
    to, source, report = case
    image = scene(80, 120)[None]
    if to in ONE_SIZE:
        with pytest.raises(EngineError, match="only height 64, width 96"):
            load(report.path, size=(80, 120))
        return
    with load(report.path) as model, load(source, engine="torch") as reference:
        assert (model.engine.run(image)["mask"] == reference.engine.run(image)["mask"]).mean() >= 0.999


@pytest.mark.parametrize("case", SMALL, indirect=True)
def test_a_file_names_neither_the_machines_folders_nor_its_user(case):
    for part in parts(case[2].path):
        if part.is_file():
            for name in (b"/tmp/", b"/site-packages/", b"/home/", str(case[1].parent).encode()):
                assert name not in part.read_bytes()


# What is refused, in one line


@pytest.mark.parametrize("case", SMALL, indirect=True)
def test_a_damaged_part_is_refused(case, tmp_path):
    _, _, report = case
    whole = moved(report, tmp_path)
    for part in [part for part in parts(whole) if part.is_file()]:
        content = part.read_bytes()
        changed = bytearray(content)
        changed[len(content) // 3] ^= 0x55
        for damaged in (bytes(changed), content[: len(content) // 2], b""):
            part.write_bytes(damaged)
            with pytest.raises(ModelError) as caught:
                load(whole)
            assert "\n" not in str(caught.value)
        part.write_bytes(content)
    load(whole).close()


@pytest.mark.parametrize("case", SMALL, indirect=True)
def test_a_file_whose_weights_or_header_are_missing_is_refused_by_name(case, tmp_path):
    whole = moved(case[2], tmp_path)
    others = [part for part in parts(whole) if part.is_file() and part != whole]
    for part in others:
        content = part.read_bytes()
        part.unlink()
        with pytest.raises(ModelError, match="no espy header" if part.suffix == ".json" else part.name):
            load(whole)
        part.write_bytes(content)


@pytest.mark.parametrize("case", SMALL, indirect=True)
def test_a_file_that_is_no_model_of_its_kind_is_refused_by_its_engine(case, tmp_path):
    _, _, report = case
    whole, header = moved(report, tmp_path), read_header(report.path)
    for content in (b"", b"\0" * 5000, b"no model at all\n" * 400):
        whole.write_bytes(content)
        with pytest.raises(ModelError) as caught:
            load(whole, header=header)
        assert "\n" not in str(caught.value)


@pytest.fixture
def wrong(monkeypatch):
    """Networks whose exported weights differ from those that the file is compared with."""

    def change(to):
        room = importlib.import_module(f"espy.ship.{to}")
        make = room.make

        def changed(deployed, header, size):
            with torch.no_grad():
                for parameter in deployed.parameters():
                    parameter.mul_(0.9)
            return make(deployed, header, size)

        monkeypatch.setattr(room, "make", changed)

    return change


@pytest.mark.parametrize("case", cases(TOOLS, MODELS[:1]), indirect=True)
def test_a_file_that_differs_from_its_network_is_refused_and_not_written(case, wrong, tmp_path):
    to, source, _ = case
    wrong(to)
    with pytest.raises(ModelError, match="differs from the network"):
        export(source, to, tmp_path / f"m{FORMATS[to][0]}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["openvino", "executorch", "ncnn", "litert"])
def test_a_tool_that_is_not_installed_is_named_with_its_extra(to, tiny_espnet, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, f"espy.ship.{to}", raising=False)
    monkeypatch.setitem(sys.modules, {"ncnn": "pnnx", "litert": "litert_torch"}.get(to, to), None)
    for name in [name for name in sys.modules if name.startswith(f"{to}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineError, match=rf"pip install 'espy-vision\[{FORMATS[to][2]}\]'") as caught:
        export(tiny_espnet, to, tmp_path / f"m{FORMATS[to][0]}")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", [pytest.param(to, marks=marks(to, MODELS[0])) for to in TOOLS])
def test_what_stands_where_any_part_would_be_written_is_kept(to, tiny_espnet, tmp_path):
    for part in parts(tmp_path / f"m{FORMATS[to][0]}"):
        part.write_bytes(b"mine")
        with pytest.raises(OutputError, match="--force"):
            export(tiny_espnet, to, tmp_path / f"m{FORMATS[to][0]}")
        assert part.read_bytes() == b"mine"
        part.unlink()


@pytest.mark.parametrize("to", TOOLS)
def test_a_file_called_as_another_format_is_refused(to, tiny_espnet, tmp_path):
    with pytest.raises(EspyError, match=f"NAME{FORMATS[to][0]}"):
        export(tiny_espnet, to, tmp_path / "m.onnx")


@pytest.mark.parametrize(("engine", "to"), [("pt2", "pt2"), ("executorch", "executorch"), ("litert", "litert")])
def test_a_bundled_model_says_how_it_comes_to_an_engine_that_opens_none_of_its_files(engine, to):
    with pytest.raises(EngineError, match=f"espy export street --to {to}"):
        load("street", engine=engine)


# A .pt2 is unpickled by PyTorch where its archive asks for that


class Trap:
    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize(
    "place", ["data/sample_inputs/model.pt", "data/constants/custom_obj_0", "data/weights/weight_0"]
)
@pytest.mark.parametrize("case", cases(["pt2"], MODELS[:1]), indirect=True)
def test_an_archive_that_would_be_unpickled_is_refused(case, place, tmp_path, capfd):
    path, header = tmp_path / "m.pt2", read_header(case[2].path)
    saved = io.BytesIO()
    torch.save(Trap(), saved)
    content = pickle.dumps(Trap()) if "custom" in place else saved.getvalue()
    with zipfile.ZipFile(case[2].path) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("weights_config.json") and "weight_0" in place:
                config = json.loads(data)
                for entry in config["config"].values():
                    entry["use_pickle"] = True
                data = json.dumps(config).encode()
            if not name.endswith(place) and "/extra/" not in name:
                new.writestr(name, data)
        new.writestr(f"model/{place}", content)
    with pytest.raises(ModelError, match="more than arrays and a graph"):
        load(path, header=header)
    attach(path, header)
    with pytest.raises(ModelError, match="more than arrays and a graph"):
        load(path)
    assert "unpickled" not in capfd.readouterr().out
