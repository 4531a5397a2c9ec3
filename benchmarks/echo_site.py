"""A site that computes nothing: it sends every update's worth of bytes back. For measuring transport and server alone.

    python benchmarks/echo_site.py SITE_TOML MEGABYTES

The process that talks to the server is the real one (`client/node.py`); in place of the worker with torch, this file
answers the plans: weights of so many megabytes in arrays of 4 MB, and as the update what came.
"""

import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

import common
from client import supervisor
from client.box import Box
from client.node import start_site
from client.supervisor import ANSWER, Parcel, receive, send
from common.codecs import Identity
from common.protocol import (
    DataCard,
    FinishPlan,
    FinishReply,
    HandshakePlan,
    HandshakeReply,
    InitialWeightsPlan,
    InitialWeightsReply,
    Plan,
    Reply,
    RoundPlan,
    RoundReply,
    TestCounts,
    Versions,
    parse_plan,
)
from common.weights import Array, digest

CARD = DataCard(
    num_examples=100,
    num_train=60,
    num_validation=20,
    num_test=20,
    num_skipped=0,
    classes=("no", "yes"),
    schema_digest="5c4e3a" * 8,
)
VERSIONS = Versions(consilium=common.__version__, flwr="1.39.0", torch="none", torchvision="none", python="3.11")


def weights(megabytes: int) -> dict[str, Array]:
    """Return zeros of that size in all."""
    return {f"layer{index:04d}": np.zeros((1000, 1000), np.float32) for index in range(max(1, megabytes // 4))}


def replied(plan: Plan, megabytes: int) -> tuple[Reply, bytes | None]:
    """Return the reply to a plan, with the payload if that is not the plan's own."""
    stamp: dict[str, Any] = {"run": plan.run, "site": plan.site, "pid": os.getpid(), "seconds": 0.0}
    match plan:
        case HandshakePlan():
            seen = digest(weights(megabytes))
            return HandshakeReply(
                **stamp, versions=VERSIONS, card=CARD, initial_digest=seen, shared_digest=seen, shared_buffers=()
            ), None
        case InitialWeightsPlan():
            return InitialWeightsReply(**stamp), Identity().encode(weights(megabytes))
        case RoundPlan():
            measured = {"global.loss": 0.5, "personal.loss": 0.5}
            return RoundReply(**stamp, round=plan.round, num_examples=60, metrics=measured), None
        case FinishPlan():
            counts = TestCounts(num_test=20, majority=11, local=15, global_=16, personal=17, pairs=(14, 1, 3, 2))
            return FinishReply(**stamp, round=plan.round, test=counts), None


def echo(connection: Connection, inbox: Box, outbox: Box, megabytes: int) -> None:
    """Answer plans until the other end is closed."""
    while True:
        try:
            asked = receive(connection)
        except EOFError:
            return
        plan = parse_plan(asked.text)
        reply, content = replied(plan, megabytes)
        parcel = Parcel(reply.model_dump_json(), asked.payload if isinstance(plan, RoundPlan) else None)
        if content is None and isinstance(plan, RoundPlan) and asked.boxed:
            content = bytes(inbox.view(asked.boxed))
        if content is not None:
            outbox.write(content)
            parcel = Parcel(parcel.text, boxed=len(content))
        connection.send_bytes(ANSWER)
        send(connection, parcel)


def main() -> None:
    """Run the site, or as its worker (`--worker MEGABYTES SETTINGS SOCKET INBOX OUTBOX`) answer its plans."""
    if sys.argv[1] == "--worker":
        megabytes, numbers = int(sys.argv[2]), [int(number) for number in sys.argv[4:]]
        echo(Connection(numbers[0]), Box(numbers[1]), Box(numbers[2]), megabytes)
        return
    supervisor.COMMAND = (sys.executable, __file__, "--worker", sys.argv[2])  # type: ignore[assignment]
    start_site(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
