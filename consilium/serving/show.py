"""`consilium model show`: what a model's folder holds, in a terminal and for programs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from consilium.common.errors import clean, listed
from consilium.common.model import RECORD, LabelTemperatures, ModelRecord, Residuals, Temperature, read_record
from consilium.common.model.card import interval_text
from consilium.common.study.task import PictureTask, SeriesTask, TableTask, TextTask
from consilium.findings.decimals import number
from consilium.serving.find import find_model

_MOST_NAMED = 12


@dataclass(frozen=True)
class Shown:
    """A model's folder whose files are as its record says."""

    folder: Path
    record: ModelRecord

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Return what is to be said of it: a word, and the text."""
        record, come = self.record, self.record.provenance
        whose = f"site {come.site}" if come.site else "the coordinator"
        lines = [
            ("folder", clean(str(self.folder))),
            ("model", f"{come.served} model, written by {whose} at {come.created} with consilium {come.consilium}"),
            ("study", f"{come.study} (sha256 {come.study_digest[:12]}), {come.num_sites} sites"),
            ("run", f"{come.run}, weights of round {come.round}; method {record.method.kind}"),
            ("network", record.model.name),
            ("reads", _reads(record)),
            ("answers", _answers(record)),
            ("training", "unknown rows" if come.num_train is None else f"{come.num_train} rows of the site"),
        ]
        for score in record.scores:
            value = f"{score.name} {number(score.value, 3)}, 95 % interval {interval_text(score)}"
            lines.append(("score", f"{value}, on {score.num} {score.rows} rows of {score.patients} patients"))
        if not record.scores:
            lines.append(("score", "nothing was measured where this folder was written"))
        lines.append(("calibrated", _calibration(record)))
        lines += [("file", f"{name}, {size:,} bytes, sha256 {sha256}") for name, size, sha256 in self.files]
        lines.append(("digests", f"all files are as {RECORD} says"))
        if not record.preprocessing.known:
            lines.append(("use", "not alone: every site scaled by its own rows; adapt it at a site: consilium adapt"))
        return lines

    @property
    def files(self) -> list[tuple[str, int, str]]:
        """Return the files that are there: name, bytes and sha256."""
        found = []
        for name, sha256 in self.record.files.items():
            if (path := self.folder / name).exists():
                found.append((name, path.stat().st_size, sha256))
        return found

    def as_json(self) -> dict[str, Any]:
        """Return the record, with what is in the folder."""
        files = [{"name": name, "bytes": size, "sha256": sha256} for name, size, sha256 in self.files]
        return {"folder": self.folder, **self.record.model_dump(mode="json", exclude={"files"}), "files": files}


def show(path: Path) -> Shown:
    """Return the model that a path stands for.

    Raises:
        ModelError: there is none, or it is damaged or of a newer version.
    """
    folder = find_model(path)
    return Shown(folder, read_record(folder))


def print_model(shown: Shown, console: Console) -> None:
    """Print what a model's folder holds, a line each."""
    for name, text in shown.lines:
        console.print(Text(f"{name:<11}{text}"), soft_wrap=True)


def _reads(record: ModelRecord) -> str:
    task = record.task
    if isinstance(task, TableTask):
        return f"columns {listed(list(task.columns), _MOST_NAMED)}"
    if isinstance(task, PictureTask):
        return f"{'grey' if task.channels == 1 else 'colour'} pictures, resized to {task.size} x {task.size}"
    if isinstance(task, SeriesTask):
        return f"series of {task.length} steps of the channels {listed(list(task.channels), _MOST_NAMED)}"
    if isinstance(task, TextTask):
        return f"texts of up to {task.length} tokens"
    return f"arrays of shape {list(task.input_shape)}"


def _answers(record: ModelRecord) -> str:
    if record.task.label_kind == "masks":
        return f"of every pixel one of {len(record.classes)} classes: {listed(list(record.classes), _MOST_NAMED)}"
    if record.classes:
        return f"one of {len(record.classes)} classes: {listed(list(record.classes), _MOST_NAMED)}"
    if labels := record.task.label_names:
        return f"a probability for each of {len(labels)} labels: {listed(list(labels), _MOST_NAMED)}"
    if record.task.survival_times is not None:
        return "the log of a risk, relative to other patients"
    return f"a number; {record.task.score} counts as right"


def _calibration(record: ModelRecord) -> str:
    match record.calibration:
        case Temperature() as one:
            return f"temperature {one.temperature:.3g}, fitted on {one.num} validation rows"
        case LabelTemperatures() as one:
            each = [f"{label} temperature {of.temperature:.3g} ({of.num} rows)" for label, of in one.labels.items()]
            return f"{listed(each, _MOST_NAMED)}, fitted on validation rows that know the label"
        case Residuals() as one:
            return f"value \N{PLUS-MINUS SIGN} {one.width:.4g} holds {one.level:.0%}, from {one.num} validation rows"
    return "no"
