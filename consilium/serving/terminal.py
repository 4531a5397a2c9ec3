"""What a terminal says of predictions and of models."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consilium.common.errors import listed
from consilium.findings.decimals import DASH, bounds, counted, number, point
from consilium.serving.evaluate import Evaluation
from consilium.serving.metric import title_of
from consilium.serving.predict import Predictions
from consilium.serving.question import Question

_MOST_LABELS = 12


def print_question(question: Question, console: Console) -> None:
    """Print which model answers, how many rows it was asked about, and what is odd about them."""
    _say(console, f"model    {question.title}")
    prepared = question.prepared
    what = counted(len(prepared), "example")
    if prepared.groups is not None:
        what += f", of {counted(len(set(prepared.groups.tolist())), 'patient')}"
    _say(console, f"data     {what}")
    for warning in question.warnings:
        _say(console, f"warning  {warning}", style="yellow")
    if (drift := question.drift) is not None and not drift.findings:
        _say(console, f"training {drift.unsaid or 'no clear difference from the training rows'}", style="dim")


def print_predictions(predictions: Predictions, console: Console) -> None:
    """Print how often each class was said, or how the numbers lie."""
    print_question(predictions.question, console)
    document = predictions.as_json()
    if document["calibration"]:
        _say(console, f"answers  calibrated ({document['calibration']})", style="dim")
    console.print()
    if (counts := predictions.counts()) and (total := sum(counts.values())):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2))
        table.add_column("class", overflow="fold")
        for title in ("predicted", "share"):
            table.add_column(title, justify="right")
        for name, count in counts.items():
            table.add_row(Text(name), str(count), f"{count / total:.0%}")
        console.print(table)
    elif held := predictions.held():
        total = len(predictions.question.prepared)
        told = [f"{name} in {count} of {total}" for name, count in held.items()]
        _say(console, f"masks: {listed(told, _MOST_LABELS, 'classes')}")
    elif likely := predictions.likely():
        total = max(len(predictions.question.prepared), 1)
        told = [f"{name} {count / total:.0%}" for name, count in likely.items()]
        _say(console, f"more likely than not: {listed(told, _MOST_LABELS, 'labels')}")
    elif (values := document["values"]) is not None:
        _say(console, ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
    console.print()


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print all metrics with their intervals, the recorded score, and what to know of them."""
    print_question(evaluation.question, console)
    _say(console, f"rows     {evaluation.data}")
    console.print()
    console.print(_metrics(evaluation))
    console.print()
    if evaluation.by_class:
        console.print(_classes(evaluation))
        console.print()
    for sentence in evaluation.sentences:
        _say(console, sentence)
    for note in evaluation.notes:
        _say(console, note, style="dim")
    console.print()


def _metrics(evaluation: Evaluation) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2))
    table.add_column("metric", overflow="fold")
    for title in ("value", "95 % interval"):
        table.add_column(title, justify="right")
    table.add_column("constant", justify="right", no_wrap=True)
    for one in evaluation.overall:
        constant = DASH if one.constant is None else number(one.constant, 3)
        table.add_row(Text(one.title), point(one.interval, 3), Text(bounds(one.interval, 3) or one.note), constant)
    return table


def _classes(evaluation: Evaluation) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2))
    table.add_column("class", overflow="fold")
    for title in ("rows", *map(title_of, evaluation.class_metrics or ())):
        table.add_column(title, justify="right", no_wrap=True)
    for name, num, *both in evaluation.by_class:
        table.add_row(Text(name), str(num), *(f"{point(one.interval)} {bounds(one.interval)}".strip() for one in both))
    return table


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)
