"""How the rounds of a study are played: sites together, summed secretly, or as their updates come."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from consilium.common.results import RoundRecord
from consilium.common.study.pace import BufferedPace
from consilium.server.privacy.secure.round import run_secure_round
from consilium.server.strategies import ServerState
from consilium.server.study.buffered import desk_of
from consilium.server.study.context import Study
from consilium.server.study.round import run_round

Play: TypeAlias = Callable[[Study, ServerState], tuple[ServerState, RoundRecord]]
"""Plays one round, and returns the new state with its record."""


@contextmanager
def playing(study: Study) -> Iterator[Play]:
    """Give what plays the rounds of a study, one after the other."""
    if isinstance(schedule := study.config.schedule, BufferedPace):
        with desk_of(study, schedule) as desk:
            yield desk.play
        return
    yield run_secure_round if study.config.privacy.secure_aggregation else run_round
