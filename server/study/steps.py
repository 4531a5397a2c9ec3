"""How much of a round's step each site made: the step without it, by leave-one-out."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from consilium.server.study.record import Intake

Floats = npt.NDArray[np.float64]

SMALL = 0.5
"""How much of a step is left, at most, without a site that made it."""
FEWEST_SITES = 3
"""Sites whose steps are told apart: of two, each one's is what the other's is not."""


def made_by(intake: Intake, shares: Mapping[str, float]) -> dict[str, float]:
    """Return the sites that made a round's step, each with the part of it that is left without the site.

    Args:
        intake: with the cosines of its updates; without them nobody is named.
        shares: how much each site counted.
    """
    sites, cosines = [update.site for update in intake.updates], intake.directions.cosines
    if cosines is None or len(sites) < FEWEST_SITES:
        return {}
    rows = [intake.directions.sites.index(site) for site in sites]
    lengths = np.array([intake.lengths[site].trained * intake.shortened.get(site, 1.0) for site in sites])
    left = left_without(cosines[np.ix_(rows, rows)], lengths, np.array([shares.get(site, 0.0) for site in sites]))
    return {site: round(float(part), 4) for site, part in zip(sites, left, strict=True) if part <= SMALL}


def left_without(cosines: Floats, lengths: Floats, shares: Floats) -> Floats:
    """Return which part of a round's step is left without each site, from 0 on.

    Args:
        cosines: of every two updates, shape (sites, sites).
        lengths: of the updates as they counted, shape (sites,).
        shares: of the sites, which sum to 1, shape (sites,).
    """
    parts = lengths * shares
    products = cosines * np.outer(parts, parts)
    whole, rows, own = products.sum(), products.sum(axis=1), np.diag(products)
    with np.errstate(divide="ignore", invalid="ignore"):
        squares = np.maximum(0, whole - 2 * rows + own) / np.maximum(0, whole) / (1 - shares) ** 2
    left: Floats = np.nan_to_num(np.sqrt(squares), nan=1.0, posinf=np.inf)
    return left
