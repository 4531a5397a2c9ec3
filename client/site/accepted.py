"""The study that a site has accepted, `study.toml` in the folder of its settings: no other one is obeyed."""

import functools
from pathlib import Path

from consilium.common.errors import ConfigError
from consilium.common.study.load import load_study
from consilium.common.study.study import StudyConfig

COORDINATORS = frozenset({"join_timeout_seconds"})
"""Settings of a study that change nothing at a site."""
_MOST_STUDIES = 64
"""How many accepted studies one process keeps in memory."""


def check_accepted(settings: Path, study: StudyConfig) -> None:
    """Refuse a study other than the accepted one, if this site has accepted one.

    Args:
        settings: the site's `site.toml`.
        study: as this site sees it.

    Raises:
        ConfigError: names the settings that differ.
    """
    path = settings.parent / "study.toml"
    if not path.is_file():
        return
    at = path.stat()
    view = _accepted(path, study.sites[0], at.st_mtime_ns, at.st_size)
    if view == study:
        return
    accepted, asked = view.model_dump(), study.model_dump()
    if differing := sorted(key for key in asked if asked[key] != accepted[key] and key not in COORDINATORS):
        raise ConfigError(
            "the server asks for another study than the one this site accepted; they differ in "
            f"{', '.join(differing)}; if that is as agreed, the coordinator runs 'consilium server approve' with the "
            "new --study, and this site accepts the new bundle"
        )


@functools.lru_cache(maxsize=_MOST_STUDIES)
def _accepted(path: Path, site: str, _changed: int, _size: int) -> StudyConfig:
    """Return the accepted study as a site sees it; read again when the file has changed."""
    study = load_study(path)
    return study.seen_by(site) if site in study.sites else study
