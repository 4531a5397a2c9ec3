"""What passes between a server and a relay: the plans of its leaves in one message, and their answers in one payload.

    payload = update | zlib(JSON of the leaves' answers)

Plans of one round differ in a few fields, so the others travel once. Answers lie behind the update, so that its arrays
can be read where they arrive.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError, model_validator

from consilium.common.errors import ProtocolError
from consilium.common.protocol.plans import HandshakePlan, Plan, RelayPlan, RoundPlan
from consilium.common.protocol.replies import RelayReply, Reply, Text
from consilium.common.study.limits import MAX_TEXT_BYTES
from consilium.common.study.names import SiteName
from consilium.common.study.record import Record
from consilium.common.study.relays import LEAST_LEAVES
from consilium.common.study.sentences import describe

MOST_BYTES_OF_LEAF = 2**16
"""How long one leaf's answer to a round may be as JSON; compressed it is a tenth of that."""
_PLANS: TypeAdapter[Plan] = TypeAdapter(Plan)

Problem = Literal[
    "gone",
    "timeout",
    "crash",
    "cut_off",
    "protocol",
    "failure",
    "run",
    "round",
    "num_examples",
    "metrics",
    "names",
    "shape",
    "dtype",
    "not_finite",
    "norm",
    "sum",
    "late",
]
"""Why a leaf's answer is not there or cannot be used.

`sum`: too few would be in the relay's mean, so none was sent; `late`: the mean of the round had been sent without it.
"""


class LeafAnswer(Record):
    """What one leaf of a relay answered: a reply, its update being in the relay's mean, or why there is none."""

    site: SiteName
    reply: Reply | None = None
    problem: Problem | None = None
    detail: Text = ""

    @model_validator(mode="after")
    def _check(self) -> "LeafAnswer":
        if (self.reply is None) == (self.problem is None):
            raise ValueError("expected a reply or a problem, and not both")
        if isinstance(self.reply, RelayReply) or (self.reply is not None and self.reply.site != self.site):
            raise ValueError(f"the reply is not one of site '{self.site}'")
        return self


_ANSWERS: TypeAdapter[tuple[LeafAnswer, ...]] = TypeAdapter(tuple[LeafAnswer, ...])


def plan_for_relay(
    relay: str,
    plans: Mapping[str, Plan],
    *,
    run: str,
    study: str,
    seconds: float,
    absent_seconds: float | None,
    least: int = LEAST_LEAVES,
) -> RelayPlan:
    """Return the plans of a relay's leaves in one.

    Args:
        plans: by leaf, all of one kind; none only asks which leaves are there.
        study: the digest of the whole study.
        seconds, absent_seconds: how long a leaf has, and how long one that is away is waited for.
        least: of how many leaves a mean of a round is made at least.
    """
    first = next(iter(plans.values()), None)
    handshake = first.study if isinstance(first, HandshakePlan) else None
    fields = {} if handshake else {leaf: plan.model_dump(mode="json") for leaf, plan in plans.items()}
    common = _in_common(list(fields.values()))
    return RelayPlan(
        run=run,
        site=relay,
        study=study,
        seconds=seconds,
        absent_seconds=absent_seconds,
        least=least,
        handshake=handshake,
        common=common,
        own={leaf: _rest(fields.get(leaf, {}), common) for leaf in plans},
    )


def plans_in(plan: RelayPlan) -> dict[str, Plan]:
    """Return the plans of a relay's leaves, each checked as a site would check it.

    Raises:
        ProtocolError: one is none, or for another site or run than it says.
    """
    plans: dict[str, Plan] = {}
    for leaf, own in plan.own.items():
        try:
            if (study := plan.handshake) is not None:
                seen = study.model_copy(update={"sites": (leaf,), "relays": {plan.site: (leaf,)}})
                plans[leaf] = HandshakePlan(study=seen, run=plan.run, site=leaf)
            else:
                plans[leaf] = _PLANS.validate_python({**plan.common, **own})
        except ValidationError as error:
            raise ProtocolError(describe(error, f"plan for site '{leaf}'").replace("\n", "; ")) from error
        if (plans[leaf].run, plans[leaf].site) != (plan.run, leaf) or isinstance(plans[leaf], RelayPlan):
            raise ProtocolError(f"the plan for site '{leaf}' of run '{plan.run}' is for another one")
    return plans


def most_bytes_of_leaf(plans: Iterable[Plan]) -> int:
    """Return how long the answer of each leaf to a plan may be: to a round it is short, a scale or a card is not."""
    return MOST_BYTES_OF_LEAF if any(isinstance(plan, RoundPlan) for plan in plans) else MAX_TEXT_BYTES


def within(answer: LeafAnswer, most_bytes: int) -> LeafAnswer:
    """Return a leaf's answer, or what is wrong with one that is too long: it must not stop those of the others."""
    if answer.reply is None or (length := len(answer.model_dump_json().encode())) < most_bytes:  # a comma follows
        return answer
    detail = f"site '{answer.site}' answered with {length} bytes, expected fewer than {most_bytes} through a relay"
    return LeafAnswer(site=answer.site, problem="protocol", detail=detail)


def pack_answers(answers: Sequence[LeafAnswer], update: bytes) -> bytes:
    """Return the payload of a relay's reply."""
    return update + zlib.compress(_ANSWERS.dump_json(tuple(answers)), 1)


def answers_in(reply: RelayReply, payload: bytes | memoryview, asked: Mapping[str, Plan]) -> tuple[LeafAnswer, ...]:
    """Return what a relay's leaves answered, each once, of those that were asked and no others.

    Raises:
        ProtocolError: the payload holds something else, or answers of others.
    """
    who = f"relay '{reply.site}'"
    if reply.update_bytes > len(payload):
        raise ProtocolError(f"{who} sent {len(payload)} bytes, and says that {reply.update_bytes} are its update")
    most, reader = most_bytes_of_leaf(asked.values()) * max(1, len(asked)) + len("[]"), zlib.decompressobj()
    try:
        text = reader.decompress(payload[reply.update_bytes :], most)
        if not reader.eof:
            raise ProtocolError(f"{who}: the answers of its sites are longer than {most} bytes, or cut short")
        answers = _ANSWERS.validate_json(text)
    except zlib.error as error:
        raise ProtocolError(f"{who}: the answers of its sites are damaged: {error}") from error
    except ValidationError as error:
        raise ProtocolError(describe(error, f"answers through {who}").replace("\n", "; ")) from error
    names = [answer.site for answer in answers]
    if sorted(names) != sorted(asked):
        strangers = sorted(set(names) - set(asked))
        what = f"site '{strangers[0]}' among them" if strangers else "one is missing or there twice"
        raise ProtocolError(f"{who} sent {len(names)} answers of the {len(asked)} sites that were asked; {what}")
    return answers


def _in_common(fields: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not fields:
        return {}
    first, *others = fields
    return {name: value for name, value in first.items() if all(name in one and one[name] == value for one in others)}


def _rest(fields: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in common}
