"""Rows that cannot be used, gathered over all files of a site and said in one sentence: by kind, with counts."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from consilium.common.errors import DataError, clean

_log = logging.getLogger(__name__)

MOST_KINDS, MOST_PLACES = 10, 3
"""How many kinds of faults are said, and how many places of each."""


@dataclass
class _Kind:
    count: int = 0
    places: list[tuple[str, str]] = field(default_factory=list)


class Faults:
    """Why rows cannot be used: places and what was expected, never a value.

    Args:
        max_skipped: so many rows may be left out.
    """

    def __init__(self, *, site: str, max_skipped: int) -> None:
        self.num_rows = 0
        self._site, self._most = site, max_skipped
        self._kinds: dict[str, _Kind] = {}
        self._files: dict[str, None] = {}
        self._headers: list[str] = []

    def add(self, file: str, place: str, reasons: Sequence[str]) -> None:
        """Note that a row of a file cannot be used."""
        self.num_rows += 1
        self._files.setdefault(clean(file))
        for reason in reasons:
            kind = self._kinds.setdefault(reason, _Kind())
            kind.count += 1
            if len(kind.places) < MOST_PLACES:
                kind.places.append((clean(file), place))
        if self.num_rows <= self._most:
            reason = "; ".join(reasons)
            _log.warning("bad example skipped site=%s reason=file '%s', %s, %s", self._site, clean(file), place, reason)

    def add_header(self, sentence: str) -> None:
        """Note that a file cannot be used at all."""
        self._headers.append(sentence)

    def check(self) -> None:
        """Refuse the data where a file cannot be used, or more rows than may be left out.

        Raises:
            DataError: with all faults.
        """
        if self._headers:
            raise DataError(f"site '{self._site}': {'; '.join(self._headers[:MOST_KINDS])}")
        if self.num_rows > self._most:
            raise DataError(f"site '{self._site}': {self._sentence()}")

    def _sentence(self) -> str:
        most = f" ({self.num_rows} bad rows, at most {self._most} allowed by data.max_skipped)" if self._most else ""
        if self.num_rows == 1:
            [(file, place)] = next(iter(self._kinds.values())).places
            reasons = "; ".join(self._kinds)
            return f"file '{file}', {place}{': ' if reasons.startswith('expected') else ', '}{reasons}{most}"
        alone = len(self._files) == 1
        kinds = sorted(self._kinds.items(), key=lambda item: -item[1].count)
        said = [f"{reason} ({_places(kind, alone=alone)})" for reason, kind in kinds[:MOST_KINDS]]
        if more := len(kinds) - MOST_KINDS:
            said += [f"and {more} more kind{'s' * (more > 1)}"] if more > 0 else []
        where = f"file '{next(iter(self._files))}': " if alone else ""
        return f"{where}{self.num_rows} rows cannot be used: {'; '.join(said)}{most}"


def _places(kind: _Kind, *, alone: bool) -> str:
    places = [place if alone else f"file '{file}', {place}" for file, place in kind.places]
    first = "first " if kind.count > len(places) else ""
    word = f"{kind.count} row{'s' * (kind.count > 1)}: "
    return word + first + (" and ".join([", ".join(places[:-1]), places[-1]]) if len(places) > 1 else places[0])
