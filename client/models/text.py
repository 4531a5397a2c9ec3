"""Models of texts: rows of tokens' numbers in, logits out; two small ones of our own, and the frame of larger ones.

Inputs `(B, L)` hold whole numbers: a token's number plus 1, then zeros (`consilium.client.data.text_tokens`).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from consilium.common.errors import ModelError
from consilium.common.study.text_models import (
    TRANSFORMER,
    TextMeanSettings,
    TextTransformerSettings,
    TransformerSettings,
    longest,
)

HEAD = frozenset({"head.weight", "head.bias"})
"""The state_dict names of the head of every model of texts."""


def build_text(settings: Any, *, name: str, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """Build one of the built-in models of texts; its head is `HEAD`.

    Args:
        settings: of this model, as in the study.

    Raises:
        ModelError: the inputs are no texts, or longer than the model can read.
        ConfigError: the package transformers is not installed.
    """
    if len(input_shape) != 1:
        raise ModelError(f"model '{name}' reads texts, got inputs of shape {input_shape}: choose another model")
    (length,) = input_shape
    if (most := longest(settings)) is not None and length > most:
        raise ModelError(f"model '{name}' reads at most {most} tokens, the task gives {length}: lower task.length")
    if isinstance(settings, TransformerSettings):
        from consilium.client.models.transformer import base_of  # here, because it needs the package transformers

        return TextModel(base_of(settings), settings.vocabulary, settings.width, num_outputs, settings.pooling)
    if isinstance(settings, TextTransformerSettings):
        base: nn.Module = Transformer(settings, length)
        return TextModel(base, settings.vocabulary, settings.width, num_outputs, settings.pooling)
    if isinstance(settings, TextMeanSettings):
        base = nn.Sequential(nn.Embedding(settings.vocabulary, settings.width))
        return TextModel(Unmasked(base), settings.vocabulary, settings.width, num_outputs, "mean", normed=False)
    raise ModelError(f"there is no model '{name}' of texts, known: text_mean, text_transformer, {TRANSFORMER}")


class TextModel(nn.Module):
    """A base that answers each token with a vector, what is made of them for the whole text, and a linear head.

    Law: padding behind a text changes nothing but the last bits. A text without any token counts as one of the first
    token of the list.

    Args:
        base: `base(ids, mask)` takes tokens' numbers from 0 on, int64 `(B, L)`, and which of them are there, and
            returns `(B, L, width)`.
        normed: whether a text's vector is brought to mean 0 and variance 1 before the head, so that one learning rate
            serves fresh and pretrained bases.
    """

    def __init__(
        self, base: nn.Module, vocabulary: int, width: int, num_outputs: int, pooling: str, *, normed: bool = True
    ) -> None:
        super().__init__()
        self.backbone, self._vocabulary, self._pooling = base, vocabulary, pooling
        self.norm = nn.LayerNorm(width, elementwise_affine=False) if normed else nn.Identity()
        self.head = nn.Linear(width, num_outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits `(B, outputs)`."""
        x = trimmed(inputs)
        mask = x > 0
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask[:, 1:]], dim=1)
        ids = (x.long() - 1).clamp(min=0, max=self._vocabulary - 1)
        logits: Tensor = self.head(self.norm(pooled(self.backbone(ids, mask), mask, self._pooling)))
        return logits


def trimmed(x: Tensor) -> Tensor:
    """Return rows `(B, L)` without the columns at the end that are padding in all of them; at least one is left.

    Nothing is cut off where shapes have to be known beforehand: in a program that is exported, and of sizes alone.
    """
    if torch.compiler.is_exporting() or torch.compiler.is_compiling() or x.is_meta:
        return x
    there = (x > 0).any(dim=0).nonzero()
    return x[:, : int(there[-1]) + 1] if len(there) else x[:, :1]


def pooled(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Return one vector per text `(B, D)` of its tokens' `(B, L, D)`: their mean, the first, or the last."""
    if pooling == "first":
        return states[:, 0]
    weights = mask.to(states.dtype)
    if pooling == "last":  # the last token that is there, by its place
        places = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * places).amax(dim=1, keepdim=True)
        weights = (places == last).to(states.dtype)
    return (states * weights[:, :, None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)


class Unmasked(nn.Module):
    """A base that looks at each token by itself, and so needs no mask."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the tokens' vectors `(B, L, D)`."""
        states: Tensor = self.base(ids)
        return states


class Transformer(nn.Module):
    """A transformer whose layers normalise first, with learned places.

    Xiong et al., On Layer Normalization in the Transformer Architecture, ICML 2020, https://arxiv.org/abs/2002.04745.
    """

    def __init__(self, settings: TextTransformerSettings, length: int) -> None:
        super().__init__()
        width = settings.width
        self.tokens = nn.Embedding(settings.vocabulary, width)
        self.places = nn.Embedding(length, width)
        self.layers = nn.ModuleList(Layer(width, settings.heads, settings.dropout) for _ in range(settings.layers))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the tokens' vectors `(B, L, D)`."""
        states: Tensor = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for layer in self.layers:
            states = layer(states, mask)
        return states


class Layer(nn.Module):
    """Attention over the tokens that are there, then two linear layers with a GELU between them."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self._heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return the new vectors `(B, L, D)`."""
        given = self.norm1(states)
        query, key, value = (self._split(layer(given)) for layer in (self.query, self.key, self.value))
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        attended: Tensor = states + self.dropout(self.output(seen.transpose(1, 2).flatten(2)))
        whole: Tensor = attended + self.dropout(self.outer(functional.gelu(self.inner(self.norm2(attended)))))
        return whole

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self._heads, -1).transpose(1, 2)
