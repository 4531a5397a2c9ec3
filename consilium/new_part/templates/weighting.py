"""my_part: no site counts for more than `most` times the examples of the smallest site of the round.

    value_k = min(n_k, most * min_j n_j)

Say here where your factor comes from: authors, title, year, link.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from consilium.parts import FactorSettings, Part
from consilium.server.weighting import Evidence, Reading


class MyPartSettings(FactorSettings):
    """Number of examples, at most some times that of the smallest site."""

    holds_size: ClassVar[bool] = True
    kind: Literal["my_part"] = "my_part"
    most: float = Field(default=10.0, ge=1)
    """How many times the examples of the smallest site count at most."""


@dataclass(frozen=True)
class MyPart:
    """Sizes up to `most` times the smallest; keeps no memory."""

    most: float

    def read(self, evidence: Evidence, memory: Mapping[str, float]) -> Reading:
        """Return every site's value, in examples."""
        sizes = evidence.sizes
        top = self.most * min(sizes.values())
        return Reading({site: min(size, top) for site, size in sizes.items()})


PART = Part(MyPartSettings, MyPart)
