"""Which of a site's examples are for training, validation and test, where the site says so itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

from consilium.common.data.tables import Wanted, open_table
from consilium.common.errors import DataError

Ints = npt.NDArray[np.int64]

TRAIN, VALIDATION, TEST = 0, 1, 2
WORDS: Mapping[str, int] = MappingProxyType(
    dict.fromkeys(("train", "training"), TRAIN)
    | dict.fromkeys(("val", "valid", "validation", "dev"), VALIDATION)
    | dict.fromkeys(("test", "testing"), TEST)
)
"""Names of the parts, in lower case."""
KNOWN = "train, validation or test"


def part_of(word: str) -> int | None:
    """Return the part that a word names, None if it names none."""
    return WORDS.get(word.strip().casefold())


def index_file(parts: str | None) -> str | None:
    """Return the name of the file that gives each example's part, if `split.parts` names one."""
    return parts if parts is not None and parts.lower().endswith(".csv") else None


def beside(path: Path) -> Path:
    """Return the folder that a site's data lies in."""
    return path if path.is_dir() else path.parent


def parts_in_file(
    file: Path, keys: Sequence[str], used: Sequence[int], *, key: Literal["row", "file"], site: str
) -> Ints:
    """Return the part of each used example, from a CSV file with the columns `key` and `part`.

    Args:
        keys: the key of every example: its number from 0, or its path below the data folder.
        used: places in `keys` of the examples that are used; each of them needs a part.

    Raises:
        DataError: the file cannot be read, has no such columns, names an unknown example, or one twice, has
            a word that is no part, or misses an example.
    """
    who = f"site '{site}'"
    table = open_table(file, Wanted((key, "part")), who=who)
    header = list(table.header)
    if sorted(header) != sorted((key, "part")):
        raise DataError(
            f"{who}: file '{file.name}' (split.parts) has {len(header)} other columns, expected two: '{key}' and 'part'"
        )
    place_of = {name: place for place, name in enumerate(keys)}
    found: dict[int, int] = {}
    for where, fields in table.rows:
        line = f"{who}: file '{file.name}', {where}"
        if len(fields) != 2:
            raise DataError(f"{line}: expected 2 fields as in the header, got {len(fields)}")
        cells = dict(zip(header, (field.strip() for field in fields), strict=True))
        place, part = place_of.get(cells[key]), part_of(cells["part"])
        if place is None:
            raise DataError(f"{line}: {_unknown(key, len(keys))}")
        if place in found:
            raise DataError(f"{line}: {key} '{keys[place]}' is there a second time, expected each once")
        if part is None:
            raise DataError(f"{line}: the part is none of {KNOWN}")
        found[place] = part
    missing = [keys[place] for place in used if place not in found]
    if missing:
        raise DataError(
            f"{who}: file '{file.name}' (split.parts) misses {len(missing)} of {len(used)} examples, first {key} "
            f"'{missing[0]}': give each a part"
        )
    return np.array([found[place] for place in used], dtype=np.int64)


def _unknown(key: str, count: int) -> str:
    if key == "row":
        return f"there is no such row, expected one of 0..{count - 1}, counted from 0 below the header"
    return f"there is no such file, expected one of {count} paths below the data folder"
