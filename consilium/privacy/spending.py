"""What a site has spent of its patients' privacy, for people: by study, charge by charge, and over time."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from consilium.client.privacy.entry import Entry
from consilium.client.privacy.ledger import LEDGER, PrivacyLedger
from consilium.common.host.chained import Head
from consilium.common.privacy.accounting import Charge, epsilon_of
from consilium.common.study.site import SiteConfig

MOST_POINTS = 60
"""So many points in time epsilon is computed for; of a longer ledger, as many spread over it."""


@dataclass(frozen=True)
class StudySpending:
    """What one study has cost a site, with one data set.

    Args:
        data: name or digest of the data, as the ledger has it.
        epsilon: of all its charges, at `delta`, its own smallest.
        budget: the most that the study may spend, as its last charge has it; None: none was set.
        runs, answers: how many.
        first, last: when it was charged.
    """

    study: str
    data: str
    epsilon: float
    delta: float
    budget: float | None
    runs: int
    answers: int
    first: str
    last: str

    @property
    def left(self) -> float | None:
        """What remains of the budget; None where there is none."""
        return None if self.budget is None else max(0.0, self.budget - self.epsilon)


@dataclass(frozen=True)
class Spending:
    """What a site has spent over all studies.

    Args:
        epsilon: of all charges together, at `delta`, the smallest of any.
        budget: the most that the site's own policy allows, as the last charge has it.
        over_time: epsilon after some of the charges, by their number from 1; the last one is among them.
    """

    site: str
    ledger: str
    head: Head
    entries: tuple[Entry, ...]
    studies: tuple[StudySpending, ...]
    epsilon: float
    delta: float | None
    budget: float | None
    over_time: tuple[tuple[int, float], ...]

    @property
    def left(self) -> float | None:
        """What remains of the site's own budget; None where there is none."""
        return None if self.budget is None else max(0.0, self.budget - self.epsilon)


def spending_of(config: SiteConfig) -> Spending:
    """Return what a site has spent, as its ledger says.

    Raises:
        PrivacyBudgetSpent: the ledger was lost, changed, cut or put back.
    """
    ledger = PrivacyLedger.open(config.state_dir, config.name, server=config.server)
    entries, head = ledger.entries(), ledger.head()
    delta = min((entry.delta for entry in entries), default=None)
    points = _over_time(entries, delta) if delta is not None else ()
    return Spending(
        site=config.name,
        ledger=str(config.state_dir / LEDGER),
        head=head,
        entries=entries,
        studies=tuple(_studies(entries)),
        epsilon=points[-1][1] if points else 0.0,
        delta=delta,
        budget=entries[-1].site_budget if entries else None,
        over_time=points,
    )


def alone(entry: Entry) -> float:
    """Return what one charge would cost if it were the only one."""
    return epsilon_of(entry.drawn, entry.delta)


def in_words(charge: Charge) -> str:
    """Return what was drawn, in words."""
    times = "one step" if charge.steps == 1 else f"{charge.steps} steps"
    numbers = "one number" if charge.steps == 1 else f"{charge.steps} numbers"
    if charge.mechanism == "laplace":
        return f"{numbers} with discrete Laplace noise of scale {charge.noise:.4g}"
    if charge.mechanism == "gaussian":
        return f"{numbers} with discrete Gaussian noise of standard deviation {charge.noise:.4g}"
    part = (
        "every patient takes part" if charge.rate == 1 else f"a patient takes part with a chance of {charge.rate:.3g}"
    )
    return f"{times} with normal noise of {charge.noise:.4g} times the most that one patient can add; {part}"


def grouped(entries: Sequence[Entry]) -> list[tuple[Entry, ...]]:
    """Return charges that follow each other and differ in nothing but time and round, as one."""

    def alike(entry: Entry) -> tuple[Any, ...]:
        return entry.server, entry.study, entry.run, entry.data, entry.what, entry.charges, entry.delta

    return [tuple(some) for _, some in groupby(entries, alike)]


def as_json(spending: Spending) -> Mapping[str, Any]:
    """Return what was spent, for programs."""
    return {
        "site": spending.site,
        "ledger": {"path": spending.ledger, "lines": spending.head.count, "sha256": spending.head.sha256},
        "epsilon": spending.epsilon,
        "delta": spending.delta,
        "budget": spending.budget,
        "left": spending.left,
        "studies": [{**vars(one), "left": one.left} for one in spending.studies],
        "charges": [{**one.model_dump(mode="json", exclude={"key"}), "alone": alone(one)} for one in spending.entries],
    }


def _studies(entries: Sequence[Entry]) -> list[StudySpending]:
    found: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        found.setdefault((entry.study, entry.data), []).append(entry)
    return [_study(own) for own in found.values()]


def _study(own: Sequence[Entry]) -> StudySpending:
    delta, last = min(entry.delta for entry in own), own[-1]
    return StudySpending(
        study=last.study,
        data=last.data,
        epsilon=epsilon_of([charge for entry in own for charge in entry.drawn], delta),
        delta=delta,
        budget=last.budget,
        runs=len({entry.run for entry in own}),
        answers=len(own),
        first=own[0].time,
        last=last.time,
    )


def _over_time(entries: Sequence[Entry], delta: float) -> tuple[tuple[int, float], ...]:
    step = math.ceil(len(entries) / MOST_POINTS)
    numbers = sorted({*range(1, len(entries), step), len(entries)})
    charges = [entry.drawn for entry in entries]
    return tuple(
        (number, epsilon_of([charge for some in charges[:number] for charge in some], delta)) for number in numbers
    )
