"""Processes that start others, and end with them."""

import asyncio
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence

PARENT_VARIABLE = "CONSILIUM_PARENT_PID"
TOKEN_VARIABLE = "CONSILIUM_GROUP_TOKEN"
"""A group's token, which no process is to hand on."""


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
    """Ask every process to end, wait for all of them together, and kill those that are left."""
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
