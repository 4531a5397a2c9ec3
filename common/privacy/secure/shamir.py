"""Secrets shared among sites, so that any `threshold` of them know it, and fewer know nothing.

Shamir: How to Share a Secret, Communications of the ACM 22(11), 1979, https://doi.org/10.1145/359168.359176

    f(x) = secret + a_1 x + ... + a_(t-1) x**(t-1)  in the field of PRIME,    share_i = f(i), i = 1 .. n
    secret = f(0) = sum_i share_i * prod_(j != i) j / (j - i)  over any t of the shares

Law: with uniform a_1 .. a_(t-1), any t - 1 shares are uniform and independent of the secret.
"""

from collections.abc import Sequence

PRIME = 2**256 + 297
"""The least prime above 2**256: every secret of 32 bytes is a number below it."""
SECRET_BYTES, SHARE_BYTES = 32, 33


def split(secret: bytes, *, shares: int, threshold: int, random: bytes) -> list[bytes]:
    """Return the shares of a secret of 32 bytes, for the places 1 to `shares`.

    Args:
        threshold: how many shares give the secret back.
        random: `random_bytes(threshold)` secret bytes, which nobody else can guess.
    """
    size = SECRET_BYTES + 16  # so many more bits than the prime has that the remainder is uniform but for 2**-127
    polynomial = [int.from_bytes(secret, "big")]
    polynomial += [int.from_bytes(random[k * size : (k + 1) * size], "big") % PRIME for k in range(threshold - 1)]
    return [_value(polynomial, place).to_bytes(SHARE_BYTES, "big") for place in range(1, shares + 1)]


def random_bytes(threshold: int) -> int:
    """Return how many random bytes `split` takes."""
    return (SECRET_BYTES + 16) * (threshold - 1)


def _value(polynomial: Sequence[int], place: int) -> int:
    total = 0
    for coefficient in reversed(polynomial):
        total = (total * place + coefficient) % PRIME
    return total


def factors(places: Sequence[int]) -> list[int]:
    """Return the factors by which the shares of these places, each another one, add up to the secret."""
    found = []
    for place in places:
        above = below = 1
        for other in places:
            if other != place:
                above, below = above * other % PRIME, below * (other - place) % PRIME
        found.append(above * pow(below, -1, PRIME) % PRIME)
    return found


def join(shares: Sequence[bytes], by: Sequence[int]) -> bytes:
    """Return the secret of which these are shares.

    Args:
        by: the `factors` of their places, as many as the threshold.

    Raises:
        ValueError: they are no shares of one secret of 32 bytes.
    """
    total = sum(int.from_bytes(share, "big") * factor for share, factor in zip(shares, by, strict=True)) % PRIME
    if total >= 2**256:
        raise ValueError("these are no shares of one secret")
    return total.to_bytes(SECRET_BYTES, "big")
