"""What a personalisation method is: what may leave the site, how to train, what the site serves.

The site composes the rest around it: arrays that are not shared are kept in the site's state and put
back before every round, so a method with a personal part needs no code to remember it.
"""

from collections.abc import Mapping
from typing import Protocol

from client.models import Model
from client.training import LocalWork
from common.weights import Array

Memory = Mapping[str, Array]
"""Arrays that a method keeps at the site from round to round; empty for most."""


class Method(Protocol):
    """A rule of the site. Settings are fields of a frozen dataclass; memory is an argument."""

    def shared(self, model: Model) -> frozenset[str]:
        """Return the state-dict names that may leave the site; everything else is personal."""
        ...

    def train(self, model: Model, memory: Memory, work: LocalWork) -> tuple[Memory, float]:
        """Train `model` in place from the weights received; return the new memory and the mean loss."""
        ...

    def extra(self, work: LocalWork) -> LocalWork | None:
        """Return the local training that `personalise` adds to the rounds' work, None for none.

        The local-only baseline gets the same, so that both sides of the comparison have one budget.
        """
        ...

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> None:
        """Turn `model`, which holds the received and the personal weights, into what this site serves.

        May train on the site's training examples (`work`), never on others.
        """
        ...
