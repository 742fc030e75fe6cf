"""Specs: every choice is checked with one clear line, JSON in and out loses nothing, and no torch is needed."""

import json
import subprocess
import sys

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from espy import spec as specs
from espy.errors import EspyError, SpecError
from espy.nn.build import build
from espy.nn.eesp import EESP, Down
from espy.nn.esp import ESP
from espy.spec import eesp_dilations, eesp_split, encoder_widths, esp_split, from_dict, make, to_dict

QUICK = settings(deadline=None, database=None, max_examples=200)


def refusal(call, *args, **choices):
    """The message of a refused choice: one line."""
    with pytest.raises(SpecError) as caught:
        call(*args, **choices)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, repr(message)
    return message


class TestNames:
    @pytest.mark.parametrize(("wrong", "meant"), [
        ("espnte", "espnet"), ("espnet_v2", "espnetv2"), ("espnetv2_frist", "espnetv2_first"),
    ])  # fmt: skip
    def test_unknown_network_names_the_nearest(self, wrong, meant):
        message = refusal(make, wrong)
        assert wrong in message
        assert f"'{meant}'" in message

    def test_network_near_to_none_lists_all(self):
        message = refusal(make, "vit")
        assert all(name in message for name in ("espnet", "espnetv2", "espnetv2_first"))

    @pytest.mark.parametrize(("network", "wrong", "meant"), [
        ("espnet", "clases", "classes"), ("espnet", "alpha_2", "alpha2"), ("espnetv2", "widths", "width"),
        ("espnetv2", "bases", "base"), ("espnetv2_first", "aktivation", "activation"),
    ])  # fmt: skip
    def test_unknown_choice_names_the_nearest(self, network, wrong, meant):
        message = refusal(make, network, **{wrong: 1})
        assert wrong in message
        assert f"'{meant}'" in message

    @pytest.mark.parametrize(("network", "choice"), [
        ("espnet", "base"), ("espnetv2", "skip1"), ("espnetv2", "alpha2"), ("espnetv2_first", "projection"),
    ])  # fmt: skip
    def test_choice_of_another_network_is_unknown(self, network, choice):
        assert choice in refusal(make, network, **{choice: 1})

    @pytest.mark.parametrize(("network", "choice", "wrong", "meant"), [
        ("espnet", "variant", "ful", "full"), ("espnet", "arrangement", "merg", "merge"),
        ("espnet", "skip1", "cat", "cat1"), ("espnet", "activation", "prelo", "prelu"),
        ("espnetv2", "arrangement", "seed_litteral", "seed_literal"), ("espnetv2", "activation", "swilu", "silu"),
    ])  # fmt: skip
    def test_unknown_value_names_the_nearest(self, network, choice, wrong, meant):
        message = refusal(make, network, **{choice: wrong})
        assert choice in message
        assert f"'{wrong}'" in message
        assert meant in message.replace(f"'{wrong}'", "")

    @pytest.mark.parametrize("data", [None, [], {}, "espnet", 3, {"network": 3}, {"network": None}, {"classes": 3}])
    def test_what_is_no_spec_is_refused(self, data):
        assert "network" in refusal(from_dict, data)

    @pytest.mark.parametrize("name", ["a\nb", "a\r\nb", "\u2028", "\x1b[31m"])
    def test_foreign_text_cannot_break_the_line(self, name):
        for data in ({"network": name}, {"network": "espnet", name: 1}, {"network": "espnet", "variant": name}):
            assert name not in refusal(from_dict, data)


NOT_AN_INTEGER = ["7", 7.5, True, [7], {}, float("nan")]


class TestValues:
    @pytest.mark.parametrize("network", specs.NETWORKS)
    @pytest.mark.parametrize("classes", [1, 0, -1, 10**6, 10**30, None, *NOT_AN_INTEGER])
    def test_classes_are_an_integer_from_two(self, network, classes):
        assert "classes" in refusal(make, network, classes=classes)

    @pytest.mark.parametrize("choice", ["branches", "kernel", "alpha2", "alpha3"])
    @pytest.mark.parametrize("value", [0, -1, 10**6, None, *NOT_AN_INTEGER])
    def test_counts_are_integers_from_one(self, choice, value):
        assert choice in refusal(make, "espnet", **{choice: value})

    @pytest.mark.parametrize("choice", ["base", "projection", "branches", "kernel"])
    @pytest.mark.parametrize("value", [0, -1, 10**6, *NOT_AN_INTEGER])
    def test_counts_of_espnetv2_are_integers_from_one(self, choice, value):
        assert choice in refusal(make, "espnetv2", **{choice: value})

    @pytest.mark.parametrize("network", specs.NETWORKS)
    @pytest.mark.parametrize("kernel", [2, 4, 30])
    def test_kernels_are_odd(self, network, kernel):
        assert f"not {kernel}" in refusal(make, network, kernel=kernel)

    @pytest.mark.parametrize("network", ["espnetv2", "espnetv2_first"])
    @pytest.mark.parametrize("width", [0.0, 0.75, 1.1, 3.0, -1.0, float("nan"), float("inf"), "1.0", None, True])
    def test_width_is_one_of_five(self, network, width):
        assert "width" in refusal(make, network, width=width)

    @pytest.mark.parametrize("choice", ["hff", "residual", "align_corners", "reinforce"])
    @pytest.mark.parametrize("value", [1, "true", [], 0.0])
    def test_switches_are_true_or_false(self, choice, value):
        assert choice in refusal(make, "espnet", **{choice: value})

    @pytest.mark.parametrize(
        "widths", [(16, 64), (16, 64, 128, 256), (0, 64, 128), (16, -1, 128), "abc", 16, None, (16, 64, 1e2)]
    )
    def test_widths_are_three_integers_from_one(self, widths):
        assert "widths" in refusal(make, "espnet", widths=widths)

    def test_more_branches_than_channels_are_refused(self):
        assert "branches" in refusal(make, "espnet", branches=5, widths=(16, 4, 128))
        assert "branches" in refusal(make, "espnet", branches=5, widths=(16, 64, 4))

    @pytest.mark.parametrize("branches", [3, 5, 8, 16])
    def test_espnetv2_channels_that_do_not_divide_are_refused(self, branches):
        message = refusal(make, "espnetv2", branches=branches)
        assert f"{branches} branches" in message
        assert "channels" in message

    @pytest.mark.parametrize("variant", ["A", "B"])
    def test_variants_without_the_picture_do_not_take_it(self, variant):
        assert "variant" in refusal(make, "espnet", variant=variant, reinforce=True)
        assert not make("espnet", variant=variant, reinforce=False).reinforced

    def test_other_tasks_are_refused(self):
        for network, tasks in specs.NETWORKS.items():
            for task in ({"segment", "classify", "detect"} - tasks.keys()) | {"segmentation", None, 1}:
                assert "task" in refusal(make, network, task=task)
        assert "did you mean 'classify'" in refusal(make, "espnetv2", task="classifi")

    def test_a_detector_may_know_a_single_kind_of_thing_and_nothing_else_one_class(self):
        assert make("espnetv2", task="detect", classes=1).classes == 1
        for task in ("segment", "classify"):
            assert "classes" in refusal(make, "espnetv2", task=task, classes=1)

    def test_values_given_to_a_class_are_checked_too(self):
        refusal(specs.ESPNet, classes=1)
        refusal(specs.ESPNetv2, width=0.75)
        refusal(specs.ESPNetv2First, kernel=2)

    def test_a_refused_choice_is_caught_as_a_value_error_too(self):
        assert issubclass(SpecError, ValueError)
        assert issubclass(SpecError, EspyError)

    @pytest.mark.parametrize("call", [
        lambda: build("espnet", classes=1),
        lambda: build(make("espnet"), kernel=2),
        lambda: build({"network": "espnetv2", "width": 3.0}),
        lambda: build("espnet", colour="red"),
    ])  # fmt: skip
    def test_build_refuses_the_same(self, call):
        refusal(call)

    @pytest.mark.parametrize(("branches", "kernel"), [(63, 3), (64, 3), (60, 31)])
    def test_dilations_that_no_convolution_takes_are_refused(self, branches, kernel):
        """2⁶² and more: torch refuses such a padding, but only when the network runs."""
        refusal(make, "espnet", branches=branches, kernel=kernel)


class TestUnits:
    @pytest.mark.parametrize("arrangement", ["merge", "branch"])
    @pytest.mark.parametrize(("choices", "word"), [
        ({"i": 8, "o": 8, "branches": 0}, "branches"),
        ({"i": 8, "o": 8, "branches": -3}, "branches"),
        ({"i": 8, "o": 4, "branches": 5}, "branches"),
        ({"i": 0, "o": 8}, "input"),
        ({"i": 8, "o": 8, "kernel": 2}, "kernel"),
        ({"i": 8, "o": 8, "stride": 3}, "stride"),
        ({"i": 8, "o": 16, "residual": True}, "residual"),
        ({"i": 8, "o": 8, "stride": 2, "residual": True}, "residual"),
    ])  # fmt: skip
    def test_esp_refuses_what_it_is_not(self, arrangement, choices, word):
        assert word in refusal(ESP[arrangement], **choices)

    @pytest.mark.parametrize("choices", [
        {"i": 8, "o": 16, "branches": 0}, {"i": 6, "o": 16}, {"i": 16, "o": 18}, {"i": 8, "o": 8}, {"i": 0, "o": 16},
        {"i": 16, "o": 16, "kernel": 4}, {"i": 16, "o": 16, "stride": 0}, {"i": 16, "o": 16, "limit": 4},
    ])  # fmt: skip
    def test_eesp_refuses_what_it_is_not(self, choices):
        refusal(EESP, **choices)

    @pytest.mark.parametrize(("i", "o"), [(16, 16), (32, 16), (16, 24)])
    def test_down_needs_more_outputs_that_divide(self, i, o):
        refusal(Down, i, o)

    @pytest.mark.parametrize(("branches", "limit"), [
        (4, 2), (4, 1), (4, 0), (4, -3), (4, 8), (4, 10), (9, 19), (9, 21), (16, 33), (9, 4),
    ])  # fmt: skip
    def test_limits_that_are_even_too_small_or_too_large_are_refused(self, branches, limit):
        assert str(limit) in refusal(eesp_dilations, branches, limit)

    @pytest.mark.parametrize(("branches", "limit", "dilations"), [
        (4, 3, (1, 1, 1, 1)), (4, 5, (1, 1, 1, 2)), (4, 7, (1, 1, 2, 3)), (4, 9, (1, 2, 3, 4)), (4, 13, (1, 2, 3, 4)),
        (1, 3, (1,)), (2, 5, (1, 2)), (8, 17, (1, 2, 3, 4, 5, 6, 7, 8)), (8, 9, (1, 1, 1, 1, 1, 2, 3, 4)),
        (9, 17, (1, 1, 2, 3, 4, 5, 6, 7, 8)),
    ])  # fmt: skip
    def test_dilations_are_those_of_the_text(self, branches, limit, dilations):
        """Networks 3.1."""
        assert eesp_dilations(branches, limit) == dilations

    @pytest.mark.parametrize(("channels", "branches", "split"), [
        (64, 5, (12, 16)), (128, 5, (25, 28)), (20, 5, (4, 4)), (12, 5, (2, 4)), (11, 5, (2, 3)), (7, 1, (7, 7)),
    ])  # fmt: skip
    def test_esp_widths_are_those_of_the_text(self, channels, branches, split):
        """Networks 2.3."""
        assert esp_split(channels, branches) == split

    @given(st.integers(1, 500), st.integers(1, 16))
    @QUICK
    def test_esp_split_uses_every_channel(self, channels, branches):
        assume(branches <= channels)
        n, first = esp_split(channels, branches)
        assert first + (branches - 1) * n == channels
        assert 0 <= first - n < branches

    def test_eesp_split_divides_twice(self):
        assert eesp_split(32, 64, 4) == 16
        for i, o, k in ((30, 64, 4), (32, 62, 4), (32, 24, 4), (32, 64, 0), (0, 64, 4), (32, 0, 4), (-4, 16, 4)):
            refusal(eesp_split, i, o, k)

    @pytest.mark.parametrize(("width", "channels"), [
        (0.5, (16, 32, 64, 128, 256, 1024)),
        (1.0, (32, 64, 128, 256, 512, 1024)),
        (1.25, (32, 80, 160, 320, 640, 1024)),
        (1.5, (32, 96, 192, 384, 768, 1024)),
        (2.0, (32, 128, 256, 512, 1024, 1280)),
    ])  # fmt: skip
    def test_encoder_widths_are_those_of_the_table(self, width, channels):
        """Networks 3.4."""
        assert encoder_widths(width) == channels

    @pytest.mark.parametrize("width", [0.0, 0.75, 1.75, 4.0, float("nan")])
    def test_other_encoder_widths_are_refused(self, width):
        refusal(encoder_widths, width)


espnets = st.fixed_dictionaries({"network": st.just("espnet")}, optional={
    "classes": st.integers(2, 200), "variant": st.sampled_from(["A", "B", "C", "full"]), "alpha2": st.integers(1, 9),
    "alpha3": st.integers(1, 9), "arrangement": st.sampled_from(["merge", "branch"]), "branches": st.integers(1, 8),
    "kernel": st.sampled_from([1, 3, 5, 7]), "hff": st.booleans(), "residual": st.booleans(),
    "reinforce": st.sampled_from([None, False]), "activation": st.sampled_from(["prelu", "relu", "silu"]),
    "widths": st.tuples(*[st.integers(8, 300)] * 3), "skip1": st.sampled_from(["stem", "cat1"]),
    "projection": st.none() | st.integers(1, 300), "align_corners": st.booleans(),
})  # fmt: skip
encoders = {
    "classes": st.integers(2, 200), "width": st.sampled_from([0.5, 1.0, 1.25, 1.5, 2.0]),
    "arrangement": st.sampled_from(["authors", "seed", "seed_literal"]), "branches": st.sampled_from([1, 2, 4]),
    "kernel": st.sampled_from([1, 3, 5]), "hff": st.booleans(), "residual": st.booleans(), "reinforce": st.booleans(),
    "activation": st.sampled_from(["prelu", "relu", "silu"]),
}  # fmt: skip
decoders = {"base": st.integers(1, 64), "projection": st.none() | st.integers(1, 99)}
valid = st.one_of(
    espnets,
    st.fixed_dictionaries({"network": st.just("espnetv2")}, optional=encoders | decoders),
    st.fixed_dictionaries({"network": st.just("espnetv2_first")}, optional=encoders),
    st.fixed_dictionaries(
        {"network": st.just("espnetv2"), "task": st.sampled_from(["classify", "detect"])}, optional=encoders
    ),
)


class TestJson:
    @given(valid)
    @QUICK
    def test_round_trip_loses_nothing(self, data):
        spec = from_dict(data)
        written = to_dict(spec)
        assert from_dict(written) == spec
        assert from_dict(json.loads(json.dumps(written))) == spec
        assert hash(from_dict(written)) == hash(spec)
        for choice, value in data.items():
            assert written[choice] == value or list(written[choice]) == list(value)

    @given(valid)
    @QUICK
    def test_every_choice_is_written_out(self, data):
        written = to_dict(from_dict(data))
        assert set(written) == {"network", *type(from_dict(data)).__struct_fields__}

    @given(st.sampled_from(sorted(specs.NETWORKS)), st.dictionaries(
        st.sampled_from(["classes", "variant", "alpha2", "branches", "kernel", "widths", "width", "base", "x", "task"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=4),
    ))  # fmt: skip
    @QUICK
    def test_any_other_data_is_a_spec_or_one_line(self, network, choices):
        message = None
        try:
            spec = make(network, **choices)
        except SpecError as error:
            message = str(error)
        if message is None:
            assert from_dict(to_dict(spec)) == spec
        else:
            assert len(message.splitlines()) == 1, repr(message)

    @pytest.mark.parametrize("network", specs.NETWORKS)
    def test_specs_are_frozen(self, network):
        spec = make(network)
        with pytest.raises(AttributeError):
            spec.classes = 3
        assert spec == make(network)


class TestDerived:
    def test_defaults_are_the_published_networks(self):
        assert make("espnet") == make(
            "espnet", variant="full", classes=20, alpha2=2, alpha3=8, skip1="stem", branches=5
        )
        assert make("espnetv2") == make("espnetv2", classes=20, width=2.0, base=16, arrangement="authors", branches=4)
        assert make("espnetv2_first").classes == 20

    @pytest.mark.parametrize(("variant", "shares", "reinforced", "stride"), [
        ("A", False, False, 8), ("B", True, False, 8), ("C", True, True, 8), ("full", True, True, 1),
    ])  # fmt: skip
    def test_variant_decides_what_is_shared_and_fed_in(self, variant, shares, reinforced, stride):
        spec = make("espnet", variant=variant)
        assert (spec.shares, spec.reinforced, spec.output_stride) == (shares, reinforced, stride)

    @pytest.mark.parametrize(("classes", "base", "width"), [
        (20, 16, 10), (21, 16, 10), (12, 16, 6), (11, 16, 5), (2, 16, 1), (3, 16, 1), (80, 16, 16), (81, 32, 32),
    ])  # fmt: skip
    def test_pyramid_width_is_half_the_classes_up_to_the_base(self, classes, base, width):
        """Networks 3.5."""
        assert make("espnetv2", classes=classes, base=base).pyramid_width == width

    def test_pyramid_width_can_be_chosen(self):
        assert make("espnetv2", projection=24).pyramid_width == 24


@pytest.mark.parametrize("module", ["spec", "labels", "published", "torchfile", "header", "output", "errors"])
def test_no_torch_is_imported(module):
    code = f"import sys, espy.{module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
