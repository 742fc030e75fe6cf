"""Command lines in forked processes that end where a test wants them to: torch is imported once, not once a run.

Run as a script this is the server: it imports what training needs, does nothing with torch itself, and forks for each order
that it reads. A test sends orders through `Forks`.
"""

import gc
import json
import multiprocessing
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import time

from samples import Outcome


def at(place, count=1, *, do="kill", number=0, after=False):
    """What befalls a process at the `count`-th call of a function, such as `os.fsync`: before it, or `after` it.

    `do`: kill (SIGKILL), cut (take the last bytes off the file that is to be flushed, then SIGKILL), bereave (SIGKILL to a
    child), signal (`number`, to the whole group of processes), full (no file may be longer than `number` bytes from now on),
    wait (`number` seconds).
    """
    return {"place": place, "count": count, "do": do, "number": number, "after": after}


LONGEST = 200  # seconds; what takes longer hangs, and is killed


class Forks:
    """The server, seen from a test."""

    def __init__(self):
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, *arguments, events=(), killed_after=None, whole=False):
        """The outcome of `espy ARGUMENTS`, code −9 where it was killed.

        `killed_after`: seconds after which SIGKILL comes. `whole`: end as Python ends, which takes longer.
        """
        order = {"arguments": [str(a) for a in arguments], "events": list(events), "killed_after": killed_after}
        self.server.stdin.write(json.dumps(order | {"whole": whole}) + "\n")
        self.server.stdin.flush()
        reply = json.loads(self.server.stdout.readline())
        outcome = Outcome(reply["code"], reply["out"], reply["err"])
        outcome.seconds, outcome.group = reply["seconds"], reply["group"]
        return outcome

    def close(self):
        self.server.stdin.close()
        self.server.stdout.close()
        assert self.server.wait(20) == 0


def alive(group):
    """Whether a group still has processes."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# The server's side


def serve():
    import espy.cli
    import espy.learn.loop

    gc.freeze()  # else a collection in a fork copies all memory
    for line in sys.stdin:
        order = json.loads(line)
        (out, says), (err, warns) = os.pipe(), os.pipe()
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            prepare(order["events"], says, warns)
            code = espy.cli.run(order["arguments"])
            sys.stdout.flush()
            sys.exit(code) if order["whole"] else os._exit(code)
        code = outlive(pid, order["killed_after"])
        reply = {"code": code, "seconds": time.monotonic() - began, "group": pid}
        os.close(says), os.close(warns)
        print(json.dumps(reply | {"out": text(out), "err": text(err)}), flush=True)


def prepare(events, says, warns):
    """A process of its own: a group for signals, pipes for what it says, and what will befall it."""
    os.setpgrp()
    for file, number in ((os.open(os.devnull, os.O_RDONLY), 0), (says, 1), (warns, 2)):
        os.dup2(file, number)
    for event in events:
        plant(**event)


def plant(place, count, do, number, after):
    """Put what befalls a process into a function."""
    home, _, name = place.rpartition(".")
    home = pkgutil.resolve_name(home)
    function, calls = getattr(home, name), 0

    def planted(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if calls == count and not after:
            befall(do, number, arguments)
        result = function(*arguments, **keywords)
        if calls == count and after:
            befall(do, number, arguments)
        return result

    setattr(home, name, planted)


def befall(do, number, arguments):
    if do == "cut":
        size = os.fstat(arguments[0]).st_size
        os.ftruncate(arguments[0], max(size - 20, size // 2))
    if do in ("kill", "cut"):
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "bereave":
        multiprocessing.active_children()[0].kill()
    if do == "signal":
        os.killpg(0, number)
    if do == "wait":
        time.sleep(number)
    if do == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (number, resource.RLIM_INFINITY))


def outlive(pid, killed_after):
    """The exit code of a process, −n where signal n ended it."""
    deadline = time.monotonic() + (LONGEST if killed_after is None else killed_after)
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def text(pipe):
    """What lies in a pipe, whoever may still hold its other end."""
    os.set_blocking(pipe, False)
    found = b""
    while True:
        try:
            more = os.read(pipe, 1 << 16)
        except BlockingIOError:
            more = b""
        if not more:
            os.close(pipe)
            return found.decode()
        found += more


if __name__ == "__main__":
    serve()
