"""`consilium predict`: one line for each example, in their order: what a model says of it, or why it says nothing."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from consilium.client.served.load import Answers
from consilium.common.errors import ConfigError, clean
from consilium.common.host.files import write_atomically
from consilium.common.study.task import PictureTask
from consilium.serving.cells import csv_lines, distinct, number_cell, text_cell
from consilium.serving.masks import file_of, folder_of, write_masks
from consilium.serving.question import Question, ask, load, read

STDOUT = Path("-")
"""Stands for standard output in place of a file."""
_NUMBERED = re.compile(r"(?:(.*):)?(\d+)")


@dataclass(frozen=True, eq=False)
class Predictions:
    """A model's answers to a question."""

    question: Question
    answers: Answers

    @property
    def header(self) -> list[str]:
        """Return the titles of the columns, each once."""
        first, last = self._own_columns
        return [*first, *distinct(list(self.question.prepared.kept), taken=[*first, *last]), *last]

    @property
    def _own_columns(self) -> tuple[list[str], list[str]]:
        record = self.question.model.record
        if self.answers.masks is not None:
            said = [*(text_cell(f"share_{name}") for name in record.classes), "mask"]
        elif labels := record.task.label_names:
            said = [text_cell(f"probability_{name}") for name in labels]
        elif record.classes:
            said = ["class", *(text_cell(f"probability_{name}") for name in record.classes)]
        else:
            said = ["value"] if self.answers.width is None else ["value", "low", "high"]
        return ["file" if self._pictures else "row"], [*said, "reason"]

    @property
    def _pictures(self) -> bool:
        names = [*self.question.prepared.names, *(one.name for one in self.question.prepared.unread)]
        return isinstance(self.question.model.record.task, PictureTask) and not all(map(str.isdigit, names))

    def rows(self) -> Iterator[list[str]]:
        """Yield the cells of each example, in the order of the data; one that cannot be read has a reason only."""
        prepared, said = self.question.prepared, list(_said(self.answers, self.question.model.record.classes))
        kept = list(zip(*prepared.kept.values(), strict=True)) or [()] * len(prepared)
        found: list[tuple[str, list[str]]] = [
            (name, [text_cell(name), *map(text_cell, kept[place]), *said[place], ""])
            for place, name in enumerate(prepared.names)
        ]
        empty = [""] * (len(prepared.kept) + len(said[0]))
        found += [(one.name, [text_cell(one.name), *empty, text_cell(one.reason)]) for one in prepared.unread]
        if prepared.unread:
            place = order_of([name for name, _ in found])
            found.sort(key=lambda one: place(one[0]))
        yield from (cells for _, cells in found)

    def counts(self) -> dict[str, int]:
        """Return how many examples each class was said of; nothing where the answer is a number or a mask."""
        classes = self.question.model.record.classes
        if not classes or self.answers.masks is not None:
            return {}
        said = self.answers.classes.tolist()
        return {name: said.count(place) for place, name in enumerate(classes)}

    def likely(self) -> dict[str, int]:
        """Return for how many examples each of several labels is more likely than not; nothing where there is one."""
        if self.answers.labels is None:
            return {}
        counts = (self.answers.labels > 0.5).sum(dim=0).tolist()
        return dict(zip(self.question.model.record.task.label_names, counts, strict=True))

    def held(self) -> dict[str, int]:
        """Return in how many pictures' masks each class but the background is; nothing where there are no masks."""
        if (masks := self.answers.masks) is None:
            return {}
        names = list(enumerate(self.question.model.record.classes))[1:]
        return {name: sum(bool((mask == place).any()) for mask in masks) for place, name in names}

    def as_json(self) -> dict[str, Any]:
        """Return what programs want to know of the predictions."""
        question, values = self.question, self.answers.values
        calibration = question.model.record.calibration
        return {
            "model": question.folder,
            "provenance": question.model.record.provenance.model_dump(mode="json"),
            "predicted": len(question.prepared),
            "unread": [{"name": one.name, "reason": one.reason} for one in question.prepared.unread],
            "classes": self.counts() or None,
            "values": None if values is None else _spread(values.tolist()),
            **({} if self.answers.labels is None else {"labels": self.likely()}),
            **({} if self.answers.masks is None else {"masks": self.held()}),
            "calibration": None if calibration is None else calibration.kind,
            "drift": question.drift_json(),
        }


def predict(
    model: Path, data: Sequence[Path], *, keep: Sequence[str] = (), weights_dir: Path | None = None
) -> Predictions:
    """Ask a model about a file or a folder; no labels are needed.

    Args:
        model: its folder, or what holds one.
        data: one file or folder, or several pictures.
        keep: columns of the data that are handed through.

    Raises:
        ModelError: the model cannot be used.
        DataError: the data cannot be used, or none of it can be read.
    """
    folder, served = load(model, weights_dir=weights_dir)
    inputs = read(served, data, labelled=False, keep=keep)
    return of_inputs(ask(folder, served, inputs))


def of_inputs(question: Question) -> Predictions:
    """Return the answers to a question."""
    return Predictions(question, question.model.answers(question.prepared))


def check_out(out: Path, data: Sequence[Path], *, force: bool) -> None:
    """Check that a file for the predictions can be written, before any work is done.

    Raises:
        ConfigError: it exists already, it is a folder, or it would lie among the data.
    """
    if out == STDOUT:
        return
    shown = clean(str(out))
    if out.is_dir():
        raise ConfigError(f"--out: '{shown}' is a folder, expected the name of a file")
    for path in data:
        if out.resolve() == path.resolve() or (path.is_dir() and out.resolve().parent.is_relative_to(path.resolve())):
            raise ConfigError(
                f"--out: '{shown}' would lie among the data '{clean(str(path))}', and be read as data the next time; "
                "choose another place"
            )
    if (masks := folder_of(out)).exists() and not force:
        raise ConfigError(f"--out: '{clean(str(masks))}' exists already: give another name, or --force to replace it")
    if out.exists() and not force:
        raise ConfigError(f"--out: '{shown}' exists already: give another name, or --force to replace it")


def write_predictions(predictions: Predictions, out: Path) -> None:
    """Write the predictions as CSV, all of them or nothing, and masks next to it; for their owner alone to read.

    Raises:
        StateError: a file cannot be written.
    """
    if (masks := predictions.answers.masks) is not None:
        write_masks([mask.numpy() for mask in masks], out)
    write_atomically(out, csv_of(predictions), mode=0o600)


def csv_of(predictions: Predictions) -> Iterator[bytes]:
    """Yield the predictions as CSV: a header, then one line for each example."""

    def lines() -> Iterator[list[str]]:
        yield predictions.header
        yield from predictions.rows()

    return csv_lines(lines())


def order_of(names: Sequence[str]) -> Callable[[str], tuple[str, int]]:
    """Return the place of examples in their data: by file and number where names are numbers, else by name."""
    if all(_NUMBERED.fullmatch(name) for name in names):

        def numbered(name: str) -> tuple[str, int]:
            file, _, number = name.rpartition(":")
            return file, int(number)

        return numbered
    return lambda name: (name, 0)


def _said(answers: Answers, classes: Sequence[str]) -> Iterator[list[str]]:
    if answers.masks is not None:
        for place, mask in enumerate(answers.masks):
            shares = torch.bincount(mask.flatten(), minlength=len(classes)).double() / mask.numel()
            yield [*map(number_cell, shares.tolist()), text_cell(file_of(place))]
        return
    if answers.labels is not None:
        for chances in answers.labels.tolist():
            yield [*map(number_cell, chances)]
    elif answers.probabilities is not None:
        for place, chances in zip(answers.classes.tolist(), answers.probabilities.tolist(), strict=True):
            yield [text_cell(classes[place]), *map(number_cell, chances)]
    elif answers.values is not None:
        for value in answers.values.tolist():
            bounds = () if answers.width is None else (value - answers.width, value + answers.width)
            yield [number_cell(one) for one in (value, *bounds)]


def _spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"least": ordered[0], "median": ordered[len(ordered) // 2], "most": ordered[-1]}
