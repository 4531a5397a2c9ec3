"""Another value without another bundle: ranges from the coordinator's study.toml to a site that runs or refuses."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import Server, call, doses_study, running_server, start_site, until, write_patients

from consilium.client.operations.site_folder import SiteFolder, init_site
from consilium.common.study.load import load_site
from consilium.server.wire.submission import Control

RANGES = """
[accept]
rounds = "<= 3"
training.steps = "1..20"
method.kind = ["fedavg", "ditto"]
method.lam = [0.5, 1.0]
seed = "any"
"""


def study_text(*, rounds: int = 1, rest: str = "", **settings: Any) -> str:
    """Return the study that this file hands out, with changes."""
    return doses_study("doses", rounds=rounds, steps=5, join_timeout_seconds=20, **settings) + rest + RANGES


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a server for all tests of this file."""
    with running_server(tmp_path_factory.mktemp("server")) as found:
        yield found


def events_of(folder: SiteFolder, name: str) -> list[dict[str, Any]]:
    """Return the events of one kind in a site's log."""
    lines = (load_site(folder.settings).state_dir / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


@pytest.mark.e2e
@pytest.mark.nightly
def test_study_inside_its_ranges_runs_without_a_new_bundle_and_outside_is_refused(
    server: Server, tmp_path: Path
) -> None:
    """One bundle, five runs: three inside, one past a range and one past a strike; site and coordinator read why."""
    folder = SiteFolder(tmp_path / "site")
    init_site(folder, name="berlin", server=server.address, kind="table")
    write_patients(folder.path / "data", 0.0)
    study = tmp_path / "study.toml"
    study.write_text(study_text())
    home = ["--home", str(server.home.path)]
    named = ["--name", "berlin", "--study", "study.toml", "--address", server.address]
    approved = call("server", "approve", "site/site.csr", *named, *home, cwd=tmp_path)
    assert 0 == approved.returncode, approved.stderr
    assert "  rounds up to 3 (now 1)\n" in approved.stdout

    accepted = call("site", "accept", "berlin-bundle.json", cwd=tmp_path)
    assert 0 == accepted.returncode, accepted.stderr
    assert "the coordinator may later run this study with other values without asking:\n" in accepted.stdout
    assert "  rounds up to 3 (now 1)\n" in accepted.stdout
    assert "    ditto: A personal whole model, pulled towards the global one.\n" in accepted.stdout
    (bundle,) = events_of(folder, "bundle")
    assert ("doses", "up to 3", "any value") == (bundle["study"], bundle["ranges"]["rounds"], bundle["ranges"]["seed"])
    checked = call("site", "check", cwd=tmp_path)
    assert "PASS  ranges" in checked.stdout and "rounds up to 3 (now 1); " in checked.stdout

    site = start_site(folder.settings, tmp_path / "site.log")
    try:
        until(lambda: _status(server) == "online")
        for text in (study_text(), study_text(rounds=2, seed=7), study_text(rest='[method]\nkind = "ditto"\n')):
            study.write_text(text)
            done = call("run", "study.toml", "--json", *home, cwd=tmp_path)
            assert 0 == done.returncode, done.stderr + done.stdout
            document = json.loads(done.stdout)
            assert ("finished", "doses", {"berlin"}) == (document["state"], document["study"], document["sites"].keys())
            assert Path(tmp_path / document["report"]).is_file() and "report: " in done.stderr
        listed = json.loads(call("server", "sites", "--json", *home, cwd=tmp_path).stdout)["sites"]
        assert [("berlin", "online")] == [(each["site"], each["status"]) for each in listed]
        asked = [event.get("changes", {}) for event in events_of(folder, "study")]
        assert {} == asked[0]
        assert {"rounds": "asked for: 2; accepted: 1 and later up to 3"}.items() <= asked[1].items()
        assert {"seed", "rounds"} == asked[1].keys() and {"method.kind"} == asked[2].keys()

        study.write_text(study_text(rounds=4).replace("<= 3", "<= 9"))
        refused = call("run", "study.toml", "--json", *home, cwd=tmp_path)
        said = "rounds (asked for: 4; accepted: 1 and later up to 3)"
        assert 3 == refused.returncode and said in refused.stderr and "site 'berlin'" in refused.stderr
        assert 3 == json.loads(refused.stdout)["exit_code"] and said in json.loads(refused.stdout)["error"]
        assert said in events_of(folder, "failed")[-1]["message"]
        assert 3 == len(events_of(folder, "study"))

        settings = folder.settings.read_text()
        folder.settings.write_text(settings.replace("accept_ranges = true", 'accept_ranges = { rounds = "<= 1" }'))
        study.write_text(study_text(rounds=2))
        refused = call("run", "study.toml", *home, cwd=tmp_path)
        assert 3 == refused.returncode
        assert "later up to 3, of which this site's own settings allow less)" in refused.stderr
        assert "<= 1" not in refused.stderr and "up to 1" not in refused.stderr
    finally:
        site.terminate()
        site.wait(timeout=30)


def _status(server: Server) -> str | None:
    with Control(server.home) as control:
        return control.sites().get("berlin")
