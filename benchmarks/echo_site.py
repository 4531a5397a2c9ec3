"""Sites that compute nothing: they send every update's worth of bytes back. For measuring transport and server alone.

    python benchmarks/echo_site.py SITE_TOML MEGABYTES

The connection is the real one (`client/wire/connection.py`), and every order is checked as a real worker does: its
signature, and the digest of its payload. In place of a worker with torch this file answers the plans: weights of so
many megabytes in arrays of 4 MB, and as the update what came.
"""

import asyncio
import contextlib
import hashlib
import json
import signal
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import consilium.common
from consilium.client.process.channels import Parcel
from consilium.client.process.shared_memory import Box
from consilium.client.wire.connection import Connection
from consilium.client.wire.probe import place_of
from consilium.common.codecs import Identity
from consilium.common.host.study_key import read_study_public
from consilium.common.protocol.plans import CODEC_VERSION, PROTOCOL_VERSION
from consilium.common.study.load import load_site
from consilium.common.weights.arrays import Array, digest
from consilium.common.wire import wire_pb2 as pb
from consilium.common.wire.envelope import open_order

CARD = {
    "num_examples": 100,
    "num_train": 60,
    "num_validation": 20,
    "num_test": 20,
    "num_skipped": 0,
    "classes": ["no", "yes"],
    "schema_digest": "5c4e3a" * 8,
}
VERSIONS = {
    "consilium": consilium.common.__version__,
    "flwr": "0.0.0",
    "torch": "none",
    "torchvision": "none",
    "python": "3.11",
}
COUNTS = {"num_test": 20, "majority": 11, "local": 15, "global_": 16, "personal": 17, "pairs": [14, 1, 3, 2]}


def weights(megabytes: int) -> dict[str, Array]:
    """Return zeros of that size in all; of four numbers for 0."""
    if not megabytes:
        return {"layer": np.zeros(4, np.float32)}
    return {f"layer{index:04d}": np.zeros((1000, 1000), np.float32) for index in range(max(1, megabytes // 4))}


@cache
def _initial(megabytes: int) -> tuple[str, bytes]:
    arrays = weights(megabytes)
    return digest(arrays), Identity().encode(arrays)


class Echo:
    """Answers orders in the process that talks.

    Args:
        box: where payloads lie; the update is what came, so one is enough.
        study_key: to verify signature and payload of every order with; None for sites that only weigh on the server.
    """

    def __init__(self, box: Box, megabytes: int, *, study_key: Any, site: str) -> None:
        self.inbox = self.outbox = box
        self._megabytes, self._key, self._site = megabytes, study_key, site

    def rest(self) -> None:
        """Keep everything."""

    async def answer(self, order: Parcel, *, seconds: float) -> Parcel:
        """Answer one order."""
        if self._key is None:
            plan = json.loads(pb.Order.FromString(pb.SignedOrder.FromString(order.content).order).text)
        else:
            plan = self._checked(order)
        reply = {"protocol": PROTOCOL_VERSION, "codecs": CODEC_VERSION, "kind": plan["kind"], "run": plan["run"]}
        reply |= {"site": self._site, "pid": 1, "seconds": 0.0}
        match plan["kind"]:
            case "handshake":
                seen = _initial(self._megabytes)[0]
                reply |= {"versions": VERSIONS, "card": CARD, "initial_digest": seen}
                return _parcel(reply | {"shared_digest": seen, "shared_buffers": []})
            case "scale":
                return _parcel(reply)
            case "initial_weights":
                content = _initial(self._megabytes)[1]
                if len(content) < 100_000:
                    return _parcel(reply, payload=content)
                self.outbox.write(content)
                return _parcel(reply, boxed=len(content))
            case "round":
                metrics = {"global.loss": 0.5, "personal.loss": 0.5}
                reply |= {"round": plan["round"], "num_examples": 60, "metrics": metrics}
                return _parcel(reply, payload=order.payload, boxed=order.boxed)
        return _parcel(reply | {"round": plan["round"], "test": COUNTS})

    def _checked(self, order: Parcel) -> dict[str, Any]:
        opened = open_order(order.content, self._key)
        if order.boxed and hashlib.sha256(self.inbox.view(order.boxed)).digest() != opened.payload_digest:
            raise RuntimeError("another payload than was signed")
        plan: dict[str, Any] = json.loads(opened.text)
        return plan


def _parcel(reply: dict[str, Any], *, payload: bytes = b"", boxed: int = 0) -> Parcel:
    return Parcel(json.dumps(reply).encode(), payload, boxed)


async def _run(path: Path, megabytes: int) -> None:
    config = load_site(path)
    echo = Echo(Box(), megabytes, study_key=read_study_public(config.study_key), site=config.name)
    attending = asyncio.ensure_future(Connection(place_of(config, path), echo).run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, attending.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await attending


if __name__ == "__main__":
    asyncio.run(_run(Path(sys.argv[1]), int(sys.argv[2])))
