"""What an update counts whose site was asked some rounds ago, from weights that are not the newest any more.

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba: Federated Learning with Buffered Asynchronous Aggregation
(FedBuff), AISTATS 2022, algorithm 1 and section 3, https://arxiv.org/abs/2106.06639.

With the updates k of round t + 1, site k asked for round r_k, and shares p_k that sum to 1:

    tau_k = t + 1 - r_k,    s(tau) = (1 + tau) ** -discount,    mean = sum_k p_k s(tau_k) delta_k

and the study's strategy applies this mean to the newest weights. The factors do not sum to 1 again, as in the paper: a
round of old updates makes a shorter step, not the same step from fewer.

Arrays that gradients do not move (running statistics and counts) go towards what the site has, in place of by as much
as it moved them: v_k is the site's array, and the mean is of s(tau_k) (v_k - w(t)). By differences alone, several old
updates of one variance could bring it below 0. Whole numbers are rounded for each update. The paper has no such arrays.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from consilium.common.study.pace import BufferedPace
from consilium.common.weights.arrays import Array, Spec, Weights, block, is_float, spec
from consilium.server.strategies import ServerState, Update
from consilium.server.strategies.contract import Floats


def factor(schedule: BufferedPace, stale: int) -> float:
    """Return what an update counts, as a part of its share.

    Args:
        stale: rounds since its site was asked, >= 0.
    """
    return float((1 + stale) ** -schedule.discount)


def discounted(
    schedule: BufferedPace,
    state: ServerState,
    updates: Sequence[Update],
    stale: Mapping[str, int],
    sent: Mapping[int, Weights],
) -> list[Update]:
    """Return the updates of a round as they count; those from the newest weights as they are.

    Args:
        stale: rounds since each site was asked.
        sent: the weights that were sent for each round of which there is an update, at least `state.averaged`.
    """
    return [
        update
        if not (rounds := stale[update.site])
        else replace(
            update,
            delta=_Late(update.delta, factor(schedule, rounds), _moves(state, sent[state.round + 1 - rounds])),
        )
        for update in updates
    ]


def _moves(state: ServerState, sent: Weights) -> dict[str, Floats]:
    """Return by how much each array that gradients do not move differs from the newest, as it was sent, in float64."""
    return {name: sent[name].astype(np.float64) - state.weights[name].astype(np.float64) for name in state.averaged}


class _Late(Mapping[str, Array]):
    """The arrays of an update times its factor, each computed when it is asked for.

    Args:
        moves: what is added before to some of them.
    """

    def __init__(self, delta: Weights, times: float, moves: Mapping[str, Floats]) -> None:
        self._delta, self._times, self._moves = delta, times, moves

    def __getitem__(self, name: str) -> Array:
        array = self._delta[name]
        return self._late(array, self._moves.get(name))

    def __contains__(self, name: object) -> bool:
        return name in self._delta

    def __iter__(self) -> Iterator[str]:
        return iter(self._delta)

    def __len__(self) -> int:
        return len(self._delta)

    def block(self, name: str, start: int, stop: int, *, into: Array | None = None) -> Array:
        """Return elements `start` to `stop` of the flattened array; they may be read into `into`."""
        move = self._moves[name].reshape(-1)[start:stop] if name in self._moves else None
        return self._late(block(self._delta, name, start, stop, into=into), move)

    def spec(self, name: str) -> Spec:
        """Return the array's shape and dtype, reading nothing."""
        return spec(self._delta, name)

    def _late(self, array: Array, move: Floats | None) -> Array:
        values = array.astype(np.float64)
        if move is not None:
            values = values + move
        values = values * self._times
        return (values if is_float(array) else np.rint(values)).astype(array.dtype)
