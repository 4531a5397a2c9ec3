"""What a person sees while a study runs: a live table on a terminal, one plain line per round elsewhere."""

import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

COLUMNS = {
    "global loss": "global.loss",
    "global acc.": "global.accuracy",
    "personal acc.": "personal.accuracy",
    "local acc.": "local.accuracy",
}


WAITING_SECONDS = 2.0
"""How often it is said at most who is waited for: a thousand sites come one by one."""


class View:
    """Shows the events of one run; use as a context manager while it runs."""

    def __init__(self, console: Console, *, title: str) -> None:
        self._console, self._title = console, title
        self._live = Live(console=console, auto_refresh=False, transient=False) if console.is_terminal else None
        self._began = time.monotonic()
        self._rounds_began = self._began
        self._round, self._rounds = 0, 0
        self._phase = "starting"
        self._said_who = -WAITING_SECONDS
        self._states: dict[str, str] = {}
        self._metrics: dict[str, dict[str, float]] = {}

    def __enter__(self) -> "View":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self.tick()
            self._live.stop()

    def show(self, event: dict[str, Any]) -> None:
        """Take in one event of the run's log."""
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler is not None:
            handler(event)
        self.tick()

    def tick(self) -> None:
        """Draw the live view again (elapsed time moves on)."""
        if self._live is not None:
            self._live.update(self._render(), refresh=True)

    def _say(self, text: str) -> None:
        if self._live is None:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            self._live.console.print(text, highlight=False, markup=False)

    def _on_started(self, event: dict[str, Any]) -> None:
        self._rounds, self._phase = event["rounds"], "waiting for sites"
        self._states = dict.fromkeys(event["sites"], "expected")
        self._say(f"{self._title}: {len(self._states)} sites, {self._rounds} rounds; waiting for the sites")

    def _on_waiting(self, event: dict[str, Any]) -> None:
        for site in self._states:
            self._states[site] = "connected" if site in event["online"] else "expected"
        missing = [site for site, state in self._states.items() if state == "expected"]
        if missing and time.monotonic() - self._said_who > WAITING_SECONDS:
            self._said_who = time.monotonic()
            more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
            self._say(f"{self._title}: waiting for {', '.join(missing[:10])}{more}")

    def _on_agreed(self, event: dict[str, Any]) -> None:
        self._phase, self._rounds_began = "training", time.monotonic()
        sites = ", ".join(f"{site} {facts['num_examples']}" for site, facts in event["sites"].items())
        self._say(f"{self._title}: all sites agree on data schema, versions and initial weights; examples: {sites}")

    def _on_warning(self, event: dict[str, Any]) -> None:
        self._say(f"warning: {event['message']}")

    def _on_resumed(self, event: dict[str, Any]) -> None:
        self._round = event["round"]
        self._say(f"{self._title}: continuing after round {event['round']}")

    def _on_joined(self, event: dict[str, Any]) -> None:
        self._states[event["site"]] = "connected"
        self._say(f"{self._title}: site '{event['site']}' joined with {event['num_examples']} examples")

    def _on_asked(self, event: dict[str, Any]) -> None:
        for site in self._states:
            self._states[site] = "training" if site in event["sites"] else "not asked"

    def _on_answered(self, event: dict[str, Any]) -> None:
        self._states[event["site"]] = "answered"
        self._metrics[event["site"]] = event["metrics"]

    def _on_rejected(self, event: dict[str, Any]) -> None:
        self._states[event["site"]] = f"rejected: {event['reason']}"
        self._say(f"rejected: {event['message']}")

    def _on_weighting(self, event: dict[str, Any]) -> None:
        self._say(f"round {event['round']}: {event['message']}")

    def _on_round(self, event: dict[str, Any]) -> None:
        self._round = event["round"]
        if self._live is not None:
            return
        sites = "  ".join(f"{site} {_brief(facts['metrics'])}" for site, facts in sorted(event["sites"].items()))
        self._say(
            f"{self._title}: round {self._round}/{self._rounds}  "
            f"answered {len(event['answered'])}/{len(event['asked'])}  "
            f"{event['seconds']:.1f} s  elapsed {self._elapsed():.0f} s, about {self._remaining():.0f} s left  {sites}"
        )

    def _on_finishing(self, event: dict[str, Any]) -> None:
        self._phase = "reading the test split, once"
        for site in self._states:
            self._states[site] = "testing"

    def _on_finished(self, event: dict[str, Any]) -> None:
        self._phase = "finished"
        self._states = dict.fromkeys(self._states, "done")
        if self._live is None:
            self._say(f"{self._title}: finished after {event['seconds']:.0f} s")

    def _on_failed(self, event: dict[str, Any]) -> None:
        self._phase = "failed"

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _remaining(self) -> float:
        done = max(self._round, 1)
        return (time.monotonic() - self._rounds_began) / done * max(self._rounds - self._round, 0)

    def _render(self) -> Group:
        answered = sum(state in ("answered", "done") for state in self._states.values())
        left = f", about {self._remaining():.0f} s left" if self._round and self._phase == "training" else ""
        head = Text(
            f"{self._title}: {self._phase}   round {self._round}/{self._rounds}   "
            f"sites answered {answered}/{len(self._states)}   elapsed {self._elapsed():.0f} s{left}"
        )
        table = Table(box=None, pad_edge=False)
        table.add_column("site")
        table.add_column("state")
        for column in COLUMNS:
            table.add_column(column, justify="right")
        for site, state in self._states.items():
            values = self._metrics.get(site, {})
            table.add_row(site, state, *(_number(values.get(name)) for name in COLUMNS.values()))
        return Group(head, table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _brief(metrics: dict[str, float]) -> str:
    shown = {"loss": "global.loss", "global": "global.accuracy", "personal": "personal.accuracy"}
    if "personal.loss" in metrics and "global.loss" not in metrics:
        shown = {"loss": "personal.loss", "personal": "personal.accuracy"}
    texts = [f"{label} {metrics[name]:.3f}" for label, name in shown.items() if name in metrics]
    return " ".join(texts) or f"train loss {_number(metrics.get('train.loss'))}"
