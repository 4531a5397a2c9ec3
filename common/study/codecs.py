"""Settings of every codec: how an update is packed."""

from typing import Annotated, Literal

from pydantic import Field

from consilium.common.study.record import Record


class IdentityCodec(Record):
    """Every array as it is."""

    kind: Literal["identity"] = "identity"


class Fp16Codec(Record):
    """Half-precision numbers, scaled per array."""

    kind: Literal["fp16"] = "fp16"
    error_feedback: bool = False
    """Keep the coding error at the site, and add it to the next update."""


class Bf16Codec(Record):
    """The upper half of each float32."""

    kind: Literal["bf16"] = "bf16"
    error_feedback: bool = False
    """Keep the coding error at the site, and add it to the next update."""


class IntegerDeltaCodec(Record):
    """The difference of the bit patterns: lossless, and small after zstd."""

    kind: Literal["integer_delta"] = "integer_delta"


class Int8Codec(Record):
    """One byte per value, rounded at random; `block` elements share a scale, 0 is the whole array."""

    kind: Literal["int8"] = "int8"
    block: int = Field(default=0, ge=0, le=65536)
    """Values that share a scale; 0: the whole array."""
    error_feedback: bool = False
    """Keep the coding error at the site, and add it to the next update."""


class Int4Codec(Record):
    """Half a byte per value, rounded at random; `block` elements share a scale, 0 is the whole array."""

    kind: Literal["int4"] = "int4"
    block: int = Field(default=64, ge=0, le=65536)
    """Values that share a scale; 0: the whole array."""
    error_feedback: bool = False
    """Keep the coding error at the site, and add it to the next update."""


class TopKCodec(Record):
    """Only the largest values of each array."""

    kind: Literal["top_k"] = "top_k"
    fraction: float = Field(default=0.05, gt=0, le=1)
    """Part of each array's values that is sent."""
    error_feedback: bool = True
    """Keep the coding error at the site, and add it to the next update."""


class SignCodec(Record):
    """One bit per value and one magnitude per array."""

    kind: Literal["sign"] = "sign"
    error_feedback: bool = True
    """Keep the coding error at the site, and add it to the next update."""


class LowRankCodec(Record):
    """Each matrix as the product of two narrow ones (PowerSGD)."""

    kind: Literal["low_rank"] = "low_rank"
    rank: int = Field(default=4, ge=1, le=256)
    """Columns of the two narrow matrices."""
    error_feedback: bool = True
    """Keep the coding error at the site, and add it to the next update."""


class ZstdCodec(Record):
    """Entropy coding of the packed bytes; the last of a chain."""

    kind: Literal["zstd"] = "zstd"
    level: int = Field(default=3, ge=1, le=19)
    """Effort of the compression."""


CodecConfig = Annotated[
    IdentityCodec
    | Fp16Codec
    | Bf16Codec
    | IntegerDeltaCodec
    | Int8Codec
    | Int4Codec
    | TopKCodec
    | SignCodec
    | LowRankCodec
    | ZstdCodec,
    Field(discriminator="kind"),
]
