"""What runner.cpp is, in Python, for the library as it is installed: arguments are its path and the seconds a program may take.

What the engine reads and writes ends where memory does, so that a step behind it ends the process. Memory is limited.
"""

import ctypes
import mmap
import resource
import signal
import struct
import sys

PAGE, LIMIT = mmap.PAGESIZE, 4 << 30  # bytes
NO_ACCESS, READ_AND_WRITE = 0, mmap.PROT_READ | mmap.PROT_WRITE

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class Fenced:
    """Bytes that end before a page of no memory."""

    def __init__(self, size, content=b""):
        self.size, self._pages = size, -(-size // PAGE) * PAGE
        self._at = libc.mmap(None, self._pages + PAGE, NO_ACCESS, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        assert self._at != ctypes.c_void_p(-1).value
        self.at = self._at + self._pages - size
        if size:
            failed = libc.mprotect(ctypes.c_void_p(self._at), ctypes.c_size_t(self._pages), READ_AND_WRITE)
            assert not failed
            ctypes.memmove(self.at, content, len(content))

    def bytes(self):
        return ctypes.string_at(self.at, self.size)

    def free(self):
        libc.munmap(self._at, self._pages + PAGE)


def main(path, seconds):
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    engine, ask, answer = ctypes.CDLL(path), sys.stdin.buffer, sys.stdout.buffer
    engine.espy_create.restype = ctypes.c_void_p
    engine.espy_last_error.restype = ctypes.c_char_p
    whole = ctypes.c_int64
    while head := ask.read(56):
        units, floats, height, width, threads, masks, room = struct.unpack("7q", head)
        pixels = height * width if 1 <= height <= 65536 and 1 <= width <= 65536 else 0
        sent = [Fenced(size, ask.read(size)) for size in (8 * units, 4 * floats, 3 * pixels)]
        given = [Fenced(size) for size in (pixels * masks, 4 * room)]
        at = [ctypes.c_void_p(one.at) for one in (*sent, *given)]
        mask = at[3] if masks else None

        signal.alarm(seconds)
        opened = engine.espy_create(at[0], whole(units), at[1], whole(floats), ctypes.c_int32(threads))
        failed = not opened or engine.espy_run(
            ctypes.c_void_p(opened), at[2], whole(height), whole(width), mask, at[4], whole(room), None
        )
        why = engine.espy_last_error() if failed else b""
        engine.espy_destroy(ctypes.c_void_p(opened))
        signal.alarm(0)

        answer.write(struct.pack("q", len(why)) + why + b"".join([] if failed else [one.bytes() for one in given]))
        answer.flush()
        for one in (*sent, *given):
            one.free()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
