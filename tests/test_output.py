"""Files are written whole or not at all, and never over another one unasked."""

import os
import signal
import subprocess
import sys

import pytest

from espy.errors import OutputError
from espy.output import write_bytes, writing


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_and(path, then, **keywords):
    """Write half of a file, then do something else inside the block."""
    with writing(path, **keywords) as file:
        file.write(b"half")
        then()


def fail(error):
    raise error


def refusal(path, **keywords):
    with pytest.raises(OutputError) as caught:
        write_bytes(path, b"new", **keywords)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_a_block_that_ends_well_leaves_the_file_and_nothing_beside_it(tmp_path):
    with writing(tmp_path / "a.bin") as file:
        file.write(b"one")
        assert not (tmp_path / "a.bin").exists()
        file.write(b"two")
    assert (tmp_path / "a.bin").read_bytes() == b"onetwo"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_a_block_that_fails_leaves_nothing_and_its_error_goes_on(tmp_path, error):
    with pytest.raises(error):
        write_and(tmp_path / "a.bin", lambda: fail(error))
    assert names(tmp_path) == []


def test_a_failing_block_leaves_the_old_file_even_with_force(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"old")
    with pytest.raises(ValueError, match="half way"):
        write_and(tmp_path / "a.bin", lambda: fail(ValueError("half way")), force=True)
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_folders_on_the_way_are_made(tmp_path):
    write_bytes(tmp_path / "a/b/c.bin", b"deep")
    assert (tmp_path / "a/b/c.bin").read_bytes() == b"deep"


def test_an_existing_file_is_kept_without_force_and_replaced_with_it(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    assert "--force" in refusal(path)
    assert path.read_bytes() == b"old"
    write_bytes(path, b"new", force=True)
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.bin"]


def test_a_file_that_another_process_wrote_meanwhile_is_kept(tmp_path):
    path = tmp_path / "a.bin"
    with pytest.raises(OutputError, match="exists"):
        write_and(path, lambda: path.write_bytes(b"theirs"))
    assert path.read_bytes() == b"theirs"
    assert names(tmp_path) == ["a.bin"]


def test_a_link_to_nothing_is_not_taken_for_free(tmp_path):
    (tmp_path / "a.bin").symlink_to(tmp_path / "elsewhere")
    refusal(tmp_path / "a.bin")
    assert names(tmp_path) == ["a.bin"]


def test_a_folder_in_the_files_place_is_refused_even_with_force(tmp_path):
    (tmp_path / "a.bin").mkdir()
    for force in (False, True):
        assert "folder" in refusal(tmp_path / "a.bin", force=force)
    assert names(tmp_path) == ["a.bin"]


def test_a_file_in_a_folders_place_is_one_line(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    refusal(tmp_path / "file" / "a.bin")
    refusal(tmp_path / "file" / "deep" / "a.bin", force=True)
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere: run the tests as another user")
def test_a_folder_that_may_not_be_written_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    refusal(tmp_path / "a.bin")


def test_a_folder_of_the_system_that_takes_no_files_is_one_line():
    refusal("/proc/espy.bin")


@pytest.mark.parametrize(
    "name", ["é" * 120 + ".bin", "x" * 251 + ".bin", "日" * 80 + ".mask.png"], ids=["é", "x", "日"]
)
def test_the_longest_names_that_a_disk_takes_are_written(tmp_path, name):

    (tmp_path / name).write_bytes(b"")  # the disk takes it
    write_bytes(tmp_path / name, b"new", force=True)
    assert (tmp_path / name).read_bytes() == b"new"


def test_a_name_longer_than_any_disk_takes_is_one_line(tmp_path):
    refusal(tmp_path / ("x" * 300 + ".bin"))


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "a.bin", b"x")
        write_bytes(tmp_path / "a.bin", b"y", force=True)
    finally:
        os.umask(before)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o666 & ~mask


KILLED = """
import sys, time
from espy.output import writing
with writing(sys.argv[1], force=sys.argv[2] == "force") as file:
    file.write(b"half" * 100_000)
    file.flush()
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("force", ["force", "keep"])
def test_a_process_killed_while_writing_leaves_no_half_file_under_the_name(tmp_path, force):
    path = tmp_path / "a.bin"
    if force == "force":
        path.write_bytes(b"old")
    running = subprocess.Popen([sys.executable, "-c", KILLED, path, force], stdout=subprocess.PIPE)
    with running:
        assert running.stdout.readline() == b"ready\n"
        running.kill()
    assert running.returncode == -signal.SIGKILL
    assert (path.read_bytes() == b"old") if force == "force" else not path.exists()
    write_bytes(path, b"again", force=True)  # what was left beside it is in nobody's way
    assert path.read_bytes() == b"again"


def test_a_full_disk_is_one_line_and_leaves_nothing():
    code = """
import resource, signal, sys
from pathlib import Path
from espy.errors import OutputError
from espy.output import write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
import tempfile
folder = Path(tempfile.mkdtemp())
try:
    write_bytes(folder / "a.bin", bytes(5000))
except OutputError as error:
    print(str(error).startswith(f"{folder}/a.bin: "), list(folder.iterdir()))
folder.rmdir()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "True []\n", done.stderr
