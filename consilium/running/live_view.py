"""What a person sees while a study runs: a live table on a terminal, one plain line per round elsewhere."""

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from consilium.common.events.run import RoundFinished, RunEvent, RunFinished
from consilium.running.progress import Progress

COLUMNS = {
    "global loss": "global.loss",
    "global acc.": "global.accuracy",
    "personal acc.": "personal.accuracy",
    "local acc.": "local.accuracy",
}


class View:
    """Shows the events of one run; use as a context manager while it runs."""

    def __init__(self, console: Console, *, title: str) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=False) if console.is_terminal else None
        self._progress = Progress(title)

    def __enter__(self) -> "View":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self.tick()
            self._live.stop()

    def show(self, event: RunEvent) -> None:
        """Take in one event of the run's log."""
        line = self._progress.take(event)
        if self._live is None:
            if line:
                self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        elif line and not isinstance(event, RoundFinished | RunFinished):  # the table shows these
            self._live.console.print(line, highlight=False, markup=False)
        self.tick()

    def tick(self) -> None:
        """Draw the live view again (elapsed time moves on)."""
        if self._live is not None:
            self._live.update(_drawn(self._progress), refresh=True)


def _drawn(progress: Progress) -> Group:
    answered = sum(state in ("answered", "done") for state in progress.states.values())
    training = progress.round and progress.phase == "training"
    left = f", about {progress.remaining:.0f} s left" if training else ""
    head = Text(
        f"{progress.title}: {progress.phase}   round {progress.round}/{progress.rounds}   "
        f"sites answered {answered}/{len(progress.states)}   elapsed {progress.elapsed:.0f} s{left}"
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("site")
    table.add_column("state")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for site, state in progress.states.items():
        values = progress.metrics.get(site, {})
        table.add_row(site, state, *(_number(values.get(name)) for name in COLUMNS.values()))
    return Group(head, table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
