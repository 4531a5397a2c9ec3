"""Whether a site's own data contradict the others': a coding of its labels the other way round, most likely."""

from scipy import stats

LEAST_GAP = 0.2
"""So much less accurate than the site's own model must the federation's be."""
LEVEL = 0.01
"""Of the test that the federation's model is worse than the constant answer, divided by the number of sites."""


def contradiction(
    site: str, *, num_test: int, majority: float, local: float, everyone: float, num_sites: int
) -> str | None:
    """Return a sentence where the model of all sites is worse at a site than knowing nothing; None where it is not.

    Worse by chance is a model that answers as often right as the majority class, binomial test on one side.

    Args:
        num_test: the site's test examples.
        majority: how many of them the site's most frequent class gets right; of several studies their mean.
        local: how many the model trained there alone gets right.
        everyone: how many the global model gets right.
        num_sites: how many sites are looked at: the level is divided by it.
    """
    if num_test <= 0 or everyone > min(local, majority) - LEAST_GAP * num_test:
        return None
    chance = stats.binomtest(round(everyone), num_test, majority / num_test, alternative="less").pvalue
    if chance >= LEVEL / num_sites:
        return None
    shares = [f"{count / num_test:.2f}" for count in (everyone, majority, local)]
    return (
        f"Site '{site}' contradicts the others: the model of all sites is right on {shares[0]} of its test rows, its "
        f"most frequent class alone on {shares[1]}, its own model on {shares[2]}; are its labels coded the other way "
        "round, or its columns in other units?"
    )
