"""Texts for tests: made sentences whose class is in their words, and tiny pretrained folders."""

import hashlib
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from consilium.client.models import vision

assert vision  # transformers imports torchvision, which this module mends

GOOD, BAD = ("lovely", "bright", "kind"), ("dreadful", "dull", "cruel")
PLAIN = ("the", "film", "was", "and", "story", "people", "in", "it", "with", "a")
WORDS = (*PLAIN, *GOOD, *BAD)


def sentences(count: int, *, seed: int) -> list[tuple[str, str]]:
    """Return sentences of seven words with their label, good or bad: one of the words says which."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        label = ("good", "bad")[number % 2]
        words = [draw.choice(PLAIN) for _ in range(6)]
        words.insert(draw.randrange(7), draw.choice(GOOD if label == "good" else BAD))
        made.append((" ".join(words) + f" {number}", label))
    return made


def write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    """Write texts and labels as a table, and return the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in rows), encoding="utf-8")
    return path


def tokenizer_bytes() -> bytes:
    """Return a `tokenizer.json` of whole words, with a start and an end mark; needs the package tokenizers."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    ids = {name: place for place, name in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
    made = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return made.to_str().encode()


def config_of(kind: str) -> dict[str, Any]:
    """Return the `config.json` of a tiny model, under the names that its kind uses."""
    if kind == "gpt2":
        return {"model_type": "gpt2", "vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24}
    return {
        **{"model_type": kind, "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"intermediate_size": 32, "max_position_embeddings": 24, "type_vocab_size": 2, "hidden_act": "gelu"},
        **{"pad_token_id": 1 if kind == "roberta" else 0, "layer_norm_eps": 1e-12},
    }


def write_pretrained(folder: Path, kind: str = "bert", *, seed: int = 3) -> Path:
    """Write a tiny model's folder as the package transformers writes it, with a tokeniser; return the folder."""
    from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, RobertaConfig, RobertaModel

    makers: Mapping[str, Any] = {
        "bert": lambda values: BertModel(BertConfig(**values)),
        "roberta": lambda values: RobertaModel(RobertaConfig(**values)),
        "gpt2": lambda values: GPT2Model(GPT2Config(**values)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    values = config_of(kind)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = makers[kind]({name: value for name, value in values.items() if name != "model_type"})
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    (folder / "tokenizer.json").write_bytes(tokenizer_bytes())
    return folder


def digest_of(path: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
