"""Which pictures come when, to whom, and with what bytes: the same whatever is kept, however many processes take part."""

import multiprocessing
import subprocess
import sys
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from PIL import Image
from torch.utils.data._utils.pin_memory import pin_memory

import trees
from espy.data import loader
from espy.data.augment import Augment
from espy.data.kinds import open_set
from espy.data.loader import Order, Samples, batches, steps_in_epoch
from espy.errors import DataError
from samples import scene

SIZE = (32, 48)
CHOICES = Augment(scale=(0.5, 1.5), rotate=10)
QUICK = settings(deadline=None, database=None, max_examples=60)
RUNS = st.fixed_dictionaries(
    {"pictures": st.integers(1, 40), "batch": st.sampled_from([1, 2, 4, 12]), "seed": st.integers(0, 2**32 - 1)}
)


# The order


def steps_of(order):
    """The pairs of each step: all its parts together."""
    micro = list(order)
    return [joined(micro[k : k + order.parts]) for k in range(0, len(micro), order.parts)]


def joined(lists):
    return list(chain.from_iterable(lists))


@given(RUNS, st.integers(1, 3))
@QUICK
def test_an_epoch_takes_every_picture_once_and_leaves_out_less_than_a_batch(run, epochs):
    steps = max(1, run["pictures"] // run["batch"])
    assert steps_in_epoch(run["pictures"], run["batch"]) == steps
    pairs = joined(Order(**run, start=0, end=epochs * steps))
    for epoch in range(epochs):
        taken = [index for e, index, _ in pairs if e == epoch]
        assert len(taken) == steps * run["batch"]
        if run["pictures"] >= run["batch"]:
            assert len(set(taken)) == len(taken)
        assert set(taken) <= set(range(run["pictures"]))


@given(st.integers(1, 12), st.integers(0, 99))
@QUICK
def test_a_batch_larger_than_the_set_takes_every_picture_equally_often_but_for_one(pictures, seed):
    (pairs,) = Order(pictures, 12, seed, 0, 1)
    times = np.bincount([index for _, index, _ in pairs], minlength=pictures)
    assert len(pairs) == 12
    assert times.max() - times.min() <= 1


@given(RUNS, st.sampled_from([1, 2, 3, 4]), st.sampled_from([1, 2, 3]), st.data())
@QUICK
def test_processes_and_parts_together_take_the_single_ones_batch_in_its_order(run, world, parts, data):
    assume(run["batch"] % (world * parts) == 0)
    end = data.draw(st.integers(1, 3 * steps_in_epoch(run["pictures"], run["batch"])))
    alone = steps_of(Order(**run, start=0, end=end))
    dealt = [Order(**run, start=0, end=end, rank=rank, world=world, parts=parts) for rank in range(world)]
    assert [joined(ranks) for ranks in zip(*map(steps_of, dealt), strict=True)] == alone
    for order in dealt:
        micro = list(order)
        assert len(micro) == len(order) == end * parts
        assert {len(part) for part in micro} == {run["batch"] // (world * parts)}


@given(RUNS, st.data())
@QUICK
def test_a_start_in_the_middle_is_the_tail_of_the_whole(run, data):
    end = data.draw(st.integers(1, 4 * steps_in_epoch(run["pictures"], run["batch"])))
    start = data.draw(st.integers(0, end))
    whole = list(Order(**run, start=0, end=end))
    assert list(Order(**run, start=start, end=end)) == whole[start:]
    assert [{step for _, _, step in keys} for keys in whole[start:]] == [{step} for step in range(start, end)]


def test_epochs_and_seeds_have_orders_of_their_own_and_the_same_again():
    def orders(seed):
        return [tuple(index for _, index, _ in step) for step in Order(30, 30, seed, 0, 5)]

    assert orders(0) == orders(0)
    assert len({*orders(0), *orders(1)}) == 10


def test_every_place_of_an_epoch_is_any_pictures():
    firsts = [next(iter(Order(5, 1, 0, 5 * epoch, 5 * epoch + 1)))[0][1] for epoch in range(500)]
    times = np.bincount(firsts, minlength=5)
    assert (abs(times - 100) < 50).all()


# The samples


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    trees.folder(root, pairs=7, height=60, width=80)
    return open_set(f"folder:{root}")


def bytes_of(sample):
    image, mask, index = sample
    return image.shape, image.tobytes(), mask.shape, mask.tobytes(), index


@pytest.mark.parametrize("size", [SIZE, (64, 32), (200, 300)], ids=str)
def test_kept_or_read_every_time_the_bytes_are_the_same(data, size):
    kept, read = (Samples(data, size, CHOICES, seed=3) for _ in range(2))
    assert kept.keep()
    assert (kept.kept, read.kept) == (True, False)
    for key in ((0, 0, 0), (0, 6, 1), (4, 2, 9)):
        assert bytes_of(kept[key]) == bytes_of(read[key])


def test_a_sample_depends_on_seed_epoch_and_index_and_on_nothing_before(data):
    def sample(seed, epoch, index):
        return bytes_of(Samples(data, SIZE, CHOICES, seed)[epoch, index, 0])

    one = Samples(data, SIZE, CHOICES, 0)
    for key in ((1, 4), (0, 2), (9, 9 % 7)):
        assert bytes_of(one[*key, 0]) == bytes_of(one[*key, 5]) == sample(0, *key)  # without `sizes`, of no step either
    assert len({sample(0, 0, 1), sample(0, 1, 1), sample(1, 0, 1), sample(0, 0, 2)}) == 4


def test_all_off_is_the_set_itself_as_the_deployed_network_sees_it(data):
    off = Augment(scale=(1, 1), flip=0, brightness=0, contrast=0, saturation=0)
    for index in range(len(data)):
        picture, truth = data.read(index)
        image, mask, number = Samples(data, SIZE, off, 0)[0, index, 0]
        h, w = SIZE
        assert np.array_equal(image, np.asarray(picture.resize((w, h), Image.Resampling.BILINEAR)))
        assert np.array_equal(mask, np.asarray(Image.fromarray(truth).resize((w, h), Image.Resampling.NEAREST)))
        assert number == index


def test_pictures_are_kept_no_larger_than_the_largest_scale_needs(data):
    kept = {}
    for scale, stretch in ((1.0, 1.0), (1.2, 1.0), (1.2, 1.44), (10.0, 1.0)):
        samples = Samples(data, SIZE, replace(CHOICES, scale=(0.5, scale), stretch=stretch), 0)
        samples.keep()
        kept[scale, stretch] = samples.bytes
    h, w = SIZE
    assert kept[1.0, 1.0] == 7 * 4 * h * w
    assert kept[1.2, 1.0] == 7 * 4 * 39 * 58  # 38.4 x 57.6 rounded up
    assert kept[1.2, 1.44] == 7 * 4 * 47 * 70  # 1.2 more a side: 46.1 x 69.1
    assert kept[10.0, 1.0] == 7 * 4 * 60 * 80  # the pictures' own size


def test_the_pictures_are_told_by_name_as_they_are_decoded(data):
    names = []
    Samples(data, SIZE, CHOICES, 0).keep(names.append)
    assert names == [item.picture.name for item in data.items]


@pytest.mark.parametrize(("share", "fits"), [(0.9, False), (1.1, True)])
def test_what_does_not_fit_into_half_of_the_free_memory_is_not_kept_and_its_size_said(data, monkeypatch, share, fits):
    whole = 7 * 4 * 48 * 72  # 1.5 times SIZE
    monkeypatch.setattr(loader, "free_memory", lambda: 2 * share * whole)
    samples = Samples(data, SIZE, CHOICES, 0)
    assert samples.keep() == samples.kept == fits
    assert samples.bytes == whole
    assert bytes_of(samples[0, 3, 0]) == bytes_of(Samples(data, SIZE, CHOICES, 0)[0, 3, 0])
    assert Samples(data, SIZE, CHOICES, 0, sharing=1000).keep() is False


class TestFreeMemory:
    @pytest.fixture
    def system(self, tmp_path, monkeypatch):
        monkeypatch.setattr(loader, "MEMORY", tmp_path / "meminfo")
        monkeypatch.setattr(loader, "LIMIT", tmp_path / "memory.max")
        return tmp_path

    def test_files_that_the_system_only_caches_do_not_fill_it(self, system):
        (system / "meminfo").write_text(
            "MemTotal:  16000 kB\nMemFree:  100 kB\nMemAvailable:  9000 kB\nCached:  8000 kB\n"
        )
        assert loader.free_memory() == 9000 * 1024

    @pytest.mark.parametrize(
        ("limit", "free"), [("4096\n", 4096), ("max\n", 9000 * 1024), ("99999999999\n", 9000 * 1024)]
    )
    def test_a_container_has_no_more_than_its_limit(self, system, limit, free):
        (system / "meminfo").write_text("MemAvailable:  9000 kB\n")
        (system / "memory.max").write_text(limit)
        assert loader.free_memory() == free

    def test_a_system_that_does_not_say_is_taken_to_have_some(self, system):
        assert loader.free_memory() == loader.UNKNOWN_MEMORY


# Batches

on_any_machine = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create:UserWarning",  # where there are fewer cores than workers
    "ignore:This process .* is multi-threaded:DeprecationWarning",  # torch's threads; a worker uses none of them
)


def drained(samples, order, **choices):
    found = []
    for batch in batches(samples, order, **choices):
        assert batch.images.dtype == batch.truth.dtype == torch.uint8
        found.append((batch.images.numpy().tobytes(), batch.truth.numpy().tobytes(), batch.indices))
    return found


@on_any_machine
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "read"])
def test_any_number_of_workers_gives_the_same_batches(data, kept):
    samples = Samples(data, SIZE, CHOICES, 0)
    if kept:
        assert samples.keep()
    order = Order(len(data), 3, 0, 1, 6)
    alone = drained(samples, order, workers=0)
    assert drained(samples, order, workers=2) == alone
    assert [indices for _, _, indices in alone] == [tuple(index for _, index, _ in part) for part in order]


def test_a_batch_is_its_samples_one_upon_another(data):
    samples = Samples(data, SIZE, CHOICES, 0)
    order = Order(len(data), 4, 0, 0, 1)
    (batch,) = batches(samples, order, workers=0)
    assert batch.images.shape == (4, *SIZE, 3)
    assert batch.truth.shape == (4, *SIZE)
    for place, key in enumerate(*order):
        image, mask, index = samples[key]
        assert np.array_equal(batch.images[place], image)
        assert np.array_equal(batch.truth[place], mask)
        assert batch.indices[place] == index


@on_any_machine
@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
def test_workers_share_the_pictures_kept_and_get_no_copies(data, monkeypatch):
    """Whatever way of starting processes Python takes on its own: a copy would be pickled, and refuse."""

    class Heavy(Samples):
        def __reduce__(self):
            raise AssertionError("copied")

    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        samples = Heavy(data, SIZE, CHOICES, 0)
        samples.keep()
        assert len(drained(samples, Order(len(data), 3, 0, 0, 2), workers=1)) == 2
    finally:
        multiprocessing.set_start_method(before, force=True)


@on_any_machine
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("fault", "says"), [("picture", "p1.jpg"), ("mask", "p1.png"), ("pair", "24 x 24")])
def test_a_picture_that_can_be_read_no_more_ends_in_one_line_that_names_it(tmp_path, workers, fault, says):
    trees.folder(tmp_path, pairs=3)
    data = open_set(f"folder:{tmp_path}")
    if fault == "picture":
        (tmp_path / "images" / "p1.jpg").unlink()
    elif fault == "mask":
        (tmp_path / "masks" / "p1.png").write_bytes(b"damaged")
    else:
        trees.save(tmp_path / "images" / "p1.jpg", scene(24, 24))
    with pytest.raises(DataError, match=says) as caught:
        drained(Samples(data, SIZE, CHOICES, 0), Order(3, 3, 0, 0, 1), workers=workers)
    assert str(caught.value).startswith(str(tmp_path))
    assert "Traceback" not in str(caught.value)


UNFINISHED = """
import sys
from espy.data.augment import Augment
from espy.data.kinds import open_set
from espy.data.loader import Order, Samples, batches

samples = Samples(open_set(sys.argv[1]), (32, 48), Augment(), seed=0)
source = batches(samples, Order(len(samples), 1, 0, 0, 1000), workers=2)
print(next(source).indices)
sys.exit(3)
"""


def test_a_program_that_ends_amid_the_batches_ends(data):
    """Workers heed neither an interrupt nor a request to terminate: nobody may wait for them."""
    call = [sys.executable, "-W", "ignore", "-c", UNFINISHED, f"folder:{data.root}"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (3, "")


@on_any_machine
def test_workers_end_when_nobody_wants_more_batches(data):
    source = batches(Samples(data, SIZE, CHOICES, 0), Order(len(data), 1, 0, 0, 1000), workers=2)
    next(source)
    assert len(multiprocessing.active_children()) == 2
    source.close()
    assert multiprocessing.active_children() == []


def test_a_batch_is_pinned_for_a_gpu_whole(data, monkeypatch):
    """What torch's loader calls on every batch, with memory that says that it was pinned: there may be no GPU here."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone().fill_(7))
    (batch,) = batches(Samples(data, SIZE, CHOICES, 0), Order(len(data), 2, 0, 0, 1), workers=0)
    pinned = pin_memory(batch)
    assert pinned.indices == batch.indices
    assert (pinned.images == 7).all()
    assert (pinned.truth == 7).all()
