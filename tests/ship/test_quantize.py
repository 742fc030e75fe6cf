"""Int8: what it costs and brings is measured and said, what costs too much is refused, and everything in the file is as said.

ONNX Runtime's file of a small network is made in every run of the tests, OpenVINO's and ExecuTorch's by `make test-export`.
"""

import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import msgspec
import numpy as np
import onnx
import pytest
import torch
from torch import nn

from espy import evaluate, export, load, machine, quantize
from espy.errors import DataError, EngineError, EspyError, ModelError, OutputError
from espy.header import read_header, read_safetensors
from espy.nn.build import with_weights
from espy.ship import eight, eight_onnx
from espy.ship import onnx as onnx_room
from espy.ship import quantize as ship
from espy.ship.bench import Times, plan
from espy.ship.rewrite import QUANTISABLE, Shuffled, rewrite
from samples import scene
from trees import save

pytestmark = pytest.mark.filterwarnings("ignore")  # the tools' own

NEEDS = {"onnx": (), "openvino": ("nncf", "openvino"), "executorch": ("executorch", "torchao")}


WHOLE = ["encoder", "norm3", "up3", "project2", "fuse", "up2", "join_up2", "refine", "up1", "network"]
"""All layers of the tiny network."""


def marks(to):
    missing = [name for name in NEEDS[to] if importlib.util.find_spec(name) is None]
    found = [pytest.mark.skipif(bool(missing), reason=f"no {missing}: pip install 'espy-vision[{ship.WAYS[to][1]}]'")]
    return found if to == "onnx" else [*found, pytest.mark.export]


@pytest.fixture(scope="module")
def taught(tmp_path_factory, tiny_espnet):
    """A set whose truth is what the tiny network says of it, so that its float file is all right: 20 pictures train, 5 val."""
    root = tmp_path_factory.mktemp("taught")
    (root / "classes.txt").write_text("".join(f"class {k}\n" for k in range(4)))
    with load(tiny_espnet, engine="torch") as model:
        for k in range(25):
            picture = scene(64, 96, k)
            save(root / "images" / f"p{k}.png", picture)
            save(root / "masks" / f"p{k}.png", model(picture).mask)
    return f"folder:{root}"


@pytest.fixture(scope="module", autouse=True)
def traced_once():
    """The tiny network's graphs are made once in each form: no test changes it, and tracing takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        graphs, trace = {}, onnx_room.graph

        def graph(deployed, header, size, *, raw=False):
            key = (header.task, header.labels, size, raw)
            if key not in graphs:
                graphs[key] = trace(deployed, header, size, raw=raw).SerializeToString()
            return onnx.load_from_string(graphs[key])

        for room in (onnx_room, eight_onnx):
            patch.setattr(room, "graph", graph)
        yield


def timed(float32, int8):
    """A race that ended so, in milliseconds."""
    rows = [SimpleNamespace(alone=SimpleNamespace(wall_ms=Times.of([ms / 1e3]))) for ms in (float32, int8)]
    return lambda self: rows


@pytest.fixture
def raced(monkeypatch):
    """Says how the race of the two files ends."""

    def end(float32, int8):
        monkeypatch.setattr(ship.Trial, "_race", timed(float32, int8))

    end(2.0, 1.0)
    return end


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_espnet, taught):
    """The tiny network's int8 file, raced for one round; its report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ship, "ROUNDS", 1)
        return quantize(
            tiny_espnet, path=tmp_path_factory.mktemp("int8") / "m.onnx", calibrate=taught, max_drop=20, allow_slower=True,
            threads=1,
        )  # fmt: skip


# Rewrites that make a network fit for eight bits


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_a_transposed_convolution_is_a_1x1_and_a_pixel_shuffle(k, bias):
    torch.manual_seed(0)
    plain, x = nn.ConvTranspose2d(5, 7, k, stride=k, bias=bias), torch.randn(2, 5, 6, 8)
    with torch.no_grad():
        expected = torch.zeros(2, 7, 6 * k, 8 * k)
        for i in range(k):
            for j in range(k):
                expected[:, :, i::k, j::k] = torch.einsum("nchw,co->nohw", x, plain.weight[:, :, i, j])
        expected += plain.bias.view(-1, 1, 1) if bias else 0
        assert torch.allclose(Shuffled(plain)(x), expected, atol=1e-5)
        assert torch.allclose(plain(x), expected, atol=1e-5)


def test_a_transposed_convolution_of_overlapping_windows_stays():
    network = nn.Sequential(nn.ConvTranspose2d(4, 4, 3, stride=2), nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2))
    assert QUANTISABLE[0](network, None) is network
    assert [type(layer) for layer in network] == [nn.ConvTranspose2d] * 2


def test_a_network_fit_for_eight_bits_is_the_same_network(tiny_espnet):
    header, arrays = read_safetensors(tiny_espnet)
    network = with_weights(header.spec, arrays).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "act" in name:  # slopes of PReLU, below 0 and above 1 too
                parameter.copy_(torch.linspace(-0.5, 1.5, len(parameter)))
    fit = rewrite(network, header.sizes, also=QUANTISABLE)
    kinds = {type(module) for module in fit.modules()}
    assert nn.ConvTranspose2d in {type(module) for module in network.modules()}
    assert not kinds & {nn.ConvTranspose2d, nn.PReLU}
    x = torch.randn(1, 3, 61, 83)
    with torch.no_grad():
        expected = network(x)
        assert (fit(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


# What is said of a file


def test_the_figures_are_those_of_espy_eval(made, taught, tiny_espnet, tmp_path):
    found = made.quantized
    float32 = evaluate(export(tiny_espnet, path=tmp_path / "float.onnx").path, taught).miou
    int8 = evaluate(made.path, taught).miou
    assert (found.float32, found.int8) == (float32, int8)
    assert found.float32 > 0.99 > found.int8 > 0.7
    assert found.drop == pytest.approx(100 * (float32 - int8))
    assert (found.metric, found.images, found.calibrated) == ("mIoU", 5, 20)
    assert found.data.startswith("folder:taught")


def test_the_header_says_what_the_report_says(made, tiny_espnet):
    header, plain = read_header(made.path), read_safetensors(tiny_espnet)[0]
    assert header.export.quantized == made.quantized
    assert header.precision == header.export.precision == "int8"
    assert msgspec.structs.replace(header, export=None) == plain
    found = made.quantized
    assert made.bytes == made.path.stat().st_size > found.bytes[1] > 1000
    assert found.ratio == pytest.approx(found.median_ms[1] / found.median_ms[0])
    assert all(0 < least <= median for least, median in zip(found.least_ms, found.median_ms, strict=True))
    assert 0.7 < made.equal < 1


def test_a_float_file_says_nothing_of_eight_bits(tiny_onnx):
    header = read_header(tiny_onnx)
    assert header.precision == "float32"
    assert header.export.quantized is None


def test_an_int8_file_computes_in_int8_and_says_so(made, taught, tiny_onnx):
    with load(made.path) as model:
        assert model.engine.precision == "int8"
        assert evaluate(model, taught).protocol["precision"] == "int8"
    assert [case.precision for case in plan([made.path, tiny_onnx], threads=[1])] == ["int8", "float32"]
    with pytest.raises(EngineError, match="quantised, it computes in int8, not in 'float32'"):
        load(made.path, precision="float32")
    with pytest.raises(EngineError, match="espy quantize"):
        load(tiny_onnx, precision="int8")


# What is in a file


def graph(path):
    """(nodes by output, constants by name, nodes) of a file."""
    model = onnx.load(path)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {output: node for node in model.graph.node for output in node.output}, constants, list(model.graph.node)


def in_int8(path):
    """Names of the convolutions whose picture and weights come out of eight bits."""
    by_output, _, nodes = graph(path)
    return {
        node.name for node in nodes if node.op_type == "Conv"
        and all(by_output[name].op_type == "DequantizeLinear" for name in node.input[:2] if name in by_output)
        and node.input[0] in by_output and node.input[1] in by_output
    }  # fmt: skip


def test_products_fit_sixteen_bits_so_that_processors_without_vnni_give_the_same(made):
    _, constants, nodes = graph(made.path)
    held = {node.input[0] for node in nodes if node.op_type == "DequantizeLinear"}
    weights = [constants[name] for name in held if name in constants and constants[name].dtype == np.int8]
    assert len(weights) == len(in_int8(made.path)) > 20
    for array in weights:
        largest = int(np.abs(array.astype(int)).max())
        assert 32 < largest <= 64
        assert 2 * 255 * largest <= np.iinfo(np.int16).max  # of PMADDUBSW, which sums two products
    maps = [node for node in nodes if node.op_type == "QuantizeLinear"]
    assert maps
    assert {constants[node.input[2]].dtype for node in maps} == {np.dtype(np.uint8)}


def test_a_file_runs_as_it_did_where_the_processor_has_no_instructions_for_eight_bits(made, monkeypatch):
    with load(made.path) as model:
        expected = model(scene(64, 96)).mask
    monkeypatch.setattr(machine, "flags", lambda: ["avx2", "fma"])
    with load(made.path) as model:
        assert np.array_equal(model(scene(64, 96)).mask, expected)


def test_what_lies_outside_of_the_network_stays_in_float(made):
    by_output, _, nodes = graph(made.path)
    (tail,) = [node for node in nodes if node.op_type == "ArgMax"]
    (cast,) = [node for node in nodes if node.op_type == "Cast" and node.input[0] in ("image", "permute")] or [None]
    assert by_output[tail.input[0]].op_type != "Conv"
    assert cast is not None
    assert not any(node.op_type in ("PRelu", "ConvTranspose") for node in nodes)


def test_named_layers_stay_in_float_and_are_named(tiny_espnet, taught, tmp_path, raced):
    file = quantize(
        tiny_espnet, path=tmp_path / "m.onnx", calibrate=taught, max_drop=50, keep_float=["encoder.level3"], threads=1
    )
    inside = in_int8(file.path)
    convolutions = {node.name for node in graph(file.path)[2] if node.op_type == "Conv"}
    named = {name for name in convolutions if name.startswith(("encoder.level3.", "encoder.level3/"))}
    assert named
    assert not named & inside
    assert len(inside) > 20
    assert file.quantized.kept == ("encoder.level3",)


# What is refused, in one line, and nothing written


def refused(kind, tmp_path, *arguments, **keywords):
    """The line that refuses a call."""
    keywords = {"path": tmp_path / "out" / "m.onnx", "threads": 1, **keywords}
    with pytest.raises(kind) as caught:
        quantize(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_a_file_that_loses_too_much_is_refused_after_layers_went_back_to_float(tiny_espnet, taught, tmp_path, raced):
    line = refused(ModelError, tmp_path, tiny_espnet, calibrate=taught, max_drop=0)
    assert "mIoU on val 100.00 in float32" in line or "mIoU on val 99." in line
    assert "points are lost, at most 0 may be" in line
    assert "--max-drop" in line
    assert "--keep-float NAME" in line
    assert "encoder." in line or "level" in line  # what is in float already


def test_a_file_that_is_slower_is_refused_unless_told_otherwise(tiny_espnet, taught, tmp_path, raced):
    raced(1.0, 2.5)
    line = refused(ModelError, tmp_path, tiny_espnet, calibrate=taught, max_drop=50)
    assert "1.00 ms in float32, 2.50 in int8" in line
    assert "2.50 times as long" in line
    assert "--allow-slower" in line
    assert quantize(
        tiny_espnet, path=tmp_path / "m.onnx", calibrate=taught, max_drop=50, allow_slower=True, threads=1
    ).quantized.ratio == pytest.approx(2.5)


@pytest.mark.parametrize(
    "pixels", [lambda k: np.full((64, 96, 3), 20 * k, np.uint8), lambda k: scene(64, 96)], ids=["grey", "the same"]
)
def test_pictures_that_say_nothing_are_refused(tiny_espnet, tmp_path, pixels):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "classes.txt").write_text("".join(f"class {k}\n" for k in range(4)))
    for k in range(10):
        save(tmp_path / "set" / "images" / f"p{k}.png", pixels(k))
        save(tmp_path / "set" / "masks" / f"p{k}.png", np.zeros((64, 96), np.uint8))
    line = refused(DataError, tmp_path, tiny_espnet, calibrate=f"folder:{tmp_path / 'set'}")
    assert "of 8 calibration pictures" in line
    assert "at least 16" in line


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"keep_float": ["encoder.levle3"]}, "encoder.level3"),
        ({"keep_float": WHOLE}, "no layer is left"),
        ({"to": "onxx"}, "onnx"),
        ({"to": "ncnn"}, "cannot quantise to 'ncnn'"),
        ({"max_drop": -1}, "0 to 100"),
        ({"max_drop": float("nan")}, "0 to 100"),
        ({"pictures": 10}, "at least 16"),
        ({"calibrate": "folder"}, "KIND:PATH"),
    ],
    ids=str,
)
def test_a_call_that_cannot_work_is_refused(tiny_espnet, taught, tmp_path, keywords, said):
    assert said in refused(EspyError, tmp_path, tiny_espnet, **{"calibrate": taught, **keywords})


def test_a_file_that_stands_there_is_kept(tiny_espnet, taught, tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"mine")
    with pytest.raises(OutputError, match="--force"):
        quantize(tiny_espnet, path=tmp_path / "m.onnx", calibrate=taught)
    assert (tmp_path / "m.onnx").read_bytes() == b"mine"


@pytest.mark.parametrize("to", ["openvino", "executorch"])
def test_a_tool_that_is_not_installed_is_named_with_its_extra(to, tiny_espnet, taught, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, f"espy.ship.eight_{to}", raising=False)
    for name in NEEDS[to]:
        monkeypatch.setitem(sys.modules, name, None)
    path = tmp_path / "out" / f"m{ {'openvino': '.xml', 'executorch': '.pte'}[to] }"
    assert "quantize]'" in refused(EngineError, tmp_path, tiny_espnet, to, path=path, calibrate=taught)


def test_no_tool_reports_to_its_maker():
    code = "import espy.ship.export, espy.ship.openvino, openvino_telemetry"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith("ModuleNotFoundError: import of openvino_telemetry halted")


# Which layers go back


def test_blocks_are_ranked_by_what_they_alone_cost():
    errors = {"a": 0.1, "b": 0.5, "c": 0.3}
    assert eight.ranked(["a", "b", "c"], errors.__getitem__) == ["b", "c", "a"]
    assert eight.ranked(["a", "b", "c"], errors.__getitem__, seconds=-1) == ["a", "b", "c"]  # no time to look


class Pretended:
    """A way, its engines and their judge: a file is the names of the blocks in float, and each of these is worth a point."""

    def __init__(self, least):
        self.least = least

    def make(self, kept):
        return tuple(kept)

    def opened(self, made):
        return SimpleNamespace(made=made, close=lambda: None)

    def __call__(self, engine, what):
        return SimpleNamespace(figure=0.01 * len(engine.made))


@pytest.mark.parametrize(("least", "number"), [(0.01, 1), (0.02, 2), (0.03, 4), (0.5, 4)])
def test_blocks_go_back_until_it_is_enough_or_half_of_them_are(least, number):
    one = Pretended(least)
    made, kept = eight.give_back(one, list("abcdefgh"), (), one.opened, one)
    assert made == kept == tuple("abcdefgh"[:number])


# Every task and format


@pytest.mark.export
@pytest.mark.parametrize("to", [pytest.param(to, marks=marks(to)) for to in ("openvino", "executorch")])
def test_other_formats_give_nearly_what_the_network_gives(to, tiny_espnet, taught, tmp_path, raced):
    path = tmp_path / f"m{ {'openvino': '.xml', 'executorch': '.pte'}[to] }"
    report = quantize(tiny_espnet, to, path, calibrate=taught, max_drop=20, threads=1)
    found = report.quantized
    assert found.float32 > 0.99 > found.int8 > 0.7
    assert found.int8 == evaluate(path, taught).miou
    with load(path) as model:
        assert model.engine.precision == "int8"


@pytest.mark.export
@pytest.mark.parametrize("seconds", [1e9, 0], ids=["by NNCF", "by blocks, where NNCF would take too long"])
@pytest.mark.parametrize("to", [pytest.param("openvino", marks=marks("openvino"))])
def test_layers_go_back_in_openvino(to, seconds, tiny_espnet, taught, tmp_path, raced, monkeypatch):
    from espy.ship import eight_openvino

    ranked, blocks = [], eight_onnx.Quantiser.ranking
    monkeypatch.setattr(eight_openvino, "CONTROL_S", seconds)
    monkeypatch.setattr(
        eight_onnx.Quantiser, "ranking", lambda self, kept: ranked.append(kept) or blocks(self, kept)[:4]
    )
    plain = quantize(tiny_espnet, to, tmp_path / "plain.xml", calibrate=taught, max_drop=50, threads=1).quantized
    enough = plain.drop - 1e-6
    found = quantize(tiny_espnet, to, tmp_path / "m.xml", calibrate=taught, max_drop=enough, threads=1).quantized
    assert found.drop < plain.drop
    assert found.kept
    assert found.layers < plain.layers
    assert found.float32 == plain.float32
    assert bool(ranked) == (seconds == 0)


@pytest.mark.export
@pytest.mark.parametrize("to", [pytest.param(to, marks=marks(to)) for to in NEEDS])
@pytest.mark.parametrize("model", ["tiny_classifier", "tiny_detector"])
def test_classifiers_and_detectors_are_quantised_too(to, model, request):
    source = request.getfixturevalue(model)
    header, arrays = read_safetensors(source)
    network = with_weights(header.spec, arrays).eval()
    size = header.preprocess.size
    pictures = [scene(*size, seed)[None] for seed in range(16)]
    way = ship._quantiser(to)(eight.Given(network, header, size, pictures))
    assert len(way.layers) > 20
    assert way.make(()) is not None
