"""What a site agreed to with the study that it accepted: its ranges, less what the site's own settings strike."""

from dataclasses import dataclass
from pathlib import Path

from consilium.client.operations.site_folder import SiteFolder
from consilium.client.site.journal import note_bundle
from consilium.common.errors import ConfigError
from consilium.common.study.acceptance import Ranges, in_words, narrowed, ranges_of
from consilium.common.study.bundle import Bundle
from consilium.common.study.load import load_site, load_study
from consilium.common.study.parts import only
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig


@dataclass(frozen=True)
class AcceptedStudy:
    """A study as a site accepted it.

    Args:
        ranges: with what this site's settings strike.
        words: a line for each setting that may change, and for each method that it may become.
        offered: whether the study came with ranges.
    """

    study: StudyConfig
    ranges: Ranges
    words: tuple[str, ...]
    offered: bool


def accepted_study(study: Path, config: SiteConfig) -> AcceptedStudy:
    """Return the study in a file, with what may change in it at a site.

    Raises:
        ConfigError: the study is wrong or cannot be read.
    """
    with only(config.parts):
        read = load_study(study)
    offered = ranges_of(read, source=str(study))
    ranges = narrowed(offered, config.accept_ranges, source="site.toml")
    return AcceptedStudy(read, ranges, tuple(in_words(read, ranges)), bool(offered.by_path))


def note_acceptance(folder: SiteFolder, bundle: Bundle) -> AcceptedStudy | None:
    """Write into the site's log what was accepted with a bundle; return the study, if this version can read it.

    Raises:
        ConfigError: the settings are wrong.
        StateError: the log cannot be written.
    """
    config = load_site(folder.settings)
    try:
        accepted = accepted_study(folder.study, config) if bundle.study is not None else None
    except ConfigError:
        accepted = None  # 'site check' says what is wrong with it
    ranges = accepted.ranges.open() if accepted is not None else {}
    name = accepted.study.name if accepted is not None else None
    note_bundle(config, bundle, study=name, ranges=ranges)
    return accepted
