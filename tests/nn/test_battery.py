"""What every network of the family holds: one inherited battery, a subclass for each network."""

import copy
import functools
from math import ceil
from typing import ClassVar

import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim

from espy import labels
from espy.header import Card, Header, Preprocess, read_safetensors, write_safetensors
from espy.nn.build import build, weights_of, with_weights
from espy.spec import make

TRACED = (2, 3, 64, 96)


@pytest.fixture(autouse=True)
def one_thread():
    """Workers of xdist share the cores; more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@functools.lru_cache(maxsize=4)
def settled(spec):
    """A network in eval mode whose batch norms hold the statistics of a batch, as after training."""
    network = build(spec, seed=0)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
        network(pictures(4, 3, 96, 64, seed=1))
        for norm in norms:
            norm.momentum = 0.1
    return network.eval()


@functools.lru_cache(maxsize=2)
def exported(spec, how):
    """`how` "bounded": named dimensions, sides from 17; "auto": the exporter finds the bounds."""
    if how == "bounded":
        dynamic = {0: Dim("batch"), 2: Dim("height", min=17), 3: Dim("width", min=17)}
    else:
        dynamic = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}
    return torch.export.export(settled(spec), (pictures(*TRACED),), dynamic_shapes=(dynamic,))


def relative(ours, reference):
    assert ours.shape == reference.shape
    assert reference.abs().max() > 0
    return float((ours - reference).abs().max() / reference.abs().max())


def states_equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Battery:
    """Seven classes, and as few repeated modules as show every path."""

    network: str
    choices: ClassVar[dict] = {}
    stride = 1

    def spec(self, classes=7):
        return make(self.network, classes=classes, **self.choices)

    @pytest.mark.parametrize("size", [(16, 16), (17, 23), (61, 83)])
    def test_any_size_gives_logits_of_its_size(self, size):
        with torch.no_grad():
            logits = settled(self.spec())(pictures(1, 3, *size))
        assert logits.shape == (1, 7, *(ceil(side / self.stride) for side in size))
        assert logits.isfinite().all()

    @pytest.mark.parametrize("classes", [2, 3])
    def test_few_classes_are_built(self, classes):
        with torch.no_grad():
            logits = settled(self.spec(classes))(pictures(1, 3, 40, 48))
        assert logits.shape == (1, classes, ceil(40 / self.stride), ceil(48 / self.stride))
        assert logits.isfinite().all()

    @pytest.mark.parametrize("classes", [2, 7])
    def test_backward_reaches_every_parameter(self, classes):
        network = build(self.spec(classes), seed=0)
        assert network.training
        logits = network(pictures(2, 3, 64, 96))
        assert logits.isfinite().all()
        (logits * pictures(*logits.shape, seed=2)).sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert (parameter.grad != 0).any(), name

    def test_a_picture_does_not_depend_on_its_batch(self):
        network, batch = settled(self.spec()), pictures(3, 3, 49, 70)
        with torch.no_grad():
            together = network(batch)
            for index in range(3):
                assert relative(network(batch[index : index + 1]), together[index : index + 1]) <= 1e-5

    def test_saved_and_loaded_gives_the_same_bits(self, tmp_path):
        spec, x = self.spec(), pictures(1, 3, 48, 64)
        network = settled(spec)
        arrays = {name: t.numpy() for name, t in weights_of(network).items()}
        header = Header.of(spec, labels.plain(spec.classes), Preprocess(size=(64, 96)), Card())
        write_safetensors(tmp_path / "model.safetensors", header, arrays)
        read, weights = read_safetensors(tmp_path / "model.safetensors")
        assert read.spec == spec
        loaded = with_weights(read.spec, weights)
        assert not loaded.training
        with torch.no_grad():
            assert torch.equal(loaded(x), network(x))

    def test_same_seed_gives_the_same_weights(self):
        spec = self.spec()
        first, second, other = (build(spec, seed=seed).state_dict() for seed in (3, 3, 4))
        assert states_equal(first, second)
        assert not states_equal(first, other)

    def test_without_a_seed_the_global_generator_decides(self):
        spec = self.spec()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            first = build(spec).state_dict()
            second = build(spec).state_dict()
            torch.manual_seed(3)
            assert states_equal(build(spec).state_dict(), first)
            assert not states_equal(second, first)

    def test_building_another_network_in_between_changes_nothing(self):
        spec = self.spec()
        generator = torch.random.get_rng_state()
        first = build(spec, seed=3)
        before = copy.deepcopy(first.state_dict())
        build("espnet", variant="A", alpha2=1, alpha3=1, classes=5, seed=9)
        assert states_equal(build(spec, seed=3).state_dict(), before)
        assert states_equal(first.state_dict(), before)
        assert torch.equal(torch.random.get_rng_state(), generator)

    def test_spec_is_kept_and_builds_the_same_network(self):
        network = build(self.network, classes=7, seed=1, **self.choices)
        assert network.spec == self.spec()
        assert states_equal(build(network.spec, seed=1).state_dict(), network.state_dict())


class BoundedBattery(Battery):
    """The networks that are also exported; widths and classes change nothing of how sizes are computed."""

    def check(self, how):
        network, graph = settled(self.spec()), exported(self.spec(), how).module()
        for shape in ((1, 3, 17, 17), (3, 3, 97, 131), TRACED):
            x = pictures(*shape, seed=4)
            with torch.no_grad():
                assert relative(graph(x), network(x)) <= 1e-5

    def test_exported_with_bounds_runs_at_other_sizes(self):
        self.check("bounded")


class ExportBattery(BoundedBattery):
    """The networks that are exported with bounds left to the exporter too."""

    def test_exported_without_bounds_runs_at_other_sizes(self):
        self.check("auto")


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")  # torch's exporter, of itself
class OnnxBattery(ExportBattery):
    """The networks that are also written as ONNX; one of each kind, for an export takes up to a minute."""

    def test_onnx_runs_at_sizes_it_was_not_traced_at(self):
        spec = self.spec()
        model = torch.onnx.export(exported(spec, "bounded"), (pictures(*TRACED),), dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(model.model_proto.SerializeToString())
        (name,) = (value.name for value in session.get_inputs())
        for shape in ((1, 3, 17, 17), (1, 3, 61, 83), (3, 3, 97, 131), (2, 3, 128, 64)):
            x = pictures(*shape, seed=5)
            with torch.no_grad():
                reference = settled(spec)(x)
            (logits,) = session.run(None, {name: x.numpy()})
            assert relative(torch.from_numpy(logits), reference) <= 1e-4


class ESPNetBattery(ExportBattery):
    network = "espnet"


class EncoderBattery(ESPNetBattery):
    stride = 8


class TestESPNetAMerge(EncoderBattery):
    choices: ClassVar[dict] = {"variant": "A", "alpha2": 1, "alpha3": 2}


class TestESPNetABranch(EncoderBattery):
    choices: ClassVar[dict] = {"variant": "A", "alpha2": 1, "alpha3": 2, "arrangement": "branch"}


class TestESPNetBMerge(EncoderBattery):
    choices: ClassVar[dict] = {"variant": "B", "alpha2": 2, "alpha3": 1}


class TestESPNetBBranch(EncoderBattery):
    choices: ClassVar[dict] = {"variant": "B", "alpha2": 2, "alpha3": 1, "arrangement": "branch"}


class TestESPNetCMerge(EncoderBattery):
    choices: ClassVar[dict] = {"variant": "C", "alpha2": 2, "alpha3": 3}


class TestESPNetCBranch(OnnxBattery, EncoderBattery):
    choices: ClassVar[dict] = {"variant": "C", "alpha2": 1, "alpha3": 2, "arrangement": "branch"}


class TestESPNetFullMerge(OnnxBattery, ESPNetBattery):
    choices: ClassVar[dict] = {"alpha2": 2, "alpha3": 3}


class TestESPNetFullBranch(ESPNetBattery):
    choices: ClassVar[dict] = {"alpha2": 1, "alpha3": 2, "arrangement": "branch"}


class TestESPNetFullMergeCat1(ESPNetBattery):
    choices: ClassVar[dict] = {"alpha2": 1, "alpha3": 2, "skip1": "cat1"}


class TestESPNetFullBranchCat1(ESPNetBattery):
    choices: ClassVar[dict] = {"alpha2": 1, "alpha3": 2, "skip1": "cat1", "arrangement": "branch"}


class ESPNetv2Battery(Battery):
    network = "espnetv2"


class TestESPNetv2Half(OnnxBattery, ESPNetv2Battery):
    choices: ClassVar[dict] = {"width": 0.5}


class TestESPNetv2HalfSeed(BoundedBattery, ESPNetv2Battery):
    choices: ClassVar[dict] = {"width": 0.5, "arrangement": "seed"}


class TestESPNetv2HalfSeedLiteral(ESPNetv2Battery):
    choices: ClassVar[dict] = {"width": 0.5, "arrangement": "seed_literal"}


class TestESPNetv2One(ESPNetv2Battery):
    choices: ClassVar[dict] = {"width": 1.0}


class TestESPNetv2OneSeed(ESPNetv2Battery):
    choices: ClassVar[dict] = {"width": 1.0, "arrangement": "seed"}


class TestESPNetv2OneSeedLiteral(ESPNetv2Battery):
    choices: ClassVar[dict] = {"width": 1.0, "arrangement": "seed_literal"}


class TestESPNetv2First(OnnxBattery):
    network = "espnetv2_first"
    choices: ClassVar[dict] = {"width": 0.5}


class TestReceptiveField:
    """ESPNet's receptive field, as a number and as the extent of a logit's gradient."""

    @staticmethod
    def extents(spec):
        """How far the gradient of central logits extends in the picture, one logit for each place in a cell of 1/8."""
        network = build(spec, seed=0).double().eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.abs_()  # nothing cancels: what is reached has a gradient above 0
        side = 8 * ceil((spec.receptive_field_px + 32) / 8)
        x = torch.ones(1, 3, side, side, dtype=torch.float64, requires_grad=True)
        logits = network(x)
        found = []
        for place in range(8 // spec.output_stride):
            at = side // spec.output_stride // 2 + place
            (gradient,) = torch.autograd.grad(logits[0, 0, at, at], x, retain_graph=True)
            seen = gradient[0].abs().sum(0) > 0
            for lines in (seen.any(0), seen.any(1)):
                assert not lines[0], "the picture is too small to tell"
                assert not lines[-1], "the picture is too small to tell"
                (reached,) = lines.nonzero(as_tuple=True)
                found.append(int(reached[-1] - reached[0]) + 1)
        return found

    @pytest.mark.parametrize("branches", [2, 3])
    @pytest.mark.parametrize("arrangement", ["merge", "branch"])
    @pytest.mark.parametrize("variant", ["A", "B", "C", "full"])
    def test_gradient_reaches_as_far_as_the_spec_says(self, variant, arrangement, branches):
        spec = make(
            "espnet", classes=3, variant=variant, arrangement=arrangement, branches=branches, alpha2=1, alpha3=1,
            widths=(4, 6, 8),
        )  # fmt: skip
        extents = self.extents(spec)
        assert max(extents) <= spec.receptive_field_px
        assert min(extents) >= spec.receptive_field_px - 16
        if variant != "full":
            assert set(extents) == {spec.receptive_field_px}

    def test_full_network_of_five_branches_reaches_919_pixels(self):
        """911 or 919 by the logit's place in its cell of 1/8: the chain of extents, 915, and 4 less or more."""
        spec = make("espnet", classes=5, alpha2=1, alpha3=1, widths=(4, 5, 5))
        assert set(self.extents(spec)) == {911, 919}
        assert 919 <= spec.receptive_field_px <= 919 + 8

    @pytest.mark.parametrize(("alpha2", "alpha3", "chain"), [(1, 1, 915), (2, 3, 1555), (2, 8, 2835)])
    def test_field_is_the_chain_of_extents_and_a_cell(self, alpha2, alpha3, chain):
        """Each transposed convolution may take in a pixel more; all three together no more than a cell of 8."""
        assert chain + 4 <= make("espnet", alpha2=alpha2, alpha3=alpha3).receptive_field_px <= chain + 8

    def test_espnetv2_sees_the_whole_picture(self):
        assert make("espnetv2").receptive_field_px is None
        assert make("espnetv2_first").receptive_field_px is None
