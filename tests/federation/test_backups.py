"""A study whose machines burnt down goes on from backups as if nothing had been."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import SIZES, MakeSites, MakeStudy, method_settings
from federations import Killed, global_bytes, killed_at, run, without_times
from typer.testing import CliRunner

from consilium.client.app import forget_sites
from consilium.client.operations.backup import backup_site, restore_site
from consilium.client.privacy.ledger import LEDGER
from consilium.commands.backup import PASSPHRASE as PASSPHRASE_VARIABLE
from consilium.commands.main import app
from consilium.common.errors import ConfigError, StateError
from consilium.common.host.files import only_one
from consilium.common.host.twice import read_twice, write_twice
from consilium.server.operations.backup import SKIPPED_NUMBERS, backup_server, restore_server
from consilium.server.operations.home import ServerHome

PASSPHRASE = "correct horse battery"


@pytest.mark.parametrize("method", ["fedper", "scaffold"])
def test_study_goes_on_from_backups_bit_for_bit(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, method: str
) -> None:
    """Killed in round 3 of 5; server and sites backed up, deleted and put back: the end is that of a run without."""
    study = make_study(rounds=5, **method_settings(method))
    whole = run(study, make_sites(under="one"), tmp_path / "one" / "run")
    sites, runs, home = make_sites(under="two"), tmp_path / "runs", ServerHome(tmp_path / "home")
    home.prepare(["localhost"])
    with pytest.raises(Killed):
        run(study, sites, runs / "run", killed_at(3, after=2))
    forget_sites()
    backup_server(tmp_path / "server.backup", home, runs, passphrase=PASSPHRASE)
    for name, path in sites.items():
        written = backup_site(tmp_path / f"{name}.backup", path.parent)
        assert not any("data.csv" in each.path for each in written.manifest.files)
        shutil.move(path.parent / "data.csv", tmp_path / f"{name}.csv")
        shutil.rmtree(path.parent)
    shutil.rmtree(home.path)
    shutil.rmtree(runs)
    restore_server(tmp_path / "server.backup", home.path, runs, passphrase=PASSPHRASE)
    for name, path in sites.items():
        restore_site(tmp_path / f"{name}.backup", path.parent)
        shutil.move(tmp_path / f"{name}.csv", path.parent / "data.csv")
    continued = run(study, sites, runs / "run")
    assert without_times(whole) == without_times(continued)
    assert global_bytes(tmp_path / "one" / "run") == global_bytes(runs / "run")


def test_backup_is_of_one_moment(tmp_path: Path, make_sites: MakeSites) -> None:
    """None is made while the site, the server or one of its runs is going on, and the sentence says who is."""
    site, home, runs = make_sites()["berlin"], ServerHome(tmp_path / "home"), tmp_path / "runs"
    home.prepare(["localhost"])
    runs.mkdir()
    with (
        only_one(site.parent / "state" / ".lock", otherwise=""),
        pytest.raises(StateError, match=r"site 'berlin' runs on this machine: stop it first, .* \(process \d+ on '"),
    ):
        backup_site(tmp_path / "a", site.parent)
    with (
        only_one(home.path / ".lock", otherwise=""),
        pytest.raises(StateError, match=r"the server in '.*home' runs: stop"),
    ):
        backup_server(tmp_path / "a", home, runs)
    with only_one(runs / "one" / ".lock", otherwise=""), pytest.raises(StateError, match="run 'one' is going on: stop"):
        backup_server(tmp_path / "a", home, runs)
    assert not (tmp_path / "a").exists()


def test_backup_that_would_lack_something_is_not_made(tmp_path: Path, make_sites: MakeSites) -> None:
    """A key or a state elsewhere, no site, no server, or a file inside of what it is made of."""
    elsewhere = make_sites(SIZES, under="elsewhere", state_dir=str(tmp_path / "state"))["berlin"]
    with pytest.raises(ConfigError, match=r"state_dir = '.*' lies outside of '.*', so this backup would lack it"):
        backup_site(tmp_path / "a", elsewhere.parent)
    with pytest.raises(ConfigError, match="is no site's folder"):
        backup_site(tmp_path / "a", tmp_path)
    with pytest.raises(ConfigError, match="is no server's home"):
        backup_server(tmp_path / "a", ServerHome(tmp_path), tmp_path)
    site = make_sites()["berlin"]
    with pytest.raises(ConfigError, match="lies in the folder that it is to be the backup of"):
        backup_site(site.parent / "a", site.parent)


def test_privacy_ledger_is_put_back_by_whoever_says_that_it_is_whole(tmp_path: Path, make_sites: MakeSites) -> None:
    """Else what left since would be free."""
    site = make_sites()["berlin"]
    (site.parent / "state").mkdir()
    (site.parent / "state" / LEDGER).write_text("{}\n")
    backup_site(tmp_path / "a", site.parent)
    with pytest.raises(ConfigError, match="has a privacy ledger, which lacks what left the site since"):
        restore_site(tmp_path / "a", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    restore_site(tmp_path / "a", tmp_path / "new", is_current=True)
    assert "{}\n" == (tmp_path / "new" / "state" / LEDGER).read_text()


def test_restored_server_signs_orders_that_sites_take(tmp_path: Path) -> None:
    """Their numbers lie beyond all that were used since the backup; runs are found where they lie now."""
    home, runs = ServerHome(tmp_path / "home"), tmp_path / "runs"
    home.prepare(["localhost"])
    (home.objects / "run").mkdir(parents=True)
    (home.objects / "run" / "payload").write_bytes(b"x")
    (runs / "one").mkdir(parents=True)
    (runs / "one" / "orders").write_text("3000000")
    jobs = [{"name": "one", "job": {"folder": str(runs / "one")}}, {"name": "two", "job": {"folder": "/elsewhere/two"}}]
    write_twice(home.path / "runs.json", json.dumps(jobs).encode())
    backup_server(tmp_path / "a", home, runs)
    restore_server(tmp_path / "a", tmp_path / "new-home", tmp_path / "new-runs")
    assert SKIPPED_NUMBERS + 3_000_000 == int((tmp_path / "new-runs" / "one" / "orders").read_text())
    content, problem = read_twice(tmp_path / "new-home" / "runs.json")
    assert "" == problem
    folders = [each["job"]["folder"] for each in json.loads(content or b"")]
    assert [str(tmp_path / "new-runs" / "one"), "/elsewhere/two"] == folders
    assert not (tmp_path / "new-home" / "objects").exists()
    assert 0o600 == (tmp_path / "new-home" / "study.key").stat().st_mode & 0o777


def test_commands_say_what_is_in_the_file_and_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a passphrase in the environment, and without; a second backup of the same name is an error of the person."""
    monkeypatch.chdir(tmp_path)
    ServerHome(tmp_path / "server-home").prepare(["localhost"])
    (tmp_path / "runs").mkdir()
    typed = CliRunner()
    assert 0 == typed.invoke(app, ["site", "init", "--name", "berlin", "--server", "localhost:1"]).exit_code
    made = typed.invoke(app, ["site", "backup", "berlin.backup"])
    assert "written: berlin.backup with " in made.output
    assert "it holds private keys in the clear" in made.output
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)
    made = typed.invoke(app, ["server", "backup", "study.backup"])
    assert "it holds private keys, under the passphrase" in made.output
    for folder in ("site", "server-home", "runs"):
        shutil.move(tmp_path / folder, tmp_path / f"{folder}.old")
    back = typed.invoke(app, ["site", "restore", "berlin.backup"])
    assert "next: put the data where site.toml says, and run 'consilium site check site/site.toml'" in back.output
    back = typed.invoke(app, ["server", "restore", "study.backup"])
    assert "next: run 'consilium server start': runs that were going on continue" in back.output
    for folder in ("site", "server-home"):
        old = {each.name: each.read_bytes() for each in (tmp_path / f"{folder}.old").iterdir() if each.is_file()}
        assert {each.name: each.read_bytes() for each in (tmp_path / folder).iterdir() if each.is_file()} == {
            name: content for name, content in old.items() if name != ".lock"
        }
    assert isinstance(typed.invoke(app, ["site", "backup", "berlin.backup"]).exception, ConfigError)
