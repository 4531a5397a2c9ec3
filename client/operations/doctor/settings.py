"""Settings, study and versions."""

import os
from dataclasses import replace
from pathlib import Path

from consilium.client.operations.accepted_study import accepted_study
from consilium.client.operations.doctor.finding import Finding, failed, passed, skipped, warned
from consilium.client.privacy.policy.case import Case
from consilium.client.privacy.policy.reading import FILE
from consilium.client.privacy.policy.rules import check
from consilium.client.site.versions import versions
from consilium.common.errors import ConfigError, HandshakeMismatch, PolicyRefused
from consilium.common.study.bundle import read_bundle
from consilium.common.study.load import NO_SITE, load_policy, load_site, load_study
from consilium.common.study.parts import only
from consilium.common.study.policy import PolicyConfig
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig


def check_settings(path: Path) -> tuple[SiteConfig | None, Finding]:
    """Read the site.toml."""
    if not path.exists():
        return None, failed("settings", f"cannot read '{path}': there is no such file", NO_SITE, ConfigError)
    try:
        config = load_site(path)
    except ConfigError as error:
        fix = "correct the file; docs/reference/site.md lists every key"
        return None, failed("settings", str(error), fix, ConfigError)
    return config, passed("settings", f"{path}: site '{config.name}', server {config.server}")


def check_study(path: Path | None, config: SiteConfig | None) -> tuple[StudyConfig | None, Finding]:
    """Read the study and see whether this site takes part."""
    if path is None:
        return None, skipped("study", "no study.toml known yet: the data is not read, only looked for")
    try:
        with only(config.parts if config is not None else ()):
            study = load_study(path)
    except ConfigError as error:
        fix = "ask the coordinator for the study again, and whether both sides have the same consilium"
        return None, failed("study", str(error), fix, ConfigError)
    if config is not None and not study.takes_part(config.name):
        fix = "ask the coordinator to add this site to 'sites'"
        return study, warned("study", f"'{study.name}' does not list site '{config.name}'", fix)
    return study, passed("study", f"'{study.name}', {study.rounds} rounds with {', '.join(study.members)}")


def check_ranges(path: Path | None, config: SiteConfig) -> Finding:
    """Say with which other values the coordinator may run the study later without asking."""
    if path is None:
        return skipped("ranges", "no study known yet")
    try:
        accepted = accepted_study(path, config)
    except ConfigError:
        return skipped("ranges", "needs 'study'")
    if not accepted.words:
        struck = " (accept_ranges in site.toml strikes the ranges that it came with)" if accepted.offered else ""
        return passed("ranges", f"the study runs exactly as accepted{struck}")
    open_ = "; ".join(line for line in accepted.words if not line.startswith(" "))
    return passed(
        "ranges",
        f"the coordinator may later run this study with other values without asking: {open_}. accept_ranges in "
        "site.toml narrows or strikes this",
    )


def check_policy(settings: Path, study: StudyConfig | None, config: SiteConfig) -> Finding:
    """Say whether this site has a policy of its own, and whether the study is within it."""
    path = settings.parent / FILE
    try:
        policy = load_policy(path) if os.path.lexists(path) else PolicyConfig()
        where = (
            f"'{path}'"
            if path.exists()
            else f"no '{path}': the defaults hold ('consilium site policy --init' writes them)"
        )
        view = study.seen_by(config.name) if study is not None and study.takes_part(config.name) else None
        case = Case(config.name, "check", policy, settings.parent, config.state_dir)
        check("order", case)
        if view is not None:
            check("study", replace(case, policy=policy.model_copy(update={"approve_runs": False}), study=view))
    except ConfigError as error:
        return failed(
            "policy", str(error), "correct the file; 'consilium site policy --explain' has every rule", ConfigError
        )
    except PolicyRefused as error:
        fix = "change the policy, or have the coordinator change the study"
        return failed("policy", f"no plan of this study would be obeyed: {error}", fix, PolicyRefused)
    return passed("policy", where + ("; each run is approved by hand" if policy.approve_runs else ""))


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
