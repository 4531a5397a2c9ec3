"""The text of a Flower app's order, which comes with its payload, and the text of a site's reply."""

import hashlib
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from consilium.common.errors import ProtocolError
from consilium.common.protocol.audit import AuditHead
from consilium.common.protocol.parse import parse_json, parse_reply
from consilium.common.protocol.plans import RunName
from consilium.common.protocol.replies import FailureReply
from consilium.common.study.names import Sha256, SiteName
from consilium.common.study.record import Record

SERVER_NODE = 1
"""The number of the ServerApp; a site's is `node_number` of its name."""


class _Order(Record):
    flower: Literal[1] = 1
    run: RunName
    site: SiteName
    app: Sha256


class CodeOrder(_Order):
    """Keep the app's code, which is the payload, if its digest is approved."""

    kind: Literal["code"] = "code"


class MessageOrder(_Order):
    """Hand a message to the ClientApp; its content is the payload, a serialised RecordDict of Flower.

    Args:
        ttl: seconds for which the reply is waited for.
        run_config: the app's settings in this run.
    """

    kind: Literal["message"] = "message"
    message_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    message_type: str = Field(pattern=r"^[a-z]{1,20}(\.[A-Za-z_][A-Za-z0-9_]{0,99})?$")
    group_id: str = Field(max_length=200)
    ttl: float = Field(gt=0)
    run_config: dict[str, bool | int | float | str]


FlowerOrder = Annotated[CodeOrder | MessageOrder, Field(discriminator="kind")]


class FlowerReply(Record):
    """The order was obeyed; the payload is the serialised content of the reply, or nothing."""

    kind: Literal["flower"] = "flower"
    run: RunName
    site: SiteName
    seconds: float = Field(ge=0)
    audit: AuditHead | None = Field(default=None, exclude_if=lambda audit: audit is None)


_ORDER: TypeAdapter[FlowerOrder] = TypeAdapter(FlowerOrder)
_KIND = b'{"kind":"flower"'


def parse_flower_order(text: str) -> FlowerOrder:
    """Check the text of an order of a Flower app, as a site receives it.

    Raises:
        ProtocolError: it is not such an order.
    """
    return parse_json(_ORDER, text, who="order of a Flower app from the server")


def parse_flower_reply(text: str, *, site: str) -> FlowerReply | FailureReply:
    """Check the text of a site's reply.

    Raises:
        ProtocolError: it is not a reply, or one of another site.
    """
    who = f"reply from site '{site}'"
    is_answer = text.encode(errors="replace").startswith(_KIND)
    reply = parse_json(TypeAdapter(FlowerReply), text, who=who) if is_answer else parse_reply(text, site=site)
    if not isinstance(reply, FlowerReply | FailureReply):
        raise ProtocolError(f"{who} is of kind '{reply.kind}', which answers no order of a Flower app")
    if reply.site != site:
        raise ProtocolError(f"{who} says that it is from site '{reply.site}'")
    return reply


def node_number(site: str) -> int:
    """Return the number by which Flower knows a site: the same in every run, above that of the ServerApp."""
    return _number(f"site {site}") + SERVER_NODE + 1


def run_number(run: str) -> int:
    """Return the number by which Flower knows a run."""
    return _number(f"run {run}") + 1


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) >> 2
