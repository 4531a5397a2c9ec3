"""Users' rows from one `.npz` or Parquet file, written once as the arrays that a simulation maps into memory."""

import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from consilium.common.data.npz import array_names
from consilium.common.errors import DataError, clean
from consilium.common.host.disk import check_room
from consilium.common.host.files import not_written, write_atomically
from consilium.common.study.record import Record
from consilium.common.study.scale import Scale
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import CategoryColumn, TableTask
from consilium.devices.population import OFFSETS, Array, Ints, Population, X, Y, checked, mapped
from consilium.devices.scale import scale_of_table

USER = "user"
"""The array, or the column, that names each row's user."""
_NOTE = "source.json"
_ROWS = 65_536


class _Source(Record):
    """What a folder of arrays was written from."""

    path: str
    size: int
    changed: int
    task: str
    groups: str | None
    users: int | None
    test: float
    scale: Scale | None = None


def open_users(data: Path, study: StudyConfig, place: Path) -> Population:
    """Return the users of a folder of arrays, an `.npz` file or a Parquet file.

    Args:
        place: where the arrays of a file are written, once.

    Raises:
        DataError: the data cannot be used.
        StateError: there is no room for the arrays.
    """
    if data.is_dir():
        return checked(data, study)
    if not data.is_file():
        raise DataError(f"data '{clean(str(data))}' does not exist, expected a folder of arrays, an .npz or .parquet")
    ending = data.suffix.lower()
    if ending not in (".npz", ".parquet"):
        raise DataError(
            f"data '{clean(data.name)}' ends in '{clean(ending)}', expected a folder of arrays, an .npz or .parquet; "
            "consilium data users makes one of other files"
        )
    known = data.stat()
    devices = study.devices
    assert devices is not None
    source = _Source(
        path=str(data.resolve()),
        size=known.st_size,
        changed=known.st_mtime_ns,
        task=study.task.model_dump_json(),
        groups=devices.groups,
        users=devices.users,
        test=study.split.test,
    )
    if (written := _read_note(place)) is None or written.model_copy(update={"scale": None}) != source:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True, exist_ok=True)
        check_room(place, 2 * known.st_size, what="the users' arrays")
        try:
            scale = None
            if ending == ".npz":
                _of_npz(data, place, devices.groups)
            else:
                scale = _of_parquet(data, place, study)
        except OSError as error:
            raise not_written(place, error) from error
        written = source.model_copy(update={"scale": scale})
        write_atomically(place / _NOTE, written.model_dump_json().encode())
    return checked(place, study, scale=written.scale)


def _read_note(place: Path) -> _Source | None:
    try:
        return _Source.model_validate_json((place / _NOTE).read_bytes())
    except (OSError, ValidationError):
        return None


def _of_npz(file: Path, place: Path, groups: str | None) -> None:
    """Unpack the arrays that are needed, piece by piece."""
    who = "users"
    names = array_names(file, who=who)
    if lacking := [name for name in ("x", "y", *([groups] if groups else [])) if name not in names]:
        raise DataError(f"file '{clean(file.name)}' has no array '{clean(lacking[0])}', it has {_listed(names)}")
    if not names & {"offsets", USER}:
        raise DataError(
            f"file '{clean(file.name)}' has neither an array 'offsets' (where each user's rows begin) nor '{USER}' "
            f"(each row's user), it has {_listed(names)}"
        )
    where = "offsets" if "offsets" in names else USER
    try:
        with zipfile.ZipFile(file) as archive:
            wanted = ("x", "y", where, *([groups] if groups else []))
            check_room(place, sum(archive.getinfo(f"{name}.npy").file_size for name in wanted), what="users' arrays")
            for name in wanted:
                with archive.open(f"{name}.npy") as packed, (place / f"{Path(name).name}.npy").open("wb") as out:
                    shutil.copyfileobj(packed, out, 2**20)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"file '{clean(file.name)}' is damaged: {clean(str(error))}") from error
    if where == USER:
        offsets = offsets_of(mapped(place / f"{USER}.npy"), where=f"file '{clean(file.name)}'")
        np.save(place / OFFSETS, offsets)
        (place / f"{USER}.npy").unlink()


def _listed(names: frozenset[str]) -> str:
    return clean(", ".join(f"'{name}'" for name in sorted(names)[:20])) or "none"


def offsets_of(user: Array, *, where: str) -> Ints:
    """Return where each user's rows begin, of the user of each row, and how many rows there are.

    Raises:
        DataError: a user's rows do not lie together, or users are not in rising order.
    """
    if user.ndim != 1 or not len(user) or user.dtype.kind not in "iuU":
        raise DataError(
            f"{where}: array '{USER}' has type {user.dtype} and shape {user.shape}, expected a whole number or a text "
            "for each row, and a row at least"
        )
    begins, last = [np.zeros(1, dtype=np.int64)], user[:1]
    for start in range(0, len(user), _ROWS):
        part = np.concatenate([last, user[start : start + _ROWS]])
        rises, falls = part[1:] > part[:-1], part[1:] < part[:-1]
        if falls.any():
            row = start + int(falls.argmax())
            raise DataError(
                f"{where}, row {row}: user {clean(str(part[1:][falls.argmax()]), 60)} comes after user "
                f"{clean(str(part[falls.argmax()]), 60)}: expected users in rising order, each with all rows together; "
                "consilium data users FILE --out DIR sorts them"
            )
        begins.append(start + np.flatnonzero(rises).astype(np.int64))
        last = part[-1:]
    return np.concatenate([*begins, np.array([len(user)], dtype=np.int64)])


@dataclass(eq=False)
class _Writing:
    """What a table leaves besides its arrays, as far as it is read."""

    starts: list[int] = field(default_factory=list)
    groups: list[Any] = field(default_factory=list)
    last: Any = None
    rows: int = 0


def _of_parquet(file: Path, place: Path, study: StudyConfig) -> Scale | None:
    """Write a table's rows as features, one group of rows at a time; return the scale where the study says none."""
    task, devices = study.task, study.devices
    assert devices is not None
    where = f"file '{clean(file.name)}'"
    if not isinstance(task, TableTask):
        raise DataError(f"{where}: a Parquet file is for a study of a table, and task.kind is '{task.kind}'")
    done = _Writing()
    with (place / "x.raw").open("wb") as x, (place / "y.raw").open("wb") as y:
        for columns in _batches(file, task, devices.groups, where=where):
            _note_users(done, columns[USER], columns.get(devices.groups or ""), where=where)
            x.write(_features(columns, task, done.rows, where=where).tobytes())
            labels = _labels(columns[task.label], task, done.rows, where=where)
            y.write(labels.tobytes())
            done.rows += len(labels)
    if not done.rows:
        raise DataError(f"{where} has no rows")
    _as_npy(place / "x.raw", place / X, np.dtype(np.float32), (done.rows, task.input_shape[0]))
    _as_npy(place / "y.raw", place / Y, np.dtype(np.int64 if task.number is None else np.float64), (done.rows,))
    np.save(place / OFFSETS, np.array([*done.starts, done.rows], dtype=np.int64))
    if devices.groups is not None:
        np.save(place / f"{Path(devices.groups).name}.npy", np.array([str(one) for one in done.groups]))
    return scale_of_table(place, study, task) if task.scaled_columns else None


def _batches(file: Path, task: TableTask, groups: str | None, *, where: str) -> Iterator[dict[str, Any]]:
    """Yield pieces of the table as arrays by column."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"{where} needs pyarrow, which is not installed; install it with: pip install 'consilium[parquet]'"
        ) from error
    wanted = [USER, *task.columns, task.label, *([groups] if groups else [])]
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            known = table.schema_arrow.names
            for name in wanted:
                if known.count(name) != 1:
                    seen = "no" if name not in known else "more than one"
                    raise DataError(f"{where} has {seen} column '{clean(name)}', it has {_listed(frozenset(known))}")
            for batch in table.iter_batches(batch_size=_ROWS, columns=wanted, use_threads=False):
                yield {name: _array(batch.column(name)) for name in wanted}
    except (pyarrow.ArrowException, ValueError, KeyError) as error:
        raise DataError(f"{where} is not a Parquet file, or it is damaged") from error


def _array(column: Any) -> Array:
    """Return a column as an array: of objects where it has texts or a cell is missing."""
    found: Array = column.to_numpy(zero_copy_only=False)
    return found


def _note_users(done: _Writing, users: Array, groups: Array | None, *, where: str) -> None:
    if users.dtype.kind not in "iuO":
        raise DataError(f"{where}: column '{USER}' is of type {users.dtype}, expected whole numbers or texts")
    values: Sequence[Any] = users.tolist()
    for place, value in enumerate(values):
        if value == done.last and value is not None:
            continue
        row = done.rows + place + 1
        if value is None or value != value or not isinstance(value, int | str):
            raise DataError(f"{where}, row {row}: column '{USER}' is empty, or no whole number or text")
        if done.last is not None and not _rises(done.last, value):
            raise DataError(
                f"{where}, row {row}: user {clean(str(value), 60)} comes after user {clean(str(done.last), 60)}: "
                "expected users in rising order, each with all rows together"
            )
        done.starts.append(row - 1)
        done.last = value
        if groups is not None:
            done.groups.append(groups[place])


def _rises(before: Any, after: Any) -> bool:
    """Return whether a user comes after another: both whole numbers, or both texts."""
    return type(before) is type(after) and bool(before < after)


def _features(columns: dict[str, Any], task: TableTask, begin: int, *, where: str) -> Array:
    features = list[Array]()
    for name, column in task.columns.items():
        cells = columns[name]
        if isinstance(column, CategoryColumn):
            texts = np.array([str(cell) for cell in cells.tolist()])
            unknown = ~np.isin(texts, column.values)
            if unknown.any():
                raise _bad_cell(name, begin, int(unknown.argmax()), f"none of {list(column.values)}", where=where)
            features += [texts == value for value in column.values[1:]]
            continue
        features.append(_numbers(cells, name, begin, where=where))
    return np.ascontiguousarray(np.stack(features, axis=1), dtype=np.float32)


def _labels(cells: Array, task: TableTask, begin: int, *, where: str) -> Array:
    if task.number is not None:
        return _numbers(cells, task.label, begin, where=where)
    known = {name: place for place, name in enumerate(task.classes)}
    places = [known.get(str(cell), -1) for cell in cells.tolist()]
    if -1 in places:
        raise _bad_cell(task.label, begin, places.index(-1), f"none of {list(task.classes)}", where=where)
    return np.array(places, dtype=np.int64)


def _numbers(cells: Array, name: str, begin: int, *, where: str) -> Array:
    try:
        numbers = cells.astype(np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{where}: column '{clean(name)}' has cells that are no numbers") from None
    bad = ~(np.abs(numbers) < 3e38)
    if bad.any():
        raise _bad_cell(name, begin, int(bad.argmax()), "empty or no finite number", where=where)
    return numbers


def _bad_cell(name: str, begin: int, place: int, what: str, *, where: str) -> DataError:
    return DataError(f"{where}, row {begin + place + 1}: column '{clean(name)}' is {what}")


def _as_npy(raw: Path, npy: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Give raw numbers the header of an array."""
    with npy.open("wb") as out, raw.open("rb") as numbers:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(out, header)
        shutil.copyfileobj(numbers, out, 2**20)
        os.fsync(out.fileno())
    raw.unlink()
