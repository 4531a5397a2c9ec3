"""Many p-values at once: adjusted so that any wrong finding among all of them has the chance of one alone."""

from collections.abc import Mapping


def holm(p: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return p-values adjusted so that any wrong "clear" among all of them has at most the chance of one alone.

    Sture Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6(2),
    1979: of `m` in rising order, the i-th is multiplied by `m - i + 1`, and none is below one before it. None stays
    None and is not counted.
    """
    known = sorted((value, name) for name, value in p.items() if value is not None)
    adjusted: dict[str, float | None] = dict.fromkeys(p)
    largest = 0.0
    for place, (value, name) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - place) * value))
        adjusted[name] = largest
    return adjusted
