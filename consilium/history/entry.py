"""One line of the list of runs: what a folder holds, as far as its files say."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from consilium.common.errors import clean
from consilium.common.results import RunResult

Kind = Literal["run", "comparison", "app", "unknown"]
Status = Literal["finished", "failed", "stopped", "unfinished", "unreadable"]

PAGE = "report.html"
"""The report's page, of runs and comparisons alike."""


@dataclass(frozen=True)
class Score:
    """A mean over sites: of which model, and on which rows."""

    value: float
    model: str
    rows: Literal["test", "validation"]
    metric: str = "accuracy"


@dataclass(frozen=True)
class Entry:
    """What a folder holds; None or nothing where it does not say.

    Args:
        id: the folder's name, below the folder that is listed.
        detail: how it failed, or how far it came.
        effects: at how many sites joining helps, hurts, ..., of the report.
        problems: what could not be read, in sentences.
    """

    id: str
    folder: Path
    kind: Kind
    status: Status
    study: str = ""
    started: datetime | None = None
    method: str = ""
    strategy: str = ""
    rounds_done: int | None = None
    rounds_asked: int | None = None
    sites: tuple[str, ...] = ()
    score: Score | None = None
    effects: Mapping[str, int] = field(default_factory=dict)
    detail: str = ""
    problems: tuple[str, ...] = ()
    result: RunResult | None = field(default=None, repr=False)

    @property
    def page(self) -> Path | None:
        """The report's page, where there is one."""
        page = self.folder / PAGE
        return page if page.is_file() else None

    def as_json(self) -> dict[str, Any]:
        """Return the entry as JSON."""
        plain = ("id", "kind", "status", "study", "method", "strategy", "rounds_done", "rounds_asked", "detail")
        return {
            **{name: getattr(self, name) for name in plain},
            "folder": clean(str(self.folder)),
            "started": None if self.started is None else self.started.isoformat(),
            "sites": list(self.sites),
            "score": None if self.score is None else vars(self.score),
            "effects": dict(self.effects),
            "page": None if self.page is None else clean(str(self.page)),
            "problems": list(self.problems),
        }


def counted(words: Iterable[str]) -> dict[str, int]:
    """Return how often each word occurs, in the order of the words."""
    cut = [clean(word, 40) for word in words]
    return {word: cut.count(word) for word in sorted(set(cut))}
