"""Readings of sites' files kept in memory, for a process that builds the same sites again and again."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from consilium.client.data.base import RawData

MOST_BYTES = 500_000_000
"""Most memory for readings in one process; readings that do not fit are made anew."""
Files = tuple[tuple[str, int, int], ...]
_Kept = dict[str, tuple[Files, RawData]]

_kept: ContextVar[_Kept | None] = ContextVar("kept", default=None)
"""Readings by key, with the state of the files when they were read; None outside `keep_readings`."""


@contextmanager
def keep_readings() -> Iterator[None]:
    """Keep readings in memory within the block: a comparison reads each site's files once, not once per study.

    A deployed site reads its files only once, so that keeping them would hold everything twice.
    """
    token = _kept.set({}) if _kept.get() is None else None
    try:
        yield
    finally:
        if token is not None:
            _kept.reset(token)


def read_once(key: str, paths: Sequence[Path], read: Callable[[], RawData]) -> RawData:
    """Return a reading, from memory where it was made before and no file has changed, come or gone since.

    Law: a reading from memory equals what `read()` would return, so its arrays must not be written to.

    Args:
        key: everything that a reading depends on apart from the files.
        paths: files, and folders with all below them.
    """
    if (kept := _kept.get()) is None:
        return read()
    files = tuple(facts for path in paths for facts in _facts_of(path))
    if key in kept and kept[key][0] == files:
        return kept[key][1]
    kept.pop(key, None)
    raw = read()
    if sum(_num_bytes(other) for _, other in kept.values()) + _num_bytes(raw) <= MOST_BYTES:
        kept[key] = files, raw
    return raw


def _num_bytes(raw: RawData) -> int:
    return int(raw.x.nbytes + raw.y.nbytes)


def _facts_of(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, size and time of each file; nothing for a missing one, which the reader reports in a sentence."""
    try:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            found = file.stat()
            yield str(file), found.st_size, found.st_mtime_ns
    except OSError:
        return
