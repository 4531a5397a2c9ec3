"""Settings, study and versions."""

from pathlib import Path

from consilium.client.operations.doctor.finding import Finding, failed, passed, skipped, warned
from consilium.client.site.versions import versions
from consilium.common.errors import ConfigError, HandshakeMismatch
from consilium.common.study.bundle import read_bundle
from consilium.common.study.load import load_site, load_study
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig


def check_settings(path: Path) -> tuple[SiteConfig | None, Finding]:
    """Read the site.toml."""
    try:
        config = load_site(path)
    except ConfigError as error:
        there = "correct the file; docs/reference/site.md lists every key"
        fix = there if path.is_file() else "run this command in the folder in which 'consilium site init' ran"
        return None, failed("settings", str(error), fix, ConfigError)
    return config, passed("settings", f"{path}: site '{config.name}', server {config.server}")


def check_study(path: Path | None, config: SiteConfig | None) -> tuple[StudyConfig | None, Finding]:
    """Read the study and see whether this site takes part."""
    if path is None:
        return None, skipped("study", "no study.toml known yet: the data is not read, only looked for")
    try:
        study = load_study(path)
    except ConfigError as error:
        fix = "ask the coordinator for the study again, and whether both sides have the same consilium"
        return None, failed("study", str(error), fix, ConfigError)
    if config is not None and config.name not in study.sites:
        fix = "ask the coordinator to add this site to 'sites'"
        return study, warned("study", f"'{study.name}' does not list site '{config.name}'", fix)
    return study, passed("study", f"'{study.name}', {study.rounds} rounds with {', '.join(study.sites)}")


def check_versions(bundle: Path) -> Finding:
    """Compare the versions installed here with the server's, as the bundle names them."""
    own = versions()
    here = f"consilium {own.consilium}, flwr {own.flwr}, torch {own.torch}, Python {own.python}"
    if not bundle.is_file():
        return skipped("versions", f"{here}; the server's are not known before a bundle is accepted")
    try:
        server = read_bundle(bundle).versions
    except ConfigError as error:
        return failed("versions", str(error), "accept the bundle again", ConfigError)
    if (server.consilium, server.flwr) != (own.consilium, own.flwr):
        there = f"the server had consilium {server.consilium}, flwr {server.flwr} when it made the bundle"
        fix = "install the same versions on both sides; after the server's update ask for a new bundle"
        return failed("versions", f"{here}; {there}", fix, HandshakeMismatch)
    return passed("versions", f"{here}; the server's are the same")
