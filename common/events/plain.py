"""Builds a dataclass from JSON, checked against its annotations; for a process that has no room for pydantic."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from datetime import datetime
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from consilium.common.errors import StateError, written

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

D = TypeVar("D", bound="DataclassInstance")


def checked(cls: type[D], content: Mapping[str, Any], *, where: str) -> D:
    """Return a dataclass with the values of a JSON object; keys without a field are ignored.

    Args:
        where: what an error names.

    Raises:
        StateError: a field is missing, or is of another type than its annotation.
    """
    hints = get_type_hints(cls)
    values = {}
    for field in fields(cls):
        if field.name in content:
            try:
                values[field.name] = _value(content[field.name], hints[field.name])
            except (TypeError, ValueError, OverflowError):
                got = written(content[field.name])[:50]
                raise StateError(f"{field.name}: must be {_words(hints[field.name])}, got {got} ({where})") from None
        elif field.default is MISSING:
            raise StateError(f"{field.name}: is required, got nothing ({where})")
    return cls(**values)


def _value(value: Any, hint: Any) -> Any:
    """Return a JSON value in the type of a field.

    Raises:
        TypeError, ValueError, OverflowError: it is of another type, a number is not finite, or a time has no zone.
    """
    inner, origin = get_args(hint), get_origin(hint)
    if origin is UnionType:
        return None if value is None else _value(value, next(each for each in inner if each is not NoneType))
    if origin is tuple and isinstance(value, list):
        return tuple(_value(each, inner[0]) for each in value)
    if origin is dict and isinstance(value, dict):
        return {key: _value(each, inner[1]) for key, each in value.items()}
    if hint is datetime and (time := datetime.fromisoformat(value)).tzinfo is not None:
        return time
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError
        return float(value)
    if hint is Any or (isinstance(hint, type) and isinstance(value, hint) and not isinstance(value, bool)):
        return value
    raise TypeError


def _words(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)
