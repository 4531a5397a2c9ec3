"""How many sites a secure sum takes: at least three, and so many answers that no second sum can be had beside it."""

LEAST_SITES, MOST_SITES = 3, 64
"""Fewest sites of a sum: of two, each would know the other's part. Most: masks are made for every pair of sites."""


def threshold(sites: int) -> int:
    """Return how many of a round's sites must take part to its end: two thirds, rounded up.

    Two sets of so many sites have at least a third of them in common, and a site answers one set only, so that no
    second sum of the same round can be unmasked unless a third of the sites are dishonest (Bonawitz 2017, section 6.2).
    """
    return -(-2 * sites // 3)
