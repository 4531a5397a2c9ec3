"""`policy.toml` as a hospital writes and reads it, and the commands about it."""

import json
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from consilium.client.operations.asked_runs import runs_asked
from consilium.client.operations.doctor.settings import check_policy
from consilium.client.operations.site_folder import SiteFolder, init_site
from consilium.client.privacy.audit import FILE, AuditLog
from consilium.client.privacy.policy.approvals import approve_run, approved_runs
from consilium.client.privacy.policy.gate import Gate
from consilium.commands.main import app
from consilium.common.errors import ConfigError, PolicyRefused, StateError
from consilium.common.host.keys import read_private_key
from consilium.common.study.load import load_policy, load_site, parse_study
from consilium.common.study.policy import UNBOUND, PolicyConfig
from consilium.common.wire.envelope import Order
from consilium.privacy.policy import OF_THE_SITE, policy_text, rules_in_force
from consilium.schema.field_docs import field_docs


@pytest.fixture
def folder(tmp_path: Path) -> SiteFolder:
    """Return the folder of a site that was just made."""
    made = SiteFolder(tmp_path / "site")
    init_site(made, name="berlin", server="example.org:9092", kind="table")
    return made


def invoke(*arguments: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, list(arguments))


def test_written_policy_is_the_defaults(tmp_path: Path) -> None:
    """What `--init` writes changes nothing, says why for each rule, and names each that is off by default."""
    (tmp_path / "policy.toml").write_text(policy_text())
    assert PolicyConfig() == load_policy(tmp_path / "policy.toml")
    values = tomllib.loads(policy_text().replace("\n# expires", "\nexpires").replace("\n# min_noise", "\nmin_noise"))
    assert set(PolicyConfig.model_fields) == set(values)
    assert isinstance(values["expires"], date)
    for line in policy_text().splitlines():
        assert len(line) <= 120


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("min_bach = 8", "min_bach: unknown key"),
        ("min_batch = 0", "min_batch: must be at least 1, got 0"),
        ("max_epsilon = -1.0", "max_epsilon: must be greater than 0, got -1.0"),
        ('expires = "soon"', "expires: must be a day such as 2027-01-31, got 'soon'"),
        ('methods = ["fedagv"]', "methods.0: there is no method 'fedagv'; did you mean 'fedavg'?"),
        ('codecs = ["zst"]', "codecs.0: there is no codec 'zst', expected one of identity, fp16"),
        ('metrics = "train.loss"', "metrics: must be a list in brackets, got 'train.loss'"),
        ("unit = 'row'", "unit: must be 'patient' or 'example', got 'row'"),
        ("accepted_study =", "is not valid TOML"),
    ],
)
def test_wrong_policy_is_refused_with_a_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    """It names the key, the value and the file."""
    (tmp_path / "policy.toml").write_text(text + "\n")
    with pytest.raises(ConfigError) as caught:
        load_policy(tmp_path / "policy.toml")
    assert sentence in str(caught.value) and "policy.toml" in str(caught.value)


def test_policy_of_one_process_binds_nothing() -> None:
    """Each rule is at its loosest: else a simulation would refuse what its person asks for."""
    defaults = PolicyConfig()
    assert not UNBOUND.accepted_study and not UNBOUND.require_privacy and not UNBOUND.require_secure_aggregation
    for name in ("min_examples", "min_batch", "least_count", "min_sites"):
        assert getattr(UNBOUND, name) <= min(2, getattr(defaults, name))
    for name in ("max_epsilon", "max_rounds", "max_steps", "max_state_mb", "requests_per_hour", "metric_digits"):
        assert getattr(UNBOUND, name) > getattr(defaults, name)
    assert (3, 5) == (UNBOUND.least_of_sum, PolicyConfig(min_sites=5).least_of_sum)


def test_rules_are_explained_with_their_source(folder: SiteFolder) -> None:
    """Every rule once, and what of the `site.toml` limits a server too; nothing stands in both files."""
    site = load_site(folder.settings)
    assert not set(OF_THE_SITE) & set(PolicyConfig.model_fields)
    rows = {row.rule: row for row in rules_in_force(folder.settings, site)}
    assert set(PolicyConfig.model_fields) | set(OF_THE_SITE) == set(rows)
    assert {"default"} == {rows[name].source for name in PolicyConfig.model_fields}
    (folder.path / "policy.toml").write_text("min_batch = 16\n")
    rows = {row.rule: row for row in rules_in_force(folder.settings, site)}
    assert ("16", "policy.toml") == (rows["min_batch"].shown(), rows["min_batch"].source)
    assert ("8", "default") != (rows["min_batch"].shown(), rows["min_examples"].source)
    assert all(row.why and row.shown() for row in rows.values())
    assert all(": " in why or ". " in why or "; " in why for why in field_docs(PolicyConfig).values())


def test_command_prints_explains_and_writes_the_policy(folder: SiteFolder) -> None:
    """A row per rule; `--explain` says why; `--init` writes the file once; `--json` is one document of all of it."""
    settings = str(folder.settings)
    assert "min_batch\t8\tdefault\n" in invoke("site", "policy", settings).stdout
    done = invoke("site", "policy", settings, "--init")
    assert 0 == done.exit_code and "policy.toml with the defaults" in done.stdout
    again = invoke("site", "policy", settings, "--init")
    assert isinstance(again.exception, ConfigError) and "is not overwritten: edit it" in str(again.exception)
    explained = invoke("site", "policy", settings, "--explain").stdout
    assert "min_batch = 8  (policy.toml)\n    Smallest `training.batch_size`: the gradient of one row" in explained
    rules = json.loads(invoke("site", "policy", settings, "--json").stdout)["rules"]
    assert {"rule", "value", "source", "why"} == set(rules[0]) and "accepted_study" == rules[0]["rule"]


def test_command_approves_runs_with_the_study_that_they_asked_for(folder: SiteFolder) -> None:
    """The audit log says which study was refused; the approval holds for that one alone."""
    config, place = load_site(folder.settings), ["--folder", str(folder.path)]
    log = AuditLog(config.state_dir, site="berlin", key=read_private_key(config.private_key))
    log.note("PolicyRefused", {"run": "run-1", "kind": "handshake", "study": "ab" * 32})
    log.note("PolicyRefused", {"run": "run-2", "kind": "round", "study": "cd" * 32})
    assert {"run-1"} == set(runs_asked(config.state_dir))
    listed = json.loads(invoke("site", "approve-run", "--list", "--json", *place).stdout)
    assert [] == listed["approved"] and ["run-1"] == [each["run"] for each in listed["waiting"]]
    assert "with study abababababab, and no other" in invoke("site", "approve-run", "run-1", *place).stdout
    assert "has not asked for anything yet" in invoke("site", "approve-run", "run-9", *place).stdout
    assert {"run-1": "ab" * 32, "run-9": ""} == {run: each.study for run, each in approved_runs(folder.path).items()}
    assert "no longer approved: run-1" in invoke("site", "approve-run", "--remove", "run-1", *place).stdout
    for wrong in (["--remove", "run-1"], ["../run"], [], ["run-1", "--list"]):
        assert isinstance(invoke("site", "approve-run", *wrong, *place).exception, ConfigError)
    elsewhere = invoke("site", "approve-run", "run-1", "--folder", str(folder.path / "state"))
    assert isinstance(elsewhere.exception, ConfigError) and "is no site's folder" in str(elsewhere.exception)


def test_damaged_approvals_approve_nothing(folder: SiteFolder) -> None:
    """A sentence for the person, a refusal for the server."""
    path = folder.path / "approved-runs.json"
    approve_run(folder.path, "run-1")
    assert 0o600 == path.stat().st_mode & 0o777
    (folder.path / "policy.toml").write_text("accepted_study = false\napprove_runs = true\n")
    config = load_site(folder.settings)
    gate = Gate(folder.settings, config.state_dir, config.private_key)
    order = Order(number=1, run="run-1", site="berlin", kind="plan", text="{}")
    gate.check(order)
    for text in ("[]", "{", '{"run-1": {}}', '{"run-1": 3}'):
        path.write_text(text)
        with pytest.raises(StateError, match="is damaged, so no run is approved"):
            approved_runs(folder.path)
        with pytest.raises(PolicyRefused, match="is not approved here"):
            gate.check(order)
    assert 4 == len((config.state_dir / FILE).read_text().splitlines())


STUDY: dict[str, Any] = {
    "name": "hearts",
    "sites": ["berlin", "lyon"],
    "task": {"kind": "images", "classes": ["a", "b"]},
}


@pytest.mark.parametrize(
    ("text", "study", "status", "words"),
    [
        (None, {}, "FAIL", "has accepted no study"),
        ("accepted_study = false", {}, "PASS", "policy.toml"),
        ("accepted_study = false\napprove_runs = true", {}, "PASS", "each run is approved by hand"),
        ("accepted_study = false", {"training": {"epochs": 1, "batch_size": 2}}, "FAIL", "min_batch in its policy"),
        ("accepted_study = 3", {}, "FAIL", "accepted_study: must be true or false, got 3"),
        ("expires = 2020-01-01", {}, "FAIL", "obeys no plan after 2020-01-01"),
    ],
)
def test_site_check_has_a_line_about_the_policy(
    text: str | None, study: dict[str, Any], status: str, words: str, folder: SiteFolder
) -> None:
    """Whether a plan of the study would be obeyed is known before one comes."""
    if text is not None:
        (folder.path / "policy.toml").write_text(text + "\n")
    finding = check_policy(folder.settings, parse_study(STUDY | study, source="test"), load_site(folder.settings))
    assert ("policy", status) == (finding.name, finding.status) and words in finding.message
