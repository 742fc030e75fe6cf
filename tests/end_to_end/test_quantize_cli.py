"""`espy quantize` as a user meets it: what it prints and writes, and how it ends."""

import json

import pytest

from espy import load
from espy.ship import quantize as ship
from samples import one_line, scene
from trees import save

pytestmark = pytest.mark.filterwarnings("ignore")  # the tools' own


@pytest.fixture
def here(tmp_path, tiny_espnet):
    """photos/, a set whose truth is what the tiny network says of it."""
    root = tmp_path / "photos"
    root.mkdir()
    (root / "classes.txt").write_text("".join(f"class {k}\n" for k in range(4)))
    with load(tiny_espnet, engine="torch") as model:
        for k in range(20):
            picture = scene(64, 96, k)
            save(root / "images" / f"p{k}.png", picture)
            save(root / "masks" / f"p{k}.png", model(picture).mask)
    return root


def test_a_model_is_quantised_measured_and_named_int8_from_then_on(espy, here, tiny_espnet, monkeypatch):
    monkeypatch.setattr(ship, "ROUNDS", 1)
    call = ("quantize", tiny_espnet, "folder:photos", "-o", "m.onnx", "--max-drop", "30", "--allow-slower")
    outcome = espy(*call, "--keep-float", "up1", "--threads", "1")
    assert outcome.code == 0, outcome
    figures, layers, written = outcome.out.splitlines()
    assert "mIoU on val 100.00 in float32" in figures
    assert "1 thread, onnxruntime" in figures
    assert layers.endswith("in float: up1")
    assert written.startswith("m.onnx (")
    outcome = espy("eval", "m.onnx", "folder:photos", "--json")
    assert json.loads(outcome.out)["protocol"]["precision"] == "int8"
    assert "espy quantize" in one_line(espy("eval", tiny_espnet, "folder:photos", "--precision", "int8"))
    assert "in int8, not in 'float32'" in one_line(espy("eval", "m.onnx", "folder:photos", "--precision", "float32"))
    assert "--force" in one_line(espy(*call))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--size", "native"), "HEIGHTxWIDTH"),
        (("--to", "onnxx"), "onnx"),
        (("--to", "litert"), "cannot quantise to 'litert'"),
        (("--max-drop", "101"), "0 to 100"),
        (("--pictures", "10"), "at least 16"),
    ],
    ids=str,
)
def test_a_call_that_cannot_work_ends_in_one_line(espy, here, tiny_espnet, arguments, said):
    assert said in one_line(espy("quantize", tiny_espnet, "folder:photos", "-o", "m.onnx", *arguments))
