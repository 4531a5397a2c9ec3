"""The log of a long-lived process, which nobody at the other end of a wire can fill."""

import logging
import time
from collections.abc import Callable

MOST_LINES, PER_SECONDS = 300, 60.0
"""How many lines of one kind are written in how many seconds; the next line counts those left out."""
FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def start_log() -> None:
    """Log to the standard error stream, in bounded amounts."""
    logging.basicConfig(level=logging.INFO, format=FORMAT)
    logging.getLogger("numexpr").setLevel(logging.WARNING)  # it tells how many threads it has, to whoever reads a table
    for handler in logging.getLogger().handlers:
        handler.addFilter(bounded())


def bounded(*, most: int = MOST_LINES, seconds: float = PER_SECONDS) -> Callable[[logging.LogRecord], bool]:
    """Return a filter of log records that passes `most` per `seconds` from each place in the code."""
    passed: dict[tuple[str, int], tuple[float, int]] = {}

    def passes(record: logging.LogRecord) -> bool:
        kind, now = (record.pathname, record.lineno), time.monotonic()
        since, count = passed.get(kind, (now, 0))
        if now - since > seconds:
            if count > most:
                record.msg, record.args = f"{record.getMessage()} ({count - most} lines like this left out)", ()
            since, count = now, 0
        passed[kind] = since, count + 1
        return count < most

    return passes
