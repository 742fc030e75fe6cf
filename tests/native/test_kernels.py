"""Each kind of unit in C is what native/include/espy_engine.h says of it: its maps are those of the interpreter, at any size."""

import platform
import re
from functools import partial
from itertools import product

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from builds import NATIVE
from espy import bundle
from espy.errors import EngineError
from lowered import run_program
from native.bench_kernels import bench
from programs import Runner, Sketch, everything, of_file, run
from samples import noise, scene

pytestmark = pytest.mark.usefixtures("one_thread")

few, bit, odd = st.integers(1, 9), st.integers(0, 1), st.sampled_from([1, 3, 5])
heights = st.integers(1, 24)
widths = st.integers(1, 24) | st.integers(25, 300) | st.sampled_from([31, 32, 33, 63, 64, 65, 127, 128, 129, 257])


@st.composite
def firsts(draw, sketch):
    co, pooled, sums = draw(few), draw(st.booleans()), draw(bit)
    if not pooled:
        return sketch.add("FIRST", 5, -1, co, sums).shown(5)
    return sketch.add("FIRST", 5, 6, co, sums).shown(6, 5)


@st.composite
def pools(draw, sketch):
    return sketch.first(draw(few)).add("POOL", 0, 2).shown(2)


@st.composite
def inputs(draw, sketch):
    """Some of the maps at 1/2, each as often as it likes."""
    found = draw(st.lists(st.sampled_from([0, 1]), min_size=1, max_size=3))
    return [len(found), *found], sum(sketch.channels[number] for number in found)


def divisors(*numbers):
    return st.sampled_from([n for n in range(1, max(numbers) + 1) if all(number % n == 0 for number in numbers)])


@st.composite
def convolutions(draw, sketch):
    sketch.first(draw(few))
    (maps, ci), co, stride = draw(inputs(sketch)), draw(few), draw(st.integers(1, 2))
    k = draw(st.sampled_from([1, 3, 5, 7]))
    d = draw(st.integers(1, 16 // max(1, k // 2)))
    made = [*maps, 2, co, k, d, stride, draw(divisors(ci, co))]
    return sketch.add("CONV", *made).shown(2)


@st.composite
def branches(draw):
    """Branches, their width, kernel and dilations."""
    many = draw(st.integers(1, 4))
    dilations = draw(st.lists(st.integers(1, 4) | st.integers(1, 30), min_size=many, max_size=many))
    return many, many * draw(st.integers(1, 3)), draw(odd), dilations


@st.composite
def eesps(draw, sketch):
    many, n, k, dilations = draw(branches())
    co = many * n
    ci = co if draw(st.booleans()) else many * draw(st.integers(1, 3))
    out = draw(st.sampled_from([0, 2])) if ci == co else 2
    residual = draw(bit) if ci == co else 0
    sketch.first(ci)
    return sketch.add("EESP", 0, out, n, many, k, *dilations, draw(bit), residual, draw(bit)).shown(out)


@st.composite
def downs(draw, sketch):
    many, n, k, dilations = draw(branches())
    ci = many * draw(st.integers(1, 3))
    picture = draw(st.sampled_from([-1, 3]))
    sketch.first(ci).add("POOL", 1, 3)
    return sketch.add("DOWN", 0, picture, 2, n, many, k, *dilations, draw(bit), draw(bit)).shown(2)


@st.composite
def esps(draw, sketch):
    n, first, many, k = draw(few), draw(few), draw(st.integers(1, 5)), draw(odd)
    primary, stride, reduction = draw(bit), draw(st.integers(1, 2)), draw(st.sampled_from([1, 3]))
    hff = draw(st.sampled_from([0, 3, 4] + [2] * (n == first)))
    co = first + (many - 1) * n
    residual = stride == 1 and draw(st.booleans())
    out, maps = 2, [1, 0]
    if residual:
        sketch.first(co)
        out = draw(st.sampled_from([0, 2]))
    else:
        sketch.first(draw(few))
        maps, _ = draw(inputs(sketch))
    ints = [*maps, out, n, first, many, k, hff, int(residual), stride, reduction, primary]
    return sketch.add("ESP", *ints).shown(out)


@st.composite
def affines(draw, sketch):
    sketch.first(draw(few))
    maps, _ = draw(inputs(sketch))
    return sketch.add("AFFINE", *maps, 2).shown(2)


@st.composite
def quarters(draw, sketch, channels, least=1):
    """A map of so many channels at 1/4 (or smaller)."""
    number = 1
    for _ in range(draw(st.integers(least, 3))):
        sketch.add("POOL", number, number + 1)
        number += 1
    sketch.add("CONV", 1, number, 9, channels, 1, 1, 1, 1)
    return 9


@st.composite
def resizes(draw, sketch):
    c = draw(few)
    number = draw(quarters(sketch.first(2), c, least=0))
    return sketch.add("RESIZE", number, 0, 2).shown(2)


@st.composite
def doublings(draw, sketch):
    co = draw(few)
    sketch.first(draw(few)).add("POOL", 0, 3)
    return sketch.add("UP2", 3, 0, 2, co).shown(2)


@st.composite
def merges(draw, sketch):
    many, n, co, p = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(few), draw(few)
    ci, skip = draw(few), 0
    if draw(st.booleans()):  # sums of another unit than FIRST
        ci, skip = many * n * many, draw(st.sampled_from([0, 10]))
        sketch.first(ci).add("EESP", 0, skip, n * many, many, 3, *[1] * many, 0, 0, 1)
    else:
        sketch.first(ci, sums=1)
    coarse = draw(quarters(sketch, co))
    return sketch.add("MERGE", skip, coarse, 2, co, draw(divisors(ci, co)), p).shown(2)


@st.composite
def pyramids(draw, sketch, segmented=False):
    c, co = draw(few), draw(few)
    sides = st.sampled_from([(2, 1), (3, 2), (1, 1), (1, 2), (1, 10)]) | st.tuples(st.integers(1, 5), st.integers(1, 5))
    scales = draw(st.lists(sides, min_size=1, max_size=5))
    sketch.first(c).add("PYRAMID", 0, 2, co, len(scales), *np.ravel(scales).tolist())
    return sketch.add("SEGMENT", 2, draw(bit)).program() if segmented else sketch.shown(2)


@st.composite
def segments(draw, sketch):
    c = draw(few)
    number = draw(quarters(sketch.first(2), c, least=0))
    return sketch.add("SEGMENT", number, draw(bit)).program()


@st.composite
def doubled_segments(draw, sketch):
    classes = draw(few)
    return sketch.first(draw(few)).add("SEGMENT2", 0, classes).program()


@st.composite
def means(draw, sketch):
    return sketch.first(draw(few)).add("MEAN", 0, 2).shown(2)


@st.composite
def scores(draw, sketch):
    sketch.first(draw(few)).add("POOL", 0, 2).add("MEAN", 2, 3)
    return sketch.shown(*draw(st.lists(st.integers(0, 3), min_size=1, max_size=6)))


KINDS = {
    "FIRST": firsts, "POOL": pools, "CONV": convolutions, "EESP": eesps, "DOWN": downs, "ESP": esps, "AFFINE": affines,
    "RESIZE": resizes, "UP2": doublings, "MERGE": merges, "PYRAMID": pyramids, "SEGMENT": segments,
    "PYRAMID + SEGMENT": partial(pyramids, segmented=True), "SEGMENT2": doubled_segments, "MEAN": means, "SCORES": scores,
}  # fmt: skip


def differs(found, wanted):
    """The largest difference, as a part of the largest value."""
    return np.abs(found - wanted).max() / (np.abs(wanted).max() or 1.0)


def same_bytes(one, other):
    """Of masks, where there are any, and scores."""
    return [part.tobytes() for part in one if part is not None] == [
        part.tobytes() for part in other if part is not None
    ]


def held_against_the_header(kind, run, examples, precision="float32"):
    """Random programs of a kind, at random sizes, by one and by more threads; run(program, picture, threads)."""

    @settings(max_examples=examples, deadline=None, derandomize=True, phases=[Phase.generate])
    @given(st.data(), st.integers(0, 999), heights, widths, st.sampled_from([2, 3, 5]))
    def holds(data, seed, height, width, threads):
        program = data.draw(KINDS[kind](Sketch(seed))).computed_in(precision)
        picture = noise(height, width, seed)
        mask, scores = run(program, picture, 1)
        _, wanted = run_program(program.units, program.weights, picture)
        assert differs(scores, wanted.numpy()) <= program.within
        assert mask is None or np.array_equal(mask, scores.argmax(0))
        assert same_bytes((mask, scores), run(program, picture, threads))

    holds()


@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_is_what_the_header_says_and_the_same_bytes_with_any_number_of_threads(kind, engine):
    held_against_the_header(kind, partial(run, engine), examples=40)


@pytest.mark.parametrize("dilation", [1, 2, 5, 16])
@pytest.mark.parametrize("height", [1, 2, 3, 4, 7, 12, 15, 64, 81])
def test_a_3x3_is_what_the_header_says_whether_or_not_four_rows_as_far_apart_as_its_dilation_are_in_the_map(
    height, dilation, engine
):
    program = Sketch(height).first(3).add("CONV", 1, 0, 2, 7, 3, dilation, 1, 1).shown(2)
    picture = noise(2 * height, 1050)  # wider than four rows are worked on at a time
    found = run(engine, program, picture)
    _, wanted = run_program(program.units, program.weights, picture)
    assert differs(found[1], wanted.numpy()) <= 1e-5
    assert same_bytes(found, run(engine, program, picture, 3))


@pytest.mark.native
@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_is_what_the_header_says_for_long(kind, engine):
    held_against_the_header(kind, partial(run, engine), examples=2000)


@pytest.fixture
def bfloat16(engine):
    """The precision, where the processor multiplies it."""
    try:
        run(engine, Sketch(0).first(1).shown(0).computed_in("bfloat16"), noise(1, 1))
    except EngineError as error:
        pytest.skip(str(error))
    return "bfloat16"


@pytest.mark.parametrize("kind", KINDS)
def test_so_it_is_in_bfloat16_with_inputs_and_weights_rounded(kind, engine, bfloat16):
    held_against_the_header(kind, partial(run, engine), examples=20, precision=bfloat16)


@pytest.mark.native
@pytest.mark.parametrize("kind", KINDS)
def test_so_it_is_in_bfloat16_for_long(kind, engine, bfloat16):
    held_against_the_header(kind, partial(run, engine), examples=2000, precision=bfloat16)


def test_bfloat16_is_never_computed_by_instructions_that_lack_it(engine, monkeypatch):
    program = Sketch(0).first(1).shown(0).computed_in("bfloat16")
    for name in TARGETS:
        monkeypatch.setenv("ESPY_ENGINE_TARGET", name)
        with pytest.raises(EngineError, match="bfloat16 needs a processor with AVX-512 BF16: take float32"):
            run(engine, program, noise(1, 1))


def test_each_kind_of_unit_has_a_benchmark_of_its_name(engine, capsys):
    bench(engine, runs=1)
    *lines, limits = capsys.readouterr().out.splitlines()
    assert {line.split(": ")[1] for line in lines} == set(KINDS)
    assert all(float(line.split(": ")[3].split(" ms")[0]) > 0 for line in lines)
    assert limits.startswith("kernels: limits: ")


X86 = ("avx512", "avx2", "scalar")
INSTRUCTIONS = {"x86_64": X86, "AMD64": X86, "aarch64": ("neon", "scalar"), "arm64": ("neon", "scalar")}
TARGETS = INSTRUCTIONS.get(platform.machine(), ("scalar",))
"""What kernels are compiled for on this machine, the best first."""
BFLOAT16 = "avx512bf16"  # for that precision alone


@pytest.fixture(params=TARGETS[1:])
def target(request, engine, monkeypatch):
    """Instructions that are not the best."""
    monkeypatch.setenv("ESPY_ENGINE_TARGET", request.param)
    try:
        run(engine, Sketch(0).first(1).shown(0), noise(1, 1))
    except EngineError:
        pytest.skip(f"this processor has no {request.param}")
    return request.param


@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_is_what_the_header_says_by_other_instructions(kind, engine, target):
    held_against_the_header(kind, partial(run, engine), examples=15)


@pytest.mark.native
@pytest.mark.parametrize("name", [*TARGETS, BFLOAT16])
@pytest.mark.parametrize("kind", KINDS)
def test_sanitizers_find_nothing_in_a_unit_and_zeros_lie_around_its_maps(kind, name, checked, monkeypatch):
    monkeypatch.setenv("ESPY_ENGINE_TARGET", name)
    precision = "bfloat16" if name == BFLOAT16 else "float32"
    with checked("address,undefined") as runner:
        try:
            runner.run(Sketch(0).first(1).shown(0).computed_in(precision), noise(1, 1))
        except EngineError:
            pytest.skip(f"this processor has no {name}")
        held_against_the_header(kind, runner.run, examples=100, precision=precision)


@pytest.mark.native
@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_is_what_the_header_says_on_arm(kind, emulated):
    with Runner(*emulated("aarch64")) as runner:
        held_against_the_header(kind, runner.run, examples=200)


def test_a_network_s_masks_are_the_same_by_other_instructions(engine, target, tiny_v2, tiny_espnet, monkeypatch):
    for path in (tiny_v2, tiny_espnet):
        program, picture = of_file(path), scene(61, 83)
        mask, _ = run(engine, program, picture)
        with monkeypatch.context() as best:
            best.delenv("ESPY_ENGINE_TARGET")
            assert (mask == run(engine, program, picture)[0]).mean() >= 0.9999


def test_instructions_that_the_processor_lacks_are_refused(engine, monkeypatch):
    monkeypatch.setenv("ESPY_ENGINE_TARGET", "mmx")
    with pytest.raises(EngineError, match="ESPY_ENGINE_TARGET names no target that this processor has"):
        run(engine, Sketch(0).first(1).shown(0), noise(1, 1))


# Built otherwise


def constants(target, *values):
    """Changes of how much kernels do at a time: outputs and vectors of a dense tile, pixels of a strip and of four rows at once."""
    places = [(name, f"vector_{target}.hpp") for name in ("TILE", "WIDE")]
    places += [(name, "maps.hpp") for name in ("STRIP", "FOURS_WIDTH")]
    found = []
    for (name, file), value in zip(places, values, strict=True):
        (line,) = re.findall(rf"\b{name} = \d+;", (NATIVE / "src" / file).read_text())
        found.append((file, line, f"{name} = {value};"))
    return found


def held_against_the_installed_engine(run, installed, models, pictures, examples):
    """The same bytes of models' masks and scores, and of random programs of each kind."""
    for program, picture in product(map(of_file, models), pictures):
        assert same_bytes(run(program, picture, 2), installed(program, picture))

    @settings(max_examples=examples * len(KINDS), deadline=None, derandomize=True, phases=[Phase.generate])
    @given(st.data(), st.sampled_from(sorted(KINDS)), st.integers(0, 999), heights, widths)
    def holds(data, kind, seed, height, width):
        program, picture = data.draw(KINDS[kind](Sketch(seed))), noise(height, width, seed)
        assert same_bytes(run(program, picture, 2), installed(program, picture))

    holds()


def test_the_bytes_are_the_same_with_another_tile_and_strip(altered, engine, tiny_v2, tiny_espnet, monkeypatch):
    monkeypatch.setenv("ESPY_ENGINE_TARGET", "scalar")
    with Runner(
        altered(*constants("scalar", 3, 4, 16, 48), optimised="-O0")
    ) as runner:  # compiles in the shortest time
        models, pictures = [tiny_v2, tiny_espnet], [scene(21, 83)]
        held_against_the_installed_engine(runner.run, partial(run, engine), models, pictures, examples=2)


@pytest.mark.native
@pytest.mark.parametrize("values", [(1, 2, 32, 16), (3, 6, 96, 48), (5, 4, 64, 512)], ids=str)
@pytest.mark.parametrize("name", TARGETS)
def test_the_bytes_are_the_same_with_any_tile_and_strip(name, values, altered, engine, tiny_espnet, monkeypatch):
    monkeypatch.setenv("ESPY_ENGINE_TARGET", name)
    try:
        run(engine, Sketch(0).first(1).shown(0), noise(1, 1))
    except EngineError:
        pytest.skip(f"this processor has no {name}")
    with Runner(altered(*constants(name, *values), target=name)) as runner:
        models = [*(bundle.path(model, ".safetensors") for model in ("street", "street-small", "camvid")), tiny_espnet]
        pictures = [scene(64, 128), scene(91, 203)]
        held_against_the_installed_engine(runner.run, partial(run, engine), models, pictures, examples=10)


@pytest.mark.native
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("kernels.hpp", "clear(p + c * m.plane + m.width, m.plane - m.width)", "p[c * m.plane + m.width] = 0"),
        ("kernels.hpp", "finish(u.out, y);\n    if (u.split", "if (!u.split) finish(u.out, y);\n    if (u.split"),
    ],
    ids=["a map", "the rows of a map that DOWN keeps"],
)
def test_a_kernel_that_leaves_something_around_a_map_ends_a_checked_build(file, old, new, altered):
    with (
        Runner(altered((file, old, new))) as runner,
        pytest.raises(AssertionError, match=r"unit \d+: what lies around a map of .* is not zero"),
    ):
        runner.run(everything(0), noise(33, 33))
