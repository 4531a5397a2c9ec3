"""Helpers for long-lived programs and those that start others: free ports, parents that die, repeated work."""

import asyncio
import ctypes
import logging
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from common.errors import ConfigError, PortInUse

log = logging.getLogger(__name__)

PARENT_VARIABLE = "CONSILIUM_PARENT_PID"


def free_port() -> int:
    """Return a TCP port on the loopback interface that nothing listens on just now.

    It is below those that systems give to outgoing connections, one of which could take it before it is used.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def check_port_free(host: str, port: int, *, what: str) -> None:
    """Check that nothing listens on `host:port`.

    Raises:
        ConfigError: there is no such port.
        PortInUse: names the port and what it was for.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OverflowError as error:
            raise ConfigError(f"{what}: a port is a number from 1 to 65535, got {port}") from error
        except OSError as error:
            raise PortInUse(
                f"{what}: port {port} on {host} cannot be used ({error.strerror}); choose another, or stop what uses it"
            ) from error


def follow_parent() -> None:
    """End this process (SIGTERM to itself) when the process named in CONSILIUM_PARENT_PID is gone.

    Without the variable nothing happens. This is how a demo that is killed outright leaves nothing behind.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    if not parent:
        return
    if os.getppid() != int(parent):  # it died before this line was reached
        os._exit(1)
    _when_orphaned(lambda: os.kill(os.getpid(), signal.SIGTERM))


def end_with_parent() -> None:
    """End this process at once when the one that started it is gone."""
    _when_orphaned(lambda: os._exit(1))


def _when_orphaned(action: Callable[[], None]) -> None:
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        action()

    threading.Thread(target=watch, name="follow-parent", daemon=True).start()


def stop_processes(children: Sequence["subprocess.Popen[bytes]"], *, patience_seconds: float = 12) -> None:
    """Ask every process to end, wait for all of them together, and kill what is left."""
    for child in children:
        if child.poll() is None:
            child.terminate()
    deadline = time.monotonic() + patience_seconds
    for child in children:
        try:
            child.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


async def exit_code(process: "subprocess.Popen[bytes]", *, patience_seconds: float = 5.0) -> int:
    """Wait for a process that is about to end, and kill it if it does not; negative: the signal that killed it."""
    deadline = time.monotonic() + patience_seconds
    while (code := process.poll()) is None:
        if time.monotonic() > deadline:
            process.kill()
        await asyncio.sleep(0.005)
    return code


@contextmanager
def repeating(work: Callable[[], None], *, seconds: float, name: str) -> Iterator[None]:
    """Call `work` in a thread, again `seconds` after it has returned, until the block ends.

    An error does not end it; it is logged, but not again while it stays the same.
    """
    stopped = threading.Event()

    def repeat() -> None:
        last = ""
        while not stopped.is_set():
            try:
                work()
                last = ""
            except Exception as error:  # what runs beside the main work must neither end nor fill the log
                if (seen := f"{type(error).__name__}: {error}") != last:
                    log.error("background work failed name=%s error=%s", name, seen)
                last = seen
            stopped.wait(seconds)

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(timeout=2)


def reuse_memory() -> None:
    """Have this process keep freed memory for its next array, where the C library is glibc; elsewhere do nothing.

    For processes that do the same work round after round: to get 100 MB anew from the system costs more than to add
    them up, on a virtual machine many times more.
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
