"""A coordinator for tests, who has the study's key: it signs whatever it likes, for one site."""

from pathlib import Path
from typing import Any

from conftest import MakeStudy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from consilium.client.app import answer_order
from consilium.common.host.keys import make_site_key
from consilium.common.protocol.parse import parse_reply
from consilium.common.protocol.plans import HandshakePlan, InitialWeightsPlan, Plan, study_digest
from consilium.common.protocol.replies import InitialWeightsReply
from consilium.common.study.study import StudyConfig
from consilium.common.wire.envelope import Order, payload_digest, sign_order

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
STRANGER = Ed25519PrivateKey.from_private_bytes(b"s" * 32)


def with_fixed_scales(make_study: MakeStudy) -> MakeStudy:
    """Return the function that builds a study, with fixed scales: no order has to settle them."""
    fixed = {name: {"mean": 0.0, "std": 1.0} for name in "ab"}
    task = make_study().task.model_dump() | {"scale": fixed}
    return lambda **changes: make_study(**{"task": task, **changes})


def give_keys(site: Path) -> None:
    """Give a site the study's key, and a key of its own."""
    pem = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (site.parent / "study.pub").write_bytes(pem)
    make_site_key(site.parent / "key", comment="berlin")


def order_of(plan: Plan, number: int, payload: bytes | None = None) -> Order:
    """Return an order with a plan."""
    return Order(
        number=number,
        run=plan.run,
        site=plan.site,
        kind="plan",
        text=plan.model_dump_json(),
        payload_digest=payload_digest(payload),
        payload_size=len(payload or b""),
    )


def signed(plan: Plan, number: int, payload: bytes | None = None, *, key: Ed25519PrivateKey = KEY) -> bytes:
    """Return a signed order with a plan."""
    return sign_order(order_of(plan, number, payload), key)


class Server:
    """Sends one site orders of a run, each with the next number."""

    def __init__(self, path: Path, study: StudyConfig, run: str = "run-1") -> None:
        self.path, self.number, self.view = path, 0, study.seen_by("berlin")
        self.who: dict[str, Any] = {"study": study_digest(self.view), "run": run, "site": "berlin"}

    def send(self, plan: Plan, payload: bytes | None = None) -> tuple[Any, bytes | None]:
        """Return the reply and its payload."""
        self.number += 1
        text, content = answer_order(self.path, signed(plan, self.number, payload), payload)
        return parse_reply(text, site="berlin"), content

    def shake_hands(self) -> Any:
        """Return the reply to a handshake."""
        return self.send(HandshakePlan(study=self.view, run=self.who["run"], site="berlin"))[0]

    def initial(self) -> bytes:
        """Return the initial weights."""
        reply, content = self.send(InitialWeightsPlan(**self.who))
        assert isinstance(reply, InitialWeightsReply) and content is not None
        return content
