"""The process of Flower's SuperLink, with its database used by one thread at a time.

flwr 1.39 answers every request with several SQLite transactions, most of which write (it looks for expired tokens
each time), from as many threads as there are requests. SQLite lets one write; the others sleep in its busy handler,
up to 100 ms at a time, although the lock is free again after one. A lock in front of it wakes the next at once.
"""

import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from flwr.supercore.corestate.sql_corestate import SqlCoreState
from flwr.supercore.sql_mixin import SqlMixin
from flwr.superlink.cli.flower_superlink import flower_superlink
from sqlalchemy.orm import Session

EXPIRED_TOKENS_SECONDS = 0.5

_one_at_a_time = threading.RLock()


def serialise_database() -> None:
    """Let one thread at a time hold a session; a thread that holds one may open it again."""
    original = SqlMixin.session

    @contextmanager
    def session(self: SqlMixin) -> Iterator[Session]:
        with _one_at_a_time, original(self) as opened:
            yield opened

    SqlMixin.session = session  # type: ignore[method-assign]


def look_for_expired_tokens_less_often() -> None:
    """Look for expired task tokens once in a while instead of in every request: they last 30 s and more."""
    original = SqlCoreState._cleanup_expired_task_tokens
    last = -math.inf

    def cleanup(self: SqlCoreState) -> None:
        nonlocal last
        if time.monotonic() - last >= EXPIRED_TOKENS_SECONDS:
            last = time.monotonic()
            original(self)

    SqlCoreState._cleanup_expired_task_tokens = cleanup  # type: ignore[method-assign]


def main() -> None:
    """Entry point of `python -m server.superlink_process`; takes the arguments of `flower-superlink`."""
    serialise_database()
    look_for_expired_tokens_less_often()
    sys.argv[0] = "flower-superlink"
    flower_superlink()


if __name__ == "__main__":
    main()
