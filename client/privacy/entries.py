"""What a line of the audit log says of an order and of the answer to it: names and digests, never a value."""

import hashlib
from dataclasses import dataclass
from typing import Any

from consilium.client.privacy.audit import OBEYED
from consilium.common.protocol.flower_orders import FlowerReply
from consilium.common.protocol.plans import HandshakePlan, Plan, study_digest
from consilium.common.protocol.replies import FailureReply, FinishReply, HandshakeReply, Reply, RoundReply
from consilium.common.wire.envelope import Order

MOST_ARRAYS = 1_000
"""How many names of arrays a line holds."""


@dataclass(frozen=True)
class Answered:
    """An order's answer, as it leaves.

    Args:
        plan: what the order asked; None where that could not be read, and for a Flower app's.
        shared: names of the arrays that may leave in the run's rounds, where they are known.
        is_used: whether the order is used up, so that it is refused from now on.
    """

    reply: Reply | FlowerReply
    content: bytes | None = None
    plan: Plan | None = None
    shared: frozenset[str] = frozenset()
    is_used: bool = True

    @property
    def is_obeyed(self) -> bool:
        """Whether the site did what was asked."""
        return not isinstance(self.reply, FailureReply)


def answer_in(answered: Answered) -> str:
    """Return the answer in a word: `OBEYED`, or the class of the error."""
    return answered.reply.error if isinstance(answered.reply, FailureReply) else OBEYED


def entry_of(order: Order, answered: Answered) -> dict[str, Any]:
    """Return a line's content: what was asked, with digests, and what left."""
    reply, plan = answered.reply, answered.plan
    entry: dict[str, Any] = {
        "run": order.run,
        "order": order.number,
        "kind": plan.kind if plan is not None else order.kind,
        "order_sha256": hashlib.sha256(order.text.encode()).hexdigest(),
        "payload_sha256": order.payload_digest.hex(),
        "bytes_down": order.payload_size,
        "bytes_up": len(answered.content or b""),
        "reply_sha256": hashlib.sha256(reply.model_dump_json(exclude={"audit"}).encode()).hexdigest(),
    }
    if plan is not None:
        entry["study"] = study_digest(plan.study) if isinstance(plan, HandshakePlan) else plan.study
        entry |= {"round": plan.round} if hasattr(plan, "round") else {}
    if answered.content is not None:
        entry["left_sha256"] = hashlib.sha256(answered.content).hexdigest()
    return entry | _left(answered)


def _left(answered: Answered) -> dict[str, Any]:
    """Return what the reply says, by name, and the sentence of a refusal."""
    match answered.reply:
        case FailureReply(message=message):
            return {"message": message}
        case RoundReply(metrics=metrics):
            return {"metrics": sorted(metrics), "arrays": len(answered.shared)}
        case HandshakeReply(card=card):
            arrays = sorted(answered.shared)[:MOST_ARRAYS]
            return {"card": sorted(card.model_dump(exclude_defaults=True)), "may_leave": arrays}
        case FinishReply(test=test):
            return {"counts": sorted(test.model_dump(exclude_none=True))}
        case _:
            return {}


def entry_of_crash(order: Order) -> dict[str, Any]:
    """Return the line's content for an order whose answer failed in a way that nobody foresaw; nothing left."""
    return {
        "run": order.run,
        "order": order.number,
        "kind": order.kind,
        "order_sha256": hashlib.sha256(order.text.encode()).hexdigest(),
    }
