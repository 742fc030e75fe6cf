"""TensorBoard reads what a run tells it: every number, also where a kill cut a record off."""

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from espy.learn.events import Events
from samples import scene


@pytest.fixture
def start(tmp_path):
    """Starts a file of events; closed when the test ends."""
    opened = []

    def start(step):
        opened.append(Events(tmp_path / "events", step))
        return opened[-1]

    yield start
    for events in opened:
        events.close()


def shown(tmp_path):
    return EventAccumulator(str(tmp_path / "events"), size_guidance={"scalars": 0, "images": 0}).Reload()


def scalars(tmp_path, name):
    return [(event.step, event.value) for event in shown(tmp_path).Scalars(name)]


def test_numbers_are_on_disk_when_the_call_returns(start, tmp_path):
    events = start(0)
    events.scalars({"loss": 0.5, "rate": 0.25}, 10)
    assert scalars(tmp_path, "loss") == [(10, 0.5)]
    events.scalars({"loss": 0.125}, 20)
    assert scalars(tmp_path, "loss") == [(10, 0.5), (20, 0.125)]
    assert scalars(tmp_path, "rate") == [(10, 0.25)]


def test_a_picture_comes_back_pixel_for_pixel(start, tmp_path):
    pixels = scene(20, 30)
    start(0).picture("predictions", Image.fromarray(pixels), 10)
    (found,) = shown(tmp_path).Images("predictions")
    assert (found.step, found.height, found.width) == (10, 20, 30)
    (tmp_path / "found.png").write_bytes(found.encoded_image_string)
    with Image.open(tmp_path / "found.png") as image:
        assert np.array_equal(np.asarray(image), pixels)


def test_what_was_told_of_steps_after_the_checkpoint_is_taken_back(start, tmp_path):
    first = start(0)
    for step in (10, 20, 30):
        first.scalars({"loss": step / 64}, step)
    start(20).scalars({"loss": 0.25}, 30)
    assert scalars(tmp_path, "loss") == [(10, 10 / 64), (20, 20 / 64), (30, 0.25)]


def test_a_start_without_a_checkpoint_takes_all_back(start, tmp_path):
    start(0).scalars({"loss": 0.5}, 10)
    start(0).scalars({"loss": 0.25}, 10)
    assert scalars(tmp_path, "loss") == [(10, 0.25)]


def test_a_record_that_a_kill_cut_off_hides_nothing_of_the_next_start(start, tmp_path):
    events = start(0)
    events.scalars({"loss": 0.5}, 10)
    (file,) = (tmp_path / "events").iterdir()
    whole = file.stat().st_size
    events.scalars({"loss": 0.25}, 20)
    for length in range(file.stat().st_size - 1, whole, -1):
        with file.open("r+b") as cut:
            cut.truncate(length)
        assert scalars(tmp_path, "loss") == [(10, 0.5)]
    start(10).scalars({"loss": 0.125}, 20)
    assert scalars(tmp_path, "loss") == [(10, 0.5), (20, 0.125)]
