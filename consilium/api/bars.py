"""Progress bars: drawn by rich on a terminal, as one line that renews itself in a notebook, and nowhere else."""

import sys
import time
from html import escape
from importlib import import_module
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

WIDTH = 24
"""Characters of a bar in a notebook."""


class Bar(Protocol):
    """Shows how much of something is done; use as a context manager."""

    def __enter__(self) -> Self:
        """Show the bar."""
        ...

    def __exit__(self, *_: object) -> None:
        """Leave it as it is."""
        ...

    def at(self, done: float, what: str) -> None:
        """Say how much is done, and what is going on."""
        ...

    def say(self, text: str) -> None:
        """Show a sentence, above the bar."""
        ...


def bar(total: int, what: str, *, progress: bool | None = None) -> Bar:
    """Return the bar for where this program's output goes.

    Args:
        total: how much there is to do.
        progress: False for none; None and True show it on terminals and in notebooks only.
    """
    if progress is False:
        return Silent()
    if in_notebook():
        return NotebookBar(total, what)
    console = Console(stderr=True)
    return TerminalBar(total, what, console) if console.is_terminal else Silent()


def in_notebook() -> bool:
    """Return whether this program is a notebook's, whose output is a page."""
    loaded = sys.modules.get("IPython")
    shell = loaded.get_ipython() if loaded is not None else None
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def at(self, done: float, what: str) -> None:
        """Show nothing."""

    def say(self, text: str) -> None:
        """Show nothing."""


class TerminalBar:
    """A bar on a terminal; it is drawn when something happens, by no thread."""

    def __init__(self, total: int, what: str, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, auto_refresh=False)
        self._task = self._progress.add_task(what, total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.refresh()
        self._progress.stop()

    def at(self, done: float, what: str) -> None:
        """Draw the bar again."""
        self._progress.update(self._task, completed=done, description=what)
        self._progress.refresh()

    def say(self, text: str) -> None:
        """Print a sentence above the bar."""
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)


class NotebookBar:
    """A line below a notebook's cell; it needs no widgets."""

    def __init__(self, total: int, what: str) -> None:
        self._total, self._what, self._done = max(total, 1), what, 0.0
        self._began, self._handle, self._said = time.monotonic(), None, list[str]()

    def __enter__(self) -> Self:
        self._handle = import_module("IPython.display").display(
            self, display_id=True
        )  # where it is, it is a notebook's
        return self

    def __exit__(self, *_: object) -> None:
        self._draw()

    def at(self, done: float, what: str) -> None:
        """Draw the line again."""
        self._done, self._what = done, what
        self._draw()

    def say(self, text: str) -> None:
        """Show a sentence above the line."""
        self._said.append(text)
        self._draw()

    def _draw(self) -> None:
        if self._handle is not None:
            handle: Any = self._handle
            handle.update(self)

    def __repr__(self) -> str:
        full = round(WIDTH * min(self._done / self._total, 1))
        line = f"{self._what} [{'#' * full}{'.' * (WIDTH - full)}] {self._done:g}/{self._total}"
        return "\n".join([*self._said, f"{line}  {time.monotonic() - self._began:.0f} s"])

    def _repr_html_(self) -> str:
        said = "".join(f"<div>{escape(text)}</div>" for text in self._said)
        seconds = time.monotonic() - self._began
        return (
            f"{said}<div>{escape(self._what)} <progress value='{self._done:g}' max='{self._total}'></progress> "
            f"{self._done:g}/{self._total} &nbsp; {seconds:.0f} s</div>"
        )
