"""Which rows are one patient's: exact copies of each other, and those that the hospital's own column groups.

Rows of a table may be equal by chance, where columns have few values. With p_j(v) the chance of value v in column j and
N rows, the expected number of other rows equal to row i, if columns do not depend on each other, is

    E_i = (N - 1) prod_j p_j(v_ij)

Equal rows are copies where they are so rare that among all rows at least as rare, at most 0.05 pairs are expected to be
equal (the sum of E_i, halved). A column that is a function of another one (year of birth, age) does not count.
"""

import hashlib
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from consilium.common.data.npz import Array
from consilium.common.data.words import number_in

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int32]
"""Of shape `(N, C)`: the number of the value that each of N rows has in each of C columns."""

MOST_PAIRS_BY_CHANCE = 0.05
_FILE_BY_CHANCE = 1e-6
"""A file of the same rows as another one is its copy where chance makes such a file less often than this."""
_LEAST_REPEATS = 5
"""A column decides another if each of its values comes with one value of the other, and this many rows repeat one."""
_MOST_COLUMNS, _MOST_ROWS = 40, 20_000
"""How many columns, those with the most different values first, tell rows apart, compared on how many rows."""


@dataclass(frozen=True, eq=False)
class Copies:
    """Which rows are copies.

    Args:
        first: int64 `(N,)`: the first row that a row is a copy of, else the row itself.
        num_alike: rows equal to another one that may be so by chance, and count as no copies.
    """

    first: Ints
    num_alike: int = 0

    @property
    def num_copies(self) -> int:
        """Return how many rows are copies of an earlier one."""
        return int((self.first != np.arange(len(self.first))).sum())


def copies_of_rows(codes: Codes, files: Sequence[Ints] = ()) -> Copies:
    """Return which rows of a table are copies, of those that are equal in every column.

    Args:
        codes: `(N, C)`, the whole record of every row.
        files: row numbers of each file; two files of the same rows, in any order, are copies row by row even where
            single rows could be equal by chance.
    """
    same = numbered(codes)
    often = np.bincount(same, minlength=1)[same] > 1 if len(same) else np.zeros(0, dtype=bool)
    if not often.any():
        return Copies(np.arange(len(codes)))
    chance = _log_chance(codes, same)
    rare = _telling(chance)
    keys = np.where(rare, same, -1 - np.arange(len(same)))  # a row that is not rare gets a key of its own
    first = joined(len(same), [_first(keys), _copied_files(same, chance, files)])
    alone = np.bincount(first, minlength=len(first))[first] == 1
    return Copies(first, int((often & alone).sum()))


def copies_of_pictures(x: Array) -> Copies:
    """Return which pictures `(N, ...)` are copies: those with the same pixels."""
    return Copies(first_of_pictures(x))


def telling_rows(codes: Codes) -> npt.NDArray[np.bool_]:
    """Return which rows `(N,)` are so rare that an equal one is a copy."""
    return _telling(_log_chance(codes, numbered(codes)))


def first_of(keys: Sequence[Hashable]) -> Ints:
    """Return for each key the place where it stands first."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(key, place) for place, key in enumerate(keys)], dtype=np.int64)


def first_of_pictures(x: Array) -> Ints:
    """Return for each picture of `(N, ...)` the first one with the same pixels."""
    return first_of([_digest(row) for row in x])


def joined(count: int, links: Sequence[Ints]) -> Ints:
    """Return the first row of each row's group, where every link `(count,)` names a row of the same group."""
    group = np.arange(count)
    while True:
        lowest = group.copy()
        for link in links:
            lowest = np.minimum(lowest, lowest[link])
            np.minimum.at(lowest, link, lowest.copy())
        lowest = lowest[lowest]
        if np.array_equal(lowest, group):
            return group
        group = lowest


def groups_of(copies: Copies | None, patients: Sequence[str] | None, *, count: int) -> Ints | None:
    """Return the number of each row's patient `(count,)`, from 0 in the order in which they come; None if all differ.

    Args:
        copies: rows to keep together as copies.
        patients: the patient of each row, as the hospital's data says.
    """
    links = [np.arange(count), *([copies.first] if copies is not None else [])]
    first = joined(count, links + ([first_of(patients)] if patients is not None else []))
    patient, number = np.unique(first, return_inverse=True)
    return None if len(patient) == count else number.astype(np.int64)


def digest_of(x: Array, y: Array) -> str:
    """Return the SHA-256 of examples and labels in their order, in hexadecimal digits."""
    whole = hashlib.sha256()
    for row in x:
        whole.update(row.tobytes())
    whole.update(y.tobytes())
    return whole.hexdigest()


def coded(x: Array, y: Array) -> Codes:
    """Return which value each row has in each feature of `x` `(N, F)` and as its label, or its labels `(N, L)`."""
    columns = [*x.T, *(y.T if y.ndim > 1 else [y])]
    return np.stack([np.unique(column, return_inverse=True)[1] for column in columns], axis=1).astype(np.int32)


def numbered(codes: Codes) -> Ints:
    """Return a number for each row `(N,)`, equal where rows are."""
    if not codes.size:
        return np.zeros(len(codes), dtype=np.int64)
    whole = np.ascontiguousarray(codes).view(np.dtype((np.void, codes.dtype.itemsize * codes.shape[1]))).ravel()
    return np.unique(whole, return_inverse=True)[1].astype(np.int64)


def _digest(row: Array) -> bytes:
    return hashlib.blake2b(row.tobytes(), digest_size=16).digest()


def _first(keys: Ints) -> Ints:
    """Return for each row the first row with the same key."""
    _, place, number = np.unique(keys, return_index=True, return_inverse=True)
    return place[number].astype(np.int64)


def _log_chance(codes: Codes, same: Ints) -> Floats:
    """Return the logarithm of the chance `(N,)` that a row drawn column by column is the one that is there."""
    different = codes[np.unique(same, return_index=True)[1]]
    chance = np.zeros(len(codes))
    for column in _telling_columns(different):
        chance += _log_share(codes[:, column], different[:, column])
    return chance


def _log_share(column: Codes, different: Codes) -> Floats:
    """Return the logarithm of the share of each cell's value `(N,)`, in all rows or in the different ones if larger.

    A value that only one of the different rows has would be seen 2 N_2 / N_1 times in as many rows more, where N_r is
    how many values r of them have: Good: The Population Frequencies of Species, 1953, equation 2, with 0.5 more in N_2.
    """
    low = int(column.min())
    times = np.bincount(different - low)
    once, twice = int((times == 1).sum()), int((times == 2).sum())
    shares = np.maximum(times / len(different), np.bincount(column - low, minlength=len(times)) / len(column))
    if once:
        shares[times == 1] = min(1.0, (2 * twice + 1) / once) / len(different)
    return np.asarray(np.log(shares[column - low]))


def _telling(log_chance: Floats) -> npt.NDArray[np.bool_]:
    twins = np.exp(log_chance) * max(len(log_chance) - 1, 0)
    values, counts = np.unique(twins, return_counts=True)
    pairs = np.cumsum(values * counts) / 2
    return np.asarray(twins <= values[pairs <= MOST_PAIRS_BY_CHANCE].max(initial=-1.0))


def _telling_columns(rows: Codes) -> list[int]:
    """Return the columns that tell different rows `(N, C)` apart, without those that another one decides."""
    rows = rows[:: max(1, math.ceil(len(rows) / _MOST_ROWS))]
    different = [len(np.unique(column)) for column in rows.T]
    kept: list[int] = []
    for column in np.argsort(different, kind="stable")[::-1][:_MOST_COLUMNS].tolist():
        known = [other for other in kept if len(rows) - different[other] >= _LEAST_REPEATS]
        if not any(_decides(rows[:, other], rows[:, column], different[other]) for other in known):
            kept.append(column)
    return kept


def _decides(one: Codes, other: Codes, different: int) -> bool:
    pairs = one.astype(np.int64) * (int(other.max(initial=0)) + 2) + other + 1
    return len(np.unique(pairs)) == different


def _copied_files(same: Ints, log_chance: Floats, files: Sequence[Ints]) -> Ints:
    """Return for each row that of an earlier file of the same rows which it is a copy of, else itself."""
    first, seen = np.arange(len(same)), dict[bytes, Ints]()
    for rows in files:
        ordered = rows[np.argsort(same[rows], kind="stable")]
        original = seen.setdefault(same[ordered].tobytes(), ordered)
        by_chance = float(log_chance[rows].sum()) + math.lgamma(len(rows) + 1)
        if by_chance <= math.log(_FILE_BY_CHANCE):
            first[ordered] = original
    return first


COUNTERS = frozenset({"", "index", "row", "row_id", "unnamed: 0"})
"""Columns that number the rows of a file, in lower case: they differ between copies too."""


class Values:
    """Numbers the values of every column, so that equal rows have equal numbers in whatever files they stand."""

    def __init__(self, *, without: str | None = None) -> None:
        """Leave out a column, and those that only number the rows."""
        self._without = {without} if without is not None else set()
        self._codes: dict[str, dict[str | float, int]] = {}
        self._columns: list[int] = []

    def start(self, header: Sequence[str]) -> None:
        """Say which column is where in the next file."""
        told = [name for name in header if name not in self._without and name.casefold() not in COUNTERS]
        for name in told:
            self._codes.setdefault(name, {})
        # In the order in which columns were first met: another file may have them in another order.
        self._columns = [header.index(name) if name in told else -1 for name in self._codes]

    def of(self, cells: Sequence[str]) -> list[int]:
        """Return the number of the value in each column, -1 for a column that this file lacks."""
        return [
            codes.get(cells[at]) or self._new(codes, cells[at]) if at >= 0 else -1
            for at, codes in zip(self._columns, self._codes.values(), strict=True)
        ]

    @staticmethod
    def _new(codes: dict[str | float, int], cell: str) -> int:
        number = number_in(cell)  # 63 and 63.0 are the same
        code = codes.setdefault(cell if number is None or math.isnan(number) else number, len(codes) + 1)
        codes[cell] = code
        return code


def codes_of(records: Sequence[Sequence[int]]) -> Codes:
    """Return the numbers from `Values` of all rows as one array; early files may have fewer columns than later ones."""
    width = max((len(record) for record in records), default=0)
    return np.array([[*record, *[-1] * (width - len(record))] for record in records], dtype=np.int32)
