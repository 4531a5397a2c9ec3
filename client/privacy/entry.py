"""A line of a site's privacy ledger."""

from functools import cached_property
from typing import Literal

from pydantic import Field

from consilium.common.privacy.accounting import Charge
from consilium.common.study.record import Record


class Drawn(Record):
    """A `Charge` as a line of the ledger holds it."""

    mechanism: Literal["sgd", "gaussian", "laplace"]
    noise: float = Field(gt=0, allow_inf_nan=False)
    rate: float = Field(default=1.0, gt=0, le=1)
    steps: int = Field(default=1, ge=1)


class Entry(Record):
    """One line of the ledger: what was charged, when, for what, and to whom it went.

    Args:
        server: `host:port` of the server that asked.
        round: 0 before the first.
        data: digest of the data that the numbers are about.
        what: left the site, in words.
        delta: of the study.
        budget: largest epsilon of the study, as it was at the time; None: none was set.
        site_budget: largest epsilon of the site over all studies, likewise.
        key: names the answer that the charges are for.
    """

    time: str
    server: str
    study: str
    run: str
    round: int = Field(ge=0)
    data: str
    what: str
    charges: tuple[Drawn, ...]
    delta: float = Field(gt=0, lt=1)
    budget: float | None = None
    site_budget: float | None = None
    key: str | None = None

    @cached_property
    def drawn(self) -> tuple[Charge, ...]:
        """Return the charges as they are accounted for."""
        return tuple(Charge(one.mechanism, one.noise, one.rate, one.steps) for one in self.charges)
