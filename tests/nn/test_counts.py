"""Parameters and multiply-accumulates against the tables of networks 5.1 to 5.4 (live counts)."""

import pytest
from torch import nn

from espy.nn.build import build
from espy.nn.count import macs, parameters, traffic
from espy.nn.eesp import EESP
from espy.nn.esp import ESP

# (height, width); the tables write width×height
CITY, SQUARE, CAMVID = (512, 1024), (384, 384), (360, 480)

# variant, alpha3: merge parameters and MACs, branch parameters and MACs; 20 classes, alpha2 = 2, 1024×512
ESPNET = {
    ("A", 3): (168_352, 2_004_353_024, 173_616, 2_108_817_408),
    ("A", 5): (233_120, 2_528_641_024, 247_064, 2_704_211_968),
    ("A", 8): (330_272, 3_315_073_024, 357_236, 3_597_303_808),
    ("B", 3): (186_464, 2_143_289_344, 180_720, 2_157_576_192),
    ("B", 5): (251_232, 2_667_577_344, 254_168, 2_752_970_752),
    ("B", 8): (348_384, 3_454_009_344, 364_340, 3_646_062_592),
    ("C", 3): (187_529, 2_159_435_776, 181_029, 2_161_631_232),
    ("C", 5): (252_297, 2_683_723_776, 254_477, 2_757_025_792),
    ("C", 8): (349_449, 3_470_155_776, 364_649, 3_650_117_632),
    ("full", 3): (202_649, 3_398_721_536, 196_149, 3_400_916_992),
    ("full", 5): (267_417, 3_923_009_536, 269_597, 3_996_311_552),
    ("full", 8): (364_569, 4_709_441_536, 379_769, 4_889_403_392),
}

# alpha3, classes, size: the full network whose skip is the joined first level
ESPNET_CAT1 = {
    (3, 20, CITY): (203_189, 3_469_500_416),
    (5, 20, CITY): (267_957, 3_993_788_416),
    (8, 20, CITY): (365_109, 4_780_220_416),
    (8, 12, CAMVID): (354_517, 1_335_320_100),
    (8, 11, CAMVID): (353_437, 1_311_430_500),
}

# inputs, outputs, stride: merge, branch
ESP_MODULES = {
    (64, 64, 1): (7_872, 9_472),
    (128, 128, 1): (32_384, 36_724),
    (19, 64, 2): (9_156, 8_212),
    (131, 128, 2): (58_659, 36_883),
    (40, 20, 1): (940, 940),
}

# width, classes: parameters, MACs by size
ESPNETV2 = {
    (0.5, 20): (80_230, {CITY: 596_248_176, SQUARE: 167_702_748}),
    (0.5, 21): (80_241, {CITY: 597_558_896, SQUARE: 168_071_388}),
    (0.5, 11): (75_776, {CAMVID: 145_281_354}),
    (1.0, 20): (233_786, {CITY: 1_085_283_952, SQUARE: 305_248_476}),
    (1.0, 21): (233_797, {CITY: 1_086_594_672, SQUARE: 305_617_116}),
    (1.0, 11): (228_692, {CAMVID: 307_838_538}),
    (1.25, 20): (342_818, {CITY: 1_408_969_072, SQUARE: 396_286_940}),
    (1.25, 21): (342_829, {CITY: 1_410_279_792, SQUARE: 396_655_580}),
    (1.25, 11): (337_404, {CAMVID: 415_624_394}),
    (1.5, 20): (468_010, {CITY: 1_713_255_536, SQUARE: 481_869_532}),
    (1.5, 21): (468_021, {CITY: 1_714_566_256, SQUARE: 482_238_172}),
    (1.5, 11): (462_276, {CAMVID: 517_293_130}),
    (2.0, 20): (788_762, {CITY: 2_697_742_960, SQUARE: 758_760_668}),
    (2.0, 21): (788_773, {CITY: 2_699_053_680, SQUARE: 759_129_308}),
    (2.0, 11): (782_388, {CAMVID: 845_357_642}),
}

# 20 classes, 1024×512
FIRST_VERSION = {
    0.5: (99_306, 564_334_592),
    1.0: (340_558, 1_688_795_136),
    1.25: (514_750, 2_445_274_112),
    1.5: (724_814, 3_361_136_640),
    2.0: (1_252_558, 5_671_012_352),
}


# 1000 classes, 224×224
CLASSIFIERS = {
    0.5: (1_239_722, 29_399_508),
    1.0: (1_666_942, 86_744_404),
    1.25: (1_961_542, 124_423_444),
    1.5: (2_310_190, 169_628_884),
    2.0: (3_491_934, 286_086_228),
}

# width, kinds of things: parameters, MACs at 300 and 512
DETECTORS = {
    (0.5, 20): (1_958_014, 181_782_314, 486_619_840),
    (0.5, 80): (2_720_494, 274_034_474, 735_866_560),
    (1.0, 20): (2_475_464, 343_684_011, 939_384_896),
    (1.0, 80): (3_307_064, 485_840_811, 1_330_189_376),
    (1.25, 20): (2_823_032, 447_705_424, 1_229_640_064),
    (1.25, 80): (3_689_192, 614_814_544, 1_691_223_424),
    (1.5, 20): (3_227_028, 567_766_238, 1_564_554_880),
    (1.5, 80): (4_127_748, 759_827_678, 2_096_917_120),
    (2.0, 20): (4_749_886, 913_440_867, 2_520_068_352),
    (2.0, 80): (5_811_886, 1_164_622_947, 3_217_581_312),
}


@pytest.mark.parametrize("arrangement", ["merge", "branch"])
@pytest.mark.parametrize(("variant", "alpha3"), ESPNET)
def test_espnet_counts_equal_the_table(variant, alpha3, arrangement):
    row = ESPNET[variant, alpha3]
    network = build("espnet", variant=variant, alpha2=2, alpha3=alpha3, arrangement=arrangement)
    expected = row[:2] if arrangement == "merge" else row[2:]
    assert (parameters(network), macs(network, CITY)) == expected


@pytest.mark.parametrize(("alpha3", "classes", "size"), ESPNET_CAT1)
def test_espnet_with_joined_skip_counts_equal_the_table(alpha3, classes, size):
    network = build("espnet", alpha2=2, alpha3=alpha3, classes=classes, skip1="cat1")
    assert (parameters(network), macs(network, size)) == ESPNET_CAT1[alpha3, classes, size]


@pytest.mark.parametrize(("i", "o", "stride"), ESP_MODULES)
def test_esp_module_counts_equal_the_table(i, o, stride):
    counts = tuple(
        parameters(ESP[arrangement](i, o, stride=stride, branches=5, residual=stride == 1 and i == o))
        for arrangement in ("merge", "branch")
    )
    assert counts == ESP_MODULES[i, o, stride]


@pytest.mark.parametrize(("arrangement", "count"), [("authors", 2288), ("seed", 2224), ("seed_literal", 2048)])
def test_eesp_module_counts_equal_the_text(arrangement, count):
    assert parameters(EESP(64, 64, branches=4, arrangement=arrangement)) == count


@pytest.mark.parametrize(("width", "classes"), ESPNETV2)
def test_espnetv2_counts_equal_the_table(width, classes):
    network = build("espnetv2", width=width, classes=classes)
    count, by_size = ESPNETV2[width, classes]
    assert parameters(network) == count
    assert {size: macs(network, size) for size in by_size} == by_size


@pytest.mark.parametrize("width", FIRST_VERSION)
def test_first_version_counts_equal_the_table(width):
    network = build("espnetv2_first", width=width, classes=20)
    assert (parameters(network), macs(network, CITY)) == FIRST_VERSION[width]


@pytest.mark.parametrize("width", CLASSIFIERS)
def test_classifier_counts_equal_the_table(width):
    network = build("espnetv2", task="classify", width=width, classes=1000)
    assert (parameters(network), macs(network, (224, 224))) == CLASSIFIERS[width]


@pytest.mark.parametrize(("width", "kinds"), DETECTORS)
def test_detector_counts_equal_the_table(width, kinds):
    network = build("espnetv2", task="detect", width=width, classes=kinds)
    assert (parameters(network), macs(network, (300, 300)), macs(network, (512, 512))) == DETECTORS[width, kinds]


@pytest.mark.parametrize(("width", "millions"), [(0.5, 597.56), (1.0, 1086.59), (1.5, 1714.57), (2.0, 2699.05)])
def test_espnetv2_macs_equal_the_published_figures(width, millions):
    """The authors' figures for Cityscapes at 1024×512 are those of 21 classes."""
    assert round(macs(build("espnetv2", width=width, classes=21), CITY) / 1e6, 2) == millions


class TestMacsOfOneLayer:
    """Counted by hand on a single layer."""

    def test_strided_grouped_convolution(self):
        layer = nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3)
        assert macs(layer, (7, 9)) == 4 * 5 * 6 * 1 * 9  # the bias multiplies nothing

    def test_transposed_convolution(self):
        assert macs(nn.ConvTranspose2d(3, 5, 2, stride=2), (4, 6)) == 4 * 6 * 3 * 5 * 4

    def test_linear(self):
        assert macs(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 7)), (8, 8)) == 21

    def test_the_network_is_left_as_it_was(self):
        network = build("espnet", variant="A", alpha2=1, alpha3=1, seed=0)
        macs(network, (64, 64))
        assert network.training
        assert all(p.device.type == "cpu" for p in network.parameters())
        assert not any(m._forward_hooks for m in network.modules())


@pytest.mark.parametrize(
    ("choices", "million_bytes"),
    [
        ({"network": "espnet", "alpha2": 2, "alpha3": 8}, 366),
        ({"network": "espnetv2", "width": 2.0}, 807),
        ({"network": "espnetv2", "width": 0.5}, 382),
    ],
    ids=str,
)
def test_traffic_is_that_measured_on_the_published_networks(choices, million_bytes):
    """Counted by a program of its own when their speed was first looked into, rounded to 10⁶ bytes."""
    assert round(traffic(build(choices, classes=20), CITY) / 1e6) == million_bytes


def test_traffic_is_what_goes_in_and_comes_out():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1))
    half = 16 * 24
    assert traffic(network, (32, 48)) == 4 * (3 * 32 * 48 + 8 * half + 8 * half + 5 * half)
