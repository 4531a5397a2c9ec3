"""A private study between real processes: within its budget, told as such, and refused once that is spent."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import COMMAND, ENVIRONMENT, Server, call, join, running_server, start_site, until, worker_of

from consilium.client.operations.site_folder import SiteFolder
from consilium.client.privacy.ledger import PrivacyLedger
from consilium.common.privacy.accounting import epsilon_of

pytestmark = pytest.mark.e2e

NAMES = ("early", "late", "third")


def private_study(name: str, *, rounds: int = 2, steps: int = 5, hidden: str = "[4]") -> str:
    """Return a private study.toml of the tables that `write_doses` writes."""
    return f"""
name = "{name}"
sites = {json.dumps(NAMES)}
rounds = {rounds}

[task]
kind = "table"
classes = ["no", "yes"]
label = "ill"
[task.columns.dose]
kind = "number"
[task.scale.dose]
mean = 3.0
std = 2.0

[model]
name = "mlp"
hidden = {hidden}

[training]
steps = {steps}
batch_size = 16
momentum = 0.0

[privacy.examples]
epsilon = 3.0
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a server for all tests of this file."""
    with running_server(tmp_path_factory.mktemp("server")) as found:
        yield found


def write_doses(folder: Path, shift: float) -> None:
    """Write 90 different doses, each with an illness: equal rows would lie in one part."""
    rows = [f"{number / 13 + shift:.3f},{'yes' if number > 40 else 'no'}" for number in range(90)]
    folder.mkdir(parents=True)
    (folder / "patients.csv").write_text("\n".join(["dose,ill", *rows]) + "\n")


@dataclass(frozen=True)
class Site:
    """A site that runs, and the id of its process."""

    folder: SiteFolder
    process: int


@pytest.fixture(scope="module")
def sites(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Site]]:
    """Start three sites, one of which declares how many patients it has."""
    path, found, processes = tmp_path_factory.mktemp("sites"), {}, []
    for place, name in enumerate(NAMES):
        folder = join(server, path, name)
        text = folder.settings.read_text(encoding="utf-8").replace('kind = "images"', 'kind = "table"')
        declared = "declared_examples = 90\n" if name == "third" else ""
        folder.settings.write_text(declared + text, encoding="utf-8")
        write_doses(folder.path / "data", 0.1 * place)
        processes.append(start_site(folder.settings, path / f"{name}.log"))
        found[name] = Site(folder, processes[-1].pid)
    yield found
    for process in processes:
        process.terminate()
        process.wait(timeout=30)


def run_study(server: Server, folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run a study to its end."""
    folder.mkdir()
    (folder / "study.toml").write_text(text)
    return call("run", "study.toml", "--home", str(server.home.path), "--runs", "runs", cwd=folder)


def charged(folder: SiteFolder, study: str) -> list[int]:
    """Return the rounds of a study whose training is in a site's ledger."""
    entries = PrivacyLedger.open(folder.path / "state", folder.path.name).entries()
    return [entry.round for entry in entries if (entry.study, entry.what) == (study, "training")]


def spent_at(folder: SiteFolder, study: str) -> float:
    """Return what a site's ledger says that a study has cost."""
    entries = PrivacyLedger.open(folder.path / "state", folder.path.name).entries()
    own = [entry for entry in entries if entry.study == study]
    assert own
    return epsilon_of([charge for entry in own for charge in entry.drawn], own[-1].delta)


def test_private_study_runs_and_is_refused_once_its_budget_is_spent(
    tmp_path: Path, server: Server, sites: dict[str, Site]
) -> None:
    """Three sites end within epsilon 3, and the page says so; a second run of the study ends with their sentences."""
    first = run_study(server, tmp_path / "first", private_study("doses"))
    assert 0 == first.returncode, first.stdout + first.stderr
    (folder,) = (tmp_path / "first" / "runs").iterdir()
    result = json.loads((folder / "result.json").read_text())
    for name, site in sites.items():
        spent = spent_at(site.folder, "doses")
        assert 2.5 < spent <= 3.0
        assert spent == pytest.approx(result["sites"][name]["privacy"]["epsilon"])
        assert {} == result["rounds"][-1]["sites"][name]["metrics"]
        assert result["sites"][name]["test"]["noise"] > 1
    assert 61 == result["sites"]["third"]["num_train"]
    second = run_study(server, tmp_path / "second", private_study("doses"))
    assert 0 != second.returncode
    said = " ".join((second.stdout + second.stderr).split())
    assert "study 'doses' has spent epsilon" in said
    assert "the sites have to agree on a larger budget for their patients" in said
    assert all(spent_at(site.folder, "doses") <= 3.0 for site in sites.values())


@pytest.mark.nightly
def test_worker_that_is_killed_in_a_round_costs_no_second_charge(
    tmp_path: Path, server: Server, sites: dict[str, Site]
) -> None:
    """Killed after the charge of a round and before its answer: the run asks again, and each is charged once."""
    folder, site = tmp_path / "killed", sites["early"]
    folder.mkdir()
    (folder / "study.toml").write_text(private_study("kills", steps=150, hidden="[512, 512]"))
    command = [*COMMAND, "run", "study.toml", "--home", str(server.home.path), "--runs", "runs"]
    with subprocess.Popen(
        command, env=ENVIRONMENT, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as run:
        until(lambda: 2 in charged(site.folder, "kills"))
        os.kill(worker_of(site.process), signal.SIGKILL)
        assert 0 == run.wait(timeout=120)
    for one in sites.values():
        assert [1, 2] == charged(one.folder, "kills")
        assert spent_at(one.folder, "kills") <= 3.0
