"""Label shift: a label that is far more frequent at one site than at another, or that a site does not label.

Of the sites that know a label, those with the lowest and the highest odds are compared. With n_1 examples that have it
and n_0 that have it not at each, plus 1/2 so that none is 0 (Haldane 1956, doi:10.1111/j.1469-1809.1955.tb01285.x),

    d = log(n_1 / n_0) at one site less that at the other        s^2 = sum over both of 1 / n_1 + 1 / n_0

they differ if d >= log 3 and d >= 3 s: three times the odds, and more than chance gives.

Counts that a site noised have the variance v of their noise besides: s^2 has 1 / n + v / n^2 of each. A site whose
counts of a label are no larger than 3 standard deviations of it may know none, and is compared with nobody.
"""

import math
from collections.abc import Collection, Mapping, Sequence

from consilium.common.errors import listed

Counts = Mapping[str, Mapping[str, tuple[int, int]]]
"""Per site and label, how many examples have it, and how many have it not."""
TIMES = 3.0
"""Ratio of two odds from which on sites differ."""
ERRORS = 3.0
"""How many standard errors that must be."""
MOST_SENTENCES = 6
"""How many labels are named of each kind."""
_MOST_SITES = 4


def label_shift(labels: Sequence[str], counts: Counts, noise: Mapping[str, float]) -> list[str]:
    """Return a sentence on each label whose shares differ between sites, and on each that some site does not label.

    Args:
        counts: of the sites that share theirs.
        noise: of the sites that noised theirs, the standard deviation on each count.
    """
    known = {label: _known(label, counts, noise) for label in labels}
    hidden = {label: [site for site in sorted(noise.keys() & counts) if site not in of] for label, of in known.items()}
    shares = [text for label in labels if (text := _share(label, known[label], noise)) is not None]
    absent = [text for label in labels if (text := _absent(label, counts, known[label], hidden[label])) is not None]
    covered = [text for label in labels if (text := _covered(label, hidden[label])) is not None]
    return [
        *_first(shares, "differ as much"),
        *_first(absent, "are not known at every site"),
        *_first(covered, "are hidden by noise"),
    ]


def _known(label: str, counts: Counts, noise: Mapping[str, float]) -> dict[str, tuple[int, int]]:
    """Return the counts of the sites that know a label for sure."""
    told = {site: of.get(label, (0, 0)) for site, of in sorted(counts.items())}
    return {site: both for site, both in told.items() if max(both) > ERRORS * noise.get(site, 0.0)}


def _share(label: str, known: Mapping[str, tuple[int, int]], noise: Mapping[str, float]) -> str | None:
    if len(known) < 2:
        return None
    odds = {site: math.log((there + 0.5) / (not_there + 0.5)) for site, (there, not_there) in known.items()}
    low, high = min(odds, key=odds.__getitem__), max(odds, key=odds.__getitem__)
    apart = odds[high] - odds[low]
    error = math.sqrt(sum(_variance(count, noise.get(site, 0.0)) for site in (low, high) for count in known[site]))
    if apart < max(math.log(TIMES), ERRORS * error):
        return None
    told = [f"{known[site][0]:,} of {sum(known[site]):,} ({_percent(known[site])}) at '{site}'" for site in (low, high)]
    return (
        f"label shift: '{label}' is there in {told[0]} and in {told[1]}, of the examples that know it: a probability "
        "that is right at one site is too high or too low at the other"
    )


def _variance(count: int, noise: float) -> float:
    """Return the variance of a count's logarithm."""
    return 1 / (count + 0.5) + (noise / (count + 0.5)) ** 2


def _absent(label: str, counts: Counts, known: Mapping[str, tuple[int, int]], hidden: Collection[str]) -> str | None:
    without = [site for site in sorted(counts) if site not in known and site not in hidden]
    if not without:
        return None
    if len(without) == len(counts):
        return f"label '{label}' is known of no example at any site that shares its counts: nothing is learned of it"
    learned = "and learned at the other sites alone: how" if known else "how"
    return (
        f"label '{label}' is known of no example at {listed(without, _MOST_SITES, 'sites')}, {learned} well it is "
        "predicted there cannot be measured"
    )


def _covered(label: str, hidden: Sequence[str]) -> str | None:
    if not hidden:
        return None
    return (
        f"label '{label}': the noise on the counts of {listed(hidden, _MOST_SITES, 'sites')} hides whether any example "
        "there knows it"
    )


def _percent(of: tuple[int, int]) -> str:
    return f"{100 * of[0] / sum(of):.3g} %"


def _first(sentences: list[str], what: str) -> list[str]:
    if len(sentences) <= MOST_SENTENCES:
        return sentences
    return [*sentences[:MOST_SENTENCES], f"... and {len(sentences) - MOST_SENTENCES} more labels {what}"]
