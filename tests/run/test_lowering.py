"""A lowered network is the same function: interpreted as the engine's header file says, it gives what the network gives."""

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from random_networks import arrays_of, given_by, random_network

from espy import bundle
from espy.errors import EngineError, ModelError
from espy.header import Preprocess, read_safetensors
from espy.nn.build import build, with_weights
from espy.run.lowering import lower
from espy.spec import WIDTHS, make
from lowered import run_program, run_unit, shapes_of, units_of
from samples import noise

pytestmark = pytest.mark.usefixtures("one_thread")

WITHIN = 1e-5  # of the largest logit: what float32 weights leave of float64 ones
RGB = Preprocess((64, 96))
BGR = Preprocess((64, 96), order="BGR", scale=1.0, mean=(72.4, 82.9, 73.2), std=(11598.0, 12117.0, 11900.0))


def error(network, preprocess, picture):
    """The largest difference of a score, relative to the largest score, between a network and its program."""
    program = lower(network.spec, arrays_of(network), preprocess)
    assert (program.units.dtype, program.weights.dtype) == (np.int64, np.float32)
    mask, found = run_program(program.units, program.weights, picture)
    x = torch.from_numpy(picture)[None].permute(0, 3, 1, 2).double()
    x = x.flip(1) if preprocess.order == "BGR" else x
    x = x * preprocess.scale - torch.tensor(preprocess.mean).double().view(1, 3, 1, 1)
    with torch.no_grad():
        wanted = given_by(network.double(), x / torch.tensor(preprocess.std).double().view(1, 3, 1, 1))
    assert found.shape == wanted.shape
    assert mask is None if network.spec.task != "segment" else (mask == wanted.argmax(0)).double().mean() > 0.999
    largest = float(wanted.abs().max()) or 1.0  # ReLU may leave nothing of a random network
    return float((found - wanted).abs().max()) / largest


PUBLISHED = {
    # what the authors' checkpoints and the bundled models are, at a few pixels
    "espnetv2 s=0.5": {"network": "espnetv2", "width": 0.5},
    "espnetv2 s=2.0": {"network": "espnetv2", "width": 2.0, "classes": 21},
    "espnetv2_first s=1.0": {"network": "espnetv2_first", "width": 1.0},
    "espnet 2/8": {"network": "espnet"},
    "espnet 2/8 joined skip": {"network": "espnet", "skip1": "cat1"},
    "espnet-c 2/3": {"network": "espnet", "variant": "C", "alpha3": 3},
    "espnet-b": {"network": "espnet", "variant": "B", "alpha3": 1, "align_corners": False},
    "espnet-a": {"network": "espnet", "variant": "A", "alpha3": 1},
    "espnet by the article": {"network": "espnet", "arrangement": "branch"},
    **{
        f"espnetv2 of classes s={s}": {"network": "espnetv2", "task": "classify", "width": s, "classes": 1000}
        for s in WIDTHS
    },
    **{f"espnetv2 of boxes s={s}": {"network": "espnetv2", "task": "detect", "width": s} for s in (0.5, 2.0)},
}


@pytest.mark.parametrize("preprocess", [RGB, BGR], ids=["RGB", "BGR"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_program_is_its_network(name, preprocess):
    assert error(random_network(PUBLISHED[name], seed=1), preprocess, noise(45, 66)) < WITHIN


@pytest.mark.parametrize("name", ["street-small", "camvid", "objects", "imagenette", "bccd"])
def test_a_bundled_model_s_program_is_the_model(name):
    header, arrays = read_safetensors(bundle.path(name, ".safetensors"))
    assert error(with_weights(header.spec, arrays), header.preprocess, noise(64, 96)) < WITHIN


activations = {"activation": st.sampled_from(["prelu", "relu"]), "hff": st.booleans(), "residual": st.booleans()}
encoders = activations | {
    "width": st.just(0.5), "arrangement": st.sampled_from(["authors", "seed", "seed_literal"]),
    "branches": st.sampled_from([1, 2, 4]), "kernel": st.sampled_from([1, 3, 5]), "reinforce": st.booleans(),
    "classes": st.integers(2, 9),
}  # fmt: skip
pyramids = encoders | {"base": st.integers(1, 9), "projection": st.none() | st.integers(1, 7)}
espnets = activations | {
    "variant": st.sampled_from(["A", "B", "C", "full"]), "arrangement": st.sampled_from(["merge", "branch"]),
    "branches": st.integers(1, 5), "kernel": st.sampled_from([1, 3, 5]), "alpha2": st.integers(1, 3),
    "alpha3": st.integers(1, 3), "widths": st.tuples(st.integers(1, 9), st.integers(5, 17), st.integers(5, 17)),
    "skip1": st.sampled_from(["stem", "cat1"]), "projection": st.none() | st.integers(1, 7),
    "align_corners": st.booleans(), "classes": st.integers(2, 9),
}  # fmt: skip


def choices(network, fields):
    return st.fixed_dictionaries({"network": st.just(network)}, optional=fields)


networks = st.one_of(
    choices("espnetv2", pyramids),
    choices("espnetv2_first", encoders),
    choices("espnetv2", encoders | {"task": st.just("classify")}),
    choices("espnetv2", encoders | {"task": st.just("detect"), "classes": st.integers(1, 9)}),
    choices("espnet", espnets),
    choices("espnet", espnets | {"variant": st.sampled_from(["C", "full"]), "reinforce": st.booleans()}),
)


@settings(max_examples=40, deadline=None, derandomize=True, phases=[Phase.generate])  # shrinking networks takes minutes
@given(networks, st.integers(16, 70), st.integers(16, 70), st.sampled_from([RGB, BGR]), st.integers(0, 99))
def test_any_network_s_program_is_the_network_at_any_size(spec, height, width, preprocess, seed):
    assert error(random_network(spec, seed), preprocess, noise(height, width, seed)) < WITHIN


# The form of a program


def lowered(spec, seed=0):
    network = random_network(spec, seed)
    return lower(network.spec, arrays_of(network), RGB)


def test_maps_are_few_enough_for_the_deepest_network_to_be_numbered():
    deepest = {"network": "espnet", "alpha2": 64, "alpha3": 64, "widths": (4, 5, 5), "classes": 2}
    numbers = {ints[2] for kind, ints in units_of(lowered(deepest).units) if kind == "ESP"}
    assert len(numbers) == 131
    assert max(numbers) < 255


def test_a_network_s_units_are_its_figure():
    units = units_of(lowered({"network": "espnetv2", "width": 0.5}).units)
    level = ["CONV", "DOWN"]
    step = ["MERGE", "PYRAMID"]
    assert [kind for kind, _ in units] == [
        "FIRST", "POOL", "POOL", "POOL", *level, *level, *["EESP"] * 3, *level, *["EESP"] * 7, "CONV", "PYRAMID",
        *step * 3, "SEGMENT",
    ]  # fmt: skip


def test_a_classifier_s_units_are_its_figure():
    units = units_of(lowered({"network": "espnetv2", "width": 0.5, "task": "classify"}).units)
    level = ["CONV", "DOWN"]
    assert [kind for kind, _ in units] == [
        "FIRST", "POOL", "POOL", "POOL", *level, *level, *["EESP"] * 3, *level, *["EESP"] * 7, "DOWN", *["EESP"] * 3,
        "CONV", "CONV", "MEAN", "CONV", "SCORES",
    ]  # fmt: skip


def test_many_classes_are_no_mask():
    assert len(lowered({"network": "espnetv2", "width": 0.5, "task": "classify", "classes": 257}).units)


def test_a_map_has_sums_where_a_gate_reads_its_mean_and_nowhere_else():
    units = units_of(lowered({"network": "espnetv2", "width": 0.5}).units)
    place = {"FIRST": 0, "EESP": 1, "DOWN": 2}
    writers = [(ints[place[kind]], ints[-1], kind) for kind, ints in units if kind in place]
    skips = {ints[0] for kind, ints in units if kind == "MERGE"}
    last = {number: kind for number, sums, kind in writers if sums}
    assert last.keys() == skips
    assert sorted(last.values()) == ["DOWN", "EESP", "FIRST"]
    assert sum(sums for _, sums, _ in writers) == 3
    for number in skips:
        assert [sums for one, sums, _ in writers if one == number][-1] == 1


def test_weights_too_small_to_matter_are_zero():
    network = random_network({"network": "espnet", "variant": "A", "alpha3": 1}, seed=0)
    arrays = arrays_of(network)
    arrays["classifier.weight"] = arrays["classifier.weight"] * np.float32(1e-39)
    arrays["level2.0.reduce.weight"] = arrays["level2.0.reduce.weight"] * np.float32(1e-25)
    weights = np.abs(lower(network.spec, arrays, RGB).weights)
    assert weights[weights > 0].min() >= 1e-30
    assert np.count_nonzero(weights < 1e-24) - np.count_nonzero(weights == 0) > 50  # the small ones that are kept


# What cannot be lowered


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (make("espnetv2", width=0.5, activation="silu"), "engine native has no activation silu: take engine torch"),
        (make("espnetv2", task="detect", activation="silu"), "engine native has no activation silu: take engine torch"),
        (make("espnet", classes=257), "a mask holds at most 256 classes, not 257"),
    ],
)
def test_what_the_engine_does_not_run_is_one_line_that_names_another(network, says):
    with pytest.raises(EngineError, match=says):
        lower(network, {}, RGB)


def without(arrays, name):
    return {key: array for key, array in arrays.items() if key != name}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda a: without(a, "stem.conv.weight"), "stem.conv.weight is missing"),
        (lambda a: a | {"down2.reduce.weight": np.zeros((12, 19, 3, 1), np.float32)}, "down2.reduce.weight is of another"),
        (lambda a: a | {"level9.weight": np.zeros(3, np.float32)}, "level9.weight is strange"),
        (lambda a: a | {"stem.bn.running_var": np.full(16, -1, np.float32)}, "not finite"),
        (lambda a: a | {"classifier.weight": a["classifier.weight"] * np.inf}, "not finite"),
        (lambda a: a | {f"stem.bn.{part}": np.full(16, 3e38, np.float32) for part in ("weight", "running_mean")}, "not finite"),
    ],
)  # fmt: skip
def test_weights_that_do_not_belong_to_the_network_are_one_line(damage, says):
    network = build("espnet", variant="C", alpha3=1, seed=0)
    with pytest.raises(ModelError, match=says) as caught:
        lower(network.spec, damage(arrays_of(network)), BGR)
    assert "\n" not in str(caught.value)


# The interpreter, which is the oracle of the engine's units


def test_a_unit_alone_can_be_run_on_maps_of_any_numbers():
    maps = {7: torch.arange(12.0).double().reshape(1, 3, 4), 9: torch.ones(2, 3, 4).double()}
    ints = [2, 7, 9, 30]
    assert shapes_of("AFFINE", ints, maps) == [(3,)] * 3
    written = run_unit("AFFINE", ints, [1, 2, -3, 0, 1, 0, 1, 0, 0.5], maps)
    assert written.keys() == {30}
    assert written[30][0].equal(maps[7][0])
    assert written[30][1].unique().tolist() == [3]
    assert written[30][2].unique().tolist() == [-1.5]
