"""All checks of a site in one list."""

import os
from pathlib import Path

from consilium.client.data import keep_readings
from consilium.client.operations.doctor.columns import check_columns
from consilium.client.operations.doctor.credentials import check_identity, check_peers
from consilium.client.operations.doctor.data import check_data, check_scale
from consilium.client.operations.doctor.expected import check_summary
from consilium.client.operations.doctor.finding import Finding, skipped
from consilium.client.operations.doctor.machine import check_disk, check_gpu, check_memory, check_precision, check_state
from consilium.client.operations.doctor.model import check_model
from consilium.client.operations.doctor.network import check_network
from consilium.client.operations.doctor.pictures import check_pictures
from consilium.client.operations.doctor.settings import (
    check_policy,
    check_ranges,
    check_settings,
    check_study,
    check_versions,
)
from consilium.client.operations.site_folder import BUNDLE, STUDY
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig

NEED_SETTINGS = (
    *("key", "certificate", "study key", "authority"),
    *("proxy", "dns", "tcp", "tls", "clock", "approved"),
    *("ranges", "policy", "data", "scale", "model", "state", "disk"),
)
"""Checks that get a line in the list even if the settings cannot be read."""


def examine(path: Path, *, study: Path | None = None) -> list[Finding]:
    """Make every check of the site described by a `site.toml`.

    Args:
        study: the study to check the data with; by default the accepted one, in the settings' folder.
    """
    study = study or (path.parent / STUDY if (path.parent / STUDY).is_file() else None)
    config, about_settings = check_settings(path)
    plan, about_study = check_study(study, config)
    findings = [about_settings, about_study, check_versions(path.parent / BUNDLE)]
    if config is None:
        findings += [skipped(name, "needs the settings") for name in NEED_SETTINGS]
    else:
        findings += _check_site(path, config, plan, study)
    return [*findings, check_memory()]


def _check_site(settings: Path, config: SiteConfig, study: StudyConfig | None, path: Path | None) -> list[Finding]:
    identity = check_identity(config)
    sums = study is not None and study.privacy.secure_aggregation
    with keep_readings():  # the data are read once for several checks
        about_data = [check_data(config, study), *check_columns(config, study), *check_pictures(config, study)]
        about_data += check_summary(config, study)
    return [
        *identity,
        *([check_peers(config)] if sums else []),
        *check_network(config, identity, os.environ),
        check_ranges(path, config),
        check_policy(settings, study, config),
        *about_data,
        check_scale(config, study),
        check_model(config, study),
        check_state(config),
        check_disk(config),
        check_gpu(config),
        *check_precision(config, study),
    ]


def exit_code(findings: list[Finding]) -> int:
    """Return the exit code of the first failure, 0 where there is none."""
    return next((finding.error.exit_code for finding in findings if finding.error is not None), 0)
