"""One example of every plan and every reply."""

from typing import Any

from consilium.common.protocol.cards import DataCard, Versions
from consilium.common.protocol.counts import TestCounts as Counts
from consilium.common.protocol.plans import (
    FinishPlan,
    HandshakePlan,
    InitialWeightsPlan,
    KeysPlan,
    PeersPlan,
    RelayPlan,
    RoundPlan,
    ScalePlan,
    SignedKey,
    UnmaskPlan,
    study_digest,
)
from consilium.common.protocol.replies import (
    FailureReply,
    FinishReply,
    HandshakeReply,
    InitialWeightsReply,
    KeysReply,
    PeersReply,
    RelayReply,
    RoundReply,
    ScaleReply,
    UnmaskReply,
)
from consilium.common.study.load import parse_study
from consilium.common.study.scale import Moments, Scale

STUDY = """\
name = "hearts"
sites = ["berlin", "madrid", "paris"]
{top}

[task]
kind = "table"
classes = ["no", "yes"]
label = "disease"
{task}

[task.columns]
age = {{ kind = "number" }}
pain = {{ kind = "category", values = ["1", "2"] }}
{rest}
"""
SITE = """\
name = "berlin"
server = "hub.example.org:9092"
ca_certificate = "ca.pem"
private_key = "keys/site.key"
state_dir = "state"
{top}

[data]
kind = "images"
path = "../images"
{data}
"""

WHO: dict[str, Any] = {"run": "run-1", "site": "berlin"}
STAMP: dict[str, Any] = {**WHO, "pid": 4711, "seconds": 0.25}
STUDY_VALUES = {
    "name": "hearts",
    "sites": ["berlin"],
    "task": {"kind": "images", "classes": ["a", "b"], "mean": [0.1]},
    "method": {"kind": "fine_tune", "learning_rate": 0.1},
}
CONFIG = parse_study(STUDY_VALUES, source="test")
SIGNED_KEY = SignedKey(key="0a" * 32, signature="3045" * 8)
PLANS: list[Any] = [
    HandshakePlan(study=CONFIG, **WHO),
    ScalePlan(study=study_digest(CONFIG), **WHO, scale=Scale(mean=(0.1 + 0.2,), std=(1e-30,))),
    InitialWeightsPlan(study=study_digest(CONFIG), **WHO),
    RoundPlan(study=study_digest(CONFIG), **WHO, round=3, asked=2, accepted=1),
    KeysPlan(study=study_digest(CONFIG), **WHO),
    PeersPlan(study=study_digest(CONFIG), **WHO, keys={"berlin": SIGNED_KEY}),
    UnmaskPlan(study=study_digest(CONFIG), **WHO, round=3, attempt=1, survivors=("berlin", "bern", "bonn")),
    FinishPlan(study=study_digest(CONFIG), **WHO, round=0, asked=0),
    RelayPlan(study=study_digest(CONFIG), **WHO, seconds=0.1 + 0.2, common={"round": 3}, own={"lyon": {"asked": 2}}),
]
CARD = DataCard(
    num_examples=10,
    num_train=6,
    num_validation=2,
    num_test=2,
    num_skipped=1,
    classes=("a", "b"),
    class_counts={"a": 4, "b": 6},
    schema_digest="abc",
    moments=Moments(counts=(6,), sums=(0.1 + 0.2,), squares=(1e30,)),
)
COUNTS = Counts(num_test=20, majority=11, local=15, global_=None, personal=17, pairs=(14, 1, 3, 2))
VERSIONS = Versions(consilium="0.1.0", flwr="1.39.0", torch="2.9", torchvision="0.24", python="3.11")
ROUND_REPLY = RoundReply(**STAMP, round=3, num_examples=60, metrics={"global.loss": 0.1 + 0.2})
REPLIES: list[Any] = [
    HandshakeReply(**STAMP, versions=VERSIONS, card=CARD, initial_digest="abc", shared_digest="def", shared_buffers=()),
    ScaleReply(**STAMP),
    InitialWeightsReply(**STAMP),
    ROUND_REPLY,
    KeysReply(**STAMP, signed=SIGNED_KEY),
    PeersReply(**STAMP),
    UnmaskReply(**STAMP, round=3, attempt=1),
    FinishReply(**STAMP, round=3, test=COUNTS),
    RelayReply(**STAMP, online=("lyon",), update_bytes=3),
    FailureReply(**STAMP, error="DataError", message="köln\n\u2028"),
]
