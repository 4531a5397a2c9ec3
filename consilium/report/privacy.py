"""What a run promised its patients, what it has spent, and what its sites withhold for that."""

from collections.abc import Sequence

from consilium.common.privacy.secure.noise import colluding_sites, honest_sites
from consilium.common.protocol.counts import TestCounts
from consilium.common.protocol.replies import PrivacySpent
from consilium.common.results import RunResult
from consilium.common.study.privacy import ExamplePrivacy
from consilium.findings import Interval
from consilium.findings.decimals import DASH, bounds, number
from consilium.findings.noise import MOST_NOISE
from consilium.server.privacy.noise import noise_multiplier, site_epsilon_alone

WITHHELD = "withheld"
"""Stands for what a site of a private study measures and does not tell."""
COLUMNS = ("site", "epsilon, at most", "delta", "noise of a step", "epsilon spent", "epsilon left")


def spent_of(result: RunResult, site: str) -> PrivacySpent | None:
    """Return what a site's ledger said last of what the study has spent there; None where it said nothing."""
    facts = result.sites.get(site)
    if facts is not None and facts.privacy is not None:
        return facts.privacy
    told = [record.sites[site].privacy for record in result.rounds if site in record.sites]
    return next((one for one in reversed(told) if one is not None), None)


def privacy_rows(result: RunResult, sites: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return per site what its ledger said last, as texts in the order of `COLUMNS`."""
    rows = []
    for site in sites:
        one = spent_of(result, site)
        texts = [DASH] * (len(COLUMNS) - 1)
        if one is not None:
            budget = "none: the cost follows from the noise" if one.budget is None else f"{one.budget:g}"
            noise = DASH if one.noise is None else f"{one.noise:.3g} times the clip"
            left = DASH if one.left is None else f"{one.left:.3g}"
            texts = [budget, f"{one.delta:g}", noise, f"{one.epsilon:.3g}", left]
        rows.append((site, texts))
    return rows


def promise(result: RunResult) -> str:
    """Return what a private study promises, in words."""
    privacy = result.study.privacy.examples
    if privacy is None:
        return ""
    if privacy.unit == "example":
        whom = "one row"
    elif result.study.split.group is not None:
        whom = "one patient, with all of their rows"
    else:
        whom = "one row (the study names no patients in split.group; equal pictures count as one)"
    return (
        f"Add or remove {whom} of a site's data, and the probability of whatever leaves the site for this study "
        "changes by a factor of e^epsilon at most, but for a probability of delta: against everybody who sees it. "
        "Epsilon is of this study at this site, all its runs together; what other studies of the site spend is in the "
        "site's own ledger (consilium site privacy), and nowhere else."
    )


def promise_of_sites(result: RunResult) -> str:
    """Return what a study with noise for whole sites has told of any one of them; empty without such noise."""
    study, spent = result.study, [one.site_epsilon for one in result.rounds if one.site_epsilon is not None]
    if study.privacy.sites is None or not spent:
        return ""
    sites, rounds = study.privacy.sites, len(result.rounds)
    noise = f"{noise_multiplier(sites, rounds=study.rounds):.4g} times the clip of {sites.clip:g}"
    what = (
        f"what the mean updates of {rounds} rounds tell of any one site, against the same with nothing but zeros from "
        f"it, but for a probability of {sites.delta:g}"
    )
    if not study.privacy.secure_aggregation:
        return (
            f"The coordinator added noise of {noise} to the sum of each round. Epsilon {spent[-1]:.4g} bounds {what}: "
            "for all who see the weights, but not for the coordinator, who saw each site's update."
        )
    alone = site_epsilon_alone(study, answers=[len(one.accepted) for one in result.rounds])
    assert alone is not None
    return (
        f"Each site added its share of the noise before its update was masked: any {honest_sites(study)} of those that "
        f"answered have {noise} together, and the coordinator added none. Epsilon {spent[-1]:.4g} bounds {what}: for "
        f"the coordinator together with {colluding_sites(study)} sites that tell it their own noise. For the "
        f"coordinator alone it is {alone:.4g}. It is of this run: another one tells as much again. The sites' numbers "
        "of examples, their classes and their test counts are exact, and not covered."
    )


def lead(run_sites: Sequence[str], result: RunResult) -> str:
    """Return the first line of a private study's report."""
    spent = [one.epsilon for site in run_sites if (one := spent_of(result, site)) is not None]
    most = f" At most epsilon {max(spent):.3g} was spent at a site." if spent else ""
    return (
        "A private study: what each site has alone is trained without noise and stays there, so only the site itself "
        f"can say whether joining helps it.{most}"
    )


def headline(site: str, test: TestCounts | None, joined: Interval | None, score: str, privacy: ExamplePrivacy) -> str:
    """Return the sentence of a site in a private study: what it serves, if it may tell that, and what it withholds."""
    stays = f"what it has alone stays there, so {site} alone can say whether joining helps"
    if test is None:
        return f"There is no test result from {site}."
    if test.noise is None and not privacy.numbers:
        return f"{site}: withheld: private study (privacy.examples.numbers is 0); {stays}."
    if test.noise is None:
        return f"{site}: withheld: private study, nothing of the budget was left for test counts; {stays}."
    if test.personal is None:
        return f"{site}: withheld: private study; what it serves is tuned there without noise; {stays}."
    if joined is None or joined.bounds is None:
        return (
            f"{site}: nothing can be said: the noise on its counts (standard deviation {test.noise:.3g}) is more than "
            f"{MOST_NOISE:.3g} of its {test.num_test} announced test patients; {stays}."
        )
    interval = bounds(joined)[1:-1].replace(", ", " to ")
    known = f"{number(joined.value)} after joining (95 % interval {interval}, with the noise on its counts)"
    return f"{site}: {score} {known}; {stays}."
