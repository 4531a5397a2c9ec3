"""The study that a site has accepted, `study.toml` in the folder of its settings: no other one is obeyed.

Where the study came with ranges, and this site's settings take them, a study that differs inside them is obeyed too.
"""

import functools
from pathlib import Path

from consilium.common.errors import ConfigError, listed
from consilium.common.study.acceptance import Ranges, compare, narrowed, ranges_of
from consilium.common.study.load import load_study
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig

_MOST_STUDIES = 64
"""How many accepted studies one process keeps in memory."""
_MOST_DIFFERENCES = 8
"""How many differing settings a sentence names."""


def check_accepted(settings: Path, config: SiteConfig, study: StudyConfig) -> dict[str, str]:
    """Refuse a study other than the accepted one and those inside its ranges, if this site has accepted one.

    Args:
        settings: the site's `site.toml`, and `config` what it says.
        study: as this site sees it.

    Returns:
        The settings that differ from the accepted ones inside their ranges, each with the value asked for and what was
        accepted.

    Raises:
        ConfigError: names the settings that differ, with the value asked for and what was accepted. It goes to the
            server, so it says nothing that is in this site's settings alone.
    """
    path = settings.parent / "study.toml"
    if not path.is_file():
        return {}
    at = path.stat()
    accepted, ranges = _accepted(path, at.st_mtime_ns, at.st_size)
    site = study.sites[0]
    view = accepted.seen_by(site) if accepted.takes_part(site) else accepted
    ranges = narrowed(ranges, config.accept_ranges, source=str(settings))
    differences = compare(view, study, ranges)
    if outside := [each.words(ranges) for each in differences if not each.inside]:
        raise ConfigError(
            "the server asks for another study than the one this site accepted; they differ in "
            f"{listed(outside, _MOST_DIFFERENCES, 'settings')}; if that is as agreed, the coordinator runs "
            "'consilium server approve' with the new --study, and this site accepts the new bundle"
        )
    return {each.path: each.words(ranges).removeprefix(f"{each.path} ").strip("()") for each in differences}


@functools.lru_cache(maxsize=_MOST_STUDIES)
def _accepted(path: Path, _changed: int, _size: int) -> tuple[StudyConfig, Ranges]:
    """Return the accepted study with its ranges; read again when the file has changed."""
    study = load_study(path)
    return study, ranges_of(study, source=str(path))
