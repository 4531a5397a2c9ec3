"""Made-up smart homes: an hour's sensors, and whether somebody will be at home in the next one.

Every home has hours at which people leave and come back, a heating that warms it more or less, and sensors of its own
noise; at weekends people stay.
"""

from collections.abc import Iterator

import numpy as np

from consilium.devices.made.writing import Rows

CLASSES = ("away", "home")
COLUMNS = ("hour_sin", "hour_cos", "weekend", "motion", "power", "door", "temperature", "outside")
_SCALE = {
    "motion": {"mean": 4.0, "std": 4.0},
    "power": {"mean": 0.5, "std": 0.4},
    "temperature": {"mean": 19.0, "std": 2.0},
    "outside": {"mean": 10.0, "std": 6.0},
}
TASK = {
    "kind": "table",
    "label": "next_hour",
    "classes": list(CLASSES),
    "columns": {name: {"kind": "number"} for name in COLUMNS},
    "scale": {name: _SCALE.get(name, {"mean": 0.0, "std": 1.0}) for name in COLUMNS},
}
MODEL = {"name": "mlp", "hidden": [32]}
GROUP = "climate"
_TOGETHER = 2000


def homes(users: int, rows: int, seed: int) -> Iterator[Rows]:
    """Yield homes with so many hours each, in the order of time."""
    generator = np.random.default_rng([seed, 3])
    for begin in range(0, users, _TOGETHER):
        count = min(_TOGETHER, users - begin)
        leave, back = generator.normal(8, 1.5, (count, 1)), generator.normal(17, 2.5, (count, 1))
        cold = generator.random((count, 1)) < 0.5
        hours = generator.integers(0, 24 * 7, (count, 1)) + np.arange(rows + 1)
        hour, weekend = hours % 24, hours // 24 % 7 >= 5
        out = (hour >= leave) & (hour < back) & ~weekend
        home = out == (generator.random(out.shape) < generator.uniform(0.02, 0.2, (count, 1)))
        now = home[:, :-1]
        motion = generator.poisson(np.where(now, generator.uniform(3, 12, (count, 1)), 0.3))
        power = np.where(now, generator.uniform(0.3, 1.2, (count, 1)), 0.15) * generator.lognormal(0, 0.3, now.shape)
        door = home[:, 1:] != now
        day = np.sin((hour[:, :-1] - 9) / 24 * 2 * np.pi)
        outside = np.where(cold, 5, 15) + 5 * day + generator.normal(0, 1, now.shape)
        inside = np.where(now, 20, 17.5) + generator.normal(0, 1, (count, 1)) + generator.normal(0, 0.4, now.shape)
        turn = hour[:, :-1] / 24 * 2 * np.pi
        seen = door & (generator.random(now.shape) < 0.3)
        features = (np.sin(turn), np.cos(turn), weekend[:, :-1], motion, power, seen, inside, outside)
        x = np.stack(features, axis=2).astype(np.float32).reshape(-1, len(COLUMNS))
        groups = ["cold" if one else "mild" for one in cold[:, 0].tolist()]
        yield Rows(x, home[:, 1:].astype(np.int64).reshape(-1), [rows] * count, groups)
