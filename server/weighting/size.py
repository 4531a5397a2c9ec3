"""Size: a site counts by its number of training examples; the exponent tempers it.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas: Communication-Efficient Learning of Deep Networks from
Decentralized Data, AISTATS 2017, algorithm 1, https://arxiv.org/abs/1602.05629

    value_k = n_k;    exponent 1 is FedAvg, 0.5 the square root of the size, 0 gives every site the same

with n_k = `Update.num_examples`. Keeps no memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from consilium.server.weighting.contract import Evidence, Reading


@dataclass(frozen=True)
class Size:
    """Number of training examples."""

    def read(self, evidence: Evidence, memory: Mapping[str, float]) -> Reading:
        """Return every site's number of examples."""
        return Reading(evidence.sizes, {"examples": evidence.sizes})
