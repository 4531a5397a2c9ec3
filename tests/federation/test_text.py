"""Studies of texts from files to a finished model's answers: what leaves, what is served, what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import text_studies
from safetensors.numpy import load_file

import consilium as cs
from consilium.client.models.text_folder import described
from consilium.client.operations.doctor.data import check_data
from consilium.client.operations.doctor.model import check_model
from consilium.common.errors import ConfigError, ConsiliumError
from consilium.common.study.load import load_site, parse_study, write_site
from consilium.common.study.study import StudyConfig
from consilium.comparison.cells import make_cell, run_cell
from consilium.comparison.site_files import find_sites
from consilium.serving.evaluate import evaluate
from consilium.serving.export.export import Wanted, export_model
from consilium.serving.predict import predict

TASK = {"kind": "text", "classes": ["bad", "good"], "length": 10, "tokens": {"kind": "words", "buckets": 512}}
SMALL = {"name": "text_mean", "settings": {"vocabulary": 512, "width": 16}}
FAST = {"optimiser": "adam", "learning_rate": 0.05, "batch_size": 16, "epochs": 8}
SITES = ("berlin", "lyon")


def frames(count: int = 80) -> dict[str, pd.DataFrame]:
    """Return two sites' sentences."""
    return {
        site: pd.DataFrame(text_studies.sentences(count, seed=place), columns=["text", "label"])
        for place, site in enumerate(SITES)
    }


def study(**settings: Any) -> StudyConfig:
    """Return a study of these sentences."""
    values = {"name": "texts", "sites": list(SITES), "rounds": 2, "task": TASK, "model": SMALL, "training": FAST}
    return parse_study({**values, **settings}, source="study.toml")


@pytest.mark.parametrize("method", ["fedavg", "fedper", "ditto", "knn_per", "fedrod"])
def test_a_study_of_texts_learns_and_its_model_answers_new_ones(method: str, tmp_path: Path) -> None:
    """Words that say the class are learned by every kind of method; the folder answers rows of a frame and a file."""
    result = cs.simulate(study(method={"kind": method}), frames(), folder=tmp_path)
    assert result.sites["personal"].min() > 0.85
    (served,) = tmp_path.rglob("berlin/**/models/personal")
    model = cs.load_model(served)
    said = model.predict(pd.DataFrame({"text": ["the film was lovely", "the people in it dull", ""]}))
    assert ["good", "bad"] == said["class"].tolist()[:2] and "holds no text" in said["reason"].iloc[2]
    file = text_studies.write_csv(tmp_path / "asked.csv", text_studies.sentences(40, seed=9))
    assert 40 == len(predict(served, [file]).answers.classes)
    assert 40 == evaluate(served, file).num


def test_a_served_model_of_texts_answers_rows_and_says_what_it_expects(tmp_path: Path) -> None:
    """JSON rows with the text column are answered, one without a text has its reason, and arrays are refused."""
    pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
    from consilium.serving.serve.answering import load_served
    from consilium.serving.serve.body import asked_in_json
    from consilium.serving.serve.page import page
    from consilium.serving.serve.refusals import Refusal

    cs.simulate(study(rounds=1), frames(40), folder=tmp_path)
    (folder,) = tmp_path.rglob("berlin/**/models/personal")
    served = load_served(folder)
    task = served.model.record.task
    answer = served.answer(asked_in_json(b'{"rows": [{"text": "the film was lovely"}, {"text": ""}]}', task))
    first, second = answer["predictions"]
    assert first["class"] in ("good", "bad") and "holds no text" in second["reason"]
    assert {"rows": {"text": "text"}} == served.described()["expects"]
    assert "<textarea" in page(served)
    with pytest.raises(Refusal, match="expected 'rows'"):
        asked_in_json(b'{"x": [[1, 2]]}', task)
    assert "texts, of each the first 10 tokens" in (folder / "MODEL_CARD.md").read_text()


def test_a_site_check_says_what_is_wrong_with_texts_and_their_base(tmp_path: Path) -> None:
    """It counts the texts, builds the model with its base, and fails with the run's sentence where a byte differs."""
    pytest.importorskip("transformers", reason="the extra 'text' is not installed")
    given, weights = pretrained(tmp_path)
    text_studies.write_csv(tmp_path / "data" / "rows.csv", text_studies.sentences(60, seed=1))
    settings = {
        **{"name": "berlin", "server": "localhost:1", "ca_certificate": "ca.pem", "private_key": "site.key"},
        **{"state_dir": "state", "weights_dir": "weights", "data": {"kind": "text", "path": "data"}},
    }
    write_site(tmp_path / "site.toml", settings)
    config = load_site(tmp_path / "site.toml")
    assert "60 examples (bad 30, good 30)" in check_data(config, given).message
    found = check_model(config, given)
    assert "begins with 'tiny': its 3 files have the sha256 of the study" in found.message
    file = weights / "tiny" / "config.json"
    file.write_bytes(file.read_bytes() + b" ")
    assert "'config.json': sha256 is" in check_model(config, given).message


def test_only_adapters_and_head_travel_and_the_base_stays(tmp_path: Path) -> None:
    """With LoRA a round sends rank * (inputs + outputs) numbers per layer, and the head; the base does not move."""
    pytest.importorskip("transformers", reason="the extra 'text' is not installed")
    given, weights = pretrained(tmp_path, rounds=1)
    result = cs.simulate(given, frames(40), weights_dir=weights, folder=tmp_path / "out")
    numbers = 2 * 2 * 2 * (16 + 16) + 16 + 1  # two layers, query and value, rank 2; and the head
    sent = result.run.rounds[-1].bytes_up / 2
    assert 4 * numbers <= sent <= 4 * numbers + 1500
    (served,) = (tmp_path / "out").rglob("lyon/**/models/personal")
    before, after = load_file(weights / "tiny" / "model.safetensors"), load_file(served / "weights.safetensors")
    name = "encoder.layer.0.attention.self.query.weight"
    inside = "backbone.base.encoder.layer.0.attention.self.query"
    assert np.array_equal(before[name], after[f"{inside}.base.weight"])
    assert np.abs(after[f"{inside}.lora_b"]).max() > 0
    assert (weights / "tiny" / "tokenizer.json").read_bytes() == (served / "tokenizer.json").read_bytes()
    said = cs.load_model(served).predict(pd.DataFrame({"text": ["the film was lovely"]}))
    assert said["class"].iloc[0] in ("good", "bad")


def test_a_site_whose_base_differs_by_a_byte_is_refused(tmp_path: Path) -> None:
    """The run ends with the sentence that names file and digests, before any weights leave."""
    pytest.importorskip("transformers", reason="the extra 'text' is not installed")
    given, weights = pretrained(tmp_path, rounds=1)
    file = weights / "tiny" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ConsiliumError, match=r"'model\.safetensors': sha256 is [0-9a-f]{64}, the study pins"):
        cs.simulate(given, frames(40), weights_dir=weights)


def pretrained(folder: Path, **settings: Any) -> tuple[StudyConfig, Path]:
    """Return a study of a tiny pretrained BERT with LoRA, and the folder of weights."""
    own = described(text_studies.write_pretrained(folder / "weights" / "tiny"))
    model = {**own["model"], "adapter": {"rank": 2, "targets": ["query", "value"]}}
    return study(task={**TASK, **own["task"]}, model=model, **settings), folder / "weights"


def test_a_comparison_reads_tables_and_folders_of_texts(tmp_path: Path) -> None:
    """One site has a table, the other files by class; a cell of a comparison runs on both, with a common test set."""
    text_studies.write_csv(tmp_path / "berlin" / "data" / "rows.csv", text_studies.sentences(60, seed=1))
    text_studies.write_csv(tmp_path / "berlin" / "data" / "test.csv", text_studies.sentences(30, seed=7))
    for number, (text, label) in enumerate(text_studies.sentences(60, seed=2)):
        file = tmp_path / "lyon" / "data" / label / f"{number}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    given = study()
    files = find_sites(tmp_path, given, weights_dir=None)
    assert ["text", "text"] == [of.kind for of in files.values()]
    (tmp_path / "out").mkdir()
    (tmp_path / "berlin" / "data" / "test.csv").unlink()
    result = run_cell(make_cell("x", given, seed=0, split=0), files, tmp_path / "out", "cell")
    assert result.error is None and (result.sites["lyon"].metrics["global"]["accuracy"] or 0) > 0.8


def test_next_character_is_learned_across_speakers(tmp_path: Path) -> None:
    """Where b always follows a and a follows b, two sites learn it from plain text."""
    for place, site in enumerate(SITES):
        (tmp_path / site / "data").mkdir(parents=True)
        (tmp_path / site / "data" / "speech.txt").write_text("ab" * (150 + place))
    given = study(
        task={"kind": "text", "next": "character", "length": 4, "step": 3},
        model={"name": "text_transformer", "settings": {"vocabulary": 97, "width": 16, "layers": 1, "pooling": "last"}},
    )
    (tmp_path / "out").mkdir()
    cell = make_cell("x", given, seed=0, split=0)
    result = run_cell(cell, find_sites(tmp_path, given, weights_dir=None), tmp_path / "out", "cell")
    assert result.error is None and 1.0 == result.sites["berlin"].metrics["global"]["accuracy"]


def test_a_private_study_of_texts_runs(tmp_path: Path) -> None:
    """Noise on clipped gradients of rows goes with models of texts and with adapters."""
    model = {**SMALL, "name": "text_transformer", "settings": {"vocabulary": 512, "width": 16, "layers": 1, "heads": 2}}
    given = study(
        rounds=1,
        model={**model, "adapter": {"rank": 2}},
        training={"learning_rate": 0.1, "momentum": 0.0, "batch_size": 16, "epochs": 1},
        privacy={"examples": {"epsilon": 50, "delta": 1e-3, "clip": 1.0}},
    )
    result = cs.simulate(given, frames(60), folder=tmp_path)
    assert set(SITES) == set(result.sites.index)


def test_a_small_model_of_texts_is_exported_and_answers_alike(tmp_path: Path) -> None:
    """ONNX of a model of ours takes tokens' numbers; the check compares its answers with the model's."""
    pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    cs.simulate(study(rounds=1), frames(40), folder=tmp_path)
    (served,) = tmp_path.rglob("berlin/**/models/personal")
    made = export_model(served, Wanted("onnx"))
    assert made.export.inputs


def test_arrays_are_no_texts(tmp_path: Path) -> None:
    """Clients of a study of texts give frames with a text column."""
    with pytest.raises(ConfigError, match="give every client's rows as a DataFrame with a text column"):
        cs.simulate(study(), {site: (np.zeros((30, 10)), np.arange(30) % 2) for site in SITES})
    with pytest.raises(ConfigError, match="its DataFrame has no column 'label'"):
        cs.simulate(study(), {site: frame.drop(columns="label") for site, frame in frames().items()})


def test_settings_of_a_site_with_texts_are_read(tmp_path: Path) -> None:
    """`data.kind = "text"` is one of a site's kinds."""
    write_site(
        tmp_path / "site.toml",
        {
            **{"name": "berlin", "server": "localhost:1", "ca_certificate": "ca.pem", "private_key": "site.key"},
            **{"state_dir": "state", "data": {"kind": "text", "path": "data"}},
        },
    )
    assert "text" == load_site(tmp_path / "site.toml").data.kind
    assert "text" == json.loads(study().model_dump_json())["task"]["kind"]
