"""What a site remembers of the secure sums of a run: its key, the others' keys, and what it has sent and opened."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from consilium.common.errors import StateError
from consilium.common.host.twice import read_twice, write_twice
from consilium.common.protocol.plans import Hex32
from consilium.common.study.names import SiteName
from consilium.common.study.record import Record

FILE = "secure.json"
"""File of a run's folder; for its owner alone, as it holds the key of the run; it is kept twice."""

Names = Annotated[tuple[SiteName, ...], Field(min_length=1)]


class Sent(Record):
    """The last update that was masked: its context (see `Context`), without what all rounds of a run have in common.

    Args:
        steps, noise: as `Context` has them.
        words: tag of the words before they were masked: under one context, no others are.
        update: tag of the words before they got noise: in one round, no others do; None without noise.
        survivors: the sites whose masks were opened, once they were.
    """

    round: int
    attempt: int
    cohort: Names
    weights: Hex32
    examples: int
    loss: float
    steps: float | None = None
    noise: float | None = None
    words: Hex32
    update: Hex32 | None = None
    survivors: Names | None = None

    @property
    def place(self) -> tuple[int, int]:
        """Round and attempt."""
        return self.round, self.attempt


class Memory(Record):
    """What is kept of one run.

    Args:
        key: of the run, private.
        peers: the public keys of the run's sites, whose signatures were checked.
    """

    site: SiteName
    key: Hex32 = Field(repr=False)
    peers: dict[SiteName, Hex32] = Field(default_factory=dict)
    sent: Sent | None = None


def read_memory(folder: Path, *, site: str) -> Memory | None:
    """Return what was kept of a run in its folder; None where nothing was.

    Raises:
        StateError: it cannot be read, or is another site's.
    """
    path = folder / FILE
    try:
        content, _ = read_twice(path)
        if content is None:
            return None
        memory = Memory.model_validate_json(content)
    except ValidationError:
        raise StateError(
            f"site '{site}': '{path}' is damaged, so it is not known what was masked; start a new run"
        ) from None  # the error shows values, and one of them is the key
    if memory.site != site:
        raise StateError(f"'{path}' belongs to site '{memory.site}', expected '{site}'")
    return memory


def write_memory(folder: Path, memory: Memory) -> None:
    """Keep it: it is on the disk when this returns.

    Raises:
        StateError: the folder is unwritable or the disk is full.
    """
    write_twice(folder / FILE, memory.model_dump_json().encode())
