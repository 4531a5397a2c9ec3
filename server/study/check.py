"""Checks one site's answer to a round: an unusable update is rejected and named, never repaired."""

from collections.abc import Mapping

import numpy as np

from consilium.common.codecs import Identity, Payload, build_chain
from consilium.common.errors import ProtocolError, UpdateRejected, clean
from consilium.common.protocol.plans import CONTROL
from consilium.common.protocol.replies import FailureReply, RoundReply
from consilium.common.weights.arrays import Array, Weights, under, with_prefix
from consilium.common.weights.checks import check_finite, check_like
from consilium.server.strategies import ServerState, Update
from consilium.server.study.believed import believed
from consilium.server.study.context import Study
from consilium.server.study.exchange import Answer
from consilium.server.study.sentences import named


def check_update(answer: Answer, state: ServerState, study: Study, *, held: Weights) -> tuple[RoundReply, Update]:
    """Decode and check a round's answer; return the reply with the update that came with it.

    Args:
        held: the weights that the site trained from.

    Raises:
        UpdateRejected: with the reason `timeout`, `crash`, `gone`, `cut_off`, `failure`, `protocol`, `run`, `round`,
            `num_examples`, `metrics`, `names`, `shape`, `dtype` or `not_finite`.
    """
    who = f"site '{answer.site}'"
    reply, payload = check_reply(answer)
    check_round(reply, state, study, site=answer.site)
    check_signals(reply, study, who=who)
    control = with_prefix(under(state.along, CONTROL), CONTROL)
    try:
        delta = _decode(payload, state, study, held=held, control=control)
    except ProtocolError as error:
        raise UpdateRejected("protocol", f"{who}: {error}") from error
    check_like(delta, {**state.weights, **control}, who=who)
    check_finite(delta, who=who)
    own = {name: delta[name] for name in state.weights}
    return reply, Update(answer.site, own, reply.num_examples, reply.metrics, under(delta, CONTROL))


def check_reply(answer: Answer) -> tuple[RoundReply, Payload]:
    """Return a site's reply to a round, with its payload.

    Raises:
        UpdateRejected: it sent nothing, could not do the round, or sent something else.
    """
    who, reply = f"site '{answer.site}'", answer.reply
    if answer.problem is not None:
        raise UpdateRejected(answer.problem, named(answer.site, clean(answer.detail)))
    if isinstance(reply, FailureReply):
        raise UpdateRejected("failure", f"{who} could not do the round: {reply.message}")
    if not isinstance(reply, RoundReply) or answer.payload is None:
        raise UpdateRejected("protocol", f"{who} answered {type(reply).__name__}, expected RoundReply with a payload")
    return reply, answer.payload


def check_round(reply: RoundReply, state: ServerState, study: Study, *, site: str) -> None:
    """Check that a reply is for this round of this run, and counts as many examples as the site announced.

    Raises:
        UpdateRejected: with the reason `run`, `round` or `num_examples`.
    """
    who, announced = f"site '{site}'", study.train_sizes[site]
    if reply.run != study.run:
        raise UpdateRejected("run", f"{who} answered for run '{reply.run}', expected '{study.run}'")
    if reply.round != state.round + 1:
        raise UpdateRejected("round", f"{who} answered for round {reply.round}, expected {state.round + 1}")
    if reply.num_examples != announced or announced <= 0:
        raise UpdateRejected("num_examples", f"{who} sent num_examples {reply.num_examples}, announced {announced}")


def check_signals(reply: RoundReply, study: Study, *, who: str) -> None:
    """Check a site's measurements: a loss of -1000 must not set its share, nor end the study, nor stand in a report.

    The strategy's must be there; where one of the weighting's is missing, the round is weighted by size.

    Raises:
        UpdateRejected: with the reason `metrics`.
    """
    for name in sorted(study.config.strategy.needs | reply.metrics.keys()):
        limits, value = believed(study.config, name, examples=reply.num_examples), reply.metrics.get(name)
        if limits is None:
            continue
        low, high = limits
        if value is None or not low <= value <= high:
            sent = "nothing" if value is None else value
            raise UpdateRejected(
                "metrics", f"{who} sent {sent} as '{name}', expected a number from {low:g} to {high:g}"
            )


def _decode(
    payload: Payload, state: ServerState, study: Study, *, held: Weights, control: Weights
) -> Mapping[str, Array]:
    """Return the arrays of an update's payload.

    Raises:
        ProtocolError: it is too long, or no payload of the study's codecs.
    """
    if not study.config.uplink:
        return Identity().decode(payload)
    nothing = {name: np.zeros_like(array) for name, array in control.items()}
    chain, like = build_chain(study.config.uplink, exact=state.buffers), {**held, **nothing}
    if len(payload) > (most := chain.max_bytes(like)):  # before it is copied into memory
        raise ProtocolError(f"payload of {len(payload)} bytes is too long, expected at most {most}")
    return chain.decode(bytes(payload), like)
