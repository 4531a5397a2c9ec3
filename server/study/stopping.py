"""When a study ends, and with which round's model: what its sites measure, round by round, decides."""

from collections.abc import Iterable
from dataclasses import replace

from consilium.common.results import RoundRecord
from consilium.common.stopping import Point, best_of, point_of
from consilium.common.study.stopping import StoppingConfig
from consilium.server.strategies import ServerState
from consilium.server.strategies.contract import BestRound


def points_of(stopping: StoppingConfig | None, rounds: Iterable[RoundRecord]) -> tuple[Point, ...]:
    """Return the means over the sites of all rounds in which models were measured."""
    return tuple(point for record in rounds if (point := point_of(stopping, record)) is not None)


def with_best(
    stopping: StoppingConfig | None, before: ServerState, after: ServerState, points: tuple[Point, ...]
) -> ServerState:
    """Return the state after a round with the best round so far, where a study ends with the model of that.

    What sites measure in a round is the model that they serve with the weights that they were sent at its beginning.
    """
    if stopping is None or stopping.final == "last":
        return after
    best = best_of(stopping, points)
    if best is None or best.round != after.round:
        return replace(after, best=before.best)
    return replace(after, best=BestRound(after.round, before.weights, asked=after.asked, accepted=after.accepted))


def ending(state: ServerState) -> ServerState:
    """Return the state that a study ends with: after its last round, or as if it had ended with its best one."""
    if (best := state.best) is None:
        return state
    return ServerState(best.round, best.weights, state.buffers, asked=best.asked, accepted=best.accepted)
