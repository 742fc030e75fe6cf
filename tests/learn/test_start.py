"""Starting weights: rows follow the classes' meaning, all else is taken as it is, and what was not taken is said."""

import numpy as np
import pytest
import torch

from espy import build
from espy import spec as specs
from espy.errors import ModelError
from espy.header import Preprocess, read_safetensors, write_safetensors
from espy.labels import CAMVID, CITYSCAPES, Label
from espy.learn.start import class_dimensions, read_source, start
from espy.measure.mapping import read_mapping
from espy.nn.build import weights_of, with_weights
from samples import WEIGHTS, attempt, calibrated, needs, save_model, scene

pytestmark = pytest.mark.usefixtures("one_thread")
STREET = tuple(label for label in CAMVID if not label.ignored)  # CamVid's 11 classes
MEANT = read_mapping("cityscapes-camvid")
SMALL = {"widths": (8, 16, 24), "branches": 2, "alpha2": 1, "alpha3": 1}
NETWORKS = {
    "espnet": ("espnet", SMALL),
    "espnet-branch": ("espnet", {**SMALL, "arrangement": "branch", "skip1": "cat1"}),
    "espnet-C": ("espnet", {**SMALL, "variant": "C"}),
    "espnetv2": ("espnetv2", {"width": 0.5}),
    "espnetv2_first": ("espnetv2_first", {"width": 0.5}),
}


def named(count, prefix="c"):
    return tuple(Label(f"{prefix}{k}", (k, 0, 0)) for k in range(count))


def saved(path, network, labels):
    """A model file of a network whose weights are all different from fresh ones, and its logits for a picture."""
    calibrated(network, Preprocess((64, 96), multiple=1))
    return save_model(path, network, Preprocess((64, 96), multiple=1), labels), logits(network)


def logits(network):
    x = torch.from_numpy(scene(64, 96, seed=5)).permute(2, 0, 1)[None].float() / 64 - 2
    with torch.no_grad():
        return network.eval()(x)[0]


def alike(here, there):
    """Equal to float32 rounding: a product of matrices may sum in another order when rows change places."""
    torch.testing.assert_close(here, there, rtol=0, atol=1e-5 * float(there.abs().max()))


# Oracles: both networks are run


@pytest.mark.parametrize("name", NETWORKS)
def test_with_classes_in_another_order_every_logit_is_that_of_its_name(tmp_path, name):
    kind, choices = NETWORKS[name]
    labels = named(6)
    path, there = saved(tmp_path / "m.safetensors", build(kind, classes=6, seed=1, **choices), labels)
    order = [3, 0, 5, 1, 4, 2]
    network = build(kind, classes=6, seed=2, **choices)
    taken = start(network, [labels[k] for k in order], str(path))
    alike(logits(network), there[order])
    assert taken.fresh == {}
    assert taken.unused == ()
    assert taken.classes == {f"c{k}": f"c{k}" for k in order}


@pytest.mark.parametrize("name", NETWORKS)
def test_with_some_new_classes_among_as_many_the_known_ones_keep_their_logits(tmp_path, name):
    kind, choices = NETWORKS[name]
    labels = named(6)
    path, there = saved(tmp_path / "m.safetensors", build(kind, classes=6, seed=1, **choices), labels)
    network = build(kind, classes=6, seed=2, **choices)
    taken = start(network, [labels[5], *named(2, "new"), labels[0], labels[2], labels[1]], str(path))
    alike(logits(network)[[0, 3, 4, 5]], there[[5, 0, 2, 1]])
    assert taken.classes == {"c5": "c5", "new0": None, "new1": None, "c0": "c0", "c2": "c2", "c1": "c1"}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_classes_take_everything_as_it_is(tmp_path, name):
    kind, choices = NETWORKS[name]
    path, there = saved(tmp_path / "m.safetensors", build(kind, classes=6, seed=1, **choices), named(6))
    network = build(kind, classes=6, seed=2, **choices)
    taken = start(network, named(6), str(path))
    alike(logits(network), there)
    assert len(taken.whole) == len(weights_of(network))
    assert taken.lines() == [f"{path}: {len(taken.whole)} tensors taken as they are"]


@pytest.mark.parametrize(
    ("kind", "choices"), [("espnetv2", {"width": 0.5, "projection": 4}), NETWORKS["espnet-C"]], ids=["v2", "C"]
)
@pytest.mark.parametrize("classes", [3, 9])
def test_with_fewer_or_more_classes_only_the_last_rows_differ_where_no_map_before_follows_them(
    tmp_path, kind, choices, classes
):
    path, there = saved(tmp_path / "m.safetensors", build(kind, classes=6, seed=1, **choices), named(6))
    network = build(kind, classes=classes, seed=2, **choices)
    labels = named(classes)[::-1]
    taken = start(network, labels, str(path))
    known = [place for place, label in enumerate(labels) if label in named(6)]
    assert len(known) == min(classes, 6)
    alike(logits(network)[known], there[[int(labels[place].name[1:]) for place in known]])
    assert taken.fresh == {}
    assert [name for name, source in taken.classes.items() if source is None] == [
        f"c{k}" for k in range(classes - 1, 5, -1)
    ]


def test_labels_that_mean_a_class_are_found_by_a_mapping_and_the_first_of_several_counts(tmp_path):
    kind, choices = NETWORKS["espnet-C"]
    path, there = saved(tmp_path / "m.safetensors", build(kind, classes=4, seed=1, **choices), named(4))
    network = build(kind, classes=3, seed=2, **choices)
    labels = (Label("thing", (0, 0, 0)), Label("new", (0, 0, 1)), Label("other_one", (0, 0, 2)))
    taken = start(network, labels, str(path), {"c0": "void", "c1": "other one", "c2": "thing", "c3": "thing"})
    assert taken.classes == {"thing": "c2", "new": None, "other_one": "c1"}
    alike(logits(network)[[0, 2]], there[[2, 1]])


def test_names_agree_whatever_their_case_and_blanks(tmp_path):
    kind, choices = NETWORKS["espnet-C"]
    labels = (Label("traffic light", (0, 0, 0)), Label("Road", (0, 0, 1)))
    path, there = saved(tmp_path / "m.safetensors", build(kind, classes=2, seed=1, **choices), labels)
    network = build(kind, classes=2, seed=2, **choices)
    start(network, (Label("road", (0, 0, 0)), Label("Traffic_Light", (0, 0, 1))), str(path))
    alike(logits(network), there[[1, 0]])


# Bundled and published weights


@pytest.mark.parametrize("width", [0.5, 2.0], ids=["street-small", "street"])
def test_a_bundled_model_of_20_classes_gives_all_that_it_can_to_camvids_11(width):
    source = "street-small" if width == 0.5 else "street"
    header, arrays = read_source(source)
    network = build("espnetv2", classes=11, width=width, projection=10, seed=0)
    taken = start(network, STREET, source, MEANT)
    assert set(taken.by_class) == {"pyramid4.out.weight", "pyramid4.out.bias"}
    assert taken.fresh == {}
    assert taken.hint == ""
    there = logits(with_weights(header.spec, arrays))
    rows = [
        "sky",
        "building",
        "pole",
        "road",
        "sidewalk",
        "vegetation",
        "traffic light",
        "fence",
        "car",
        "person",
        "rider",
    ]
    assert list(taken.classes.values()) == rows
    places = [[label.name for label in CITYSCAPES].index(name) for name in rows]
    alike(logits(network), there[places])


@pytest.mark.parametrize("width", [0.5, 2.0], ids=["street-small", "street"])
def test_where_the_projection_follows_the_classes_the_report_says_how_to_keep_the_decoder(width):
    source = "street-small" if width == 0.5 else "street"
    network = build("espnetv2", classes=11, width=width, seed=0)
    taken = start(network, STREET, source, MEANT)
    assert {name.partition(".")[0] for name in taken.fresh} == {"pyramid1", "pyramid2", "pyramid3", "pyramid4"}
    lines = taken.lines()
    assert lines[0] == f"{source}: {len(taken.whole)} tensors taken as they are"
    assert "sky <- sky" in lines[1]
    assert all(line.startswith("fresh: pyramid") for line in lines[2:])
    assert "10x32x1x1 there, 5x32x1x1 here" in lines[-1]
    assert lines[-1].endswith("network.projection = 10 would take the decoder too")
    assert sum("projection =" in line for line in lines) == 1


def test_the_hint_is_only_given_where_it_helps(tmp_path):
    chosen = build("espnetv2", classes=11, width=0.5, projection=7, seed=0)
    assert start(chosen, STREET, "street-small", MEANT).fresh
    assert start(chosen, STREET, "street-small", MEANT).hint == ""
    path, _ = saved(tmp_path / "m.safetensors", build("espnet", classes=5, **SMALL), named(5))
    assert start(build("espnet", classes=4, **SMALL), named(4), str(path)).hint == ""


@needs(WEIGHTS)
def test_a_published_checkpoint_of_12_classes_gives_11_by_name():
    source = str(WEIGHTS / "espnet_decoder_p2_q8_camvid.pth")
    header, arrays = read_source(source)
    assert [label.name for label in header.labels] == [label.name for label in CAMVID]
    network = build(header.spec, classes=11, seed=0)
    before = {name: tensor.clone() for name, tensor in weights_of(network).items()}
    taken = start(network, STREET, source)
    assert taken.classes == {label.name: label.name for label in STREET}
    after = weights_of(network)
    for name in taken.whole:
        assert np.array_equal(after[name], arrays[name]), name
    for name in taken.by_class:  # CamVid's void is the last of the 12 classes: what is left is a corner
        assert np.array_equal(after[name], arrays[name][tuple(slice(n) for n in after[name].shape)]), name
    for name in taken.fresh:
        assert torch.equal(after[name], before[name]), name
    assert {*taken.whole, *taken.by_class, *taken.fresh} == set(after)
    assert {"encoder.classifier.weight", "up3.weight", "up1.weight"} <= set(taken.by_class)
    assert {name.partition(".")[0] for name in taken.fresh} == {"fuse", "refine"}


@needs(WEIGHTS)
def test_a_published_checkpoint_of_the_same_classes_gives_its_own_logits():
    source = str(WEIGHTS / "espnet_decoder_p2_q8_camvid.pth")
    header, arrays = read_source(source)
    network = build(header.spec, seed=0)
    start(network, CAMVID[::-1], source)
    alike(logits(network), logits(with_weights(header.spec, arrays)).flip(0))


def test_an_espnet_c_is_the_encoder_of_the_full_network(tmp_path):
    encoder = build("espnet", variant="C", classes=6, seed=1, **SMALL)
    path, there = saved(tmp_path / "m.safetensors", encoder, named(6))
    full = build("espnet", classes=6, seed=2, **SMALL)
    taken = start(full, named(6), str(path))
    alike(logits(full.encoder), there)
    assert not any(name.startswith("encoder.") for name in taken.fresh)
    other = build("espnet", classes=3, seed=2, **SMALL)
    start(other, named(6)[3:], str(path))
    alike(logits(other.encoder), there[3:])


# Where weights come from, and what is refused


def test_a_run_folder_gives_its_best_weights(tmp_path):
    (tmp_path / "run").mkdir()
    _, there = saved(tmp_path / "run" / "best.safetensors", build("espnet", classes=3, seed=1, **SMALL), named(3))
    network = build("espnet", classes=3, seed=2, **SMALL)
    start(network, named(3), str(tmp_path / "run"))
    alike(logits(network), there)


def test_tensors_that_have_no_place_are_named(tmp_path):
    header, arrays = read_safetensors(
        saved(tmp_path / "m.safetensors", build("espnet", classes=3, **SMALL), named(3))[0]
    )
    write_safetensors(tmp_path / "n.safetensors", header, {**arrays, "extra.weight": np.zeros(3, np.float32)})
    taken = start(build("espnet", classes=3, **SMALL), named(3), str(tmp_path / "n.safetensors"))
    assert taken.unused == ("extra.weight",)
    assert taken.lines()[-1] == "not used: extra.weight"


@pytest.mark.parametrize(
    ("network", "choices", "source", "words"),
    [
        (
            "espnet",
            {},
            "street-small",
            "it holds espnetv2 (width 0.5), this is espnet (variant full, widths (16, 64, 128))",
        ),
        ("espnetv2", {"width": 2.0}, "street-small", "it holds espnetv2 (width 0.5), this is espnetv2 (width 2.0)"),
        ("espnetv2_first", {"width": 2.0}, "street-small", "this is espnetv2_first (width 2.0)"),
        ("espnetv2", {"width": 0.5}, "nowhere", "nowhere: no such model file; bundled: street"),
    ],
)
def test_a_wrong_network_or_source_is_refused_in_one_line(network, choices, source, words):
    built = build(network, classes=20, seed=0, **choices)
    _, message = attempt(ModelError, start, built, CITYSCAPES, source)
    assert words in message
    assert "\n" not in message


def test_a_mapping_that_leaves_a_label_out_is_refused():
    network = build("espnetv2", classes=11, width=0.5, seed=0)
    with pytest.raises(Exception, match="the mapping has no line for the model's 'train'"):
        start(network, STREET, "street-small", {k: v for k, v in MEANT.items() if k != "train"})


# What follows the classes


@pytest.mark.parametrize(("classes", "branches"), [(7, 2), (6, 4), (5, 1)])
@pytest.mark.parametrize("name", NETWORKS)
def test_dimensions_that_follow_the_classes_are_those_that_change_with_them(name, classes, branches):
    kind, choices = NETWORKS[name]
    choices = {**choices, "branches": branches} if kind == "espnet" else {**choices, "projection": 3}
    choices = {key: value for key, value in choices.items() if key in specs.NETWORKS[kind]["segment"].__struct_fields__}
    few, many = (weights_of(build(kind, classes=k, seed=0, **choices)) for k in (classes, classes + 1))
    changing = {
        name: tuple(
            d for d in range(few[name].dim()) if (few[name].shape[d], many[name].shape[d]) == (classes, classes + 1)
        )
        for name in few.keys() & many.keys()
    }
    found = class_dimensions(specs.make(kind, classes=classes, **choices))
    assert found == {name: dimensions for name, dimensions in changing.items() if dimensions}


def test_a_width_that_only_happens_to_be_the_number_of_classes_is_none_of_them():
    choices = {**SMALL, "variant": "C"}
    network = build("espnet", classes=16, **choices)  # as wide as its second level
    assert set(class_dimensions(network.spec)) == {"classifier.weight"}
