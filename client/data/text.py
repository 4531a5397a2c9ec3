"""Reads texts with a label, or plain texts of which what follows is learned."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from consilium.client.data.base import Bad, Inputs, RawData, Unread, keep_usable, kind_mismatch
from consilium.client.data.columns import Floats
from consilium.client.data.label_cells import LabelCells
from consilium.client.data.parts import beside, index_file, parts_in_file
from consilium.client.data.text_files import Text, Wanted, texts_of
from consilium.client.data.text_tokens import bucket_of, character_of, encoder_of, padded, words_of
from consilium.common.data.groups import Copies, Ints, copies_of_pictures
from consilium.common.data.tables import tables_in
from consilium.common.data.words import number_in
from consilium.common.errors import ConfigError, DataError
from consilium.common.study.site import DataConfig, TextData
from consilium.common.study.task import Task
from consilium.common.study.text_task import CHARACTERS, OTHER, TextTask, WordTokens
from consilium.common.study.training import SplitConfig

_LARGEST = float(torch.finfo(torch.float32).max)
_SECTION = 50
"""Pieces' lengths in a section of a text whose pieces overlap."""
MOST_NUMBERS = 2**27
"""Most tokens of all pieces of a site's texts together."""


@dataclass(frozen=True, eq=False)
class _Example:
    """The numbers of a text's tokens, its label as the model answers it, and the text it is of or from.

    Args:
        section: of the text; pieces of different ones share nothing.
    """

    ids: Sequence[int]
    label: float | Floats
    of: Text
    section: int = 0


def read_text(config: DataConfig, task: Task, split: SplitConfig, *, site: str) -> RawData:
    """Read texts in the order of the files' names and of their rows, as tokens' numbers `(N, task.length)`.

    With `task.next` an example is a piece of `length` characters or words, and its label what follows; what follows
    and is none of `task.classes` counts as `other`, and without that class the piece is left out.

    Raises:
        ConfigError: the study's task is not about texts, or `split.parts` is not one for texts.
        DataError: no file, a missing column, a tokeniser that was not read, or more than `max_skipped` texts that
            cannot be used.
    """
    if not (isinstance(config, TextData) and isinstance(task, TextTask)):
        raise kind_mismatch(config, task, site=site)
    who = f"site '{site}'"
    _check_parts(config.path, task, split, who=who)
    index = index_file(split.parts)
    wanted = Wanted(group=split.group, part=None if index else split.parts, index=index)
    found = list(texts_of(config.path, task, wanted, who=who))
    if task.next is not None:
        _check_pieces(found, task, who=who)
    examples, num_skipped = keep_usable(examples_of(found, task), site=site, max_skipped=config.max_skipped)
    if not examples:
        raise DataError(f"{who}: no usable text in '{config.path}', {num_skipped} skipped")
    x = padded([one.ids for one in examples], task.length)
    return RawData(
        x=torch.from_numpy(x),
        y=_labels([one.label for one in examples], task),
        num_skipped=num_skipped,
        # Pieces of texts are short, and equal ones are no copies of one another.
        copies=copies_of_pictures(x) if task.next is None else Copies(np.arange(len(x))),
        patients=_patients(examples, task, split),
        parts=_parts(examples, [one.name for one in found], config.path, split, site=site),
    )


def _patients(examples: Sequence[_Example], task: TextTask, split: SplitConfig) -> list[str] | None:
    """Return whose each example is; pieces of one section, which overlap, are of one, so that they are on one side."""
    if split.group is not None:
        return [one.of.patient or "" for one in examples]
    if task.next is not None and _overlap(task):
        return [f"{one.of.name} {one.section}" for one in examples]
    return None


def _parts(
    examples: Sequence[_Example], names: Sequence[str], path: Path, split: SplitConfig, *, site: str
) -> Ints | None:
    if split.parts is None:
        return None
    if (index := index_file(split.parts)) is None:
        return np.array([one.of.part for one in examples], dtype=np.int64)
    if _by_file(path, split):
        places = {name: place for place, name in enumerate(names)}
        used = [places[one.of.name] for one in examples]
        return parts_in_file(beside(path) / index, list(places), used, key="file", site=site)
    used = [one.of.number for one in examples]
    return parts_in_file(beside(path) / index, list(map(str, range(len(names)))), used, key="row", site=site)


def read_text_inputs(path: Path, task: TextTask, *, labelled: bool, keep: Sequence[str], group: str | None) -> Inputs:
    """Read what a finished model is asked about: a table, a folder of `.txt` files, or one.

    Where what follows is learned, a text without labels is one example: what follows its end. With labels it is cut
    into pieces as for training.

    Raises:
        DataError: nothing is there, a column is missing, or a tokeniser that was not read.
        ConfigError: `group` is not one for files.
    """
    who = "the data"
    found = list(texts_of(path, task, Wanted(labelled, group=group, keep=tuple(dict.fromkeys(keep))), who=who))
    return _inputs(found, task, labelled=labelled, grouped=group is not None, keep=keep)


def of_text_rows(
    rows: Sequence[Mapping[str, object]], task: TextTask, *, labelled: bool, keep: Sequence[str]
) -> Inputs:
    """Take the rows of a data frame or of a JSON document, whose column `task.text` holds the texts.

    Raises:
        DataError: no row, or a tokeniser that was not read.
    """
    if not len(rows):
        raise DataError("there is no row, expected at least one")
    return _inputs(
        [_of_row(row, number, task, labelled, keep) for number, row in enumerate(rows, start=1)],
        task,
        labelled=labelled,
        grouped=False,
        keep=keep,
    )


def _of_row(row: Mapping[str, object], number: int, task: TextTask, labelled: bool, keep: Sequence[str]) -> Text | Bad:
    columns = tuple(task.label_columns) if labelled else ()
    needed = [task.text, *columns, *keep]
    if absent := [name for name in needed if name not in row]:
        return Bad(f"row {number} has no column '{absent[0]}'", str(number))
    text = row[task.text]
    if not isinstance(text, str) or not text.strip():
        return Bad(f"row {number}: column '{task.text}' holds no text", str(number))
    label = {name: "" if row[name] is None else str(row[name]).strip() for name in columns}
    return Text(text.strip(), str(number), f"row {number}", label=label, kept={name: str(row[name]) for name in keep})


def examples_of(texts: Iterable[Text | Bad], task: TextTask) -> Iterator[_Example | Bad]:
    """Yield the examples of texts with labels, or why a text has none."""
    if task.next is not None:
        for text in texts:
            yield from [text] if isinstance(text, Bad) else _pieces(text, task)
        return
    encode, read = encoder_of(task), _reader_of(task)
    for text in texts:
        if isinstance(text, Bad):
            yield text
            continue
        label = read(text.label)
        if isinstance(label, str):
            yield Bad(f"{text.place}: {label}", text.name)
        else:
            yield _Example(encode(text.text), label, text)


def _reader_of(task: TextTask) -> Callable[[Mapping[str, str]], float | Floats | str]:
    """Return what reads a label as the model answers it, or says what is wrong with it, by the label's columns."""
    if len(task.label_columns) > 1:
        return LabelCells(task)
    places = {name: place for place, name in enumerate(task.classes)}

    def of(cells: Mapping[str, str]) -> float | str:
        cell, where = cells.get(task.label, ""), f"column '{task.label}'"
        if task.regression is None:
            place = places.get(cell)
            return f"{where}: expected one of {list(task.classes)}, got something else" if place is None else place
        number = number_in(cell)
        scaled = math.nan if number is None else task.regression.to_model(number)
        return scaled if abs(scaled) <= _LARGEST else f"{where}: expected a finite number, got something else"

    return of


def _pieces(text: Text, task: TextTask) -> Iterator[_Example]:
    """Yield the pieces of a text, `step` characters or words apart, with what follows each of them.

    Where pieces overlap, the text is cut into sections first, and no piece goes beyond its own: ten, or as many as are
    `_SECTION` pieces long.
    """
    units: Sequence[str] = text.text if task.next == "character" else words_of(text.text)
    ids, labels = numbers_of_units(units, task), _followers(units, task)
    step, piece = task.step or task.length + 1, task.length + 1
    size = max(piece, min(_SECTION * piece, -(-len(units) // 10))) if _overlap(task) else max(piece, len(units))
    for section, begin in enumerate(range(0, len(units), size)):
        for start in range(begin, min(begin + size, len(units)) - task.length, step):
            label = labels[start + task.length]
            if label is not None:
                yield _Example(ids[start : start + task.length], label, text, section)


def _overlap(task: TextTask) -> bool:
    return task.step is not None and task.step <= task.length


def numbers_of_units(units: Sequence[str], task: TextTask) -> list[int]:
    """Return the numbers of characters or words as tokens, from 0 on."""
    if isinstance(task.tokens, WordTokens):
        return [bucket_of(unit, task.tokens.buckets) for unit in units]
    return [character_of(unit) for unit in units]


def _followers(units: Sequence[str], task: TextTask) -> list[int | None]:
    """Return the class of each unit; None where it is of none."""
    if task.classes == CHARACTERS:
        return [character_of(unit) for unit in units]
    places = {name: place for place, name in enumerate(task.classes)}
    return [places.get(unit, places.get(OTHER)) for unit in units]


def _ends(text: Text, task: TextTask) -> _Example:
    """Return a whole text as the example of what follows its end."""
    units: Sequence[str] = text.text if task.next == "character" else words_of(text.text)
    return _Example(numbers_of_units(units[-task.length :], task), 0.0, text)


def _inputs(
    found: Sequence[Text | Bad], task: TextTask, *, labelled: bool, grouped: bool, keep: Sequence[str]
) -> Inputs:
    made: Iterable[_Example | Bad]
    if labelled:
        made = examples_of(found, task)
    elif task.next is not None:
        made = (one if isinstance(one, Bad) else _ends(one, task) for one in found)
    else:
        encode = encoder_of(task)
        made = (one if isinstance(one, Bad) else _Example(encode(one.text), 0.0, one) for one in found)
    examples, unread = list[_Example](), list[Unread]()
    for one in made:
        if isinstance(one, Bad):
            unread.append(Unread(one.name, one.reason))
        else:
            examples.append(one)
    numbers: dict[str, int] = {}
    owners = [numbers.setdefault(one.of.patient or "", len(numbers)) for one in examples]
    return Inputs(
        x=torch.from_numpy(padded([one.ids for one in examples], task.length)),
        names=tuple(one.of.name for one in examples),
        y=_labels([one.label for one in examples], task) if labelled else None,
        groups=torch.tensor(owners, dtype=torch.int64) if grouped else None,
        unread=tuple(unread),
        kept={name: tuple(one.of.kept[name] for one in examples) for name in keep},
    )


def _labels(labels: Sequence[float | Floats], task: TextTask) -> torch.Tensor:
    kind = torch.int64 if task.classes else torch.float32
    if not labels:
        return torch.zeros(0, dtype=kind)
    return torch.from_numpy(np.stack([np.asarray(label) for label in labels])).to(kind)


def _by_file(path: Path, split: SplitConfig) -> bool:
    """Return whether a folder holds texts as files, and no table but one that gives their parts."""
    return path.is_dir() and not tables_in(path, without=(split.parts,))


def _check_pieces(texts: Iterable[Text | Bad], task: TextTask, *, who: str) -> None:
    """Refuse more pieces than fit into memory, before they are made: a study's `step` says how many there are."""
    step = task.step or task.length + 1
    ends = (0 if isinstance(text, Bad) else len(text.text) - task.length for text in texts)
    if (numbers := sum(max(0, -(-end // step)) for end in ends) * task.length) > MOST_NUMBERS:
        raise DataError(
            f"{who}: the texts give up to {numbers} tokens in pieces of {task.length}, at most {MOST_NUMBERS} are "
            "read: raise task.step, or divide the texts among more sites"
        )


def _check_parts(path: Path, task: TextTask, split: SplitConfig, *, who: str) -> None:
    """Refuse `split.parts` where nothing could say of which part a text is."""
    if split.parts is None:
        return
    if task.next is not None:
        raise ConfigError(f"{who}: split.parts: pieces of texts have no part of their own; name a common test set")
    if _by_file(path, split) and index_file(split.parts) is None:
        raise ConfigError(
            f"{who}: split.parts is '{split.parts}', expected for a folder of texts a .csv file with columns file and "
            "part"
        )
