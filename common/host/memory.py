"""How much freed memory glibc's allocator keeps, and when it gives it back."""

import ctypes


def reuse_memory() -> None:
    """Have this process keep freed memory for its next array, where the C library is glibc; elsewhere do nothing.

    For processes that do the same work round after round: getting 100 MB anew from the system costs more than summing
    them, on a virtual machine many times more.
    """
    if (glibc := _glibc()) is not None:
        glibc.mallopt(_M_MMAP_MAX, 0)
        glibc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def share_memory() -> None:
    """Have the threads of this process share two heaps, where the C library is glibc.

    By default many threads have many heaps, and each keeps the largest blocks that ever passed through it.
    """
    if (glibc := _glibc()) is not None:
        glibc.mallopt(_M_ARENA_MAX, 2)


def trim_memory() -> None:
    """Give freed memory back to the system after all: there is nothing to do for a while."""
    if (glibc := _glibc()) is not None:
        glibc.malloc_trim(0)


_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libc.so.6")
        return library if hasattr(library, "gnu_get_libc_version") else None
    except OSError:
        return None
