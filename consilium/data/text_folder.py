"""Reads texts as a pool: files in a folder for each class as a table, or plain ones to learn what follows."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from consilium.client.data.base import Bad
from consilium.client.data.image_files import list_folders
from consilium.client.data.picture_files import is_picture, leads_out
from consilium.client.data.text_files import Text, Wanted, texts_of
from consilium.common.data.parquet import MAX_FILE_BYTES
from consilium.common.errors import ConfigError, DataError, clean
from consilium.common.study.task import TextTask
from consilium.data.options import SPEAKER, Next
from consilium.data.slug import site_slug
from consilium.data.table_pool import TablePool, pool_of_rows
from consilium.data.text_pool import PlainPool

_HEADER = ("file", "label", "text")
"""Columns of the table that texts of files become, and behind them `_PATIENT`, where one is asked for."""
_PATIENT = "patient"
_LONGEST = 100_000
"""Characters of a text that are kept: a model sees far fewer."""
_BLOCK = re.compile(r".{1,200}\S{0,50}\s*", re.DOTALL)
"""A piece of a plain text that is never cut: up to a blank, wherever there is one."""
_SPEECH = re.compile(r"(?P<who>[^\n:]{1,60}):\n(?P<words>.*)", re.DOTALL)
_LEAST_SPEECHES = 0.9
"""Part of the blocks of a play that begin with a speaker's name."""


def holds_texts(folder: Path) -> bool:
    """Return whether a folder is one of texts: `.txt` files, and no picture in any depth.

    Raises:
        DataError: it cannot be listed.
    """
    texts = False
    try:
        for file in folder.rglob("*"):
            if file.name.startswith(".") or not file.is_file():
                continue
            if file.suffix.lower() == ".txt":
                texts = True
            elif is_picture(file):
                return False
    except OSError as error:
        raise DataError(f"pool '{folder}': cannot be listed: {error.strerror or error}") from error
    return texts


def read_text_folder(folder: Path, *, group: str | None) -> TablePool:
    """Read `class/text.txt`, in any depth below the class, as a table with the columns file, label and text.

    Args:
        group: "folder" (the one that a file lies in), or a pattern of file names, as `split.group`.

    Raises:
        ConfigError: `group` is none for files.
        DataError: fewer than two classes, or a text that cannot be used, or lies elsewhere behind a link.
    """
    who = f"pool '{folder}'"
    classes = tuple(sub.name for sub in list_folders(folder))
    if len(classes) < 2:
        raise DataError(
            f"{who}: texts are in {len(classes)} folders of classes, expected at least two (class/text.txt); for texts "
            "without a class, --next character or --next word learns what follows"
        )
    task = TextTask(classes=classes)
    found = list(_inside(texts_of(folder, task, Wanted(group=group), who=who), folder, who=who))
    rows = [
        (one.name, one.label[task.label], _one_cell(one.text), *(() if group is None else (one.patient or "",)))
        for one in found
    ]
    header = (*_HEADER, *(() if group is None else (_PATIENT,)))
    return pool_of_rows(header, rows, "label", text="text", group=None if group is None else _PATIENT, who=who)


def _inside(texts: Iterator[Text | Bad], folder: Path, *, who: str) -> Iterator[Text]:
    """Yield texts; refuse one that cannot be used, or that a link brings in from elsewhere."""
    for one in texts:
        if isinstance(one, Bad):
            raise DataError(f"{who}: {one.reason}")
        if leads_out(folder / one.name, folder):
            raise DataError(f"{who}: {one.place} is a link that leads out of the pool, expected the text itself")
        yield one


def _one_cell(text: str) -> str:
    """Return a text as a cell that a table can hold: without signs that end a cell, and not too long."""
    return text.strip()[:_LONGEST].replace("\r", "\n").replace("\0", " ")


def read_plain(path: Path, following: Next, *, group: str | None) -> PlainPool:
    """Read a `.txt` file, or all in a folder and below it, as one text after the other.

    Args:
        group: "speaker" where blocks, with a blank line between, begin with a line such as `ROMEO:`.

    Raises:
        ConfigError: another group.
        DataError: there is no text, one cannot be read, or speakers were asked for and the text does not name them.
    """
    who = f"pool '{path}'"
    if group not in (None, SPEAKER):
        raise ConfigError(
            f"--group '{group}': of a plain text --group is '{SPEAKER}', where lines such as 'ROMEO:' say who"
        )
    texts = _plain_texts(path, who=who)
    if group == SPEAKER:
        said = [speech for text in texts.values() for speech in _speeches(text, who=who)]
        names = _file_names([speaker for speaker, _ in said])
        return PlainPool(
            tuple(words for _, words in said),
            tuple(names[speaker] for speaker, _ in said),
            following,
            tuple(speaker for speaker, _ in said),
        )
    blocks = [(name, block) for name, text in texts.items() for block in _BLOCK.findall(text)]
    return PlainPool(tuple(block for _, block in blocks), tuple(name for name, _ in blocks), following)


def _plain_texts(path: Path, *, who: str) -> dict[str, str]:
    """Return texts by the name of their file at a site."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*.txt") if file.is_file())
    files = [file for file in files if file == path or not _hidden(file.relative_to(path))]
    if not files or files[0].suffix.lower() != ".txt":
        raise DataError(f"{who}: expected a .txt file, or a folder with some, as --next says")
    texts = dict[str, str]()
    for file in files:
        name = file.name if path.is_file() else "-".join(file.relative_to(path).parts)
        if path.is_dir() and leads_out(file, path):
            raise DataError(
                f"{who}: file '{clean(name)}' is a link that leads out of the pool, expected the text itself"
            )
        if name in texts:
            raise DataError(f"{who}: two files would be called '{clean(name)}': give one another name")
        try:
            if file.stat().st_size > MAX_FILE_BYTES:
                raise DataError(f"{who}: file '{clean(name)}' is larger than {MAX_FILE_BYTES} bytes; divide it")
            texts[name] = file.read_text(encoding="utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{who}: file '{clean(name)}' is not UTF-8 text (byte {error.start})") from error
        except OSError as error:
            raise DataError(f"{who}: file '{clean(name)}' cannot be read: {error.strerror or error}") from error
    if not any(text.strip() for text in texts.values()):
        raise DataError(f"{who}: there is no text in it")
    return texts


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _speeches(text: str, *, who: str) -> list[tuple[str, str]]:
    """Return who says what, block by block."""
    blocks = [block.strip() for block in re.split(r"\n\s*\n", text) if block.strip()]
    found = [match for block in blocks if (match := _SPEECH.fullmatch(block)) is not None]
    if len(found) < _LEAST_SPEECHES * len(blocks):
        raise DataError(
            f"{who}: --group {SPEAKER}: {len(found)} of {len(blocks)} blocks begin with a line such as 'ROMEO:', "
            "expected nearly all, with a blank line between blocks"
        )
    return [(match["who"].strip(), match["words"].strip()) for match in found if match["words"].strip()]


def _file_names(speakers: Sequence[str]) -> dict[str, str]:
    """Return a file's name for each speaker, all different."""
    names, taken = dict[str, str](), set[str]()
    for speaker in dict.fromkeys(speakers):
        name = plain = site_slug(speaker)[:50] or SPEAKER
        number = 1
        while name in taken:
            number += 1
            name = f"{plain}-{number}"
        taken.add(name)
        names[speaker] = f"{name}.txt"
    return names
