"""What augmentation does to a picture and its mask: the geometry followed point by point, the colours by their formulas."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from PIL import Image, ImageEnhance

from espy.data.augment import FILL, VOID, Augment, colours, geometry, view
from espy.learn.recipe import RecipeError, from_dict
from samples import noise, scene

OFF = Augment(scale=(1, 1), flip=0, brightness=0, contrast=0, saturation=0)
ALL = Augment(crop=(40, 56), scale=(0.6, 1.7), stretch=1.3, rotate=25, flip=0.5, brightness=0.3, contrast=0.4,
              saturation=0.5, hue=40)  # fmt: skip
PALETTE = noise(256, 1, seed=3)[:, 0]
QUICK = settings(deadline=None, database=None, max_examples=60)
SEEDS = st.integers(0, 2**32 - 1)


def rng(seed=0):
    return np.random.default_rng(seed)


def mask_of(height, width, classes=5, block=1, seed=0):
    """Random classes in blocks of so many pixels."""
    coarse = rng(seed).integers(0, classes, (-(-height // block), -(-width // block)), np.uint8)
    return coarse.repeat(block, 0).repeat(block, 1)[:height, :width]


def pair(height, width, **keywords):
    """A picture that says each pixel's class, and the mask."""
    mask = mask_of(height, width, **keywords)
    return PALETTE[mask], mask


def ramps(height, width):
    """A picture whose red is x and whose green is y."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8)


def blank(image):
    return np.zeros(image.shape[:2], np.uint8)


# Nothing, flips, whole crops: exact


@given(st.tuples(st.integers(16, 40), st.integers(16, 40)), SEEDS)
@QUICK
def test_all_off_is_the_picture_itself_bit_for_bit(size, seed):
    image, mask = noise(*size, seed % 100), mask_of(*size)
    found = view(image, mask, size, OFF, rng(seed))
    assert np.array_equal(found[0], image)
    assert np.array_equal(found[1], mask)


@given(st.tuples(st.integers(16, 40), st.integers(16, 40)), SEEDS)
@QUICK
def test_a_flip_is_that_of_numpy(size, seed):
    image, mask = noise(*size, seed % 100), mask_of(*size)
    found = view(image, mask, size, replace(OFF, flip=1), rng(seed))
    assert np.array_equal(found[0], image[:, ::-1])
    assert np.array_equal(found[1], mask[:, ::-1])


@given(SEEDS, st.sampled_from([0.0, 1.0]))
@QUICK
def test_a_crop_at_scale_1_shows_each_label_where_its_picture_is(seed, flip):
    image, mask = pair(40, 60, block=3)
    found, labels = view(image, mask, (40, 60), replace(OFF, flip=flip, crop=(24, 32)), rng(seed))
    assert found.shape == (24, 32, 3)
    pure = (found[:, :, None] == PALETTE[:5]).all(-1)  # [24, 32, 5]: of this class alone, not mixed of neighbours
    assert pure.any(-1).mean() > 0.4
    assert np.array_equal(pure.argmax(-1)[pure.any(-1)], labels[pure.any(-1)])


# The geometry, point by point

CHOICES = st.builds(
    Augment,
    crop=st.sampled_from([None, (16, 40), (48, 20)]),
    scale=st.sampled_from([(1.0, 1.0), (0.4, 0.9), (0.7, 1.6), (2.0, 3.0)]),
    stretch=st.sampled_from([1.0, 1.4]),
    rotate=st.sampled_from([0.0, 20.0, 180.0]),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    brightness=st.just(0.0), contrast=st.just(0.0), saturation=st.just(0.0),
)  # fmt: skip
SIZES = st.sampled_from([(32, 48), (40, 40), (30, 70)])


def taken_apart(source, size, crop, choices, seed):
    """Scale, stretch, angle in degrees and flip that a map makes, and where the crop's centre lies on the whole picture
    as scaled; every other map fails here."""
    matrix = geometry(source, size, crop, choices, rng(seed))
    across, down = np.hypot(matrix[:, 0], matrix[:, 1])  # pixels of the source in one of the crop
    w, h = source[1] / across, source[0] / down  # the whole picture in the crop's pixels
    turn = matrix[:, :2] / [[across], [down]]
    assert np.allclose(turn @ turn.T, np.eye(2))
    flip = np.linalg.det(turn) < 0
    if flip:
        turn[:, 0] *= -1
    angle = math.degrees(math.atan2(turn[1, 0], turn[0, 0]))
    x, y = matrix @ [crop[1] / 2, crop[0] / 2, 1] / [across, down]
    along_y, along_x = h / size[0], w / size[1]
    return math.sqrt(along_y * along_x), along_y / along_x, angle, flip, (x, y, w, h)


@given(SIZES, SIZES, CHOICES, SEEDS)
@settings(QUICK, max_examples=200)
def test_every_map_is_a_scaling_a_turn_and_a_flip_within_the_choices(source, size, choices, seed):
    crop = choices.crop or size
    scale, stretch, angle, flip, (x, y, w, h) = taken_apart(source, size, crop, choices, seed)
    assert choices.scale[0] - 1e-9 <= scale <= choices.scale[1] + 1e-9
    assert 1 / choices.stretch - 1e-9 <= stretch <= choices.stretch + 1e-9
    assert abs(angle) <= choices.rotate + 1e-9
    assert flip == choices.flip or choices.flip == 0.5
    for centre, whole, side in ((x, w, crop[1]), (y, h, crop[0])):
        start, end = centre - side / 2, centre + side / 2  # of the crop, unturned, on the whole picture
        if whole >= side:
            assert -1e-6 <= start <= end <= whole + 1e-6
        else:
            assert start <= 1e-6 <= whole - 1e-6 <= end


def test_draws_spread_over_all_that_is_allowed():
    choices = replace(ALL, crop=None, scale=(0.5, 2), rotate=30, flip=0.25, stretch=1.44)
    drawn = [taken_apart((60, 80), (60, 80), (60, 80), choices, seed)[:4] for seed in range(2000)]
    scale, stretch, angle, flip = np.array(drawn, float).T
    for values, edge in ((np.log2(scale), 1), (np.log(stretch), math.log(1.44)), (angle, 30)):
        tenths = np.histogram(values, 10, (-edge, edge))[0]
        assert tenths.sum() == 2000
        assert (abs(tenths - 200) < 5 * math.sqrt(200)).all()  # evenly
    assert abs(flip.mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 2000)
    assert (abs(np.corrcoef(np.stack([scale, stretch, angle, flip])) - np.eye(4)) < 0.12).all()  # of each other


def test_crops_lie_everywhere_on_the_picture():
    image = ramps(40, 60)
    crops = [view(image, blank(image), (40, 60), replace(OFF, crop=(20, 20)), rng(seed))[0] for seed in range(400)]
    left, top = np.array([crop[0, 0, :2] for crop in crops]).T
    for start, room in ((left, 40), (top, 20)):
        quarters = np.histogram(start, 4, (0, room))[0]
        assert quarters.sum() == 400
        assert (abs(quarters - 100) < 50).all()
    assert abs(np.corrcoef(left, top)[0, 1]) < 0.2


def two_taps(image, x, y):
    """The values at a point, between the centres of the four pixels about it; beyond the last centres those of the edge."""
    value = np.zeros(3)
    for column, across in ((math.floor(x - 0.5), 1 - (x - 0.5) % 1), (math.floor(x - 0.5) + 1, (x - 0.5) % 1)):
        for row, down in ((math.floor(y - 0.5), 1 - (y - 0.5) % 1), (math.floor(y - 0.5) + 1, (y - 0.5) % 1)):
            inside = min(max(row, 0), image.shape[0] - 1), min(max(column, 0), image.shape[1] - 1)
            value += across * down * image[inside]
    return value


@given(SIZES, CHOICES, SEEDS)
@settings(QUICK, max_examples=20)
def test_every_pixel_is_the_one_that_the_map_leads_to(size, choices, seed):
    """Followed by hand from pixel centres: picture by two taps a side, mask by the pixel that it falls in."""
    image, mask = noise(*size), mask_of(*size)
    crop = choices.crop or size
    matrix = geometry(size, size, crop, choices, rng(seed))
    assume(np.hypot(matrix[:, 0], matrix[:, 1]).max() < 2)  # else pixels are averaged first
    found, labels = view(image, mask, size, choices, rng(seed))
    for row, column in np.ndindex(crop):
        x, y = matrix @ [column + 0.5, row + 0.5, 1]
        if min(abs(v - round(v)) for v in (x, y)) < 1e-3 and choices.rotate:
            continue  # on an edge of two pixels, where the last bit decides
        if 0 <= x < size[1] and 0 <= y < size[0]:
            assert labels[row, column] == mask[int(y), int(x)]
            dropped = two_taps(image, x, y) - found[row, column]  # Pillow cuts off the fraction
            assert (dropped >= -1e-6).all()
            assert (dropped < 1 + 1e-6).all()
        else:
            assert labels[row, column] == VOID
            assert tuple(found[row, column]) == FILL


@pytest.mark.parametrize("scale", [0.3, 0.5, 1.0, 1.7, 3.0])
@pytest.mark.parametrize("rotate", [0, 180])
def test_picture_and_mask_move_together_at_any_scale_and_angle(scale, rotate):
    """The mask is a function of the picture before; it still is after, but for the pixels where two colours mix."""
    image, mask = pair(120, 160, block=24)
    found, labels = view(image, mask, (120, 160), replace(OFF, scale=(scale, scale), rotate=rotate, flip=0.5), rng(7))
    inside = labels != VOID
    nearest = abs(found[:, :, None].astype(int) - PALETTE[:5]).sum(-1).argmin(-1)
    assert inside.mean() > 0.05
    assert (nearest == labels)[inside].mean() > 0.9
    surrounded = inside.copy()
    for down, right in np.ndindex(7, 7):
        surrounded &= np.roll(labels, (down - 3, right - 3), (0, 1)) == labels
    surrounded[[0, 1, 2, -3, -2, -1]], surrounded[:, [0, 1, 2, -3, -2, -1]] = False, False
    assert surrounded.any()
    assert np.array_equal(found[surrounded], PALETTE[labels[surrounded]])


def test_scale_2_reads_half_the_picture_a_side():
    found, _ = view(ramps(100, 120), blank(ramps(100, 120)), (100, 120), replace(OFF, scale=(2, 2)), rng())
    height, width = (int(np.ptp(found[..., channel])) for channel in (1, 0))
    assert height in (49, 50)
    assert width in (59, 60)


# Outside


@given(SEEDS, st.sampled_from([OFF, replace(ALL, scale=(1, 1), stretch=1, rotate=0, crop=None)]))
@QUICK
def test_what_lies_outside_has_the_colour_of_no_picture_and_no_class(seed, choices):
    image, mask = pair(32, 48)
    found, labels = view(image, mask, (32, 48), replace(choices, scale=(0.5, 0.5)), rng(seed))
    outside = labels == VOID
    assert outside.sum() == 32 * 48 * 3 // 4
    assert (found[outside] == FILL).all()
    assert (found[~outside] == FILL).all(-1).sum() <= 1  # of its sixteen million colours the picture may have that one


def test_void_stays_void_and_its_picture_stays_seen():
    image, mask = noise(32, 48), np.full((32, 48), VOID, np.uint8)
    found, labels = view(image, mask, (32, 48), replace(OFF, flip=1), rng())
    assert (labels == VOID).all()
    assert np.array_equal(found, image[:, ::-1])


# Shrinking


@pytest.mark.parametrize("rotate", [0, 45, 180])
def test_a_fine_checkerboard_becomes_grey_not_a_pattern(rotate):
    image = np.repeat((np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, 2)
    for seed in range(5):
        found, labels = view(
            image, blank(image), (256, 256), replace(OFF, scale=(0.25, 0.25), rotate=rotate), rng(seed)
        )
        inside = found[labels != VOID].astype(float)
        assert abs(inside - 127.5).max() <= 1


def test_each_side_of_the_picture_is_smoothed_as_much_as_it_shrinks_however_it_is_turned():
    """Four times as wide as high, seen square: across, stripes of 4 px vanish; down, they are still there."""
    stripes = (np.arange(1024) // 4 % 2 * 255).astype(np.uint8)
    upright = np.broadcast_to(stripes[None, :, None], (256, 1024, 3)).copy()
    lying = np.broadcast_to(stripes[:256, None, None], (256, 1024, 3)).copy()
    choices = replace(OFF, rotate=180)
    for seed in range(12):
        found, labels = view(upright, blank(upright), (128, 128), choices, rng(seed))
        assert found[labels != VOID].std() < 1
        found, labels = view(lying, blank(lying), (128, 128), choices, rng(seed))
        assert found[labels != VOID].std() > 60


@pytest.mark.parametrize("source", [(128, 192), (96, 72), (50, 401)])
def test_a_picture_of_another_size_is_resized_as_pillow_does_up_to_its_filter(source):
    image = scene(*source)
    found, _ = view(image, blank(image), (64, 96), OFF, rng())
    wanted = np.asarray(Image.fromarray(image).resize((96, 64), Image.Resampling.BILINEAR))
    assert abs(found.astype(int) - wanted).mean() < 1.5


# Colours


def seen(image, choices, seed=0):
    """A picture in other colours, its place unchanged."""
    return view(image, blank(image), image.shape[:2], choices, rng(seed))[0].astype(int)


def drawn(choices, seed=0):
    """The matrix of the colours that `view` draws, after the geometry."""
    generator = rng(seed)
    geometry((16, 16), (16, 16), (16, 16), choices, generator)
    return colours(choices, generator)


WHEEL = np.exp(2j * np.pi / 3 * np.arange(3))
IMAGE = noise(40, 60, seed=1)
BALANCED = np.concatenate([IMAGE, 255 - IMAGE])  # of mean grey 127.5, about which Pillow's contrast then turns


@pytest.mark.parametrize("seed", range(6))
class TestColours:
    @pytest.mark.parametrize(
        ("field", "most", "pillows", "image"),
        [
            ("brightness", 0.6, ImageEnhance.Brightness, IMAGE), ("contrast", 0.6, ImageEnhance.Contrast, BALANCED),
            ("saturation", 0.9, ImageEnhance.Color, IMAGE),
        ],
        ids=["brightness", "contrast", "saturation"],
    )  # fmt: skip
    def test_each_but_hue_is_pillows(self, seed, field, most, pillows, image):
        choices = replace(OFF, **{field: most})
        matrix = drawn(choices, seed)
        factor = matrix[0, 0] - matrix[1, 0]  # of each of the three, taken alone
        assert 0 < abs(factor - 1) <= most
        assert abs(seen(image, choices, seed) - np.asarray(pillows(Image.fromarray(image)).enhance(factor))).max() <= 1

    def test_hue_turns_the_colours_and_keeps_what_they_add_up_to(self, seed):
        """A colour as one complex number, red at 0 degrees, green at 120, blue at 240: all are turned by one angle."""
        choices = replace(OFF, hue=70)
        image = (100 + IMAGE // 5).astype(np.uint8)  # so pale that no value leaves 0..255
        before, after = image @ WHEEL, seen(image, choices, seed) @ WHEEL
        angle = np.angle((after * before.conj()).sum())
        assert 0 < abs(math.degrees(angle)) <= 70
        assert abs(after - before * np.exp(1j * angle)).max() < 1.5
        assert abs(seen(image, choices, seed).sum(-1) - image.sum(-1, dtype=int)).max() <= 1

    @pytest.mark.parametrize("choices", [replace(OFF, hue=180), replace(OFF, saturation=1)], ids=["hue", "saturation"])
    def test_greys_stay_grey(self, seed, choices):
        greys = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
        assert np.array_equal(seen(greys, choices, seed), greys)

    def test_all_four_follow_one_another_hue_first_contrast_last(self, seed):
        """Each from its own draw alone, so switching three of them off has not changed the fourth."""
        wanted = IMAGE.reshape(-1, 3).astype(float)
        for field in ("hue", "saturation", "brightness", "contrast"):
            matrix = drawn(replace(OFF, **{field: getattr(ALL, field)}), seed)
            wanted = wanted @ matrix[:, :3].T + matrix[:, 3]
        choices = replace(OFF, **{f: getattr(ALL, f) for f in ("hue", "saturation", "brightness", "contrast")})
        found = seen(IMAGE, choices, seed).reshape(-1, 3)
        assert abs(found - np.clip(wanted, 0, 255)).max() < 0.51


def test_a_hue_of_120_degrees_exchanges_the_channels():
    """Where it is drawn nearest to a third of a turn, red becomes green, green blue, blue red, or the other way."""
    choices = replace(OFF, hue=180)
    third = [np.roll(np.eye(3), 1, axis) for axis in (0, 1)]
    matrices = [drawn(choices, seed)[:, :3] for seed in range(400)]
    assert min(abs(m - third[0]).max() for m in matrices) < 0.03
    assert min(abs(m - third[1]).max() for m in matrices) < 0.03


def test_the_draws_of_the_colours_spread_evenly_and_apart():
    every = []
    for field in ("brightness", "contrast", "saturation"):
        matrices = [drawn(replace(OFF, **{field: 0.5}), seed) for seed in range(1000)]
        every.append([2 * (m[0, 0] - m[1, 0] - 1) for m in matrices])
    matrices = [drawn(replace(OFF, hue=60), seed) for seed in range(1000)]
    every.append([np.angle(m[:, 0] @ WHEEL) * 3 / math.pi for m in matrices])  # where red is turned to
    for values in every:
        tenths = np.histogram(values, 10, (-1, 1))[0]
        assert tenths.sum() == 1000
        assert (abs(tenths - 100) < 50).all()
    assert (abs(np.corrcoef(every) - np.eye(4)) < 0.15).all()


# Chance


@pytest.mark.parametrize("choices", [ALL, Augment()], ids=["all", "as given"])
def test_the_same_seed_is_the_same_bytes_and_another_is_not(choices):
    image, mask = scene(60, 80), mask_of(60, 80)
    one, two, other = (view(image, mask, (60, 80), choices, rng(seed)) for seed in (5, 5, 6))
    assert one[0].tobytes() == two[0].tobytes()
    assert one[1].tobytes() == two[1].tobytes()
    assert one[0].tobytes() != other[0].tobytes()


def test_what_is_given_is_left_as_it_was():
    image, mask = scene(60, 80), mask_of(60, 80)
    before = image.copy(), mask.copy()
    view(image, mask, (60, 80), ALL, rng())
    assert np.array_equal(image, before[0])
    assert np.array_equal(mask, before[1])


GEOMETRY = {"scale": (1, 1), "stretch": 1, "rotate": 0, "flip": 0}


@pytest.mark.parametrize("off", GEOMETRY)
@pytest.mark.parametrize("seed", range(5))
def test_switching_a_choice_of_the_geometry_off_leaves_the_others_draws(off, seed):
    parts = ("scale", "stretch", "rotate", "flip")
    size = crop = (60, 80)
    before = taken_apart(size, size, crop, ALL, seed)[:4]
    after = taken_apart(size, size, crop, replace(ALL, **{off: GEOMETRY[off]}), seed)[:4]
    for part, was, now in zip(parts, before, after, strict=True):
        assert now == pytest.approx(np.ravel(GEOMETRY[off])[0] if part == off else was)


@pytest.mark.parametrize("seed", range(5))
def test_colours_and_geometry_draw_apart(seed):
    image, mask = scene(60, 80), mask_of(60, 80)
    plain = replace(ALL, brightness=0, contrast=0, saturation=0, hue=0)
    assert np.array_equal(
        view(image, mask, (60, 80), ALL, rng(seed))[1], view(image, mask, (60, 80), plain, rng(seed))[1]
    )
    still = replace(ALL, crop=None, **GEOMETRY)
    flat = np.full((60, 80, 3), (90, 140, 60), np.uint8)
    colour = view(flat, mask, (60, 80), still, rng(seed))[0][0, 0]
    moved, labels = view(flat, mask, (60, 80), ALL, rng(seed))
    assert (moved[labels != VOID] == colour).all()


# Limits


@pytest.mark.parametrize(
    ("augment", "says"),
    [
        ({"scale": [2, 1]}, "scale must rise within 0.05 to 20, not 2.0 to 1.0"),
        ({"scale": [0.01, 1]}, "scale must rise"),
        ({"scale": [1, math.inf]}, "scale is inf"),
        ({"scale": [math.nan, math.nan]}, "scale is nan"),
        ({"scale": [1]}, "scale: .* length 2"),
        ({"scale": 1.5}, "scale = 1.5: expected array"),
        ({"stretch": 0.5}, "stretch = .* >= 1"),
        ({"stretch": 2.5}, "stretch = .* <= 2"),
        ({"rotate": -5}, "rotate = .* >= 0"),
        ({"rotate": 181}, "rotate = .* <= 180"),
        ({"rotate": math.nan}, "rotate is nan"),
        ({"flip": 1.5}, "flip = .* <= 1"),
        ({"flip": True}, "flip = .*bool"),
        ({"brightness": -0.1}, "brightness = .* >= 0"),
        ({"contrast": 1.1}, "contrast = .* <= 1"),
        ({"saturation": "much"}, "saturation = .*str"),
        ({"hue": 200}, "hue = .* <= 180"),
        ({"crop": [8, 64]}, "crop must be 16 to 32768 pixels a side, not 8"),
        ({"crop": [64, 10**9]}, "crop must be 16 to 32768 pixels a side, not 1000000000"),
        ({"crop": [64]}, "crop: .* length 2"),
        ({"crop": [64.5, 64]}, "crop.*int"),
        ({"brigthness": 0.1}, "brigthness.*did you mean 'brightness'"),
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_choice_is_refused_in_one_line_that_names_it(augment, says):
    recipe = {"network": {"network": "espnet"}, "data": {"set": "folder:photos"}, "augment": augment}
    with pytest.raises(RecipeError, match=rf"^r\.toml: \[augment\] .*{says}") as caught:
        from_dict(recipe, where="r.toml")
    assert "\n" not in str(caught.value)


@given(st.floats(0.05, 20), st.floats(0.05, 20), st.integers(16, 200))
@QUICK
def test_choices_within_the_limits_are_taken(one, other, side):
    augment = {"scale": sorted([one, other]), "crop": [side, 16], "rotate": 180, "stretch": 2, "hue": 180, "flip": 1}
    recipe = {"network": {"network": "espnet"}, "data": {"set": "folder:photos"}, "augment": augment}
    assert from_dict(recipe).augment.crop == (side, 16)
