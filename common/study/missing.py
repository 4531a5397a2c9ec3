"""Codes for a missing value, such as -9 and 999, by column: in a study for all sites, in a `site.toml` for one."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from consilium.common.study.names import ClassName, ColumnName


def _as_text(value: Any) -> Any:
    """Return a number of a settings file as the text of a cell."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number or text in quotes, got {value!r:.60}")
    return str(value) if isinstance(value, int) or not value.is_integer() else str(int(value))


MissingCodes = Annotated[tuple[Annotated[ClassName, BeforeValidator(_as_text)], ...], Field(min_length=1)]
"""Codes of one column; a number stands for every way to write it, so that -9 is -9.0 too."""

MissingValues = dict[ColumnName, MissingCodes]
"""Codes by column, or by a pattern of columns such as `lab_*`."""


def codes_for(codes: Mapping[str, tuple[str, ...]], column: str) -> tuple[str, ...]:
    """Return all codes of a column, by its name and by patterns that fit it."""
    fitting = (values for key, values in codes.items() if key == column or fnmatchcase(column, key))
    return tuple(dict.fromkeys(value for values in fitting for value in values))


def without_column(codes: Mapping[str, tuple[str, ...]], columns: Iterable[str]) -> list[str]:
    """Return the names and patterns that fit none of these columns."""
    known = list(columns)
    return [key for key in codes if not any(key == name or fnmatchcase(name, key) for name in known)]


def joined_codes(
    one: Mapping[str, tuple[str, ...]], other: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """Return the codes of both, one after the other."""
    return {key: tuple(dict.fromkeys((*one.get(key, ()), *other.get(key, ())))) for key in (*one, *other)}
