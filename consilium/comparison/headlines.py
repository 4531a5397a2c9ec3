"""What joining does at each site, in a sentence."""

from consilium.comparison.comparison import Comparison
from consilium.comparison.evaluation import SMALLER_IS_BETTER, UNBOUNDED
from consilium.comparison.rows import Row, shares_text
from consilium.comparison.summary import places_of, summarise
from consilium.findings import LEAST_SPLITS, holm, sentence, verdict


def headlines_of(comparison: Comparison, alone: Row, joined: Row) -> dict[str, tuple[str, str]]:
    """Return per site the verdict, corrected for the number of sites, and its sentence."""
    numbers, others, difference = (
        summarise(comparison, joined),
        summarise(comparison, alone),
        summarise(comparison, joined, alone),
    )
    adjusted = holm({site: None if one is None else one.p for site, one in difference.sites.items()})
    places = places_of(comparison.metric, [numbers, others]) if comparison.metric in UNBOUNDED else 2
    smaller, num_splits = comparison.metric in SMALLER_IS_BETTER, len(alone.places.keys() & joined.places.keys())
    few = 1 < num_splits < LEAST_SPLITS
    without = {"without": f"{num_splits} splits, of 1 or {LEAST_SPLITS} and more there is one"} if few else {}
    headlines = {}
    for site in comparison.sites:
        before, after, change = others.sites[site], numbers.sites[site], difference.sites[site]
        if before is not None and _same(alone, joined, site):
            kept = f"{shares_text(joined.chosen_at(site))}, {_named(comparison.metric)}{before.value:.{places}f}"
            text = f"{site} would stay alone by its own validation rows ({kept}): joining changes nothing for it."
            headlines[site] = ("stays", text)
            continue
        p = adjusted[site]
        kind = verdict(change, smaller_is_better=smaller, p_adjusted=p)
        text = sentence(
            site,
            before,
            after,
            change,
            metric=comparison.metric,
            smaller_is_better=smaller,
            p_adjusted=p,
            places=places,
            **without,
        )
        headlines[site] = (kind, text if kind == "unknown" else text + _of_whom(alone, joined, site))
    return headlines


def _same(alone: Row, joined: Row, site: str) -> bool:
    """Return whether a site is served the same where it may join and where it may not, in every split and seed."""
    return bool(joined.among) and all(
        mine[site].cell == other[site].cell and mine[site].model == other[site].model
        for split in alone.places.keys() & joined.places.keys()
        for mine, other in zip(alone.places[split], joined.places[split], strict=True)
        if site in mine and site in other
    )


def _named(metric: str) -> str:
    return "" if metric == "accuracy" else f"{metric.replace('_', ' ')} "


def _of_whom(alone: Row, joined: Row, site: str) -> str:
    """Return what is served alone, and what joined, where these are choices."""
    if not (joined.among and alone.among):
        return f" Alone: {alone.name}; joined: {joined.name}."
    return f" Alone: {shares_text(alone.chosen_at(site))}; joined: {shares_text(joined.chosen_at(site))}."
