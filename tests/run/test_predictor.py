"""From a model file and pictures to results: the same on every engine, in order, lazily, from several threads."""

import io
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import pytest
from PIL import Image

import espy
from espy import bundle, load, load_published
from espy.errors import EngineError, EspyError, ModelError, OutputError, PictureError
from espy.header import read_onnx_header, read_safetensors, to_json, write_safetensors
from samples import MASKS, PHOTOS, SHARED, STREETS, WEIGHTS, needs, noise, scene

CELLS = SHARED / "data" / "bccd"
PUBLISHED = ("street", "street-small", "objects")

NAMES = ("china.jpg", "dog.jpg", "person.jpg", "street_city.jpg")
FRANKFURT = "frankfurt_000000_000294"


@pytest.fixture(scope="module")
def model(tiny_onnx):
    with load(tiny_onnx, threads=1) as model:
        yield model


# Engines and references


@pytest.mark.parametrize("name", ["street-small", "objects"])
def test_all_engines_give_the_same_mask(name):
    masks = {}
    for engine in ("onnxruntime", "openvino", "torch"):
        with load(name, engine=engine) as model:
            assert model.engine.name == engine
            assert model.engine.precision == "float32"
            masks[engine] = [model(PHOTOS / photo).mask for photo in NAMES]
    for engine in ("openvino", "torch"):
        for found, expected in zip(masks[engine], masks["onnxruntime"], strict=True):
            assert (found == expected).mean() >= 0.9999
    assert len(np.unique(np.concatenate([mask.ravel() for mask in masks["torch"]]))) > 3


def reference(network):
    with Image.open(MASKS / f"{FRANKFURT}__{network}.png") as image:
        return np.asarray(image)


@needs(MASKS)
def test_street_gives_the_mask_of_the_authors_pipeline():
    mask = load("street")(STREETS / f"{FRANKFURT}_leftImg8bit.png").mask
    expected = reference("espnetv2_s2.0_city")
    assert mask.shape == expected.shape == (1024, 2048)
    assert (mask == expected).mean() >= 0.999


@needs(MASKS)
@needs(WEIGHTS)
def test_a_converted_espnet_gives_the_mask_of_the_authors_pipeline(tmp_path):
    published = load_published(WEIGHTS / "espnet_decoder_p2_q8.pth")
    write_safetensors(tmp_path / "m.safetensors", published.header, published.arrays)
    mask = load(tmp_path / "m.safetensors")(STREETS / f"{FRANKFURT}_leftImg8bit.png").mask
    expected = reference("espnet_p2q8")
    assert mask.shape == (1024, 2048)
    assert expected.shape == (512, 1024)
    assert (mask[::2, ::2] == expected).mean() >= 0.995  # each of the network's pixels is two by two of the picture's


# Results


def test_a_result_has_what_the_contract_says(model):
    picture = scene(75, 130)
    result = model(picture)
    assert result.task == model.task == "segment"
    assert result.mask.dtype == np.uint8
    assert result.mask.shape == result.size == (75, 130)
    assert result.labels == model.labels
    assert list(result.shares) == [label.name for label in model.labels]
    assert sum(result.shares.values()) == pytest.approx(1)
    assert set(result.timing) == {"decode", "prepare", "engine", "finish"}
    assert all(isinstance(ms, float) and ms >= 0 for ms in result.timing.values())
    assert result.overlay().size == (130, 75)
    assert json.loads(json.dumps(result.to_dict()))["size"] == [75, 130]


def test_an_overlay_without_strength_is_the_picture(model):
    picture = scene(60, 90)
    assert np.abs(np.asarray(model(picture).overlay(alpha=0))[:20].astype(int) - picture[:20]).max() == 0


def test_a_result_is_saved_by_its_ending_and_nothing_is_overwritten(model, tmp_path):
    result = model(scene(60, 90))
    for ending in (".png", ".jpg", ".webp", ".json"):
        path = tmp_path / f"r{ending}"
        result.save(path)
        before = path.read_bytes()
        with pytest.raises(OutputError, match="exists"):
            result.save(path)
        assert path.read_bytes() == before
        result.save(str(path), force=True)
    with Image.open(tmp_path / "r.png") as mask:
        assert np.array_equal(np.asarray(mask), result.mask)
    assert json.loads((tmp_path / "r.json").read_text())["task"] == "segment"
    with pytest.raises(OutputError, match=r"\.png"):
        result.save(tmp_path / "r.txt")


def test_a_result_shows_itself_in_a_notebook(model):
    with Image.open(io.BytesIO(model(scene(60, 90))._repr_png_())) as image:
        assert image.format == "PNG"
        assert image.size == (90, 60)


def test_a_pillow_image_that_is_closed_or_reused_later_leaves_the_result_whole(model):

    image = Image.fromarray(scene(60, 90))
    expected = model(scene(60, 90)).overlay().tobytes()
    result = model(image)
    image.paste((255, 0, 255), (0, 0, 90, 60))
    assert result.overlay().tobytes() == expected
    result = model(image)
    image.close()
    assert result.overlay().size == (90, 60)


def test_a_model_says_what_it_is():
    with load("street-small") as model:
        assert model.task == "segment"
        assert model.labels[0].name == "road"
        assert model.spec.width == 0.5
        assert model.preprocess.size == (512, 1024)
        assert "Cityscapes" in model.card.data
        assert model.engine.name == "onnxruntime"
        assert "street-small" in repr(model)


def test_the_bundled_models_are_listed_with_their_cards():
    cards = espy.models()
    bytes_of = {card.name: [card.onnx.stat().st_size, card.safetensors.stat().st_size] for card in cards}
    assert list(bytes_of) == list(bundle.NAMES)
    assert all(size < 4e6 for sizes in bytes_of.values() for size in sizes)
    assert sum(bytes_of[name][0] for name in PUBLISHED) < 8e6
    assert sum(sum(sizes) for name, sizes in bytes_of.items() if name not in (*PUBLISHED, "camvid")) < 6e6
    for card in cards:
        assert "**Limits.**" in card.card
        assert "**Terms.**" in card.card
        assert "MIT" in card.card or card.name not in PUBLISHED


@needs(CELLS)
def test_the_bundled_detector_finds_cells_as_its_card_says():
    found = espy.evaluate("bccd", f"voc:{CELLS}", split="val")
    (metric,) = read_safetensors(bundle.path("bccd", ".safetensors"))[0].card.metrics
    assert metric.name == found.metric == "AP50"
    assert 100 * found.figure == pytest.approx(metric.value, abs=0.3)


# Many pictures


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_map_keeps_the_order_whatever_the_batch(model, batch):
    pictures = [scene(40 + k, 50, seed=k) for k in range(8)]
    items = list(model.map(pictures, batch=batch))
    assert all(item.source is picture for item, picture in zip(items, pictures, strict=True))
    for item, picture in zip(items, pictures, strict=True):
        assert item.error is None
        assert np.array_equal(item.result.mask, model(picture).mask)


@pytest.mark.parametrize("batch", [1, 3])
def test_one_bad_source_is_an_item_with_its_error_and_the_rest_is_done(model, batch, tmp_path):
    sources = [scene(40, 50), tmp_path / "none.jpg", scene(41, 50), b"<html>", None, scene(42, 50)]
    items = list(model.map(sources, batch=batch))
    assert [item.error is None for item in items] == [True, False, True, False, False, True]
    assert [item.result is None for item in items] == [False, True, False, True, True, False]
    assert all(isinstance(item.error, PictureError) for item in items if item.error)
    assert "none.jpg" in str(items[1].error)


@pytest.mark.parametrize("source", ["a\0b.jpg", "x" * 300 + ".jpg"], ids=["zero byte", "300 letters"])
def test_a_name_that_no_file_can_have_is_an_item_with_an_error(model, source):
    items = list(model.map([scene(40, 50), source, scene(40, 50)]))
    assert [item.error is None for item in items] == [True, False, True]


@pytest.mark.parametrize("batch", [1, 3])
def test_map_reads_no_further_than_it_needs(model, batch):
    taken = []

    def sources():
        for k in range(2000):
            taken.append(k)
            yield scene(40, 50)

    items = model.map(sources(), batch=batch)
    assert taken == []
    for _ in range(5):
        next(items)
    assert len(taken) <= 5 + 2 * batch + 3
    items.close()
    assert len(taken) <= 5 + 2 * batch + 3


def test_map_over_nothing_gives_nothing(model):
    assert list(model.map([])) == []
    with pytest.raises(EspyError, match="batch"):
        list(model.map([], batch=0))


def test_pictures_of_different_native_sizes_may_share_a_batch(tiny_onnx):
    with load(tiny_onnx, size="native") as model:
        pictures = [scene(40, 50), scene(40, 50, 1), scene(64, 50), scene(40, 50, 2)]
        for item, picture in zip(model.map(pictures, batch=4), pictures, strict=True):
            assert np.array_equal(item.result.mask, model(picture).mask)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "torch"])
def test_four_threads_get_what_one_gets(engine, tiny_onnx, tiny_espnet):
    pictures = [scene(40 + k, 60, seed=k) for k in range(8)]
    with load(tiny_espnet if engine == "torch" else tiny_onnx, engine=engine, threads=1) as model:
        expected = [model(picture).mask for picture in pictures]
        start = threading.Barrier(4)

        def work(k):
            start.wait()
            for turn in range(10):
                index = (k + turn) % 8
                assert np.array_equal(model(pictures[index]).mask, expected[index])

        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(work, k) for k in range(4)]:
                future.result()


# What cannot work


def refusal(kind, call, *arguments, **keywords):
    with pytest.raises(kind) as caught:
        call(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unknown_model_is_refused_with_the_bundled_names():
    assert "street-small" in refusal(ModelError, load, "stret")


def test_an_unknown_engine_is_refused_with_the_nearest_name(tiny_onnx):
    assert "did you mean 'openvino'" in refusal(EngineError, load, tiny_onnx, engine="openvinno")
    assert "did you mean 'torch'" in refusal(EngineError, load, "street", engine="torhc")


def test_a_published_checkpoint_is_refused_with_the_command_to_convert_it(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"PK")
    assert f"espy convert {tmp_path}/a.pth" in refusal(ModelError, load, tmp_path / "a.pth")


def test_an_engine_that_does_not_open_the_file_is_refused_with_what_to_do(tiny_onnx, tiny_v2):
    assert "espy export" in refusal(EngineError, load, tiny_v2, engine="onnxruntime")
    assert ".safetensors" in refusal(EngineError, load, tiny_onnx, engine="torch")


def test_a_file_of_another_ending_is_refused_by_name(tmp_path):
    (tmp_path / "m.tflite").write_bytes(b"")
    assert "m.tflite" in refusal(EspyError, load, tmp_path / "m.tflite")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "torch"])
def test_an_unknown_precision_is_refused(engine):
    assert "float32" in refusal(EngineError, load, "street-small", engine=engine, precision="int4")


def test_a_size_that_is_no_multiple_is_refused(tiny_v2):
    message = refusal(EngineError, load, tiny_v2, size=(100, 128))
    assert "height 100, width 128" in message
    assert "multiples of 32" in message


@pytest.mark.parametrize("size", [(0, 64), (-32, 64), (8, 8), (64,), (64, 64, 3), "nativ", 512, (64.0, 96.0)], ids=repr)
def test_a_size_that_is_none_is_refused(tiny_onnx, size):
    refusal(EspyError, load, tiny_onnx, size=size)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "torch"])
def test_a_closed_model_says_so(engine, tiny_onnx, tiny_espnet):
    model = load(tiny_espnet if engine == "torch" else tiny_onnx, engine=engine)
    model.close()
    model.close()
    assert "closed" in refusal(EngineError, model, scene(40, 50))


def test_a_picture_above_the_limit_is_refused(tiny_onnx):
    with load(tiny_onnx, max_pixels=1999) as model:
        assert "--max-pixels" in refusal(PictureError, model, scene(40, 50))
        assert model(scene(39, 50)).size == (39, 50)


# Foreign files


@pytest.fixture
def foreign(tmp_path, tiny_onnx):
    """(ONNX file without a header, the header it should have)."""
    import onnx

    model = onnx.load(tiny_onnx)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    return tmp_path / "foreign.onnx", read_onnx_header(tiny_onnx, tiny_onnx.read_bytes())


def test_an_onnx_file_without_a_header_is_refused_with_the_way_to_give_one(foreign):
    message = refusal(ModelError, load, foreign[0])
    assert "--header" in message
    assert str(foreign[0]) in message


def test_a_foreign_file_works_with_a_header_given_as_object_dict_or_file(foreign, model, tmp_path):
    path, header = foreign
    (tmp_path / "header.json").write_text(to_json(header))
    expected = model(scene(40, 50)).mask
    for given in (header, json.loads(to_json(header)), tmp_path / "header.json", str(tmp_path / "header.json")):
        assert np.array_equal(load(path, header=given)(scene(40, 50)).mask, expected)


def test_a_given_header_is_validated_like_any_other(foreign, tmp_path):
    path, header = foreign
    data = json.loads(to_json(header))
    refusal(ModelError, load, path, header={**data, "labels": data["labels"][:2]})
    refusal(ModelError, load, path, header={**data, "format": 9})
    (tmp_path / "bad.json").write_text("{")
    assert "bad.json" in refusal(ModelError, load, path, header=tmp_path / "bad.json")
    assert "none.json" in refusal(ModelError, load, path, header=tmp_path / "none.json")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_graph_of_other_inputs_or_outputs_is_refused(engine, foreign, tmp_path):
    import onnx
    from onnx import TensorProto, helper

    header = foreign[1]

    def save(name, given, kind, result, rank):
        node = helper.make_node("Cast", [given], [result], to=kind)
        graph = helper.make_graph(
            [node], "g", [helper.make_tensor_value_info(given, kind, ["n"] * rank)],
            [helper.make_tensor_value_info(result, kind, ["n"] * rank)])  # fmt: skip
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / name)
        return tmp_path / name

    for path in (
        save("name.onnx", "input", TensorProto.UINT8, "mask", 4),
        save("output.onnx", "image", TensorProto.UINT8, "classes", 4),
        save("float.onnx", "image", TensorProto.FLOAT, "mask", 4),
    ):
        assert str(path) in refusal(ModelError, load, path, engine=engine, header=header)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_header_of_fewer_classes_than_the_graph_has_does_not_crash_a_result(engine, foreign):
    """A header that lies of the classes: a clear error, or a result whose shares and overlay work."""
    path, header = foreign
    data = json.loads(to_json(header))
    data["spec"]["classes"] = 2
    data["labels"] = data["labels"][:2]
    try:
        result = load(path, engine=engine, header=data)(scene(64, 96, seed=3))
    except EspyError:
        return
    assert result.mask.max() < 2 or sum(result.shares.values()) <= 1
    assert result.overlay().size == (96, 64)


# Not installed, not imported

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.split(".")[0])
sys.meta_path.insert(0, Block())
"""


def python(code, **keywords):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100, **keywords
    )


@pytest.mark.parametrize(
    ("missing", "call", "says"),
    [
        ("torch", "espy.load('street-small', engine='torch')", "espy-vision[train]"),
        ("torch espy_engine", "espy.load(espy.models()[1].safetensors)", "espy-vision[train]"),
        ("espy_engine", "espy.load('street-small', engine='native')", "espy-vision[native]"),
        ("torch", "espy.build('espnet')", "espy-vision[train]"),
        ("torch", "espy.export('street-small', path='/nowhere/m.onnx')", "espy-vision[train]"),
        ("onnx", "espy.export('street-small', path='/nowhere/m.onnx')", "espy-vision[train]"),
        ("onnxruntime", "espy.load('street-small')", "onnxruntime"),
        ("openvino", "espy.load('street-small', engine='openvino')", "espy-vision[openvino]"),
    ],
)
def test_what_is_not_installed_is_named_with_the_line_that_installs_it(missing, call, says):

    code = (
        BLOCK.format(names=missing.split())
        + f"import espy\ntry:\n    {call}\nexcept espy.EspyError as error:\n    print(error)"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert "pip install" in done.stdout
    assert says in done.stdout


def cpu_seconds(*command):
    """The least of five runs: user and system time of the process."""

    def once():
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
        assert running.returncode == 0
        return usage.ru_utime + usage.ru_stime

    return min(once() for _ in range(5))


def test_importing_espy_costs_less_than_300_ms():
    assert cpu_seconds(sys.executable, "-c", "import espy") < 0.3


def test_the_help_costs_less_than_600_ms():
    assert cpu_seconds(sys.executable, "-c", "from espy.cli import main; main(['--help'])") < 0.6


HEAVY = ("numpy", "PIL", "torch", "onnx", "onnxruntime", "openvino", "rich", "safetensors", "msgspec")


def test_importing_espy_imports_nothing_heavy():
    done = python(f"import sys, espy; print([n for n in {HEAVY} if n in sys.modules])")
    assert done.stdout.strip() == "[]"


def test_the_help_imports_nothing_it_does_not_need():
    code = f"import sys\nfrom espy.cli import run\nrun(['--help'])\nprint([n for n in {HEAVY} if n in sys.modules]"
    code += ", file=sys.stderr)"
    assert python(code).stderr.strip() == "[]"


def test_predicting_does_not_import_torch(tiny_onnx):
    code = (
        f"import sys, numpy, espy; espy.load({str(tiny_onnx)!r})(numpy.zeros((40, 50, 3), numpy.uint8)).overlay();"
        "print([n for n in ('torch', 'onnx', 'openvino') if n in sys.modules])"
    )
    assert python(code).stdout.strip() == "[]"


def test_a_bundled_files_two_forms_carry_one_header():
    for name in bundle.NAMES:
        data = bundle.path(name, ".onnx").read_bytes()
        header = msgspec.structs.replace(read_onnx_header(name, data), export=None)  # how the file compared
        assert header == read_safetensors(bundle.path(name, ".safetensors"))[0]


def test_a_folder_of_a_run_is_its_best_weights(tiny_v2, tmp_path):
    (tmp_path / "best.safetensors").write_bytes(tiny_v2.read_bytes())
    assert load(tmp_path).labels == load(tiny_v2).labels
    (tmp_path / "empty").mkdir()
    assert "empty" in refusal(ModelError, load, tmp_path / "empty")


def test_noise_of_any_shape_is_predicted(model):
    for size in ((1, 1), (1, 700), (700, 1), (17, 16), (64, 96)):
        assert model(noise(*size)).mask.shape == size
