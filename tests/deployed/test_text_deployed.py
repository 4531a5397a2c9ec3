"""A pretrained model of texts with LoRA at a real site: from a bundle to answers, and a base changed by a byte."""

import json
from pathlib import Path
from typing import Any

import pytest
import text_studies
import tomli_w
from processes import Server, call, running_server, start_site, until

from consilium.client.models.text_folder import described
from consilium.client.operations.site_folder import SiteFolder, init_site
from consilium.server.wire.submission import Control


def study_of(weights: Path) -> dict[str, Any]:
    """Return a study of one site whose base is in a folder."""
    own = described(weights)
    return {
        **{"name": "reports", "sites": ["berlin"], "rounds": 1, "join_timeout_seconds": 60},
        "task": {"kind": "text", "classes": ["bad", "good"], "length": 10, **own["task"]},
        "model": {**own["model"], "adapter": {"rank": 2, "targets": ["query", "value"]}},
        "training": {"optimiser": "adam", "learning_rate": 0.05, "steps": 20},
    }


@pytest.mark.e2e
@pytest.mark.nightly
def test_lora_runs_at_a_deployed_site_and_a_base_changed_by_a_byte_is_refused(tmp_path: Path) -> None:
    """Accepted, checked, run, and asked about new texts by commands; then the site's base differs, and the run ends."""
    pytest.importorskip("transformers", reason="the extra 'text' is not installed")
    (tmp_path / "server").mkdir()
    with running_server(tmp_path / "server") as server:
        folder = SiteFolder(tmp_path / "site")
        init_site(folder, name="berlin", server=server.address, kind="text")
        rows = text_studies.sentences(80, seed=1)
        text_studies.write_csv(folder.path / "data" / "rows.csv", rows)
        base = text_studies.write_pretrained(folder.path / "weights" / "tiny")
        (tmp_path / "study.toml").write_text(tomli_w.dumps(study_of(base)))
        home = ["--home", str(server.home.path)]
        named = ["--name", "berlin", "--study", "study.toml", "--address", server.address]
        assert 0 == call("server", "approve", "site/site.csr", *named, *home, cwd=tmp_path).returncode
        assert 0 == call("site", "accept", "berlin-bundle.json", cwd=tmp_path).returncode
        checked = call("site", "check", cwd=tmp_path)
        assert "begins with 'tiny': its 3 files have the sha256 of the study" in checked.stdout, checked.stdout
        site = start_site(folder.settings, tmp_path / "site.log")
        try:
            until(lambda: _status(server) == "online")
            done = call("run", "study.toml", "--json", *home, cwd=tmp_path)
            assert 0 == done.returncode, done.stderr + done.stdout
            _ask(folder, tmp_path)
            content = bytearray((base / "model.safetensors").read_bytes())
            content[-1] ^= 1
            (base / "model.safetensors").write_bytes(content)
            refused = call("run", "study.toml", "--json", *home, cwd=tmp_path)
            assert 0 != refused.returncode
            assert "'model.safetensors': sha256 is" in json.loads(refused.stdout)["error"]
        finally:
            site.terminate()
            site.wait(timeout=30)


def _ask(folder: SiteFolder, tmp_path: Path) -> None:
    """Predict and evaluate with the folder that the site wrote, which needs no other file."""
    (served,) = folder.path.rglob("models/personal")
    text_studies.write_csv(tmp_path / "new.csv", text_studies.sentences(30, seed=8))
    said = call("predict", str(served), "new.csv", "--out", "answers.csv", cwd=tmp_path)
    assert 0 == said.returncode, said.stderr
    assert 31 == len((tmp_path / "answers.csv").read_text().splitlines())
    measured = call("evaluate", str(served), "new.csv", cwd=tmp_path)
    assert 0 == measured.returncode and "accuracy" in measured.stdout, measured.stdout + measured.stderr


def _status(server: Server) -> str | None:
    with Control(server.home) as control:
        return control.sites().get("berlin")
