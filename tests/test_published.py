"""The authors' checkpoints are recognised, taken over exactly, and told from everything that is none."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import parity_cases
from espy import labels
from espy.cli import main
from espy.errors import ModelError
from espy.header import read_safetensors
from espy.nn.build import build, weights_of, with_weights
from espy.published import layout, load_published
from espy.spec import make

WEIGHTS = parity_cases.WEIGHTS
needs_weights = pytest.mark.skipif(
    not WEIGHTS.is_dir(), reason=f"no {WEIGHTS}: set ESPY_WEIGHTS to the folder of the sample weights"
)

ESPNET_MEAN, ESPNET_STD = (72.3923111, 82.90893555, 73.15840149), (45.3192215, 46.15289307, 44.91483307)
CAMVID_MEAN, CAMVID_STD = (110.3310, 108.4089, 105.0332), (72.1257, 72.6907, 69.9043)

# file: spec, size of its pictures (height, width)
SAMPLES = {
    "espnet_decoder_p2_q8": (make("espnet", alpha2=2, alpha3=8), (512, 1024)),
    "espnet_decoder_p2_q3": (make("espnet", alpha2=2, alpha3=3), (512, 1024)),
    "espnet_decoder_p2_q8_camvid": (make("espnet", alpha2=2, alpha3=8, classes=12, skip1="cat1"), (360, 480)),
    "espnet_encoder_p2_q8": (make("espnet", variant="C", alpha2=2, alpha3=8), (512, 1024)),
    "espnetv2_seg_s0.5_city_1024x512": (make("espnetv2", width=0.5), (512, 1024)),
    "espnetv2_seg_s1.0_city_1024x512": (make("espnetv2", width=1.0), (512, 1024)),
    "espnetv2_seg_s2.0_city_1024x512": (make("espnetv2", width=2.0), (512, 1024)),
    "espnetv2_seg_s0.5_pascal_384x384": (make("espnetv2", width=0.5, classes=21), (384, 384)),
    "espnetv2_seg_s2.0_pascal_384x384": (make("espnetv2", width=2.0, classes=21), (384, 384)),
    "espnetv2old_seg_s0.5_city": (make("espnetv2_first", width=0.5), (512, 1024)),
}

# every network for segmentation that was published (networks 6)
PUBLISHED = [
    *(make("espnet", alpha2=2, alpha3=q) for q in (3, 5, 8)),
    make("espnet", alpha2=2, alpha3=8, classes=12, skip1="cat1"),
    *(make("espnet", variant="C", alpha2=2, alpha3=q) for q in (3, 5, 8)),
    *(make("espnetv2", width=s, classes=c) for s in (0.5, 1.0, 1.25, 1.5, 2.0) for c in (20, 21)),
    make("espnetv2", width=0.5, classes=6, base=32),
    *(make("espnetv2_first", width=s) for s in (0.5, 1.0, 1.5)),
]


def name_of(spec):
    return "-".join(str(getattr(spec, f, "")) for f in ("variant", "alpha3", "width", "classes")) + type(spec).__name__


def path_of(stem):
    return WEIGHTS / f"{stem}.pth"


def by_torch(stem):
    state = torch.load(path_of(stem), weights_only=True, map_location="cpu")
    return {key.removeprefix("module."): tensor.numpy() for key, tensor in state.items()}


def checkpoint(spec, seed=0):
    """A state dict of the authors' names with random weights, as torch saves it."""
    rng = np.random.default_rng(seed)
    return {name: torch.from_numpy(rng.uniform(0.1, 1, shape).astype(np.float32)) for name, _, shape in layout(spec)}


ENCODER = make("espnet", variant="C", alpha2=1, alpha3=1, classes=5)
FULL = make("espnet", alpha2=1, alpha3=1, classes=5)
SECOND = make("espnetv2", width=0.5, classes=4)
FIRST = make("espnetv2_first", width=0.5, classes=4)
CLASSIFIER = make("espnetv2", task="classify", width=0.5, classes=4)
DETECTOR = make("espnetv2", task="detect", width=0.5, classes=1)
SMALL = [ENCODER, FULL, SECOND, FIRST, CLASSIFIER, DETECTOR]


def save(path, state, old=True):
    torch.save(state, path, _use_new_zipfile_serialization=not old)
    return path


def refusal(path, state=None):
    """The message with which a checkpoint is refused: one line."""
    if state is not None:
        save(path, state)
    with pytest.raises(ModelError) as caught:
        load_published(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, repr(message)
    assert message.startswith(f"{path}: ")
    return message


@needs_weights
class TestSamples:
    def test_every_sample_is_listed_here(self):
        assert {path.stem for path in WEIGHTS.glob("*.pth")} == set(SAMPLES)

    @pytest.mark.parametrize("stem", SAMPLES)
    def test_spec_labels_and_size_are_those_of_the_file(self, stem):
        published = load_published(path_of(stem))
        spec, size = SAMPLES[stem]
        known = {20: labels.CITYSCAPES, 12: labels.CAMVID, 21: labels.VOC}[spec.classes]
        assert (published.spec, published.labels, published.preprocess.size) == (spec, known, size)
        assert len(known) == spec.classes
        assert published.header.spec == spec

    @pytest.mark.parametrize("stem", SAMPLES)
    def test_preparation_is_the_authors(self, stem):
        """Networks 6.4; (v − mean) / std / 255 for ESPNet and the first version."""
        p = load_published(path_of(stem)).preprocess
        if stem.startswith("espnetv2_seg"):
            assert (p.order, p.filter, p.resize, p.multiple) == ("RGB", "antialias", "stretch", 32)
            assert (p.scale, p.mean, p.std) == (1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
            return
        camvid = "camvid" in stem
        assert (p.order, p.filter, p.resize) == ("BGR", "plain", "native" if camvid else "stretch")
        mean, std = (CAMVID_MEAN, CAMVID_STD) if camvid else (ESPNET_MEAN, ESPNET_STD)
        for value in (0.0, 100.0, 255.0):
            ours = [(value * p.scale - m) / s for m, s in zip(p.mean, p.std, strict=True)]
            theirs = [(value - m) / s / 255 for m, s in zip(mean, std, strict=True)]
            assert ours == pytest.approx(theirs, rel=1e-9)

    @pytest.mark.parametrize("stem", SAMPLES)
    def test_arrays_are_those_of_the_file(self, stem):
        published, reference = load_published(path_of(stem), flush=False), by_torch(stem)
        rows = {theirs: ours for theirs, ours, _ in layout(published.spec)}
        assert sorted(rows.values()) == sorted(published.arrays)
        for theirs, ours in rows.items():
            assert published.arrays[ours].dtype == np.float32
            np.testing.assert_array_equal(published.arrays[ours], reference[theirs])
        dead = re.compile(r".*level\d_0\.eesp\.module_act\.weight|.*\.num_batches_tracked")
        assert set(published.report.ignored) == set(reference) - set(rows)
        assert all(dead.fullmatch(name) for name in published.report.ignored)
        assert published.report.read == len(rows)

    @pytest.mark.parametrize("stem", SAMPLES)
    def test_flush_sets_only_tiny_weights_to_zero(self, stem):
        plain, flushed = load_published(path_of(stem), flush=False), load_published(path_of(stem))
        assert flushed.report.flushed
        assert not plain.report.flushed
        tiny = subnormal = 0
        for name, before in plain.arrays.items():
            small = (before != 0) & (np.abs(before) < 1e-30)
            tiny += int(small.sum())
            subnormal += int(((before != 0) & (np.abs(before) < 2.0**-126)).sum())
            np.testing.assert_array_equal(flushed.arrays[name], np.where(small, 0, before))
        for report in (plain.report, flushed.report):
            assert (report.tiny, report.subnormal) == (tiny, subnormal)

    def test_flush_of_the_largest_espnet_counts_as_measured_and_changes_no_logit(self):
        plain = load_published(path_of("espnet_decoder_p2_q8"), flush=False)
        flushed = load_published(path_of("espnet_decoder_p2_q8"))
        assert (flushed.report.tiny, flushed.report.subnormal) == (20163, 18302)
        x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) / 255
        with torch.no_grad():
            assert torch.equal(plain.network(x), flushed.network(x))

    @pytest.mark.parametrize("stem", SAMPLES)
    def test_zip_layout_loads_identically(self, stem, tmp_path):
        again = save(
            tmp_path / f"{stem}.pth", torch.load(path_of(stem), weights_only=True, map_location="cpu"), old=False
        )
        ours, reference = load_published(again), load_published(path_of(stem))
        assert (ours.spec, ours.labels, ours.preprocess, ours.report, ours.card) == (
            reference.spec, reference.labels, reference.preprocess, reference.report, reference.card,
        )  # fmt: skip
        assert ours.arrays.keys() == reference.arrays.keys()
        for name, array in ours.arrays.items():
            np.testing.assert_array_equal(array, reference.arrays[name])

    def test_size_is_read_from_the_files_name(self, tmp_path):
        for name, size in {
            "espnetv2_s_0.5_city_512x256.pth": (256, 512),
            "espnetv2_s_0.5_city_1024x512.pth": (512, 1024),
            "weights.pth": (512, 1024),
        }.items():
            shutil.copyfile(path_of("espnetv2_seg_s0.5_city_1024x512"), tmp_path / name)
            assert load_published(tmp_path / name).preprocess.size == size

    @pytest.mark.parametrize("stem", ["espnet_decoder_p2_q3", "espnetv2_seg_s0.5_city_1024x512"])
    def test_published_file_cut_anywhere_is_refused(self, stem, tmp_path):
        data = path_of(stem).read_bytes()
        for length in np.linspace(0, len(data) - 1, 40).astype(int):
            (tmp_path / "cut.pth").write_bytes(data[:length])
            refusal(tmp_path / "cut.pth")


@pytest.mark.parametrize("spec", PUBLISHED, ids=name_of)
def test_listed_tensors_are_those_of_the_network(spec):
    expected = {name: tuple(t.shape) for name, t in weights_of(build(spec)).items()}
    rows = list(layout(spec))
    assert {ours: shape for _, ours, shape in rows} == expected
    assert len({theirs for theirs, _, _ in rows}) == len({ours for _, ours, _ in rows}) == len(rows)


@pytest.mark.parametrize("spec", PUBLISHED, ids=name_of)
def test_generated_checkpoint_of_every_published_network_is_recognised(spec, tmp_path):
    state = checkpoint(spec)
    published = load_published(save(tmp_path / "x.pth", state))
    assert published.spec == spec
    for theirs, ours, _ in layout(spec):
        np.testing.assert_array_equal(published.arrays[ours], state[theirs].numpy())


@pytest.mark.parametrize("old", [True, False], ids=["old", "zip"])
@pytest.mark.parametrize("spec", SMALL, ids=name_of)
class TestForms:
    def test_prefix_of_data_parallel_is_stripped(self, spec, old, tmp_path):
        state = checkpoint(spec)
        path = save(tmp_path / "x.pth", {f"module.{key}": tensor for key, tensor in state.items()}, old)
        self.equal(load_published(path), spec, state)

    def test_wrapped_state_is_unwrapped(self, spec, old, tmp_path):
        state = checkpoint(spec)
        self.equal(load_published(save(tmp_path / "x.pth", {"epoch": 7, "state_dict": state}, old)), spec, state)

    def test_counters_are_ignored_and_reported(self, spec, old, tmp_path):
        state = checkpoint(spec)
        counters = [
            f"{key.removesuffix('.running_mean')}.num_batches_tracked" for key in state if "running_mean" in key
        ]
        path = save(tmp_path / "x.pth", state | {key: torch.tensor(5) for key in counters}, old)
        published = load_published(path)
        self.equal(published, spec, state)
        assert set(published.report.ignored) == set(counters)

    def equal(self, published, spec, state):
        assert published.spec == spec
        for theirs, ours, _ in layout(spec):
            np.testing.assert_array_equal(published.arrays[ours], state[theirs].numpy())


def test_network_of_a_checkpoint_holds_its_arrays_in_eval_mode(tmp_path):
    published = load_published(save(tmp_path / "x.pth", checkpoint(FULL)))
    assert not published.network.training
    state = weights_of(published.network)
    assert state.keys() == published.arrays.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(tensor.numpy(), published.arrays[name])


def test_loading_does_not_import_torch(tmp_path):
    path = save(tmp_path / "x.pth", checkpoint(SECOND))
    code = (
        "import sys; from espy.published import load_published\n"
        f"assert load_published({str(path)!r}).header.spec.classes == 4\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("spec", SMALL, ids=name_of)
class TestChangedTensors:
    """One tensor of an otherwise right checkpoint; the message names it."""

    def places(self, state):
        return [list(state)[index] for index in (0, len(state) // 3, len(state) // 2, -1)]

    def test_missing_is_refused(self, spec, tmp_path):
        state = checkpoint(spec)
        for key in self.places(state):
            rest = {k: t for k, t in state.items() if k != key}
            assert key in refusal(tmp_path / "x.pth", rest)

    def test_extra_is_refused(self, spec, tmp_path):
        assert "surplus.weight" in refusal(tmp_path / "x.pth", checkpoint(spec) | {"surplus.weight": torch.ones(3)})

    @pytest.mark.parametrize("change", ["longer", "flat", "double", "integer", "empty"])
    def test_of_another_shape_or_kind_is_refused(self, spec, tmp_path, change):
        changes = {
            "longer": lambda t: torch.cat([t, t]), "flat": lambda t: t.reshape(1, -1), "double": lambda t: t.double(),
            "integer": lambda t: t.long(), "empty": lambda t: t[:0],
        }  # fmt: skip
        state = checkpoint(spec)
        for key in self.places(state):
            if (spec, key, change) != (ENCODER, "classifier.conv.weight", "longer"):  # that is ten classes
                refusal(tmp_path / "x.pth", state | {key: changes[change](state[key])})

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_not_finite_is_refused(self, spec, tmp_path, value):
        state = checkpoint(spec)
        for key in self.places(state):
            damaged = state[key].clone()
            damaged.view(-1)[-1] = value
            assert "not finite" in refusal(tmp_path / "x.pth", state | {key: damaged})

    def test_every_key_may_be_a_scalar(self, spec, tmp_path):
        """Names that decide which network it is are not trusted to have a shape."""
        state = checkpoint(spec)
        deciding = [
            k for k in state
            if re.search(r"classifier|level2_0.act|merge_layer.3|project_l1|^conv\.conv|up_l3|(loc|cls)_layers.0", k)
        ]  # fmt: skip
        assert deciding
        for key in deciding:
            refusal(tmp_path / "x.pth", state | {key: torch.tensor(1.0)})


# Classifiers and detectors: no published file is at hand, so files of their layout are made of our own networks

# our module → the authors', in the order of application (networks 6.1)
ENCODER_NAMES = [
    (r"^encoder\.", ""), (r"^down(\d)\.", r"level\1_0."), (r"^(level[345]\.[0-6])\.act\.", r"\1.module_act."),
    (r"^level5\.([34])\.module_act\.", r"level5.\1.act."), (r"\.reduce\.", ".proj_1x1."),
    (r"\.branches\.(\d)\.", r".spp_dw.\1.conv."), (r"\.fuse\.", ".br_after_cat."), (r"\.expand\.", ".conv_1x1_exp."),
    (r"\.reinforce\.", ".inp_reinf."),
]  # fmt: skip
DETECTOR_NAMES = [
    (r"(\.project|\.merge|extra\d\.\d)\.conv\.", r"\1.cbr.0."), (r"(\.project|\.merge|extra\d\.\d)\.bn\.", r"\1.cbr.1."),
    (r"(\.project|\.merge|extra\d\.\d)\.act\.", r"\1.cbr.2."), (r"(\.join|\.end)\.bn\.", r"\1.br.0."),
    (r"(\.join|\.end)\.act\.", r"\1.br.1."), (r"\.project\.", ".projection_layer."), (r"\.join\.", ".merge_layer.0."),
    (r"\.merge\.", ".merge_layer.2."), (r"\.out\.", ".merge_layer.3."), (r"\.end\.", ".br."),
    (r"^mix6\.", "base_net.bu_3x3_5x5."), (r"^mix5\.", "base_net.bu_5x5_10x10."), (r"^mix4\.", "base_net.bu_10x10_19x19."),
    (r"^mix3\.", "base_net.bu_19x19_38x38."), (r"^extra([67])\.", r"base_net.extra_level\1.layer."),
    (r"^extra8\.0\.", "base_net.extra_level8.1."), (r"^heads\.(\d)\.box\.", r"loc_layers.\1."),
    (r"^heads\.(\d)\.score\.", r"cls_layers.\1."),
]  # fmt: skip


def renamed(name, rules):
    for ours, theirs in rules:
        name = re.sub(ours, theirs, name)
    return name


def theirs(name, task):
    """The authors' name of our tensor."""
    if not name.startswith("encoder."):
        return renamed(name, DETECTOR_NAMES) if task == "detect" else name
    return ("base_net.basenet." if task == "detect" else "") + renamed(name, ENCODER_NAMES)


def random_network(task, width, classes):
    """A network none of whose tensors equals another: a pair that changed places would show in what it gives."""
    network = build("espnetv2", task=task, width=width, classes=classes, seed=0)
    generator = torch.Generator().manual_seed(1)
    for tensor in weights_of(network).values():
        part = torch.rand(tensor.shape, generator=generator) - 0.5
        with torch.no_grad():
            tensor.add_(part * (0.2 if tensor.dim() == 1 else 0.02))
    return network.eval()


def published_state(network):
    """(live, dead): the tensors by the authors' names, and those that their code creates and never uses."""
    task, channels = network.spec.task, network.encoder.channels
    prefix = "base_net.basenet." if task == "detect" else ""
    live = {theirs(name, task): tensor.clone() for name, tensor in weights_of(network).items()}
    dead = {
        f"{prefix}level{level}_0.eesp.module_act.weight": torch.full((channels[level - 1] - channels[level - 2],), 0.25)
        for level in (2, 3, 4, 5)
    }
    if task == "classify":  # as at level 4, where twice the channels are half as many
        for name, tensor in live.items():
            if name.startswith("level4_0.inp_reinf."):
                wide = len(tensor) == channels[3]
                dead[name.replace("level4", "level5")] = torch.cat([tensor, tensor]) if wide else tensor
    return live, dead


def counters(state):
    """The counter of every norm."""
    norms = [name.removesuffix(".running_var") for name in state if name.endswith(".running_var")]
    return {f"{norm}.num_batches_tracked": torch.tensor(7) for norm in norms}


def same(one, other):
    """Whether two networks give the same bits for a random picture."""
    x = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        pairs = [one(x), other(x)]
    found, expected = ([p] if isinstance(p, torch.Tensor) else list(p) for p in pairs)
    assert all(torch.isfinite(t).all() for t in expected)
    return all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


# task, width, classes: the authors' total of parameters, live and dead (networks 5.3 and 5.4)
TOTALS = {
    ("classify", 0.5, 1000): 1_241_332, ("classify", 1.0, 1000): 1_670_072, ("classify", 1.25, 1000): 1_965_440,
    ("classify", 1.5, 1000): 2_314_856, ("classify", 2.0, 1000): 3_498_136,
    ("detect", 0.5, 20): 1_958_254, ("detect", 0.5, 80): 2_720_734,
    ("detect", 1.0, 20): 2_475_944, ("detect", 1.25, 20): 2_823_640, ("detect", 1.5, 20): 3_227_764,
    ("detect", 2.0, 20): 4_750_878, ("detect", 2.0, 80): 5_812_878,
}  # fmt: skip


@pytest.mark.parametrize(("task", "width", "classes"), TOTALS)
def test_a_classifier_or_detector_of_the_authors_layout_is_taken_over_exactly(task, width, classes, tmp_path):
    network = random_network(task, width, classes)
    live, dead = published_state(network)
    state = live | dead
    assert sum(t.numel() for name, t in state.items() if ".running_" not in name) == TOTALS[task, width, classes]
    published = load_published(save(tmp_path / "x.pth", state | counters(state)))
    assert published.spec == network.spec
    assert published.report.read == len(live)
    assert published.report.ignored.keys() == dead.keys() | counters(state).keys()
    assert same(published.network, network)
    assert len(published.labels) == classes


@pytest.mark.parametrize("task", ["classify", "detect"])
def test_each_tensor_that_is_left_out_has_its_reason(task, tmp_path):
    live, dead = published_state(random_network(task, 0.5, 4))
    base = {f"base_net.basenet.classifier.{part}": torch.ones(1000, 1024) for part in ("weight", "bias")}
    state = live | dead | counters(live | dead) | (base if task == "detect" else {})
    named = {}
    for name, reason in load_published(save(tmp_path / "x.pth", state)).report.ignored.items():
        named.setdefault(reason, set()).add(name)
    activations = {name for name in dead if name.endswith("eesp.module_act.weight")}
    expected = {
        "a training counter": counters(state).keys(),
        "created by the authors' code and never used": activations,
        "created by the authors' code, which feeds no picture in at level 5": dead.keys() - activations,
        "the base network's own classifier, which the detector does not use": base.keys() if task == "detect" else (),
    }
    assert named == {reason: set(names) for reason, names in expected.items() if names}


class TestPreparation:
    """Networks 6.4, and what the file says of itself."""

    def read(self, tmp_path, name, task, classes=4):
        return load_published(
            save(tmp_path / name, checkpoint(make("espnetv2", task=task, width=0.5, classes=classes)))
        )

    @pytest.mark.parametrize(
        ("name", "size"),
        [
            ("espnetv2_s_0.5_imagenet_224x224.pth", (224, 224)), ("espnetv2_s_0.5.pth", (224, 224)),
            ("mine_320x256.pth", (256, 320)), ("mine_08x08.pth", (224, 224)),
        ],
    )  # fmt: skip
    def test_a_classifier_sees_the_middle_of_the_picture(self, name, size, tmp_path):
        published = self.read(tmp_path, name, "classify")
        p = published.preprocess
        assert (p.size, p.order, p.filter, p.resize, p.crop) == (size, "RGB", "antialias", "short", 224 / 256)
        assert (p.scale, p.mean, p.std) == (1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        assert published.header.sizes == {"multiple": 32}
        assert published.card.metrics == ()

    @pytest.mark.parametrize(
        ("name", "side"),
        [
            ("espnetv2_s_2.0_pascal_300x300.pth", 300), ("espnetv2_s_2.0_coco_512x512.pth", 512), ("mine.pth", 300),
            ("mine_1024x512.pth", 300), ("mine_10x10.pth", 300),
        ],
    )  # fmt: skip
    def test_a_detector_sees_the_whole_picture_at_its_own_square_size(self, name, side, tmp_path):
        published = self.read(tmp_path, name, "detect")
        p = published.preprocess
        assert (p.size, p.order, p.filter, p.resize, p.crop) == ((side, side), "RGB", "plain", "stretch", 1)
        for value in (0.0, 100.0, 255.0):
            ours = [(value * p.scale - m) / s for m, s in zip(p.mean, p.std, strict=True)]
            means, stds = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
            assert ours == pytest.approx([(value - 255 * m) / (255 * s) for m, s in zip(means, stds, strict=True)])
        assert published.header.sizes == [(side, side)]
        assert published.card.metrics == ()

    def test_labels_are_the_kinds_without_background(self, tmp_path):
        voc, coco = (self.read(tmp_path, "x.pth", "detect", kinds) for kinds in (20, 80))
        assert voc.labels == labels.VOC[1:]
        assert voc.labels[0].name == "aeroplane"
        assert coco.labels == labels.COCO
        assert [coco.labels[k].name for k in (0, 11, 79)] == ["person", "stop sign", "toothbrush"]
        assert len({label.name for label in coco.labels}) == len({label.colour for label in coco.labels}) == 80
        assert (voc.card.data, coco.card.data) == ("Pascal VOC", "COCO")
        assert "background" not in {label.name for label in voc.labels + coco.labels}

    def test_a_classifiers_labels_follow_no_other_tasks_set(self, tmp_path):
        """20 classes are Cityscapes in segmentation, and nothing known here."""
        published = self.read(tmp_path, "x.pth", "classify", 20)
        assert published.labels == labels.plain(20)
        assert published.card.data == "unknown"
        assert self.read(tmp_path, "x.pth", "classify", 1000).card.data == "ImageNet"


@pytest.mark.parametrize(("task", "sees"), [("classify", "87.5%"), ("detect", "height 300, width 300")])
def test_a_classifier_or_detector_is_converted(task, sees, tmp_path, capsys):
    network = random_network(task, 0.5, 4)
    source = save(tmp_path / "x.pth", published_state(network)[0])
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(source), "-o", str(tmp_path / "m.safetensors")])
    assert ended.value.code == 0
    assert sees in capsys.readouterr().err
    header, arrays = read_safetensors(tmp_path / "m.safetensors")
    assert (header.task, header.spec, len(header.labels)) == (task, network.spec, 4)
    assert same(with_weights(header.spec, arrays), network)


def test_a_segmentation_files_name_may_state_a_size_too_small_to_be_one(tmp_path):
    assert load_published(save(tmp_path / "x_10x10.pth", checkpoint(SECOND))).preprocess.size == (512, 1024)


class TestOtherNetworks:
    def test_foreign_encoder_under_the_same_decoder_is_refused(self, tmp_path):
        """DiCENet in EdgeNets: the decoder's names are those of ESPNetv2, the encoder's are not."""
        state = {key: t for key, t in checkpoint(SECOND).items() if not key.startswith("base_net.")}
        state |= {f"base_net.level{n}.0.conv.weight": torch.ones(4, 4, 3, 3) for n in (1, 2, 3, 4)}
        assert "another network" in refusal(tmp_path / "x.pth", state)

    def test_foreign_encoder_of_equal_width_is_refused(self, tmp_path):
        state = {key: t for key, t in checkpoint(SECOND).items() if not re.match(r"base_net\.level[34]", key)}
        assert "tensors missing" in refusal(tmp_path / "x.pth", state)

    def test_encoder_of_another_classifier_is_refused(self, tmp_path):
        """DiCENet in EdgeNets: a linear `classifier` too, the levels another's."""
        state = {"level1.0.weight": torch.ones(24, 3, 3, 3), "level5_0.act.weight": torch.ones(256)}
        state |= {"classifier.weight": torch.ones(1000, 1024), "classifier.bias": torch.ones(1000)}
        assert "level2_0.act.weight" in refusal(tmp_path / "x.pth", state)

    def test_detector_with_another_decoder_is_refused(self, tmp_path):
        state = {key.replace("base_net.", "base_net.basenet."): t for key, t in checkpoint(SECOND).items()}
        state |= {f"{kind}_layers.{n}.weight": torch.ones(24, 4, 1, 1) for kind in ("loc", "cls") for n in range(6)}
        assert "ESPNetv2 SSD (s = 0.5, 3 kinds)" in refusal(tmp_path / "x.pth", state)

    def test_detector_without_a_kind_beside_the_background_is_refused(self, tmp_path):
        state = checkpoint(DETECTOR)
        assert "classes" in refusal(tmp_path / "x.pth", state | {"cls_layers.0.weight": torch.ones(6, 64, 1, 1)})

    @pytest.mark.parametrize("name", ["level5_0.inp_reinf.0.conv.weight", "base_net.basenet.classifier.weight"])
    @pytest.mark.parametrize("spec", [SECOND, FIRST], ids=name_of)
    def test_what_is_dead_in_one_network_is_strange_in_another(self, spec, name, tmp_path):
        assert name in refusal(tmp_path / "x.pth", checkpoint(spec) | {name: torch.ones(3, 3, 3, 3)})

    def test_what_is_dead_in_a_classifier_is_live_in_a_detector(self, tmp_path):
        state, name = checkpoint(DETECTOR), "base_net.basenet.level5_0.inp_reinf.0.conv.weight"
        del state[name]
        assert name in refusal(tmp_path / "x.pth", state)

    def test_any_other_network_is_refused_by_its_names(self, tmp_path):
        assert "fc.weight" in refusal(tmp_path / "x.pth", {"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)})

    def test_encoder_without_repeats_is_refused(self, tmp_path):
        state = {key: t for key, t in checkpoint(ENCODER).items() if not key.startswith("level2.")}
        refusal(tmp_path / "x.pth", state)

    def test_widths_that_were_never_published_are_refused(self, tmp_path):
        state = checkpoint(SECOND)
        refusal(tmp_path / "x.pth", state | {"base_net.level2_0.act.weight": torch.ones(48)})

    @pytest.mark.parametrize("name", ["a\nb", "a\r\nb", "a\x1b[31mb", "a\u2028b"])
    def test_names_of_tensors_cannot_break_the_line(self, tmp_path, name):
        for state in ({name: torch.ones(2)}, checkpoint(ENCODER) | {name: torch.ones(2)}):
            message = refusal(tmp_path / "x.pth", state)
            assert "\x1b" not in message

    def test_long_names_are_cut(self, tmp_path):
        assert len(refusal(tmp_path / "x.pth", {"k" * 100_000: torch.ones(2)})) < 2000


@pytest.mark.parametrize("old", [True, False], ids=["old", "zip"])
def test_flipped_bytes_give_a_network_or_one_line(tmp_path, old):
    spec = ENCODER
    original = save(tmp_path / "x.pth", checkpoint(spec), old).read_bytes()
    places = st.one_of(  # most bytes are weights; the structure lies at both ends
        st.integers(0, len(original) - 1),
        st.integers(0, min(12000, len(original) - 1)),
        st.integers(max(0, len(original) - 8000), len(original) - 1),
    )

    @settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4))
    def check(changes):
        data = bytearray(original)
        for position, value in changes:
            data[position] = value
        (tmp_path / "flipped.pth").write_bytes(data)
        published, message = None, ""
        try:
            published = load_published(tmp_path / "flipped.pth")
        except ModelError as error:
            message = str(error)
        if published is None:
            assert len(message.splitlines()) == 1, repr(message)
        else:
            assert published.spec == spec
            assert all(np.isfinite(a).all() for a in published.arrays.values())

    check()
