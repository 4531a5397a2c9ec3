"""A torch module that somebody made and gave along, in place of a model that is built by name."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from torch import nn


@dataclass(frozen=True, eq=False)
class Given:
    """A module that a study's model is copied from, initial weights included, and the state_dict names of its head."""

    name: str
    module: nn.Module
    head: frozenset[str]

    def called(self, name: str) -> "Given":
        """Return the same module under another name: that of the model whose weights are put into it."""
        return replace(self, name=name)


_given: ContextVar[Given | None] = ContextVar("given", default=None)


@contextmanager
def giving(given: Given | None) -> Iterator[None]:
    """Within the block, models of this name are copies of this module; in this thread alone."""
    token = _given.set(given)
    try:
        yield
    finally:
        _given.reset(token)


def given_as(name: str) -> Given | None:
    """Return the module that was given along under a name; None where there is none."""
    given = _given.get()
    return given if given is not None and given.name == name else None
