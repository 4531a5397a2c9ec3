"""Made-up handwriting: pictures of 28 x 28 of the ten digits, each user with a hand and favourite digits of their own.

A digit is a line through a few points; a hand leans, turns, stretches and presses in its own way, and no two digits of
one hand are the same. The nearer a pixel is to the line, the darker it is.
"""

from collections.abc import Iterator

import numpy as np

from consilium.devices.made.writing import Rows
from consilium.devices.population import Floats

SIZE, CLASSES = 28, tuple(str(digit) for digit in range(10))
TASK = {"kind": "images", "size": SIZE, "channels": 1, "classes": list(CLASSES)}
MODEL = {"name": "mlp", "hidden": [84]}
GROUP = "hand"
_TOGETHER, _SEGMENTS = 64, 16
_POINTS = (
    "50 10 30 25 25 50 32 78 50 90 70 78 76 50 70 25 50 10",
    "35 30 55 10 55 90",
    "25 30 35 12 60 10 75 28 60 50 25 90 78 90",
    "25 15 60 10 72 28 45 47 75 65 60 90 25 85",
    "62 90 62 10 22 62 80 62",
    "72 10 32 10 28 45 60 42 76 65 58 90 25 85",
    "68 12 40 30 27 62 40 90 65 88 74 68 58 52 30 62",
    "22 12 78 12 45 90",
    "50 48 28 30 50 10 72 30 50 48 25 70 50 90 76 70 50 48",
    "72 32 50 48 30 35 40 12 65 12 72 32 60 90",
)
"""Per digit the points of its line, in percent from the left and from the top."""


def handwriting(users: int, rows: int, seed: int) -> Iterator[Rows]:
    """Yield users with so many pictures each."""
    generator = np.random.default_rng([seed, 1])
    lines = np.stack([_line(text) for text in _POINTS]) - 0.5
    for begin in range(0, users, _TOGETHER):
        count = min(_TOGETHER, users - begin)
        likes = generator.dirichlet(np.full(10, 1.5), size=count)
        y = np.concatenate([generator.choice(10, size=rows, p=own) for own in likes])
        lean = generator.normal(0, 0.25, count)
        hand = np.stack([lean, *generator.normal(0, [[0.12], [0.1], [0.1]], (3, count))], axis=1)
        own = np.repeat(hand, rows, axis=0) + generator.normal(0, 0.05, (count * rows, 4))
        thick = np.repeat(generator.uniform(0.035, 0.07, count), rows)
        drawn = _placed(lines[y], own) + generator.normal(0, 0.02, (count * rows, 1, 2))
        yield Rows(_pixels(drawn, thick), y, [rows] * count, ["left" if one < 0 else "right" for one in lean])


def _line(text: str) -> Floats:
    """Return a digit's line as points at equal distances `(points, 2)`."""
    points = np.array(text.split(), dtype=np.float64).reshape(-1, 2) / 100
    lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    at = np.linspace(0, lengths[-1], _SEGMENTS + 1)
    return np.stack([np.interp(at, lengths, points[:, axis]) for axis in (0, 1)], axis=1)


def _placed(lines: Floats, hand: Floats) -> Floats:
    """Return lines as hands draw them: leaning, turned and stretched."""
    lean, turn, wide, high = hand.T[..., None]
    x = lines[..., 0] * np.exp(wide) - lean * lines[..., 1]
    y = lines[..., 1] * np.exp(high)
    return np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=2) * 0.8 + 0.5


def _pixels(lines: Floats, thick: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return pictures `(N, 28, 28)` of lines."""
    place = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE
    grid = np.stack(np.meshgrid(place, place), axis=2).reshape(-1, 2)
    ink = np.empty((len(lines), len(grid)), dtype=np.float32)
    start, way = lines[:, :-1].astype(np.float32), np.diff(lines, axis=1).astype(np.float32)
    for number, (a, d) in enumerate(zip(start, way, strict=True)):
        to = grid[:, None] - a
        along = np.clip((to * d).sum(axis=2) / np.maximum((d * d).sum(axis=1), 1e-9), 0, 1)
        ink[number] = np.square(to - along[..., None] * d).sum(axis=2).min(axis=1)
    dark = np.exp(-ink / np.square(thick.astype(np.float32))[:, None])
    return np.asarray(np.rint(255 * dark), dtype=np.uint8).reshape(-1, SIZE, SIZE)
