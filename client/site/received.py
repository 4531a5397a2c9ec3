"""What comes from the server in a round: decoded, checked, and without arrays that the study does not use."""

from collections.abc import Mapping
from dataclasses import dataclass

from consilium.client.site.kept import Held
from consilium.client.site.learner import Learner
from consilium.common.codecs import Identity, Payload, build_chain
from consilium.common.errors import ProtocolError, StateError
from consilium.common.protocol.plans import CONTROL
from consilium.common.study.signals import CANDIDATE_LOSSES, CANDIDATES
from consilium.common.weights.arrays import Weights, under
from consilium.common.weights.checks import check_finite, check_like


@dataclass(frozen=True, eq=False)
class Received:
    """The shared weights, and what travelled along with them.

    Args:
        control: the server's control variate; empty where the strategy has none.
        candidates: other weights that the study's weighting wants measured, by their name.
    """

    weights: Weights
    control: Weights
    candidates: Mapping[str, Weights]


def receive(learner: Learner, payload: Payload | None) -> Received:
    """Decode and check weights in full.

    Raises:
        ProtocolError: there are none, or the payload has arrays that this study does not use.
        UpdateRejected: names, shapes, dtypes or numbers are wrong.
    """
    if payload is None:
        raise ProtocolError("the server sent a plan without weights")
    return _checked(learner, Identity().decode(payload))


def receive_difference(learner: Learner, payload: Payload | None, held: Held | None, *, base: int) -> Received:
    """Add the difference that the server sent to the weights of round `base`, and check the sum.

    Raises:
        StateError: this site does not hold them; the server sends them in full next time.
        ProtocolError, UpdateRejected: as in `receive`.
    """
    if payload is None or held is None or not held.weights or held.round != base:
        raise StateError(f"site '{learner.site}' does not hold the weights of round {base} any more")
    chain = build_chain(learner.study.downlink, exact=learner.buffers, feedback=False)
    return _checked(learner, chain.advance(held.weights, bytes(payload)))


def _checked(learner: Learner, arrays: Weights) -> Received:
    check_finite(arrays, who="weights from the server")
    expected, study = learner.shared, learner.study
    weights = {name: array for name, array in arrays.items() if "/" not in name}
    check_like(weights, expected, who="weights from the server")
    control = under(arrays, CONTROL) if study.strategy.travels else {}
    if control:
        trained = {name: array for name, array in expected.items() if name in learner.model.trainable}
        check_like(control, trained, who="control variate from the server")
    names = CANDIDATES if learner.needs & set(CANDIDATE_LOSSES) else ()
    candidates = {name: candidate for name in names if (candidate := under(arrays, f"{name}/"))}
    for name, candidate in candidates.items():
        check_like(candidate, expected, who=f"{name} from the server")
    if len(weights) + len(control) + sum(len(candidate) for candidate in candidates.values()) != len(arrays):
        raise ProtocolError("the server sent arrays along with the weights that this study has no use for")
    return Received(weights, control, candidates)
