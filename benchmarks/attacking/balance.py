"""Property inference: which part of a site's patients is sick, from the counts that it reports and from zero weights.

At the end a site tells how many of its test rows the most frequent class of its training rows would get right
(`TestCounts.majority`), which divided by the number of test rows is the part of that class. A hostile server can do
better: it sends logistic regression with all weights 0, which gives both classes the probability 1/2, so that after
one step over all rows, with rate r,

    db / r = (part of sick) - 1/2

exactly. Clipping shortens each row's gradient, whose length (|x|**2 + 1)**0.5 / 2 the attacker estimates from rows
that it knows. The part of sick is nobody's patient data: differential privacy does not promise to hide it.
"""

from torch import Tensor

from attacking.victims import VICTIM, Seen


def share_of_majority(seen: Seen) -> float | None:
    """Return the part of the victim's more frequent class; None where it was told no count."""
    test = seen.result.sites[VICTIM].test
    if test is None or test.majority is None:
        return None
    return test.majority / test.num_test


def share_of_update(seen: Seen, rate: float, known: Tensor, *, clip: float | None) -> float:
    """Return the part of sick that one step from zero weights shows.

    Args:
        known: rows like the victim's `(N, D)`.
        clip: of each row's gradient.
    """
    kept = 1.0
    if clip is not None:
        lengths = ((known**2).sum(dim=1) + 1).sqrt() / 2
        kept = float((clip / lengths).clamp_max(1.0).mean())
    return min(1.0, max(0.0, 0.5 + float(seen.delta["bias"][0]) / rate / kept))
