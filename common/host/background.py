"""Repeat something in the background."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


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
            except Exception as error:  # an error must neither end the background work nor fill the log
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
