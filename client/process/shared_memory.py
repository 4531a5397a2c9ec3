"""Memory that a site's two processes share, for payloads that are too large to be sent from one to the other.

What arrives from the server is written into it piece by piece, and read by the worker where it lies; the reply goes
the same way back. It is given back to the system when there is nothing to do for a while.
"""

import mmap
import os
import tempfile
from contextlib import suppress


class Box:
    """A file without a name, in memory where the system has such files.

    Args:
        descriptor: of a file that another process made; None makes a new file.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = _new_file() if descriptor is None else descriptor

    def write(self, content: bytes | memoryview, start: int = 0) -> None:
        """Write `content` at `start`."""
        view = memoryview(content)
        while len(view):
            done = os.pwrite(self.descriptor, view, start)
            view, start = view[done:], start + done

    def read(self, start: int, size: int) -> bytes:
        """Return at most `size` bytes from `start`."""
        return os.pread(self.descriptor, size, start)

    def view(self, size: int) -> memoryview:
        """Return the first `size` bytes (at least 1) where they lie, read-only; valid until they are written again."""
        return memoryview(mmap.mmap(self.descriptor, size, flags=mmap.MAP_SHARED | _POPULATE, prot=mmap.PROT_READ))

    def clear(self) -> None:
        """Give the memory back; no view may be in use."""
        with suppress(OSError):
            os.ftruncate(self.descriptor, 0)


_POPULATE = getattr(mmap, "MAP_POPULATE", 0)


def _new_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("consilium")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
