"""The payloads that go down to the sites in a round: full weights, or the difference from those that a site holds.

With a downlink codec the server keeps `held`: the weights as the sites of the last round have them, to the last bit.
A site that answered that round gets the coded difference from them, every other one gets the new `held` in full, so
that all sites of a round train from the same weights. The loss by coding is part of the next difference.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from consilium.common.codecs import Identity, build_chain
from consilium.common.seeds import seed_for
from consilium.common.study.study import StudyConfig
from consilium.common.weights.arrays import Array, Weights
from consilium.server.strategies import ServerState


@dataclass(frozen=True)
class Sending:
    """The payloads of one round.

    Args:
        full: for every site that is not in `differences`.
        differences: for sites that hold the weights of the round before.
        held: the weights that every site of the round trains from.
        memory: the codec's.
        nmse: squared error of the coded difference over its squared norm; 0 without a codec.
    """

    full: bytes
    held: Weights
    differences: Mapping[str, bytes] = field(default_factory=dict)
    memory: Mapping[str, Array] = field(default_factory=dict)
    nmse: float = 0.0

    def without_payloads(self) -> "Sending":
        """Return all but the payloads."""
        return replace(self, full=b"", differences={})


def send(config: StudyConfig, state: ServerState) -> Sending:
    """Return the payloads for the sites of the next round."""
    if not config.downlink:
        return Sending(Identity().encode({**state.weights, **state.along}), state.weights)
    if not state.held:
        return Sending(Identity().encode(state.weights), state.weights)
    chain = build_chain(config.downlink, exact=state.buffers, feedback=False)
    seed = seed_for(config.seed, "downlink", state.round + 1)
    coded = chain.encode(state.weights, state.held, memory=state.link, seed=seed)
    held = chain.advance(state.held, coded.payload)
    differences = dict.fromkeys(sorted(state.holders), coded.payload)
    return Sending(Identity().encode(held), held, differences, coded.memory, coded.nmse)
