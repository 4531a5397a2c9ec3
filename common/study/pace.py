"""When the server makes new weights: `[schedule]`."""

from typing import Annotated, Literal

from pydantic import Field

from consilium.common.study.record import Record


class RoundsPace(Record):
    """Round by round: every site that is asked trains from the same weights, and their updates count together."""

    kind: Literal["rounds"] = "rounds"


class BufferedPace(Record):
    """FedBuff: as soon as a few updates are there, whichever sites they come from; slow sites hold up nobody.

    A round ends with `size` updates. All sites that are not at work get the new weights at once; those that still are
    go on, and their update counts in a later round.
    """

    kind: Literal["buffered"] = "buffered"
    size: int = Field(ge=1)
    """Updates of a round; with the number of all sites it is a round as in `rounds`."""
    max_staleness: int = Field(default=10, ge=0, le=1_000_000)
    """An update is refused whose weights were sent more rounds ago than this; its site is asked anew."""
    discount: float = Field(default=0.5, ge=0, le=10)
    """An update from weights of `n` rounds ago counts `(1 + n) ** -discount` of its share; 0: in full. The paper has
    0.5.
    """


PaceConfig = Annotated[RoundsPace | BufferedPace, Field(discriminator="kind")]
