"""What a site's test rows say of a model, or of the difference of two, in the form that `consilium.findings` reads."""

from collections.abc import Sequence
from itertools import islice

import numpy as np

from consilium.common.intervals.evidence import DRAWS
from consilium.comparison.evaluation import Floats, Labels, Scores
from consilium.findings import LEAST_PATIENTS, Evidence, redrawn

_CELLS_AT_ONCE = 4_000_000


def evidence_of(
    scores: Sequence[Scores], metric: str, *, groups: Labels | None, seed: int, who: str
) -> Evidence | None:
    """Return what one model's answers say of a metric; None where a seed does not define it.

    Args:
        scores: one per seed, at least one, all on the same test examples.
        groups: the patient of every example `(N,)`; None: each its own.
        who: the site; models with the same `seed` and `who` have the same draws, so that differences are paired.
    """
    values = [one.measure(metric) for one in scores]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    adds = [rows for one in scores if (rows := one.per_example(metric)) is not None]
    if adds:
        return Evidence.of_rows(np.stack(adds), groups)
    draws = _drawn(scores, metric, groups, seed=seed, who=who)
    return Evidence(values=np.array(known), draws=draws, groups=groups, num_rows=len(scores[0]))


def minus(joined: Evidence, alone: Evidence) -> Evidence:
    """Return the difference, row by row, seed by seed and draw by draw: both are of the same test examples."""
    if joined.rows is not None and alone.rows is not None:
        return Evidence.of_rows(joined.rows - alone.rows, joined.groups)
    draws = None if joined.draws is None or alone.draws is None else joined.draws - alone.draws
    values = joined.values - alone.values
    return Evidence(values=values, draws=draws, groups=joined.groups, num_rows=joined.num_rows)


def averaged(evidences: Sequence[Evidence], weights: Sequence[float]) -> Evidence:
    """Return the weighted mean of several sites' evidence on the very same test examples; not all weights are 0."""
    shares = [weight / sum(weights) for weight in weights]

    def mean(parts: Sequence[Floats | None]) -> Floats | None:
        known = [share * part for share, part in zip(shares, parts, strict=True) if part is not None]
        return np.sum(known, axis=0) if len(known) == len(parts) else None

    rows, draws = mean([one.rows for one in evidences]), mean([one.draws for one in evidences])
    first = evidences[0]
    if rows is not None:
        return Evidence.of_rows(rows, first.groups)
    values = np.average([one.values for one in evidences], axis=0, weights=shares)
    return Evidence(values=values, draws=draws, groups=first.groups, num_rows=first.num_rows)


def _drawn(scores: Sequence[Scores], metric: str, groups: Labels | None, *, seed: int, who: str) -> Floats:
    """Return `(seeds, draws)`: the metric on patients drawn anew, the same ones for every seed; NaN: undefined.

    All are NaN where the metric hangs on fewer than `LEAST_PATIENTS`: draws hardly move what single patients carry.
    """
    if min(one.carriers(metric, groups) for one in scores) < LEAST_PATIENTS:
        return np.full((len(scores), DRAWS), np.nan)
    drawn, found = redrawn(len(scores[0]), groups, draws=DRAWS, seed=seed, who=who), list[Floats]()
    while taken := list(islice(drawn, max(1, _CELLS_AT_ONCE // len(scores[0])))):  # all at once would fill the memory
        found.append(np.stack([one.in_draws(metric, taken) for one in scores]))
    return np.concatenate(found, axis=1)
