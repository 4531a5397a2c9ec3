"""What writes a run into somebody's tool, and what every such writer is given."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from consilium.history.flat import Setting
from consilium.tracking.points import Point


class Writer(Protocol):
    """Writes one run; every call may raise anything, which ends the tracking and not the run."""

    def begin(self, settings: Mapping[str, Setting]) -> int:
        """Begin, or go on where an earlier one ended; return the last round that is written already, 0 for none."""
        ...

    def describe(self, settings: Mapping[str, Setting]) -> None:
        """Write more of the study's settings than were known at the beginning."""
        ...

    def write(self, points: Sequence[Point]) -> None:
        """Write the points of one round; they can be seen when this returns."""
        ...

    def end(self, points: Sequence[Point], *, status: str, files: Sequence[Path]) -> None:
        """Write the last points and what the run left, and close.

        Args:
            status: `finished`, `failed`, `stopped`, or `running` where the run goes on without the writer.
            files: report and model, as far as they are there.
        """
        ...

    @property
    def place(self) -> str:
        """Where it writes, in words and without a password."""
        ...
