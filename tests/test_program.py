"""Which bundle a site runs: its own release's, or one that its settings list."""

import hashlib

from conftest import MakeSites
from flwr.cli.build import build_fab_from_files

from client.node import own_bundle, refusal_of
from common.program import BUNDLE_FILES


def test_bundle_of_a_release_is_the_same_each_time() -> None:
    """Server and site build it apart from each other and compare hashes."""
    built = {hashlib.sha256(build_fab_from_files(dict(BUNDLE_FILES))[0]).hexdigest() for _ in range(3)}
    assert {own_bundle()} == built


def test_bundle_of_another_release_is_refused_unless_listed(make_sites: MakeSites) -> None:
    """The sentence names the bundle by the beginning of its hash; `allowed_bundles` lets it in."""
    path, other = make_sites({"berlin": 30})["berlin"], "ab" * 32
    assert refusal_of(own_bundle(), path) is None
    refused = refusal_of(other, path)
    assert refused is not None and "does not run bundle abababababab: it is not that of consilium" in refused
    path.write_text(f"allowed_bundles = ['{other}']\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert refusal_of(other, path) is None


def test_bundle_is_refused_when_the_settings_cannot_be_read(make_sites: MakeSites) -> None:
    """The server is told no path."""
    path = make_sites({"berlin": 30})["berlin"]
    path.write_text("nothing = [")
    assert "this site's settings cannot be used; its log says why" == refusal_of("ab" * 32, path)
