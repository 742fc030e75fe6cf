"""A run's folder: one run writes it at a time, nothing of another's is touched, and what cannot be written is named."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from espy.errors import OutputError
from espy.learn.folder import RunFolder
from espy.learn.recipe import from_dict, read_recipe
from espy.machine import processor
from espy.output import writing
from samples import attempt

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = from_dict({"network": {"network": "espnet"}, "data": {"set": "folder:photos"}})


@pytest.fixture
def opened(tmp_path):
    """Opens tmp_path/run, closed when the test ends."""
    folders = []

    def open_(path=None, recipe=RECIPE, *, resume=False):
        folders.append(RunFolder(path or tmp_path / "run", recipe, resume=resume))
        return folders[-1]

    yield open_
    for folder in folders:
        folder.close()


def refusal(call, *arguments, **keywords):
    found, message = attempt(OutputError, call, *arguments, **keywords)
    assert found is None
    assert "\n" not in message
    return message


def contents(path):
    return sorted(str(entry.relative_to(path)) for entry in path.rglob("*"))


def line(step, **numbers):
    return {"epoch": step // 10, "step": step, "loss": 0.5, **numbers}


# Whose folder it is


def test_a_new_folder_is_made_with_those_above_it_and_keeps_the_recipe(opened, tmp_path):
    opened(tmp_path / "a" / "b")
    assert contents(tmp_path / "a") == ["b", "b/.lock", "b/recipe.toml"]
    assert read_recipe(tmp_path / "a" / "b" / "recipe.toml") == RECIPE


def test_an_empty_folder_is_taken(opened, tmp_path):
    (tmp_path / "run").mkdir()
    opened()


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_is_refused_while_the_first_one_lasts(opened, tmp_path, resume):
    first = opened()
    message = refusal(opened, resume=resume)
    assert message == f"{tmp_path / 'run'}: another run is writing there: wait for it, or choose another --out"
    first.close()
    opened(resume=True)


def test_a_refused_run_lets_the_folder_go(opened, tmp_path):
    opened().close()
    refusal(opened)
    opened(resume=True)


def test_a_run_is_gone_on_with_only_where_that_is_asked_for(opened, tmp_path):
    opened().close()
    assert (
        refusal(opened)
        == f"{tmp_path / 'run'}: holds a run already: continue it with --resume, or choose another --out"
    )


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["photo.jpg", ".hidden", "last.ckpt", "deep/photo.jpg"])
def test_a_folder_of_something_else_is_refused_and_stays_as_it_is(opened, tmp_path, name, resume):
    (tmp_path / "run" / name).parent.mkdir(parents=True)
    (tmp_path / "run" / name).write_bytes(b"x")
    before = contents(tmp_path / "run")
    message = refusal(opened, resume=resume)
    first = name.partition("/")[0]
    assert message == f"{tmp_path / 'run'}: holds {first} and no recipe.toml, so no run: choose another --out"
    assert contents(tmp_path / "run") == before


def half_written(path):
    """What a kill leaves of a file that is being written."""
    with writing(path) as file:
        file.write(b"half")
        file.flush()
        (part,) = path.parent.glob(".*.part")
        left = shutil.copy(part, path.with_name("left"))
    path.unlink()
    return left.rename(part)


def test_a_folder_with_half_a_recipe_is_free(opened, tmp_path):
    """The first thing that a run writes there."""
    (tmp_path / "run").mkdir()
    half = half_written(tmp_path / "run" / "recipe.toml")
    opened()
    assert not half.exists()


def test_what_a_kill_left_half_written_goes_away_and_nothing_else(opened, tmp_path):
    opened().close()
    (tmp_path / "run" / "pictures").mkdir()
    halves = [half_written(tmp_path / "run" / name) for name in ("last.ckpt", "pictures/epoch-0001.jpg")]
    others = [tmp_path / "run" / name for name in (".notes", "a.part", "pictures/.espy-notes")]
    for other in others:
        other.write_bytes(b"x")
    opened(resume=True)
    assert not any(half.exists() for half in halves)
    assert all(other.exists() for other in others)


# What cannot be written


def test_a_file_in_the_folders_place_is_named(opened, tmp_path):
    (tmp_path / "run").write_bytes(b"x")
    assert refusal(opened) == f"{tmp_path / 'run'}: cannot be written: {os.strerror(17)}"
    assert refusal(opened, tmp_path / "run" / "deep").startswith(f"{tmp_path / 'run' / 'deep'}: cannot be written: ")


def test_a_place_where_the_system_takes_no_folder_is_named(opened):
    assert refusal(opened, Path("/proc/espy-run")).startswith("/proc/espy-run: cannot be written: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere: run the tests as another user")
def test_a_folder_that_may_not_be_written_is_named(opened, tmp_path):
    tmp_path.chmod(0o500)
    assert refusal(opened) == f"{tmp_path / 'run'}: cannot be written: {os.strerror(13)}"


@pytest.mark.parametrize("name", ["recipe.toml", "metrics.jsonl", "environment.json"])
def test_a_folder_in_a_files_place_is_named(opened, tmp_path, name):
    folder = opened()
    (tmp_path / "run" / name).unlink(missing_ok=True)
    (tmp_path / "run" / name).mkdir()

    def write():
        folder.rewind(0)
        folder.note_environment()
        folder.close()
        opened(resume=True)

    assert str(tmp_path / "run") in refusal(write)


# What it holds


def test_lines_are_added_and_those_after_a_step_are_dropped(opened):
    folder = opened()
    folder.rewind(0)
    folder.open_events(0)
    for step in (10, 20, 30):
        folder.add(line(step))
    assert [one["step"] for one in folder.lines()] == [10, 20, 30]
    folder.rewind(20)
    assert [json.loads(one) for one in folder.metrics.read_text().splitlines()] == [line(10), line(20)]
    folder.rewind(9)
    assert folder.metrics.read_bytes() == b""


@pytest.mark.parametrize("kept", range(1, len(json.dumps(line(20)))))
def test_a_line_that_a_kill_cut_off_is_left_out(opened, kept):
    folder = opened()
    folder.rewind(0)
    folder.open_events(0)
    folder.add(line(10))
    with folder.metrics.open("a") as file:
        file.write(json.dumps(line(20))[:kept])
    assert folder.lines() == [line(10)]
    folder.rewind(20)
    folder.add(line(20))
    assert folder.lines() == [line(10), line(20)]


def test_a_line_is_json_whatever_was_measured(opened):
    folder = opened()
    folder.open_events(0)
    folder.add(line(10, miou=None, iou={"a": None}))
    assert json.loads(folder.metrics.read_text(), parse_constant=pytest.fail) == line(10, miou=None, iou={"a": None})
    with pytest.raises(ValueError, match="JSON"):
        folder.add(line(20, miou=float("nan")))


def test_where_the_run_went_on_is_noted_each_time(opened, tmp_path):
    folder = opened()
    for step in (0, 20):
        folder.note_environment(step=step)
    noted = json.loads((tmp_path / "run" / "environment.json").read_text())["starts"]
    assert [one["step"] for one in noted] == [0, 20]
    assert noted[0]["processor"] == processor() != ""


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"starts": 3}', b"\xff"])
def test_a_damaged_note_is_begun_anew(opened, tmp_path, content):
    folder = opened()
    (tmp_path / "run" / "environment.json").write_bytes(content)
    folder.note_environment(step=1)
    assert len(json.loads((tmp_path / "run" / "environment.json").read_text())["starts"]) == 1


def test_a_picture_is_a_file_and_shown(opened, tmp_path):
    folder = opened()
    folder.open_events(0)
    before = sum(file.stat().st_size for file in folder.events.iterdir())
    folder.picture("epoch-0001", Image.new("RGB", (6, 4)), 10)
    with Image.open(tmp_path / "run" / "pictures" / "epoch-0001.jpg") as image:
        assert image.size == (6, 4)
    assert sum(file.stat().st_size for file in folder.events.iterdir()) > before
