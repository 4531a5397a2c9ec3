"""The page of an evaluation: `index.html`."""

from pathlib import Path
from typing import Any

from consilium.common.host.files import write_atomically
from consilium.common.model import ModelRecord
from consilium.common.protocol.patients import LEAST_PATIENTS
from consilium.findings.decimals import DASH, counted, number
from consilium.findings.pages import flattened, render
from consilium.serving.curves import figures_of
from consilium.serving.evaluate import Evaluation
from consilium.serving.metric import title_of

PAGE = "index.html"
MOST_CLASSES = 60
"""With more classes the page has no confusion matrix; `evaluation.json` has."""
MOST_UNREAD = 20


def write_page(folder: Path, evaluation: Evaluation) -> Path:
    """Write `index.html` and return its path.

    Raises:
        StateError: the folder cannot be written.
    """
    write_atomically(folder / PAGE, page_of(evaluation).encode(), mode=0o600)
    return folder / PAGE


def page_of(evaluation: Evaluation) -> str:
    """Return the evaluation as one page that opens offline: no script, no request, light and dark."""
    record, question = evaluation.record, evaluation.question
    confusion = evaluation.confusion
    unread = question.prepared.unread
    return render(
        "consilium.serving",
        "evaluation.html.j2",
        {
            "name": record.provenance.study,
            "title": f"{record.provenance.served} model",
            "facts": _facts(evaluation),
            "lead": _lead(evaluation),
            "sentences": evaluation.sentences,
            "notes": evaluation.notes,
            "metrics": [(one.title, one.interval, _constant(one.constant), one.note) for one in evaluation.overall],
            "by_class": evaluation.by_class,
            "class_titles": [title_of(name) for name in evaluation.class_metrics or ()],
            "classes": evaluation.truth.classes,
            "confusion": _shaded(confusion) if confusion is not None and len(confusion) <= MOST_CLASSES else [],
            "kind": record.task.label_kind,
            "num_classes": 0 if confusion is None else len(confusion),
            "figures": figures_of(evaluation.truth, evaluation.metrics),
            "labels": [(name, *of) for name, of in evaluation.label_shares.items()],
            "unread": [one.reason for one in unread[:MOST_UNREAD]],
            "num_unread": len(unread),
            "num_total": len(unread) + evaluation.num,
            "drift": question.drift,
            "least_patients": LEAST_PATIENTS,
            "settings": _settings(record),
        },
    )


def _settings(record: ModelRecord) -> list[tuple[str, list[tuple[str, str]]]]:
    tables = {"Where the model comes from": record.provenance, "Task": record.task, "Calibration": record.calibration}
    return [(title, list(flattened(one.model_dump(mode="json")))) for title, one in tables.items() if one is not None]


def _facts(evaluation: Evaluation) -> list[str]:
    come = evaluation.record.provenance
    whose = f"site {come.site}" if come.site else "the coordinator"
    of = counted(evaluation.truth.patients, "patient")
    return [
        f"{come.served} model of {whose}",
        f"run {come.run}, round {come.round}",
        f"data: {evaluation.data}",
        f"{counted(evaluation.num, 'row')} of {of}",
        "calibrated" if evaluation.record.calibration is not None else "not calibrated",
    ]


def _lead(evaluation: Evaluation) -> str:
    first = evaluation.metrics[0]
    if first.interval is None:
        return f"{first.title}: {first.note}"
    low_high = first.interval.bounds
    inside = f", 95 % interval {number(low_high[0])} to {number(low_high[1])}" if low_high else ""
    constant = "" if first.constant is None else f" Always the same answer would have {number(first.constant)}."
    return f"{first.title.capitalize()} {number(first.interval.value)}{inside}.{constant}"


def _constant(value: float | None) -> str:
    return DASH if value is None else number(value)


def _shaded(confusion: list[list[int]]) -> list[list[dict[str, Any]]]:
    """Return each cell's count, its share of the row, and whether it is right."""
    return [
        [
            {"count": count, "share": count / sum(row) if sum(row) else 0.0, "right": true == said}
            for said, count in enumerate(row)
        ]
        for true, row in enumerate(confusion)
    ]
