"""The context of a secure sum: everything that the sites of a round must agree on for their masks to cancel.

Every mask and every key of a round is derived from a secret of two sites *and* the context. A server that tells two
sites of a round different things, other weights above all, gets words that do not add up to anything, and shares that
no other site can open (PRIVACY A8; the attack is Pasquini, Francati, Ateniese: Eluding Secure Aggregation in Federated
Learning via Model Inconsistency, CCS 2022, https://arxiv.org/abs/2111.07380).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from consilium.common.study.study import StudyConfig

_NAME = "consilium secure sum 1"


def sum_digest(study: StudyConfig) -> str:
    """Return the SHA-256 of a study without its sites' names, which is the same at the server and at every site."""
    count = study.num_sites or len(study.sites)
    text = study.model_dump_json(exclude={"accept", "sites", "num_sites"})
    return hashlib.sha256(f"{count} {text}".encode()).hexdigest()


@dataclass(frozen=True)
class Context:
    """What the sites of one attempt at one round agree on.

    Args:
        study: its `sum_digest`.
        attempt: how often the round has been tried, with this one.
        cohort: the sites that were asked, in sorted order.
        weights: digest of the weights that the site received.
        examples, loss, steps: the references that sites measure their own weight and their updates by.
        noise: the noise multiplier of the sum; None where it hides no whole sites.
    """

    study: str
    run: str
    round: int
    attempt: int
    cohort: tuple[str, ...]
    weights: str
    examples: int
    loss: float
    steps: float | None = None
    noise: float | None = None

    @cached_property
    def digest(self) -> bytes:
        """The SHA-256 of all of it."""
        return hashlib.sha256(json.dumps([_NAME, asdict(self)], sort_keys=True).encode()).digest()

    def derived(self, secret: bytes, purpose: str, *names: str, size: int = 32) -> bytes:
        """Return bytes for one purpose in this context, from a secret of 32 uniform bytes.

        Args:
            names: the sites that it is for.
        """
        info = json.dumps([purpose, self.digest.hex(), *names]).encode()
        return HKDFExpand(SHA256(), size, info).derive(secret)


def pair_secret(shared: bytes, *, study: str, run: str, names: Sequence[str], keys: Sequence[str]) -> bytes:
    """Return the secret that two sites have in a run, the same at both.

    Args:
        shared: what the key exchange gave.
        names, keys: of the two, in the order of the names.
    """
    info = json.dumps([_NAME, "pair", study, run, list(names), list(keys)]).encode()
    return HKDF(SHA256(), 32, None, info).derive(shared)
