"""What the native engine's units are counted to do is what the networks do, as they are counted by running them."""

import numpy as np
import pytest

from espy import build, bundle
from espy.header import Preprocess, read_safetensors
from espy.nn.build import with_weights
from espy.nn.count import macs
from espy.run.lowering import lower
from espy.run.units import NAMES, stages_of, units_of


def units(name, height, width):
    header, arrays = read_safetensors(bundle.path(name, ".safetensors"))
    return units_of(lower(header.spec, arrays, header.preprocess).units, height, width), with_weights(
        header.spec, arrays
    )


@pytest.mark.parametrize(
    ("name", "size"),
    [("street", (64, 96)), ("street-small", (96, 64)), ("camvid", (61, 83)), ("imagenette", (128, 128))],
)
def test_units_multiply_as_often_as_the_network(name, size):
    found, network = units(name, *size)
    assert sum(unit.macs for unit in found) == macs(network, size)


@pytest.mark.parametrize("arrangement", ["merge", "branch"])
@pytest.mark.parametrize("variant", ["A", "B", "C", "full"])
def test_so_do_those_of_every_espnet(variant, arrangement):
    network = build(
        "espnet",
        variant=variant,
        arrangement=arrangement,
        widths=(8, 16, 24),
        branches=2,
        alpha2=1,
        alpha3=1,
        classes=4,
    )
    arrays = {
        name: array.numpy() for name, array in network.state_dict().items() if not name.endswith("num_batches_tracked")
    }
    found = units_of(lower(network.spec, arrays, Preprocess((64, 96), multiple=1)).units, 48, 64)
    assert sum(unit.macs for unit in found) == macs(network, (48, 64))


def test_a_detectors_pyramids_project_before_they_resize_and_multiply_less():
    found, network = units("bccd", 320, 320)
    assert 0.9 * macs(network, (320, 320)) < sum(unit.macs for unit in found) < macs(network, (320, 320))


def test_units_are_named_with_what_they_make_and_move():
    found, _ = units("street-small", 64, 96)
    first, *_, last = found
    assert (first.kind, first.made) == ("FIRST", "16x32x48 + 3x32x48")
    assert first.traffic == 64 * 96 * 3 + 4 * 32 * 48 * 19
    assert (last.kind, last.made, last.macs) == ("SEGMENT", "64x96", 0)
    assert last.traffic == 64 * 96 + 4 * 20 * 32 * 48
    assert {unit.kind for unit in found} <= set(NAMES)
    assert all(
        isinstance(value, int) and not isinstance(value, np.integer)
        for unit in found
        for value in (unit.macs, unit.traffic)
    )


def test_a_mask_is_made_with_the_pyramid_before_it():
    header, arrays = read_safetensors(bundle.path("street-small", ".safetensors"))
    program = lower(header.spec, arrays, header.preprocess).units
    *_, pyramid, segment = units_of(program, 64, 96)
    *others, (joint, places) = stages_of(program, 64, 96)
    assert [unit for unit, _ in others] == units_of(program, 64, 96)[:-2]
    assert (joint.kind, joint.made, joint.macs) == ("PYRAMID + SEGMENT", "64x96", pyramid.macs)
    assert places == [len(others), len(others) + 1]
    assert joint.traffic == pyramid.traffic + segment.traffic - 2 * 4 * 20 * 32 * 48  # the logits, written and read
