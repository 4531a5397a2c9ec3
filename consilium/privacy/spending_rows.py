"""What a site has spent, as cells of tables: the same in a terminal and on a page."""

import math
from collections.abc import Sequence

from consilium.client.privacy.entry import Entry
from consilium.findings.decimals import DASH, counted, number
from consilium.privacy.spending import Spending, alone, grouped, in_words

STUDY_TITLES = ("study", "data", "spent", "budget", "left", "delta", "runs", "answers", "first", "last")
CHARGE_TITLES = ("when", "to", "study", "run", "round", "what left", "by itself")


def meaning(spending: Spending) -> tuple[str, str]:
    """Return what the numbers mean, in two sentences."""
    here = f", here {math.exp(spending.epsilon):,.3g}," if 0 < spending.epsilon < 100 else ""
    return (
        "Epsilon bounds what anybody who sees everything that has left this site can learn about one single patient: "
        "whatever question they ask about that patient, the odds of its answer change by at most a factor of e^epsilon"
        f"{here} compared with the same studies without that patient's rows, except in cases whose probability is at "
        "most delta.",
        "The bound holds for every patient and whatever else others may know, it counts everything in this ledger "
        "together, and it says nothing of what is true of patients in general, which the studies are there to find.",
    )


def lead(spending: Spending) -> str:
    """Return in one sentence what was spent and what is left."""
    if spending.delta is None:
        return f"{spending.site} has taken part in no private study: nothing was charged"
    spent = f"{spending.site} has spent epsilon {number(spending.epsilon)} at delta {spending.delta:g}"
    if spending.left is None:
        return f"{spent}, over {_studies(spending)}; its policy sets no limit over all studies"
    assert spending.budget is not None
    return (
        f"{spent}, over {_studies(spending)}; of epsilon {spending.budget:g}, the most that its policy allows, "
        f"{number(spending.left)} is left"
    )


def ledger_sentence(spending: Spending) -> str:
    """Return how far the ledger has come: whoever notes this can tell later whether it was changed or put back."""
    return f"{counted(spending.head.count, 'line')}, the last one with SHA-256 {spending.head.sha256}"


def study_cells(spending: Spending) -> list[tuple[str, ...]]:
    """Return a row for each study and data set."""
    return [
        (
            one.study,
            one.data[:12],
            number(one.epsilon),
            DASH if one.budget is None else f"{one.budget:g}",
            DASH if one.left is None else number(one.left),
            f"{one.delta:g}",
            str(one.runs),
            str(one.answers),
            _when(one.first),
            _when(one.last),
        )
        for one in spending.studies
    ]


def charge_cells(entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """Return a row for each charge."""
    return [_row([entry]) for entry in entries]


def charges_in_short(entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """Return a row for each group of charges that follow each other and differ in time and round alone."""
    return [_row(some) for some in grouped(entries)]


def drawn_with(entries: Sequence[Entry]) -> list[str]:
    """Return in words with which noise each kind of answer was drawn, once for each study."""
    lines = [
        f"study {entry.study}, {entry.what}: {'; '.join(map(in_words, entry.drawn)) or 'nothing was drawn'}"
        for entry in entries
    ]
    return list(dict.fromkeys(lines))


def _row(some: Sequence[Entry]) -> tuple[str, ...]:
    first, last = some[0], some[-1]
    return (
        _when(first.time) if len(some) == 1 else f"{_when(first.time)} to {_when(last.time)}",
        first.server or DASH,
        first.study,
        first.run,
        _rounds(some),
        first.what,
        number(alone(first), 3) if len(some) == 1 else f"{number(alone(first), 3)} each",
    )


def _rounds(some: Sequence[Entry]) -> str:
    rounds = sorted({entry.round for entry in some})
    if rounds == [0]:
        return "before the first"
    return str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"


def _studies(spending: Spending) -> str:
    names = {one.study for one in spending.studies}
    return "1 study" if len(names) == 1 else f"{len(names)} studies"


def _when(time: str) -> str:
    """Return a time without seconds, as `2026-01-31 12:30`; all are in UTC."""
    return time[:16].replace("T", " ")
