"""What privacy costs each hospital: test numbers at every budget, beside staying alone and joining without noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consilium.comparison.choices import Candidate
from consilium.comparison.comparison import Comparison
from consilium.comparison.evaluation import SMALLER_IS_BETTER
from consilium.comparison.rows import NAMES, Row
from consilium.comparison.summary import Summary, summarise
from consilium.comparison.variants import Variant, promise
from consilium.findings import Interval, Verdict, holm, verdict
from consilium.findings.decimals import number

WITHOUT = "no noise"
"""What a study is called that promises nothing."""


@dataclass(frozen=True)
class Priced:
    """A method at one budget.

    Args:
        promise: the budget in a few letters; `WITHOUT` where there is none.
        epsilon: the budget, or what was spent at most where the study gives the noise; None: no noise, no promise.
        joined: test numbers of what is served.
        minus_alone: the same minus what the site has alone.
        verdicts: per site on that difference, all sites and budgets of the method counted (Holm).
    """

    promise: str
    epsilon: float | None
    joined: Summary
    minus_alone: Summary
    verdicts: Mapping[str, Verdict]


@dataclass(frozen=True)
class Price:
    """What privacy costs with one method: without noise first, then budget by budget, the largest first.

    Args:
        alone: test numbers of staying alone with the same budget of training, without noise: it never leaves.
    """

    method: str
    alone: Summary
    each: Sequence[Priced]

    def as_json(self) -> dict[str, Any]:
        """Return the numbers as JSON."""

        def values(of: Summary, site: str) -> list[float | None] | None:
            one = of.sites[site]
            return None if one is None else [one.value, one.low, one.high]

        return {
            "method": self.method,
            "alone": {site: values(self.alone, site) for site in self.alone.sites},
            "budgets": [
                {
                    "promise": one.promise,
                    "epsilon": one.epsilon,
                    "joined": {site: values(one.joined, site) for site in one.joined.sites},
                    "minus alone": {site: values(one.minus_alone, site) for site in one.minus_alone.sites},
                    "verdicts": dict(one.verdicts),
                }
                for one in self.each
            ],
        }


def prices_of(
    comparison: Comparison, variants: Sequence[Variant], budgets: Mapping[str, Candidate], rows: Sequence[Row]
) -> list[Price]:
    """Return what privacy costs with every method that was trained with noise; nothing without private studies.

    Args:
        budgets: per label who stays alone with the same training.
        rows: of the table, by the labels' names.
    """
    by_name = {row.name: row for row in rows}
    prices = []
    for ordinary in variants:
        private = [one for one in variants if one.ordinary == ordinary.label and one.label in by_name]
        joined, stays = by_name.get(NAMES.get(ordinary.label, ordinary.label)), budgets[ordinary.label]
        alone = comparison.row(stays.label, stays.model, comparison.cells(stays.label))
        if not private or joined is None or not alone.places:
            continue
        named = [(WITHOUT, joined), *((promise(one.privacy), by_name[one.label]) for one in private if one.privacy)]
        named[1:] = sorted(named[1:], key=lambda pair: -(pair[1].epsilon or 0.0))
        prices.append(Price(joined.name, summarise(comparison, alone), _priced(comparison, named, alone)))
    return prices


def _priced(comparison: Comparison, named: Sequence[tuple[str, Row]], alone: Row) -> list[Priced]:
    changes = [summarise(comparison, row, alone) for _, row in named]
    p = {
        f"{place} {site}": None if one is None else one.p
        for place, change in enumerate(changes)
        for site, one in change.sites.items()
    }
    adjusted, smaller = holm(p), comparison.metric in SMALLER_IS_BETTER
    return [
        Priced(
            promise=called,
            epsilon=row.epsilon,
            joined=summarise(comparison, row),
            minus_alone=change,
            verdicts={
                site: verdict(one, smaller_is_better=smaller, p_adjusted=adjusted[f"{place} {site}"])
                for site, one in change.sites.items()
            },
        )
        for place, ((called, row), change) in enumerate(zip(named, changes, strict=True))
    ]


def price_sentence(price: Price, site: str, places: int) -> str:
    """Return what privacy costs a site, in one sentence: values alone, without noise and per budget, and verdicts."""
    alone = price.alone.sites[site]
    values = ", ".join(f"{_value(one.joined.sites[site], places)} {_at(one)}" for one in price.each)
    text = f"{site}: alone {_value(alone, places)}; joined {values}."
    told = {kind: [_at(one) for one in price.each if one.verdicts[site] == kind] for kind in ("helps", "hurts")}
    found = [f"clearly {kind} {_listed(at)}" for kind, at in told.items() if at]
    if found:
        return f"{text} Joining {' and '.join(found)}."
    few = all(one.verdicts[site] in ("too_few", "unknown") for one in price.each)
    return f"{text} {'Too little to tell what joining does.' if few else 'No budget has a clear effect.'}"


def _at(one: Priced) -> str:
    return "without noise" if one.promise == WITHOUT else f"at {one.promise.replace('eps', 'epsilon')}"


def _listed(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _value(one: Interval | None, places: int) -> str:
    return "not known" if one is None else number(one.value, places)
