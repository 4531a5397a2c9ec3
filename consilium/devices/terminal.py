"""A simulation in a terminal: a bar that says how far it is, and its results as tables."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from consilium.common.errors import ConsiliumError
from consilium.common.study.study import StudyConfig
from consilium.devices.result import DeviceResult, DeviceRound, in_time
from consilium.devices.simulate import simulation_steps
from consilium.devices.words import (
    GROUP_TITLES,
    MODEL_TITLES,
    PROFILE_TITLES,
    facts,
    group_rows,
    model_rows,
    profile_rows,
    titles,
)


def run_with_progress(study: StudyConfig, data: Path, folder: Path, console: Console) -> DeviceResult:
    """Run a simulation with a progress bar; where the output is no terminal, say a line per tenth.

    Raises:
        ConsiliumError: what cannot be used, or ended the run.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task(study.name, total=study.rounds)
        for step in simulation_steps(study, data, folder):
            done = len(step.rounds)
            bars.update(task, completed=done, description=_line(study, step.rounds))
            if step.result is not None:
                return step.result
            if not console.is_terminal and done and done % max(1, study.rounds // 10) == 0:
                console.print(_line(study, step.rounds), highlight=False, soft_wrap=True)
    raise ConsiliumError("the simulation ended without a result")


def _line(study: StudyConfig, rounds: tuple[DeviceRound, ...]) -> str:
    if not rounds:
        return f"{study.name}: reading users"
    last = rounds[-1]
    scores = ", ".join(f"{name} {one.score:.3f}" for name, one in last.measured.items())
    return (
        f"{study.name}: round {last.round}, {last.accepted} of {last.drawn} users, {in_time(last.clock)}"
        f"{f', {scores}' if scores else ''}"
    )


def print_result(result: DeviceResult, console: Console) -> None:
    """Print what was found."""
    console.print(Text(facts(result)), soft_wrap=True)
    _print(console, titles(MODEL_TITLES, result), model_rows(result))
    if result.groups:
        _print(console, titles(GROUP_TITLES, result), group_rows(result))
    if len(result.profiles) > 1 or any(one.accepted < one.drawn for one in result.profiles.values()):
        _print(console, PROFILE_TITLES, profile_rows(result))
    console.print(Text(result.promise), soft_wrap=True)


def _print(console: Console, names: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for place, name in enumerate(names):
        table.add_column(name, justify="left" if place == 0 else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
