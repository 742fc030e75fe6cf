"""The engine's threads: as many as asked for, the same bytes with any number, gone with it; forks, ends of processes, memory."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from espy.errors import EngineError
from espy.run.engines import load_engine
from programs import Opened, everything, of_file, run
from samples import noise, scene

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS = Path("/proc/self/task")
linux = pytest.mark.skipif(not TASKS.is_dir(), reason=f"no {TASKS}, where Linux shows a process's threads")
forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def tasks():
    return {path.name for path in TASKS.iterdir()}


def left(before, seconds=5):
    """Threads that are there and were not before; those that end are given time."""
    end = time.monotonic() + seconds
    while (more := tasks() - before) and time.monotonic() < end:
        time.sleep(0.01)
    return more


@pytest.mark.parametrize("model", ["tiny_v2", "tiny_espnet"])
def test_a_network_gives_the_same_bytes_with_any_number_of_threads(engine, model, request):
    program = of_file(request.getfixturevalue(model))
    for picture in (scene(16, 16), scene(61, 83), scene(130, 40)):
        one = run(engine, program, picture)
        for threads in (2, 3, 5):
            other = run(engine, program, picture, threads)
            assert [part.tobytes() for part in one] == [part.tobytes() for part in other]


@linux
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_as_many_threads_are_started_as_were_asked_for_and_end_with_the_engine(engine, threads):
    before = tasks()
    with Opened(engine, everything(0), threads) as opened:
        for _ in range(3):
            opened.run(noise(20, 20))
            assert len(tasks() - before) == threads - 1  # the caller's is one
    assert not left(before)


@linux
def test_no_more_threads_are_started_than_there_are_cores_for_them(engine, tiny_espnet, monkeypatch):
    native = load_engine("native")
    monkeypatch.setattr(sys.modules[native.__module__], "available_threads", lambda: 2)
    for asked in (None, 1, 2, 64):
        before = tasks()
        opened = native(tiny_espnet, threads=asked, precision="float32")
        opened.run(noise(32, 48)[None])
        assert len(tasks() - before) == (0 if asked == 1 else 1)
        opened.close()
        assert not left(before)


def test_threads_that_wait_for_a_picture_do_not_spin(engine):
    with Opened(engine, everything(0), 5) as opened:
        opened.run(noise(20, 20))
        time.sleep(0.01)
        before = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - before < 0.03


def test_two_engines_in_two_threads_give_their_own_answers(engine):
    programs = [everything(0), everything(1, ended="SEGMENT2")]
    pictures = [noise(33, 47), noise(64, 40)]
    alone = [run(engine, program, picture) for program, picture in zip(programs, pictures, strict=True)]

    def often(which):
        with Opened(engine, programs[which], threads=2) as opened:
            return [opened.run(pictures[which]) for _ in range(20)]

    with ThreadPoolExecutor(2) as pool:
        for found, wanted in zip(pool.map(often, (0, 1)), alone, strict=True):
            for mask, scores in found:
                assert np.array_equal(mask, wanted[0])
                assert scores.tobytes() == wanted[1].tobytes()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("flushed", [False, True])
def test_the_caller_s_subnormal_numbers_are_as_before(engine, threads, flushed):
    small = np.full(1, 1e-38, np.float32)
    try:
        if not torch.set_flush_denormal(flushed):
            pytest.skip("this processor does not flush subnormal numbers")
        assert (small * np.float32(0.01) == 0) == flushed
        run(engine, everything(0), noise(20, 20), threads)
        assert (small * np.float32(0.01) == 0) == flushed
        with pytest.raises(EngineError, match="sides must be"):
            run(engine, everything(0), np.empty((0, 4, 3), np.uint8), threads)
        assert (small * np.float32(0.01) == 0) == flushed
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.native
def test_thread_sanitizer_finds_nothing(checked, monkeypatch):
    monkeypatch.setenv("TSAN_OPTIONS", "halt_on_error=1")
    with checked("thread", ESPY_TARGETS="") as runner:  # plain C++, whose every load and store it sees
        for k in range(200):
            runner.run(
                everything(k, ended=["SEGMENT", "SEGMENT2", "SCORES"][k % 3]),
                noise(1 + k % 70, 1 + k * 7 % 150),
                2 + k % 6,
            )


# What needs a process of its own

OPENED = """
import ctypes, os, random, resource, signal, sys, threading, time, warnings
from pathlib import Path
import numpy as np
from espy.run.engines import load_engine

sys.setswitchinterval(1e-4)
native, path = load_engine("native"), Path(sys.argv[1])
sys.modules[native.__module__].available_threads = lambda: 64

def opened(threads):
    return native(path, threads=threads, precision="float32")

def picture(height, width):
    return np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20  # MiB
"""


def alone(code, path):
    """Runs code in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", OPENED + code, str(path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


FORKED_IN_A_RUN = """
warnings.simplefilter("ignore")  # Python warns of forking beside threads
random.seed(0)
for threads in (1, 3):
    engine, image, small = opened(threads), picture(200, 200), picture(32, 48)
    wanted, ending = engine.run(small)["mask"], False
    def busy():
        while not ending:
            engine.run(image)
    thread = threading.Thread(target=busy)
    thread.start()
    for k in range(20):
        time.sleep(random.random() / 100)
        if (child := os.fork()) == 0:
            signal.alarm(20)  # ends a child that hangs
            right = k % 2 == 1 or np.array_equal(engine.run(small)["mask"], wanted)
            engine.close()
            os._exit(0 if right else 1)
        assert os.waitpid(child, 0)[1] == 0, (threads, k)
    ending = True
    thread.join()
    assert np.array_equal(engine.run(small)["mask"], wanted)
    engine.close()
"""


@forking
def test_a_child_that_is_forked_while_another_thread_runs_has_the_engine_and_may_close_it(engine, tiny_espnet):
    alone(FORKED_IN_A_RUN, tiny_espnet)


ENDING_IN_A_RUN = """
engine, image, started = opened(2), picture(400, 400), threading.Event()
def busy():
    while True:
        started.set()
        engine.run(image)
threading.Thread(target=busy, daemon=True).start()
started.wait()
time.sleep(0.02)
"""


def test_a_process_may_end_while_a_daemon_thread_runs(engine, tiny_espnet):
    for _ in range(3):
        alone(ENDING_IN_A_RUN, tiny_espnet)


MEMORY = """
image, large = picture(128, 128), picture(768, 768)

def whole(image):
    engine = opened(2)
    engine.run(image)
    engine.close()

for _ in range(50):  # until the allocator has what it keeps
    whole(image)
start = resident()
for _ in range(100):
    whole(image)
print(resident() - start)

engine = opened(2)
engine.run(image)
start = resident()
for _ in range(50):
    engine.run(image)
print(resident() - start)

small = resident()
engine.run(large)
print(resident() - small)
engine.run(image)
print(resident() - small)
engine.close()
"""


@linux
def test_memory_goes_with_the_engine_or_the_size_it_was_for_and_does_not_grow_with_runs(engine, tiny_espnet):
    opened, runs, large, small = map(float, alone(MEMORY, tiny_espnet).split())  # MiB
    assert opened < 3
    assert runs < 1
    assert large > 8  # or the next says nothing
    assert small < 3


NO_THREADS = """
from espy.errors import EngineError
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
engine = opened(64)
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20), resource.RLIM_INFINITY))  # of 8 MiB that a thread takes
for _ in range(3):
    try:
        engine.run(picture(32, 48))
    except EngineError as error:
        print(error)
engine.close()
with_fewer = opened(2)
print(with_fewer.run(picture(32, 48))["mask"].shape)
"""


@linux
def test_threads_that_the_system_does_not_give_are_one_line_and_none_of_them_stay(engine, tiny_espnet):
    *said, shape = alone(NO_THREADS, tiny_espnet).splitlines()
    assert len(said) == 3
    assert all(line.startswith("engine native failed: ") for line in said)
    assert shape == "(1, 32, 48)"
