"""Reads text files of records as they come: their encoding, the sign between fields, and where the header stands."""

import csv
import io
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from consilium.common.errors import DataError, clean

DELIMITERS = (",", ";", "\t", "|")
"""Signs between fields that are looked for."""
MAX_CELL = 131_072
"""Most characters of one cell, in every format of tables: what Python's reader of CSV takes."""
_SAMPLE_CHARACTERS, _SAMPLE_RECORDS, _TITLE_LINES = 262_144, 120, 20
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_CONTROL = re.compile("[\x00-\x08\x0e-\x19\x1b-\x1f]")
_MANY_BYTES = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_NAMES = {"utf-16": "UTF-16", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16", "utf-32": "UTF-32"}
_SIGNS = {"\t": "tab", " ": "space"}

Record = tuple[str, list[str]]
"""A record's place, the number of its first line, and its fields."""


@dataclass(frozen=True)
class Layout:
    """How the records of a file stand.

    Args:
        delimiter: the sign between fields.
        titles: how many records above the header are passed over.
    """

    delimiter: str
    titles: int = 0


def sign_in_words(delimiter: str) -> str:
    """Return the name of a sign between fields."""
    return _SIGNS.get(delimiter, f"'{delimiter}'")


def decoded(content: bytes, encoding: str | None, *, where: str) -> tuple[str, str]:
    """Return a file's text with one sign at the ends of lines, and in words what its encoding is, '' for UTF-8.

    Without `encoding`: by its byte order mark, else UTF-8, else UTF-16 where every other byte is 0, else Windows-1252,
    the common superset of Latin-1.

    Raises:
        DataError: the content is no text in this encoding, or in any of those; the sentence starts with `where`.
    """
    chosen = encoding or _encoding_of(content, where=where)
    try:
        text = content.decode(chosen)
    except LookupError as error:
        raise DataError(f"{where}: there is no encoding '{clean(chosen, 40)}', expected e.g. utf-8, cp1252") from error
    except UnicodeError as error:
        start = getattr(error, "start", 0)
        raise DataError(f"{where} is not {_in_words(chosen) or 'UTF-8'} text (byte {start})") from error
    if chosen != "utf-8-sig" and (odd := _CONTROL.search(text)):
        raise DataError(f"{where} is not text: character {odd.start()} is a control character")
    return text.replace("\r\n", "\n").replace("\r", "\n"), _in_words(chosen)


def _encoding_of(content: bytes, *, where: str) -> str:
    marked = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    if marked is not None:
        return marked
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        head = content[:4096]
        if _MANY_BYTES.search(content):
            raise DataError(
                f"{where} is mostly UTF-8 text, but byte {error.start} is not: it is damaged, or of two encodings; set "
                "data.encoding if you know it"
            ) from error
        return _wide(head) or "cp1252"
    return _wide(content[:4096]) or "utf-8-sig"


def _wide(head: bytes) -> str | None:
    """Return UTF-16 where every other byte of mostly Latin letters is 0."""
    for name, start in (("utf-16-le", 1), ("utf-16-be", 0)):
        zeros = head[start::2]
        if len(head) >= 4 and zeros.count(0) > 0.5 * len(zeros) and 0 not in head[1 - start :: 2]:
            return name
    return None


def _in_words(encoding: str) -> str:
    if encoding.lower().replace("_", "-") in ("utf-8", "utf-8-sig", "utf8"):
        return ""
    return _NAMES.get(encoding, "Windows-1252 (Latin-1)" if encoding == "cp1252" else encoding)


def records_of(text: str, delimiter: str, *, where: str) -> Iterator[Record]:
    """Yield each record that has a field which is not blank.

    Raises:
        DataError: the text is no CSV; the sentence starts with `where`.
    """
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    line = 1
    try:
        for fields in reader:
            if any(map(str.strip, fields)):
                yield f"line {line}", fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{where}, line {line}: not valid CSV: {error}") from error


def layout_of(text: str, wanted: Collection[str], delimiter: str | None) -> Layout:
    """Return how a file's records stand: the layout in which the header names most of the wanted columns.

    Among equal ones it is the one whose records have as many fields as the header, then the one with most fields. A
    header below others is taken only where it names a wanted column, and what stands above it is no row of the table.
    """
    best, layout = (0, 0.0, 0, 0), Layout(delimiter or ",")
    looked_for = {like(name) for name in wanted}
    for number, sign in enumerate(DELIMITERS if delimiter is None else (delimiter,)):
        records = _sample(text, sign)
        for place in range(min(_TITLE_LINES, len(records))):
            header = records[place]
            named = len(looked_for & {like(name) for name in header})
            if place and (not named or not all(_is_title(above, header) for above in records[:place])):
                continue
            below = records[place + 1 :]
            as_wide = sum(len(fields) == len(header) for fields in below) / len(below) if below else 1.0
            fit = as_wide if len(header) > 1 else 0.0
            key = (named, fit, len(header) if fit else 0, -number)
            if key > best or (key == best and not number and not place):
                best, layout = key, Layout(sign, place)
    return layout


def _is_title(above: Sequence[str], header: Sequence[str]) -> bool:
    """Return whether a record above a header is a title: of other width, or mostly empty."""
    filled = sum(bool(field.strip()) for field in above)
    return len(above) != len(header) or filled <= max(1, len(header) // 2 - 1)


def _sample(text: str, delimiter: str) -> list[list[str]]:
    records: list[list[str]] = []
    reader = csv.reader(io.StringIO(text[:_SAMPLE_CHARACTERS]), delimiter=delimiter)
    try:
        for fields in islice(reader, _SAMPLE_RECORDS):
            if any(map(str.strip, fields)):
                records.append(fields)
    except csv.Error:  # a cell that is too long: what was read so far has to do
        pass
    return records


def like(name: str) -> str:
    """Return a column's name without case, blanks and punctuation, to compare what may be meant by it."""
    return re.sub(r"[\W_]+", "", name).casefold()


def read_bytes(file: Path, *, most: int, where: str) -> bytes:
    """Return a file's content.

    Raises:
        DataError: it cannot be read, or is larger than `most` bytes.
    """
    try:
        check_size(file, most=most, where=where)
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror or error}") from error


def check_size(file: Path, *, most: int, where: str) -> None:
    """Refuse a file of more than `most` bytes.

    Raises:
        DataError: it is larger.
        OSError: there is none.
    """
    if (size := file.stat().st_size) > most:
        raise DataError(f"{where} has {size} bytes, at most {most} are read; divide it")
