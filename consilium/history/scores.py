"""Scores of a run on its sites' test rows: plain shares of correct answers, without intervals."""

import math
from collections.abc import Mapping

from consilium.common.results import RunResult

MODELS = ("personal", "global", "local")
"""Models of a run, the one that sites serve first."""


def scores_of(result: RunResult) -> dict[str, dict[str, float]]:
    """Return per model the share of correct answers on each site's test rows, of the sites that measured it."""
    scores: dict[str, dict[str, float]] = {}
    for site, facts in sorted(result.sites.items()):
        if facts.test is None:
            continue
        counts = (facts.test.personal, facts.test.global_, facts.test.local)
        for model, right in zip(MODELS, counts, strict=True):
            if right is not None:
                scores.setdefault(model, {})[site] = right / facts.test.num_test
    return scores


def mean_of(scores: Mapping[str, float]) -> float:
    """Return the mean over sites, each counted alike."""
    return math.fsum(scores.values()) / len(scores)
