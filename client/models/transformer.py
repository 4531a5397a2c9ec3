"""BERT, RoBERTa and GPT-2 as the package transformers builds them from plain settings; the only module that imports it.

Nothing is fetched and no code of a model's folder is run: the three classes are named here, and their weights come
from a file of arrays whose digest the study pins (`consilium.client.models.text_folder`).
"""

import warnings
from typing import Any

from torch import Tensor, nn

from consilium.common.host.extras import missing
from consilium.common.study.text_models import TransformerSettings


class Base(nn.Module):
    """A model of the package transformers that answers each token with its last layer's vector."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the tokens' vectors `(B, L, D)`."""
        states: Tensor = self.base(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return states


def base_of(settings: TransformerSettings) -> Base:
    """Return a base of random weights, drawn from torch's own generator.

    Raises:
        ConfigError: the package transformers is not installed.
    """
    try:
        import transformers  # noqa: F401 - whether it is there at all
    except ImportError as error:
        raise missing("model 'transformer'", "transformers") from error
    from consilium.client.models import vision  # noqa: F401 - transformers imports torchvision, which this mends

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of its own future
        base = _BUILDERS[settings.type](settings)
    return Base(base)


def _bert(settings: TransformerSettings) -> nn.Module:
    from transformers.models.bert.configuration_bert import BertConfig
    from transformers.models.bert.modeling_bert import BertModel

    model: nn.Module = BertModel(BertConfig(**_encoder(settings)), add_pooling_layer=False)
    return model


def _roberta(settings: TransformerSettings) -> nn.Module:
    from transformers.models.roberta.configuration_roberta import RobertaConfig
    from transformers.models.roberta.modeling_roberta import RobertaModel

    model: nn.Module = RobertaModel(RobertaConfig(**_encoder(settings)), add_pooling_layer=False)
    return model


def _encoder(settings: TransformerSettings) -> dict[str, Any]:
    return {
        "vocab_size": settings.vocabulary,
        "hidden_size": settings.width,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "intermediate_size": settings.inner or 4 * settings.width,
        "max_position_embeddings": settings.positions,
        "type_vocab_size": settings.types,
        "pad_token_id": settings.padding,
        "hidden_act": settings.activation,
        "layer_norm_eps": settings.epsilon,
        "hidden_dropout_prob": settings.dropout,
        "attention_probs_dropout_prob": settings.dropout,
    }


def _gpt2(settings: TransformerSettings) -> nn.Module:
    from transformers.models.gpt2.configuration_gpt2 import GPT2Config
    from transformers.models.gpt2.modeling_gpt2 import GPT2Model

    config = GPT2Config(
        vocab_size=settings.vocabulary,
        n_embd=settings.width,
        n_layer=settings.layers,
        n_head=settings.heads,
        n_inner=settings.inner,
        n_positions=settings.positions,
        activation_function=settings.activation,
        layer_norm_epsilon=settings.epsilon,
        resid_pdrop=settings.dropout,
        embd_pdrop=settings.dropout,
        attn_pdrop=settings.dropout,
        use_cache=False,
    )
    model: nn.Module = GPT2Model(config)
    return model


_BUILDERS = {"bert": _bert, "roberta": _roberta, "gpt2": _gpt2}
