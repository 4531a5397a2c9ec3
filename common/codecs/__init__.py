"""Wire codecs: stages by name, and the chain that makes a codec of them.

Adding a stage touches its file, one config variant and one line here. `Identity` is for weights whose form the
receiver does not know; see `Chain` for all others.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any, Protocol, TypeAlias

from consilium.common.codecs.base import ByteStage, Form, Payload, Stage, form_of
from consilium.common.codecs.bf16 import Bf16
from consilium.common.codecs.chain import Chain, Encoded
from consilium.common.codecs.fp16 import Fp16
from consilium.common.codecs.identity import Unchanged
from consilium.common.codecs.int4 import Int4
from consilium.common.codecs.int8 import Int8
from consilium.common.codecs.integer_delta import IntegerDelta
from consilium.common.codecs.low_rank import LowRank
from consilium.common.codecs.plain import Identity
from consilium.common.codecs.sign import Sign
from consilium.common.codecs.top_k import TopK
from consilium.common.codecs.zstd import Zstd

AnyStage: TypeAlias = Stage | ByteStage


class Settings(Protocol):
    """What a study says of one stage: one of `consilium.common.study.codecs`."""

    @property
    def kind(self) -> str:
        """Which stage; a key of `CODECS`."""
        ...

    def model_dump(self, *, exclude: set[str]) -> dict[str, Any]:
        """Return the stage's settings."""
        ...


CODECS: Mapping[str, type[AnyStage]] = {
    "identity": Unchanged,
    "fp16": Fp16,
    "bf16": Bf16,
    "integer_delta": IntegerDelta,
    "int8": Int8,
    "int4": Int4,
    "top_k": TopK,
    "sign": Sign,
    "low_rank": LowRank,
    "zstd": Zstd,
}


def build_chain(configs: Sequence[Settings], *, exact: Set[str] = frozenset(), feedback: bool = True) -> Chain:
    """Return the codec that a study names, with its settings; no stage at all is the identity.

    Args:
        exact: arrays that no array stage may touch; see `Chain`.
        feedback: False for a link whose reference is what the receivers hold; see `Chain`.

    Raises:
        ValueError: stages that do not fit together.
    """
    stages = tuple(CODECS[config.kind](**config.model_dump(exclude={"kind"})) for config in configs)
    return Chain(stages, frozenset(exact), feedback)


__all__ = [
    "CODECS",
    "AnyStage",
    "ByteStage",
    "Chain",
    "Encoded",
    "Form",
    "Identity",
    "Payload",
    "Stage",
    "build_chain",
    "form_of",
]
