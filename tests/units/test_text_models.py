"""Models of texts: padding, pooling, pretrained folders by their digests, and what does not go with texts."""

import json
from pathlib import Path
from typing import Any

import pytest
import text_studies
import torch

from consilium.client.models import build_model
from consilium.client.models.text import TextModel, pooled, trimmed
from consilium.client.models.text_folder import described
from consilium.client.training.rows import row_gradients
from consilium.common.errors import ConfigError, ModelError
from consilium.common.study.load import parse_study
from consilium.common.study.text_models import TEXT_SETTINGS
from consilium.common.study.training import ModelConfig

SMALL: dict[str, Any] = {"vocabulary": 40, "width": 16}
SETTINGS: dict[str, dict[str, Any]] = {
    "text_mean": SMALL,
    "text_transformer": {**SMALL, "layers": 2, "heads": 2},
}
TINY: dict[str, Any] = {**SETTINGS["text_transformer"], "inner": 32, "positions": 24, "dropout": 0.0}
KINDS = ("bert", "roberta", "gpt2")


def built(name: str, settings: dict[str, Any], *, length: int = 10, outputs: int = 2, **more: Any) -> Any:
    """Return a model of texts."""
    config = ModelConfig(name=name, settings=settings, **more)
    return build_model(config, input_shape=(length,), num_outputs=outputs, weights_dir=None, seed=3)


def models() -> list[Any]:
    """Return the settings of every built-in model of texts, of the three kinds of transformers too."""
    known = [pytest.param(name, settings, id=name) for name, settings in SETTINGS.items()]
    return known + [pytest.param("transformer", {**TINY, "type": kind}, id=kind) for kind in KINDS]


def texts() -> torch.Tensor:
    """Return three texts of 5, 3 and 1 tokens, padded to 10."""
    x = torch.zeros(3, 10)
    for row, length in enumerate((5, 3, 1)):
        x[row, :length] = torch.randint(1, 41, (length,), generator=torch.Generator().manual_seed(row)).float()
    return x


def test_all_models_of_texts_are_tested_here() -> None:
    """A model that is added to the settings is in these tests."""
    assert {*SETTINGS, "transformer"} == set(TEXT_SETTINGS)


@pytest.mark.parametrize(("name", "settings"), models())
@pytest.mark.parametrize("pooling", ["mean", "last", "first"])
def test_padding_changes_no_answer(name: str, settings: dict[str, Any], pooling: str) -> None:
    """A text alone, and among longer ones with zeros behind it, has the same answer; an empty one has a finite one."""
    if name == "transformer":
        pytest.importorskip("transformers", reason="the extra 'text' is not installed")
    own = settings if name == "text_mean" else {**settings, "pooling": pooling}
    module = built(name, own).module.eval()
    x = texts()
    with torch.no_grad():
        together = module(x)
        alone = torch.cat([module(x[row : row + 1, : int((x[row] > 0).sum())]) for row in range(3)])
        empty = module(torch.zeros(1, 10))
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    assert bool(torch.isfinite(empty).all()) and (3, 2) == tuple(together.shape)


@pytest.mark.parametrize(("name", "settings"), models())
def test_gradients_of_rows_add_up_to_the_gradient_of_the_batch(name: str, settings: dict[str, Any]) -> None:
    """Private training sees each row by itself: the mean of the rows' gradients is that of the batch."""
    if name == "transformer":
        pytest.importorskip("transformers", reason="the extra 'text' is not installed")
    model = built(name, settings, outputs=1)
    x, y = texts(), torch.tensor([0, 1, 1])
    parameters = {key: value for key, value in model.module.named_parameters() if key in model.head}
    found = row_gradients(model.module, parameters, x, y)(x, y)[1]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(model.module(x)[:, 0], y.float())
    expected = torch.autograd.grad(loss, list(parameters.values()))
    for one, whole in zip(found, expected, strict=True):
        torch.testing.assert_close(whole, one.mean(dim=0), rtol=1e-4, atol=1e-5)


def test_tokens_are_averaged_without_padding() -> None:
    """Of two tokens with the vectors 2 and 4 and one of padding with 9, the mean is 3, the last 4 and the first 2."""
    states, mask = torch.tensor([[[2.0], [4.0], [9.0]]]), torch.tensor([[True, True, False]])
    assert [3.0, 4.0, 2.0] == [float(pooled(states, mask, how)) for how in ("mean", "last", "first")]


def test_columns_of_padding_are_cut_off() -> None:
    """The longest of the rows has 5 tokens; of rows without any token one column is left."""
    assert (3, 5) == tuple(trimmed(texts()).shape)
    assert (2, 1) == tuple(trimmed(torch.zeros(2, 10)).shape)


def test_answer_of_text_mean_is_the_head_of_the_mean() -> None:
    """Computed by hand from the table of vectors and the head."""
    model = built("text_mean", SMALL).module
    assert isinstance(model, TextModel)
    table = dict(model.named_parameters())["backbone.base.0.weight"]
    x = torch.tensor([[3.0, 8.0, 0.0]])
    torch.testing.assert_close(model.head((table[2] + table[7]) / 2)[None], model(x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_gives_what_the_package_transformers_gives(tmp_path: Path, kind: str) -> None:
    """The base's vectors are those of transformers' own `from_pretrained`, and the folder's settings are its own."""
    transformers = pytest.importorskip("transformers", reason="the extra 'text' is not installed")
    folder = text_studies.write_pretrained(tmp_path / "weights" / "tiny", kind)
    own = described(folder)["model"]
    config = ModelConfig(**{**own, "settings": {**own["settings"], "dropout": 0.0}})
    model = build_model(config, input_shape=(10,), num_outputs=2, weights_dir=tmp_path / "weights", seed=1)
    ids = torch.tensor([[5, 9, 2, 7]])
    with torch.no_grad():
        ours = model.module.eval().get_submodule("backbone")(ids, torch.ones(1, 4, dtype=torch.bool))
        oracle = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
        theirs = oracle(input_ids=ids, attention_mask=torch.ones(1, 4)).last_hidden_state
    torch.testing.assert_close(theirs, ours)


def test_a_folder_changed_by_a_byte_is_refused(tmp_path: Path) -> None:
    """So is each of its files, one that is missing, and settings that are not those of its config.json."""
    pytest.importorskip("transformers", reason="the extra 'text' is not installed")
    folder = text_studies.write_pretrained(tmp_path / "tiny")
    own = described(folder)["model"]

    def build(**settings: Any) -> Any:
        config = ModelConfig(**{**own, "settings": {**own["settings"], **settings}})
        return build_model(config, input_shape=(10,), num_outputs=2, weights_dir=tmp_path, seed=1)

    assert build() is not None
    with pytest.raises(ModelError, match=r"config\.json says num_attention_heads or n_head = 2, the study says .*= 4"):
        build(heads=4)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(ModelError, match=rf"weights folder 'tiny': '{name}': sha256 is [0-9a-f]+, the study pins"):
            build()
        content[-1] ^= 1
        (folder / name).write_bytes(content)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"'config\.json' not found"):
        build()


def test_weights_of_another_size_do_not_fit(tmp_path: Path) -> None:
    """The sentence names what is wrong; nothing is written."""
    pytest.importorskip("transformers", reason="the extra 'text' is not installed")
    folder = text_studies.write_pretrained(tmp_path / "tiny")
    own = described(folder)["model"]
    files = {name: sha for name, sha in own["pretrained"]["files"].items() if name == "model.safetensors"}
    config = ModelConfig(
        **{**own, "settings": {**own["settings"], "width": 8}, "pretrained": {"folder": "tiny", "files": files}}
    )
    with pytest.raises(ModelError, match=r"wrong shape embeddings\.word_embeddings\.weight"):
        build_model(config, input_shape=(10,), num_outputs=2, weights_dir=tmp_path, seed=1)
    with pytest.raises(ModelError, match=r"site\.toml has no weights_dir"):
        build_model(ModelConfig(**own), input_shape=(10,), num_outputs=2, weights_dir=None, seed=1)


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Only three kinds of models are built, and none by code that a folder brings along."""
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "config.json").write_text(" " * 2**20 + "{}")
    with pytest.raises(ModelError, match=r"config\.json has more than 1048576 bytes"):
        described(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "odd", "auto_map": {"AutoModel": "odd.Odd"}}))
    with pytest.raises(ModelError, match="expected model_type bert, roberta or gpt2"):
        described(folder)


STUDY: dict[str, Any] = {
    "name": "texts",
    "sites": ["a", "b"],
    "task": {"kind": "text", "classes": ["bad", "good"], "length": 8},
    "model": {"name": "text_mean"},
}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": {"name": "mlp"}}, "model 'mlp' reads no texts"),
        ({"model": {"name": "text_mean", "settings": {"vocabulary": 100}}}, "tells 8192 apart"),
        ({"task": {"kind": "features", "shape": [3], "classes": ["a", "b"]}}, "reads texts, but task.kind is"),
        ({"task": {**STUDY["task"], "length": 600}, "model": {"name": "transformer"}}, "has places for 512 tokens"),
        ({"model": {"name": "text_mean", "settings": {"heads": 3}}}, "heads"),
        ({"model": {"name": "text_transformer", "settings": {"width": 10, "heads": 4}}}, "multiple of heads"),
        ({"model": {"name": "text_mean", "adapter": {}, "trainable": "head"}}, "leave it out"),
        ({"model": {"name": "text_mean", "pretrained": {"folder": "x"}}}, "a folder needs files"),
        (
            {"model": {"name": "text_mean", "pretrained": {"folder": "x", "files": {"model.safetensors": "0" * 64}}}},
            "is for model 'transformer'",
        ),
        ({"model": {"name": "transformer", "pretrained": {"file": "a.pt"}}}, "come as a folder"),
    ],
)
def test_what_does_not_go_with_texts_is_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    """Where the study is read, before anything is built."""
    with pytest.raises(ConfigError, match=sentence):
        parse_study({**STUDY, **changes}, source="study.toml")
