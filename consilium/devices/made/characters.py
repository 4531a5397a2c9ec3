"""The next character by speaker: the last eight characters, one-hot, and the one that follows; made up, or of a play.

A made-up speaker mixes a language that all share with habits of their own: from each letter some letters follow more
often than others.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from consilium.common.errors import DataError, clean
from consilium.devices.made.writing import Rows
from consilium.devices.population import Ints

LETTERS, BEFORE = " abcdefghijklmnopqrstuvwxyz", 8
CLASSES = ("space", *LETTERS[1:])
TASK = {"kind": "features", "shape": [BEFORE * len(LETTERS)], "classes": list(CLASSES)}
MODEL = {"name": "mlp", "hidden": [128]}
GROUP = "kind"
_TOGETHER, _DIALECTS = 500, 4
_SPEECH = re.compile(r"^([A-Z][A-Za-z' ]{1,40}):\n((?:.+\n?)+)", re.MULTILINE)
_MOST_BYTES = 2**28


def speakers(users: int, rows: int, seed: int) -> Iterator[Rows]:
    """Yield made-up speakers with so many rows each."""
    generator = np.random.default_rng([seed, 2])
    size = len(LETTERS)
    shared, dialects = (generator.dirichlet(np.full(size, 0.15), size=many) for many in ((size,), (_DIALECTS, size)))
    for begin in range(0, users, _TOGETHER):
        count = min(_TOGETHER, users - begin)
        kind = generator.integers(0, _DIALECTS, count)
        part = generator.uniform(0.2, 0.7, count)
        text = np.empty((count, BEFORE + rows), dtype=np.int64)
        text[:, 0] = generator.integers(0, size, count)
        for place in range(1, text.shape[1]):
            last = text[:, place - 1]
            chances = (1 - part)[:, None] * shared[last] + part[:, None] * dialects[kind, last]
            drawn = generator.random(count)[:, None]
            text[:, place] = np.minimum((np.cumsum(chances, axis=1) < drawn).sum(axis=1), size - 1)
        parts = [_rows_of(own) for own in text]
        groups = [f"dialect {one + 1}" for one in kind.tolist()]
        yield Rows(np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts]), [rows] * count, groups)


def speakers_of(file: Path, most: int) -> list[Rows]:
    """Return the speakers of a play: `NAME:` on a line of its own, and what is said below it.

    Args:
        most: rows of each speaker, the first.

    Raises:
        DataError: it cannot be read, or nobody speaks in it.
    """
    try:
        if file.stat().st_size > _MOST_BYTES:
            size = file.stat().st_size
            raise DataError(f"file '{clean(file.name)}' has {size} bytes, at most {_MOST_BYTES} are read")
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"file '{clean(str(file))}' cannot be read: {clean(str(error))}") from error
    said = dict[str, list[str]]()
    for found in _SPEECH.finditer(text):
        said.setdefault(found[1].strip().title(), []).append(found[2])
    held = list[Rows]()
    for name in sorted(said):
        x, y = _rows_of(_numbers(" ".join(said[name])))
        if len(y) >= 5:
            few = "few" if len(said[name]) < 20 else "many"
            held.append(Rows(x[:most], y[:most], [min(most, len(y))], [f"{few} speeches"]))
    if not held:
        raise DataError(f"file '{clean(file.name)}': nobody speaks, expected lines such as 'Romeo:' and text below")
    return held


def _numbers(text: str) -> Ints:
    plain = re.sub(r"[^a-z]+", " ", text.lower()).strip()
    return np.array([LETTERS.index(letter) for letter in plain], dtype=np.int64)


def _rows_of(text: Ints) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint8]], Ints]:
    """Return the windows of a text, one-hot, and what follows each."""
    if len(text) <= BEFORE:
        return np.zeros((0, BEFORE * len(LETTERS)), np.uint8), np.zeros(0, np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(text[:-1], BEFORE)
    return np.eye(len(LETTERS), dtype=np.uint8)[windows].reshape(len(windows), -1), text[BEFORE:]
