"""The page "what the coordinator can see": in a terminal, for programs, as a page, and in short."""

import json
from html import unescape
from pathlib import Path

from conftest import MakeStudy
from typer.testing import CliRunner

from consilium.commands.main import app
from consilium.common.study.load import study_text
from consilium.common.study.study import StudyConfig
from consilium.privacy.deviating import what_deviating_servers_learn
from consilium.privacy.shapes import shared_shapes
from consilium.privacy.visibility import visibility
from consilium.privacy.what_leaves import in_short, render_visibility


def test_command_shows_page_rows_and_document(make_study: MakeStudy, tmp_path: Path) -> None:
    """The same rows each time; the page loads nothing and runs nothing."""
    file, page = tmp_path / "study.toml", tmp_path / "page.html"
    file.write_text(study_text(study := make_study(keep_updates=True)), encoding="utf-8")
    told = CliRunner().invoke(app, ["what-leaves", str(file), "--out", str(page), "--json"])
    assert 0 == told.exit_code, told.output
    document = json.loads(told.stdout)
    assert [row.what for row in visibility(study, shapes=shared_shapes(study))] == [
        row["what"] for row in document["rows"]
    ]
    text = page.read_text(encoding="utf-8")
    assert all(mark not in text for mark in ("<script", "http://", "https://"))
    assert all(row["seen"] in unescape(text) for row in document["rows"])
    assert "keep_updates" in text


def test_shared_arrays_are_named_with_their_shapes(make_study: MakeStudy) -> None:
    """Those of the method: what is personal is not among them."""
    shapes = {"backbone.layer1.0.weight": (6, 2), "backbone.layer1.0.bias": (6,)}
    assert shapes == shared_shapes(make_study(method={"kind": "fedper"}))
    (row, *_) = visibility(make_study(), shapes=shapes)
    assert "2 arrays of 18 numbers in all (backbone.layer1.0.bias 6, backbone.layer1.0.weight 6x2)" in row.what


def test_pretrained_file_is_not_needed_for_shapes(make_study: MakeStudy) -> None:
    """It changes numbers and no shape; without torch the page is made all the same."""
    task = {"kind": "images", "classes": ["no", "yes"], "size": 32, "channels": 3}
    study = make_study(task=task, model={"name": "resnet18", "pretrained": {"file": "none-such.safetensors"}})
    shapes = shared_shapes(study)
    assert shapes is not None
    assert (1, 512) == shapes["fc.weight"]
    assert "as the study's model and method have them" in visibility(study)[0].what


def test_names_in_a_study_are_text_in_the_page(make_study: MakeStudy) -> None:
    """Whoever writes a study writes no page."""
    task = make_study().task.model_dump() | {"classes": ["no", "<script>alert(1)</script>"]}
    assert "<script" not in render_visibility(make_study(task=task), {"<script>": (1,)})


def test_what_is_said_of_a_server_that_deviates(make_study: MakeStudy) -> None:
    """The plain study is not called safe; each protection says what it leaves open."""
    scale = {"a": {"mean": 0.0, "std": 1.0}, "b": {"mean": 0.0, "std": 1.0}}
    task = make_study().task.model_dump() | {"scale": scale}

    def said(study: StudyConfig) -> str:
        return " ".join(what_deviating_servers_learn(study))

    plain, secure = said(make_study()), said(make_study(privacy={"secure_aggregation": True}))
    private = said(make_study(task=task, privacy={"examples": {"epsilon": 3.0}}))
    assert "exact copies of single rows" in plain
    assert "measured, not bounded" in secure
    assert "who runs all other sites of a sum knows the last one's update" in secure
    assert "a factor of e^3" in private
    assert "Exact numbers" not in private
    assert "Exact numbers" in plain
    assert "No weights leave" in said(make_study(method={"kind": "local"}))


def test_few_lines_for_who_accepts_a_study(make_study: MakeStudy) -> None:
    """Which weights leave, and the first sentence on a server that deviates."""
    lines = in_short(make_study(strategy={"kind": "scaffold"}, method={"kind": "scaffold"}, training=PLAIN))
    assert 3 == len(lines)
    assert lines[0].endswith(": each site's, exact")
    assert lines[1].startswith("the change of the control variates")
    assert "no weights" == in_short(make_study(method={"kind": "local"}))[0]


PLAIN = {"epochs": 1, "batch_size": 8, "learning_rate": 0.1, "momentum": 0.0}
