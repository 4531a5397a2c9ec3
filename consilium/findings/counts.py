"""The findings of one run, from the counts of its sites: per model, and of what joining changes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from consilium.common.intervals.evidence import Evidence
from consilium.common.intervals.holm import holm
from consilium.common.intervals.interval import Interval
from consilium.common.intervals.means import Kind, interval_of, over_sites
from consilium.common.protocol.counts import Estimate, Estimates, TestCounts
from consilium.common.protocol.patients import Patients
from consilium.findings.noise import noise_on, too_noisy, with_noise
from consilium.findings.verdict import Verdict, verdict

ACCURACIES = ("majority", "local", "global", "personal")
DIFFERENCE = "personal_minus_local"
MEASURES = (*ACCURACIES, DIFFERENCE)

Measures = Mapping[str, Interval | None]


@dataclass(frozen=True)
class Findings:
    """Every measure of `MEASURES` per site and over the sites; None where there is no such model.

    Args:
        mean: every site counts the same.
        weighted_mean: a site counts as its test examples.
        worst: the lowest site per measure, without bounds.
        adjusted: per site, p of the difference after Holm over the sites.
        verdicts: per site, with the adjusted p.
    """

    sites: Mapping[str, Measures]
    mean: Measures
    weighted_mean: Measures
    worst: Measures
    adjusted: Mapping[str, float | None]
    verdicts: Mapping[str, Verdict]


def findings_of(counts: Mapping[str, TestCounts]) -> Findings:
    """Return what the counts of a run's sites say; a site's own numbers depend on its counts alone."""
    evidence = {name: {site: _evidence(of, name) for site, of in counts.items()} for name in MEASURES}
    sites = {site: {name: _alone(evidence[name][site], name, of) for name in MEASURES} for site, of in counts.items()}
    adjusted = holm({site: None if (one := of[DIFFERENCE]) is None else one.p for site, of in sites.items()})
    return Findings(
        sites,
        mean={name: _over(evidence[name], counts, dict.fromkeys(counts, 1.0), name) for name in MEASURES},
        weighted_mean={
            name: _over(evidence[name], counts, {site: of.num_test for site, of in counts.items()}, name)
            for name in MEASURES
        },
        worst={name: _worst([of[name] for of in sites.values()]) for name in MEASURES},
        adjusted=adjusted,
        verdicts={site: verdict(of[DIFFERENCE], p_adjusted=adjusted[site]) for site, of in sites.items()},
    )


def brier_scores(counts: TestCounts) -> Measures | None:
    """Return the Brier scores of a site's models at the study's horizon; None where the site tells none."""
    if counts.brier is None:
        return None
    told = {name: _estimated(counts.brier, name, counts.num_test) for name in MEASURES}
    return {name: None if one is None else interval_of(one, kind=_kind(name)) for name, one in told.items()}


def _kind(name: str) -> Kind:
    return "difference" if name == DIFFERENCE else "share"


def _alone(evidence: Evidence | None, name: str, counts: TestCounts) -> Interval | None:
    if evidence is None:
        return None
    one = interval_of(evidence, kind=_kind(name))
    return with_noise(one, noise_on(counts, one.value))


def _evidence(counts: TestCounts, name: str) -> Evidence | None:
    """Return the evidence for one measure of a site: rows of its patients, or else its rows as patients.

    None where a site does not tell it, or with so much noise that it would be of the noise.
    """
    if too_noisy(counts):
        return None
    if counts.estimates is not None:
        return _estimated(counts.estimates, name, counts.num_test)
    if name == DIFFERENCE:
        if counts.pairs is None:
            return None
        single = Patients.single(counts.num_test, counts.pairs[2], counts.pairs[1])
        of_patients = None if counts.patients is None else counts.patients.difference
    else:
        field = "global_" if name == "global" else name
        right = getattr(counts, field)
        if right is None:
            return None
        single = Patients.single(counts.num_test, right, 0)
        of_patients = None if counts.patients is None else getattr(counts.patients, field)
    return Evidence.of_patients(of_patients or single)


def _estimated(estimates: Estimates, name: str, num_test: int) -> Evidence | None:
    field = {"global": "global_", DIFFERENCE: "difference"}.get(name, name)
    one: Estimate | None = getattr(estimates, field)
    return None if one is None else Evidence.of_estimate(one.value, one.error, num_rows=num_test)


def _over(
    evidence: Mapping[str, Evidence | None], counts: Mapping[str, TestCounts], weights: Mapping[str, float], name: str
) -> Interval | None:
    """Return the mean over sites; None where a site has no such number: it would be a mean of something else."""
    known = {site: one for site, one in evidence.items() if one is not None}
    if not known or len(known) < len(evidence):
        return None
    one = over_sites(list(known.values()), [weights[site] for site in known], kind=_kind(name))
    # each site's noise is its own
    noises = [weights[site] * noise_on(counts[site], float(of.values.mean())) for site, of in known.items()]
    return with_noise(one, math.hypot(*noises) / math.fsum(weights.values()))


def _worst(each: list[Interval | None]) -> Interval | None:
    values = [math.nan if one is None else one.value for one in each]
    return None if not values or any(map(math.isnan, values)) else Interval(min(values))
