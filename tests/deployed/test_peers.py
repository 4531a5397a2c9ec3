"""The keys of a study's sites on their way: from the register into bundles, past people, into `peers.json`."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import call, doses_study, make_folder, running_server, write

from consilium.client.operations.doctor.credentials import check_peers
from consilium.client.operations.site_folder import SiteFolder, accept_bundle
from consilium.client.privacy.secure.peers import read_peers
from consilium.common.errors import ConfigError
from consilium.common.host.keys import fingerprint, read_public_key
from consilium.common.study.bundle import Bundle, read_bundle
from consilium.common.study.load import load_site
from consilium.server.operations.bundles import make_bundle
from consilium.server.operations.home import ServerHome
from consilium.server.wire.submission import Control

NAMES = ("bern", "bonn", "graz")


class Study:
    """A running server, a study of three sites with secure aggregation, and these sites' folders."""

    def __init__(self, path: Path, home: ServerHome, address: str) -> None:
        self.path, self.home, self.address = path, home, address
        self.file = path / "study.toml"
        names = json.dumps(list(NAMES))
        self.file.write_text(doses_study("doses", sites=names) + "\n[privacy]\nsecure_aggregation = true\n")
        self.folders = {name: make_folder(path, name, address) for name in NAMES}

    def bundle(self, name: str) -> Bundle:
        """Return what the coordinator sends to a site."""
        with Control(self.home) as control:
            certificate = control.approve(self.folders[name].path / "site.csr", name=name)
        return make_bundle(self.home, certificate, name=name, address=self.address, study=self.file)

    def accept(self, bundle: Bundle, **changes: Any) -> SiteFolder:
        """Have a site accept a bundle, with changes."""
        folder = self.folders[bundle.site]
        accept_bundle(folder, write(self.path / "b.json", bundle.model_copy(update=changes)))
        return folder


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    """The study before anybody is approved."""
    with running_server(tmp_path) as server:
        yield Study(tmp_path, server.home, server.address)


def own_key(folder: SiteFolder) -> str:
    """Return the fingerprint of a site's key."""
    return fingerprint(read_public_key(folder.path / "site.key.pub"))


@pytest.mark.e2e
def test_bundle_holds_the_keys_once_all_sites_are_approved(study: Study) -> None:
    """Not before; each site then has the same keys, its own among them, beside its settings."""
    assert [None, None] == [study.bundle(name).peers for name in NAMES[:2]]
    bundles = {name: study.bundle(name) for name in reversed(NAMES)}
    for name, bundle in bundles.items():
        folder = study.accept(bundle)
        config = load_site(folder.settings)
        assert folder.path / "peers.json" == config.peers
        held = {site: fingerprint(key) for site, key in read_peers(config.peers, site=name).items()}
        assert {site: own_key(study.folders[site]) for site in NAMES} == held
        assert "PASS" == check_peers(config).status
    peers = bundles["bern"].peers or {}
    changed = bundles["bern"].model_copy(update={"peers": {**peers, "bonn": peers["graz"]}})
    assert bundles["bern"].check_code() != changed.check_code(), "people would notice another key"


@pytest.mark.e2e
def test_bundle_of_another_study_holds_no_keys(study: Study) -> None:
    """Nothing changes for studies without secure aggregation: not even the file's content."""
    for name in NAMES:
        study.bundle(name)
    study.file.write_text(study.file.read_text().replace("secure_aggregation = true", "secure_aggregation = false"))
    bundle = study.bundle("bern")
    assert bundle.peers is None
    assert b"peers" not in bundle.to_json()
    assert not (study.accept(bundle).path / "peers.json").exists()


SPOILED: dict[str, tuple[Callable[[dict[str, str]], dict[str, str]], str]] = {
    "own missing": (lambda peers: {k: v for k, v in peers.items() if k != "bern"}, "do not hold the key that it"),
    "another one for itself": (lambda peers: {**peers, "bern": peers["bonn"]}, "do not hold the key that it was made"),
    "no key": (lambda peers: {**peers, "bonn": "ssh-rsa AAAA"}, "the key of site 'bonn' is not a public key in"),
}


@pytest.mark.e2e
def test_spoiled_keys_are_refused_and_nothing_is_changed(study: Study) -> None:
    """Before anything is written; the coordinator makes a new bundle."""
    bundle = [study.bundle(name) for name in (*NAMES, "bern")][-1]
    assert bundle.peers is not None
    before = sorted(path.name for path in study.folders["bern"].path.iterdir())
    for spoil, sentence in SPOILED.values():
        content = bundle.model_dump(mode="json") | {"peers": spoil(dict(bundle.peers))}
        with pytest.raises(ConfigError, match=sentence):
            study.accept(Bundle.model_validate(content))
    assert before == sorted(path.name for path in study.folders["bern"].path.iterdir())


@pytest.mark.e2e
def test_commands_say_whose_keys_are_there_and_what_is_missing(study: Study) -> None:
    """In words at both ends: who approves sees that another bundle is needed, who accepts reads fingerprints."""
    home = ["--study", "study.toml", "--home", str(study.home.path), "--address", study.address]
    for name in NAMES:
        done = call("server", "approve", f"{name}/site.csr", "--name", name, *home, cwd=study.path)
        assert 0 == done.returncode, done.stderr
        assert ("not all are approved" in done.stdout) == (name != "graz")
    assert "the bundle holds the keys of all 3 sites" in done.stdout
    early = call("site", "accept", "bern-bundle.json", "--folder", "bern", cwd=study.path)
    assert "this bundle has none: ask for another one once all sites are approved" in early.stdout
    assert read_bundle(study.path / "bern-bundle.json").peers is None
    done = call("server", "approve", "bern/site.csr", "--name", "bern", *home, cwd=study.path)
    accepted = call("site", "accept", "bern-bundle.json", "--folder", "bern", "--json", cwd=study.path)
    assert 0 == accepted.returncode, accepted.stderr
    assert {site: own_key(study.folders[site]) for site in NAMES} == json.loads(accepted.stdout)["peers"]
    shown = call("site", "accept", "bern-bundle.json", "--folder", "bern", cwd=study.path).stdout
    for site in NAMES:
        assert f"  {site:20} {own_key(study.folders[site])}{' (this site)' if site == 'bern' else ''}" in shown
    checked = call("site", "check", "bern/site.toml", cwd=study.path).stdout
    assert "updates are added up with those of bern, bonn, graz alone" in checked
    (study.folders["bern"].path / "peers.json").unlink()
    assert "'peers.json' is not there" in call("site", "check", "bern/site.toml", cwd=study.path).stdout
