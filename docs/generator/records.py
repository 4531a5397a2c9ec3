"""Pages of what a program may meet: the events of a log, and the exit codes of the command line."""

import dataclasses
from collections.abc import Iterable

from consilium.common.errors import ConsiliumError
from consilium.common.events.enrolment import ENROLMENT_EVENTS
from consilium.common.events.run import APP_EVENTS, STUDY_EVENTS, RunEvent
from consilium.common.events.site import SITE_EVENTS, SiteEvent
from docs.generator.markdown import page, paragraph, summary, table

LOGS = (
    ("A study's run, and the server's journal", STUDY_EVENTS.events.values()),
    ("A Flower app's run", APP_EVENTS.events.values()),
    ("A site", SITE_EVENTS.events.values()),
    ("Enrolments of devices at a server", ENROLMENT_EVENTS.events.values()),
)

EXITS = {
    0: "Done; `server start`, `site start` and `serve` end so on Ctrl-C, which is how they are stopped.",
    1: "An unexpected error.",
    2: "The command line is wrong.",
    130: "Stopped with Ctrl-C.",
}
"""Exit codes that are no error's own."""


def events_page() -> str:
    """Return the page of events, one table for every kind of log."""
    head = (
        "Lines of [event logs](../auditor/events.md): `time`, `event`, and the fields below. The journal has `study` "
        "and `run` too, a site's log `site`."
    )
    lines = ["# Events", "", *paragraph(head)]
    for title, events in LOGS:
        lines += [f"## {title}", "", *table(("event", "what happened", "fields"), map(_event, events))]
    return page(lines)


def _event(event: type[RunEvent] | type[SiteEvent]) -> tuple[str, str, str]:
    labels = {"time", *(_fields(RunEvent) if issubclass(event, RunEvent) else _fields(SiteEvent))}
    return f"`{event.name}`", summary(event), _listed(name for name in _fields(event) if name not in labels)


def _fields(event: type[RunEvent] | type[SiteEvent]) -> list[str]:
    if issubclass(event, RunEvent):
        return list(event.model_fields)
    return [field.name for field in dataclasses.fields(event)]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def exit_codes_page() -> str:
    """Return the page of exit codes: the errors of `common/errors.py`, and those of the command line itself."""
    kinds = [kind for kind in ConsiliumError.__subclasses__() if kind.__module__ == ConsiliumError.__module__]
    rows = {code: ("", text) for code, text in EXITS.items()}
    rows |= {kind.exit_code: (f"`{kind.__name__}`", summary(kind)) for kind in kinds}
    head = "What `consilium` leaves with. The errors are classes of [`common/errors.py`](../../common/errors.py)."
    table_ = table(("code", "error", "meaning"), ((str(code), *rows[code]) for code in sorted(rows)))
    return page(["# Exit codes", "", *paragraph(head), *table_])
