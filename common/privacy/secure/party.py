"""One site's part in a secure sum: its masks, the shares by which others can take them off, and what it opens of these.

Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal, Seth: Practical Secure Aggregation for
Privacy-Preserving Machine Learning, CCS 2017, figure 4, https://doi.org/10.1145/3133956.3133982, with the one setup per
run of Ma, Woods, Angel, Polychroniadou, Rabin: Flamingo: Multi-Round Single-Server Secure Aggregation with
Applications to Private Federated Learning, S&P 2023, https://eprint.iacr.org/2023/486

    y_u = x_u + PRG(b_u) + sum_(v > u) PRG(s_uv) - sum_(v < u) PRG(s_uv)

with x_u the site's words, s_uv a seed that u and v derive from their secret and the round's context, and b_u one that
u alone can derive. Each site sends y_u together with Shamir shares of b_u and of all its s_uv, sealed for each site of
the round. When it is known who has sent (U) and who has not (D), every site opens its shares of b_u for u in U and of
s_ud for u in U, d in D: the masks of those who sent among each other cancel, the rest is taken off by the server.

Deviations from the papers. Bonawitz shares a site's private key, which would give away a dropped site's masks of every
later round; Flamingo leaves the shares to a committee of decryptors, which pays from hundreds of sites on. Here the
seeds of one round are shared, not keys: n**2 shares of 33 bytes per site, 8 kB at 16 sites. All seeds follow from keys
and context, so that a site that is asked again sends the same bytes and has nothing to remember. The full graph of
pairs is used up to 64 sites, where the sparse one of Bell, Bonawitz, Gascon, Lepoint, Raykova: Secure Single-Server
Aggregation with (Poly)Logarithmic Overhead, CCS 2020, https://eprint.iacr.org/2020/704, saves little.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from consilium.common.errors import ProtocolError
from consilium.common.privacy.secure.context import Context
from consilium.common.privacy.secure.keys import SEAL_BYTES, seal, unseal
from consilium.common.privacy.secure.masks import Words, add_mask
from consilium.common.privacy.secure.shamir import SHARE_BYTES, random_bytes, split
from consilium.common.privacy.secure.sizes import threshold
from consilium.common.weights.arrays import bytes_view

_TAGGED = 2**28
"""Bytes that one tag covers."""


def sealed_bytes(sites: int) -> int:
    """Return the length of the sealed shares that one site of a round sends to another."""
    return sites * SHARE_BYTES + SEAL_BYTES


def sign_of(one: str, other: str) -> int:
    """Return how the mask of a pair enters the words of its first site: the other's has the other sign."""
    return 1 if one < other else -1


def opened_shares(survivors: Sequence[str], dropped: Sequence[str]) -> list[tuple[str, str]]:
    """Return which shares a site opens, in their order: of each survivor's own mask, and of its masks with the dropped.

    Returns:
        Pairs of a survivor and the site that its mask is shared with: itself for its own mask.
    """
    return [(name, name) for name in sorted(survivors)] + [
        (name, other) for name in sorted(survivors) for other in sorted(dropped)
    ]


@dataclass(frozen=True, repr=False)
class Party:
    """A site with its secrets of a run.

    Args:
        own: 32 bytes that it alone knows.
        pairs: 32 bytes that it shares with each other site.
    """

    name: str
    own: bytes
    pairs: Mapping[str, bytes]

    def mask(self, words: Words, context: Context) -> tuple[bytes, ...]:
        """Mask words in place, and return the shares for the sites of the cohort, in their order, each sealed."""
        seeds = self._seeds(context)
        for other, seed in seeds.items():
            add_mask(words, seed, sign=1 if other == self.name else sign_of(self.name, other))
        least = threshold(len(context.cohort))
        size = random_bytes(least)
        shares = [
            split(
                seed,
                shares=len(context.cohort),
                threshold=least,
                random=_long(context, self.own, "shares", self.name, other, size=size),
            )
            for other, seed in seeds.items()
        ]
        return tuple(
            seal(self._seal_key(context, self.name, peer), b"".join(of[place] for of in shares))
            for place, peer in enumerate(context.cohort)
        )

    def tag(self, words: Words, context: Context) -> str:
        """Return what tells these words from any others in this context, in hexadecimal digits.

        A MAC (AES-GCM's) under a key that only this site has: as good as a hash here, and several times as fast.
        """
        mac, sha = AESGCM(context.derived(self.own, "tag of the words")), hashlib.sha256()
        for number, content in enumerate((bytes_view(words.narrow), bytes_view(words.wide))):
            for start in range(0, len(content), _TAGGED):
                nonce = number.to_bytes(4, "big") + start.to_bytes(8, "big")
                sha.update(mac.encrypt(nonce, b"", content[start : start + _TAGGED]))
        return sha.hexdigest()

    def noise_seed(self, words: Words, context: Context) -> tuple[str, bytes]:
        """Return what tells an update, as words without noise, from others of its round, and the seed of its noise.

        The same update has the same noise in every attempt, so that none is worn off by asking again; another one has
        noise of its own, as the difference of two that share theirs would have none.

        Args:
            context: of any attempt at the round: its number, cohort and references of weights do not count.
        """
        occasion = replace(context, attempt=0, cohort=(), examples=1, loss=0.0)
        tag = self.tag(words, occasion)
        return tag, occasion.derived(self.own, "noise", tag)

    def opened(self, context: Context, sealed: Mapping[str, bytes]) -> bytes:
        """Return this site's shares of the masks that are to be taken off, as `opened_shares` orders them.

        Args:
            sealed: what each survivor sealed for this site; the others of the cohort are the dropped.

        Raises:
            ProtocolError: one cannot be opened: its sender works on another context, or somebody has changed it.
        """
        shares = dict[tuple[str, str], bytes]()
        for sender, text in sealed.items():
            plain = unseal(self._seal_key(context, sender, self.name), text)
            if plain is None:
                raise ProtocolError(
                    f"site '{self.name}': what site '{sender}' sealed for round {context.round} cannot be opened here: "
                    "the server has told the two different things (weights, cohort or study), or changed it on its way"
                )
            for place, other in enumerate(context.cohort):
                shares[sender, other] = plain[place * SHARE_BYTES : (place + 1) * SHARE_BYTES]
        dropped = [name for name in context.cohort if name not in sealed]
        return b"".join(shares[pair] for pair in opened_shares([*sealed], dropped))

    def _seeds(self, context: Context) -> dict[str, bytes]:
        """Return the seed of this site's own mask, and those of its masks with the others, in the cohort's order."""
        return {
            name: context.derived(self.own, "own mask", name)
            if name == self.name
            else context.derived(self.pairs[name], "mask", *sorted((self.name, name)))
            for name in context.cohort
        }

    def _seal_key(self, context: Context, sender: str, receiver: str) -> bytes:
        secret = self.own if sender == receiver else self.pairs[sender if receiver == self.name else receiver]
        return context.derived(secret, "shares", sender, receiver)


def _long(context: Context, secret: bytes, *purpose: str, size: int) -> bytes:
    """Return any number of bytes; HKDF gives 8,160 at a time."""
    pieces = [
        context.derived(secret, *purpose, str(start), size=min(4096, size - start)) for start in range(0, size, 4096)
    ]
    return b"".join(pieces)
