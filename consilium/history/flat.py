"""Settings in tables in tables as one list of names with points: `training.learning_rate`."""

from collections.abc import Iterator, Mapping
from typing import Any

from consilium.common.errors import clean

MOST_TEXT = 200
"""Characters of a setting."""

Setting = str | int | float | bool


def flattened(values: Any, prefix: str = "") -> Iterator[tuple[str, Setting]]:
    """Yield the settings in tables in tables; a list of plain values is one text."""
    match values:
        case Mapping():
            for key, value in values.items():
                yield from flattened(value, f"{prefix}.{key}" if prefix else str(key))
        case [*items] if any(isinstance(item, Mapping) for item in items):
            for number, item in enumerate(items, start=1):
                yield from flattened(item, f"{prefix}.{number}")
        case [*items]:
            yield clean(prefix, MOST_TEXT), clean(", ".join(map(str, items)), MOST_TEXT)
        case bool() | int() | float():
            yield clean(prefix, MOST_TEXT), values
        case _:
            yield clean(prefix, MOST_TEXT), clean(str(values), MOST_TEXT)
