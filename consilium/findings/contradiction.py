"""Whether a site's own data contradict the others': labels coded the other way round, or other units, most likely."""

import numpy as np
import scipy  # its stats are loaded when they are used first

from consilium.common.intervals.evidence import Floats

LEAST_GAP = 0.2
"""How much less accurate than the site's own model the federation's must be, at least."""
LEAST_RATIO = 1.25
"""Where labels are numbers: how many times the errors of the site's own model and of the constant answer the
federation's must be, at least."""
LEVEL = 0.01
"""Level of the test that the federation's model is worse than the constant answer; divided by the number of sites."""


def contradiction(
    site: str,
    *,
    num_test: int,
    majority: float,
    local: float,
    everyone: float,
    num_sites: int,
    constant: str = "most frequent class",
) -> str | None:
    """Return a sentence where the model of all sites is worse at a site than knowing nothing; None where it is not.

    Worse by chance is a model that answers as often right as the constant answer, binomial test on one side.

    Args:
        num_test: the site's test examples.
        majority: how many of them the site's constant answer gets right; of several studies their mean.
        local: how many the model trained there alone gets right.
        everyone: how many the global model gets right.
        num_sites: the sites of the study: the level is divided by their number.
        constant: name of the constant answer.
    """
    if num_test <= 0 or everyone > min(local, majority) - LEAST_GAP * num_test:
        return None
    chance = scipy.stats.binomtest(round(everyone), num_test, majority / num_test, alternative="less").pvalue
    if chance >= LEVEL / num_sites:
        return None
    shares = [f"{count / num_test:.2f}" for count in (everyone, majority, local)]
    return (
        f"Site '{site}' contradicts the others: the model of all sites is right on {shares[0]} of its test rows, its "
        f"{constant} alone on {shares[1]}, its own model on {shares[2]}; {_question(constant)}"
    )


def contradiction_of_errors(
    site: str, *, constant: Floats, local: Floats, everyone: Floats, num_sites: int
) -> str | None:
    """Return the sentence of a site whose labels are numbers; None where its data do not contradict the others'.

    Errors are centred at their median first: sites whose labels lie higher than others' are no contradiction. Then the
    mean absolute error of the model of all sites must be at least 1.25 times that of the site's own model and that of
    the constant answer, and by a sign test on one side it must be further off than the constant more often than not.

    In simulated linear studies of six sites with 40 test rows each, this names 90 to 97 % of the sites whose labels
    have the wrong sign, and 0 to 0.3 % of honest sites, however their coefficients and means differ. It names 35 % of
    them at three times the noise and 20 % with 10 test rows. It does not find a site whose labels are in other units:
    where one site's are ten times the others', that site is not named, and 15 % of the other sites are.

    Args:
        constant: answer minus label `(N,)` on the site's test rows, of the mean of its training labels.
        local: of the model trained there alone.
        everyone: of the global model.
        num_sites: the sites of the study: the level is divided by their number.
    """
    of_everyone, of_constant, of_local = (np.abs(errors - np.median(errors)) for errors in (everyone, constant, local))
    means = [float(errors.mean()) for errors in (of_everyone, of_constant, of_local)]
    differ = int((of_everyone != of_constant).sum())
    if not differ or means[0] < LEAST_RATIO * max(means[1:]):
        return None
    chance = scipy.stats.binomtest(int((of_everyone > of_constant).sum()), differ, 0.5, alternative="greater").pvalue
    if chance >= LEVEL / num_sites:
        return None
    texts = [f"{mean:.3g}" for mean in means]
    return (
        f"Site '{site}' contradicts the others: on its test rows, apart from a constant, the model of all sites is off "
        f"by {texts[0]}, the mean of its training labels by {texts[1]}, its own model by {texts[2]}; "
        f"{_question('training mean')}"
    )


def _question(constant: str) -> str:
    if constant == "training mean":
        return "is its label in other units or of the other sign, or are its columns?"
    return "are its labels coded the other way round, or its columns in other units?"
