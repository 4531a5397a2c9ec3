"""Ranges of one setting, `"<= 50"`, `"0.001..0.1"`, `["fedper", "ditto"]` or `"any"`, and what lies in them."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from consilium.common.errors import clean, written
from consilium.common.study.names import clean_text

Value = bool | int | float | str
Words = str | tuple[Value, ...]
"""A range as a settings file has it."""

_JSON_RANGE = {
    "anyOf": [
        {"type": "string", "description": "<= 50, 1..50, or for the seed any"},
        {"type": "array", "items": {"type": ["boolean", "number", "string"]}, "minItems": 1},
        {"type": "object", "description": "settings of a table, each with its range"},
    ]
}
JSON_RANGES = {"type": "object", "additionalProperties": _JSON_RANGE}
"""The JSON Schema of a table of ranges, by paths or in tables of tables."""

MOST_RANGES = 50
"""Most settings with a range in one file."""
MOST_VALUES = 50
"""Most values in a list."""
MOST_CHARACTERS = 100
"""Longest text of a range, of one of its values, and of a setting's path."""
LARGEST_WHOLE = 2**53
"""No bound is a larger whole number: JSON keeps none exactly."""
_DEEPEST = 4

_NUMBER = r"[+-]?[0-9]{1,20}(?:\.[0-9]{1,20})?(?:[eE][+-]?[0-9]{1,3})?"
_AT_MOST = re.compile(rf"<= *({_NUMBER})")
_FROM_TO = re.compile(rf"({_NUMBER}) *\.\. *({_NUMBER})")

ANY = "any"
FORMS = '"<= 50", "1..50", a list such as [16, 32], or for the seed "any"'
"""The words that are a range, for sentences."""


@dataclass(frozen=True)
class Between:
    """Numbers from `low` to `high`, both included; without `low` from the least that the setting takes."""

    low: float | None
    high: float

    def holds(self, value: object) -> bool:
        """Return whether a setting's value lies in the range."""
        return isinstance(value, int | float) and (self.low is None or self.low <= value) and value <= self.high

    def __str__(self) -> str:
        """Return the range in words."""
        return f"up to {self.high:.15g}" if self.low is None else f"from {self.low:.15g} to {self.high:.15g}"


@dataclass(frozen=True)
class OneOf:
    """One of a few values."""

    values: tuple[Value, ...]

    def holds(self, value: object) -> bool:
        """Return whether a setting's value is one of them."""
        return value in self.values

    def __str__(self) -> str:
        """Return the values in words."""
        *first, last = (str(each).lower() if isinstance(each, bool) else str(each) for each in self.values)
        return f"{', '.join(first)} or {last}" if first else last


@dataclass(frozen=True)
class Anything:
    """Every value that the setting takes."""

    def holds(self, value: object) -> bool:
        """Return true."""
        return value is not None

    def __str__(self) -> str:
        """Return the word."""
        return "any value"


Extent = Between | OneOf | Anything


def extent_of(words: Words, check: Callable[[Value], None]) -> Extent:
    """Return what a range's words mean for one setting.

    Args:
        check: raises ValueError for a value that the setting does not take.

    Raises:
        ValueError: the words are no range, or the range holds a value that the setting does not take.
    """
    if isinstance(words, tuple):
        for value in words:
            check(value)
        return OneOf(words)
    if words == ANY:
        return Anything()
    if (found := _AT_MOST.fullmatch(words)) is not None:
        high = _number(found[1])
        check(high)
        return Between(None, high)
    if (found := _FROM_TO.fullmatch(words)) is None:
        raise ValueError(f"must be {FORMS}, got {written(words)}")
    low, high = _number(found[1]), _number(found[2])
    for bound in (low, high):
        check(bound)
    if low > high:
        raise ValueError(f"the first number of a range must be the smaller one, got {written(words)}")
    return Between(low, high)


def _number(text: str) -> int | float:
    """Return a number as written: whole where it has neither point nor exponent.

    Raises:
        ValueError: it is too large.
    """
    if re.fullmatch(r"[+-]?[0-9]+", text) is None:
        number = float(text)
        if abs(number) > 1e300:
            raise ValueError(f"a bound must be a finite number of ordinary size, got {text}")
        return number
    if abs(whole := int(text)) > LARGEST_WHOLE:
        raise ValueError(f"a bound must be at most {LARGEST_WHOLE}, got {text}")
    return whole


# --- as a file has them ---------------------------------------------------------------------------


def flat(table: Any) -> Any:
    """Return a table of ranges by the settings' paths; `training.epochs = ...` nests in TOML, quotes keep it flat.

    What is no table is returned as it is.

    Raises:
        ValueError: an entry is no range in form, a setting is there twice, or there are too many.
    """
    if not isinstance(table, Mapping):
        return table
    found: dict[str, Words] = {}
    _collect(table, "", 1, found)
    return found


RangeTable = Annotated[dict[str, Words], BeforeValidator(flat), WithJsonSchema(JSON_RANGES)]
"""The field of a record that holds ranges."""


def _collect(table: Mapping[Any, Any], prefix: str, depth: int, found: dict[str, Words]) -> None:
    for key, entry in table.items():
        path = clean(f"{prefix}{key}", MOST_CHARACTERS)
        if isinstance(entry, Mapping):
            if depth == _DEEPEST:
                raise ValueError(f"no setting lies as deep as '{path}'")
            _collect(entry, f"{path}.", depth + 1, found)
            continue
        if path in found:
            raise ValueError(f"'{path}' is there twice: as a table's key, and with its path in quotes")
        if len(found) == MOST_RANGES:
            raise ValueError(f"must name at most {MOST_RANGES} settings")
        try:
            found[path] = _words(entry)
        except ValueError as error:
            raise ValueError(f"'{path}': {error}") from None


def _words(entry: Any) -> Words:
    if isinstance(entry, str):
        if len(entry) > MOST_CHARACTERS:
            raise ValueError(f"must be {FORMS}, got text of {len(entry)} characters")
        return clean_text(entry)
    if not isinstance(entry, list | tuple):
        raise ValueError(f"must be {FORMS}, got {clean(written(entry), 60)}; a single value is a list of one")
    if not 1 <= len(entry) <= MOST_VALUES:
        raise ValueError(f"a list must have 1 to {MOST_VALUES} values, got {len(entry)}")
    for value in entry:
        if not isinstance(value, bool | int | float | str):
            raise ValueError(f"a list must hold numbers, words, or true and false, got {clean(written(value), 60)}")
        if isinstance(value, str) and (len(value) > MOST_CHARACTERS or not value.isprintable()):
            raise ValueError(f"a word has at most {MOST_CHARACTERS} printable characters, got {clean(value, 60)}")
        if isinstance(value, float) and not abs(value) <= 1e300:
            raise ValueError(f"a number must be finite and of ordinary size, got {value}")
        if type(value) is int and abs(value) > LARGEST_WHOLE:
            raise ValueError(f"a whole number must be at most {LARGEST_WHOLE}")
    if len({(type(value), value) for value in entry}) != len(entry):
        raise ValueError(f"the values of a list must differ, got {clean(written(list(entry)), 60)}")
    return tuple(entry)
