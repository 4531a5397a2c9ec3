"""Settings of the built-in models of texts: `[model.settings]` of `text_mean`, `text_transformer`, `transformer`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import Field, model_validator

from consilium.common.study.record import Record
from consilium.common.study.text_task import MOST_IDS

TRANSFORMER = "transformer"
"""The model that the package transformers builds, with pretrained weights if the study names a folder."""
TRANSFORMER_WEIGHTS = "model.safetensors"
"""The file of such a folder that holds the weights."""


class TextMeanSettings(Record):
    """`text_mean`: the mean of the tokens' vectors, and a linear head (as fastText)."""

    vocabulary: int = Field(default=8192, ge=2, le=MOST_IDS)
    """How many tokens have a vector; at least as many as `task.tokens` tells apart."""
    width: int = Field(default=64, ge=1, le=4096)
    """Numbers in a token's vector."""


class TextTransformerSettings(Record):
    """`text_transformer`: a small transformer of our own, and a linear head."""

    vocabulary: int = Field(default=8192, ge=2, le=MOST_IDS)
    """How many tokens have a vector; at least as many as `task.tokens` tells apart."""
    width: int = Field(default=64, ge=1, le=4096)
    """Numbers in a token's vector."""
    layers: int = Field(default=2, ge=1, le=48)
    """Layers of attention."""
    heads: int = Field(default=4, ge=1, le=64)
    """Heads of attention in a layer; they divide `width`."""
    pooling: Literal["mean", "first", "last"] = "mean"
    """What the head sees: the mean of all tokens' vectors, or the first or the last token's."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Part of the numbers that training sets to 0."""

    @model_validator(mode="after")
    def _check(self) -> "TextTransformerSettings":
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads ({self.heads}), got {self.width}")
        return self


class TransformerSettings(TextTransformerSettings):
    """`transformer`: BERT, RoBERTa or GPT-2 as the package transformers builds them, and a linear head.

    The settings are those of the model's `config.json` under plain names; `python -m
    consilium.pretrained FOLDER` prints them for a folder.
    """

    type: Literal["bert", "roberta", "gpt2"] = "bert"
    """Which of the three."""
    vocabulary: int = Field(default=30522, ge=2, le=MOST_IDS)
    """`vocab_size`."""
    width: int = Field(default=768, ge=1, le=8192)
    """`hidden_size`, or `n_embd`."""
    layers: int = Field(default=12, ge=1, le=96)
    """`num_hidden_layers`, or `n_layer`."""
    heads: int = Field(default=12, ge=1, le=128)
    """`num_attention_heads`, or `n_head`."""
    inner: int | None = Field(default=None, ge=1, le=65536)
    """`intermediate_size`, or `n_inner`; None: four times `width`."""
    positions: int = Field(default=512, ge=1, le=65536)
    """`max_position_embeddings`, or `n_positions`."""
    types: int = Field(default=2, ge=1, le=16)
    """`type_vocab_size`; GPT-2 has none."""
    padding: int = Field(default=0, ge=0)
    """`pad_token_id`, behind which RoBERTa counts its positions."""
    activation: Literal["gelu", "gelu_new", "relu", "silu"] = "gelu"
    """`hidden_act`, or `activation_function`."""
    epsilon: float = Field(default=1e-12, gt=0, le=0.1)
    """`layer_norm_eps`, or `layer_norm_epsilon`."""


TEXT_SETTINGS: Mapping[str, type[TextMeanSettings] | type[TextTransformerSettings]] = MappingProxyType(
    {"text_mean": TextMeanSettings, "text_transformer": TextTransformerSettings, TRANSFORMER: TransformerSettings}
)
"""Settings of the built-in models of texts by their names."""


def longest(settings: Record) -> int | None:
    """Return how many tokens a model sees at most; None where any number will do."""
    if not isinstance(settings, TransformerSettings):
        return None
    return settings.positions - (settings.padding + 1 if settings.type == "roberta" else 0)
