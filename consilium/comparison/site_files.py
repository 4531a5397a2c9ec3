"""Where the sites' data lie, and a fingerprint that changes with them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consilium.common.data.tables import SUFFIXES
from consilium.common.errors import ConfigError
from consilium.common.study.load import load_site
from consilium.common.study.parts import OwnPackage
from consilium.common.study.study import StudyConfig

_DATA_KINDS = {".npz": "arrays", **dict.fromkeys(SUFFIXES, "table")}


@dataclass(frozen=True)
class SiteFiles:
    """Where one site's data lie.

    Args:
        kind: as in `data.kind` of a `site.toml`.
        weights_dir: the folder of pretrained weights; None for none.
        max_skipped: so many unusable rows or files are left out.
        test: where the study's common test set lies, if not among the data.
        share_scale: whether the site shares the sums that one scale for all takes.
        parts: the packages of one's own whose code its settings let run; None: no settings, so those of the study.
        more: further settings of its data, for a reader of one's own.
        declared: how many patients it says it has in a private study; None: as many as it has.
    """

    kind: str
    path: Path
    weights_dir: Path | None = None
    max_skipped: int = 0
    test: Path | None = None
    share_scale: bool = True
    parts: tuple[OwnPackage, ...] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    declared: int | None = None

    @property
    def fingerprint(self) -> str:
        """Return what changes when a file of data or weights is added, changed or removed: names, sizes and times."""
        files = [file for path in (self.path, self.test) if path is not None for file in _files_of(path)]
        if self.weights_dir is not None:
            files += sorted(file for file in self.weights_dir.rglob("*") if file.is_file())
        facts = [(str(file), *_size_and_time(file)) for file in files]
        settings = [self.kind, self.max_skipped, self.share_scale, *([self.more] if self.more else [])]
        settings += [] if self.declared is None else [self.declared]
        return hashlib.sha256(json.dumps([settings, facts]).encode()).hexdigest()


def _files_of(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def _size_and_time(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def find_sites(folder: Path, study: StudyConfig, *, weights_dir: Path | None) -> dict[str, SiteFiles]:
    """Return the data of every site of a study: what `folder/<site>/site.toml` says, or else what lies there.

    Without such a file the data are in `folder/<site>/data`, or in `folder/<site>` if that has no such folder.

    Args:
        weights_dir: the folder of pretrained weights for all sites; None: each one's own, if it says so.

    Raises:
        ConfigError: a site has no folder, or a `site.toml` that cannot be used, is of another site, or forbids the
            scale that the study is set to.
    """
    if weights_dir is not None and not weights_dir.is_dir():
        raise ConfigError(f"--weights-dir: there is no folder '{weights_dir}'")
    if study.groups:
        raise ConfigError(
            f"groups: the devices of '{study.groups[0].name}' enrol at a running server, so there is nothing to "
            "compare on: name the sites whose data lie here in sites, and leave groups out"
        )
    files = {}
    for name in study.sites:
        settings = folder / name / "site.toml"
        if settings.is_file():
            files[name] = _by_settings(settings, name, study, weights_dir)
        else:
            files[name] = _by_folder(folder / name, name, weights_dir, task=study.task.kind)
    return files


def _by_settings(settings: Path, name: str, study: StudyConfig, weights_dir: Path | None) -> SiteFiles:
    config = load_site(settings)
    if config.name != name:
        raise ConfigError(f"'{settings}' is of site '{config.name}', expected '{name}' as its folder is called")
    if not config.data.path.exists():
        raise ConfigError(f"there is no data of site '{name}': '{settings}' says '{config.data.path}'")
    if study.task.scale == "federation" and study.task.scaled_columns and not config.share_scale:
        raise ConfigError(
            f"site '{name}' does not share the sums of its columns, which task.scale = 'federation' needs: set "
            f"share_scale = true in '{settings}', or choose another task.scale"
        )
    own = config.weights_dir if config.weights_dir is not None and config.weights_dir.is_dir() else None
    weights = weights_dir or own
    return SiteFiles(
        config.data.kind,
        config.data.path.resolve(),
        weights.resolve() if weights is not None else None,
        config.data.max_skipped,
        test=config.data.test and config.data.test.resolve(),
        share_scale=config.share_scale,
        parts=config.parts,
        more=config.data.model_dump(mode="json", exclude={"kind", "path", "test", "max_skipped"}),
        declared=config.declared_examples,
    )


def _by_folder(folder: Path, name: str, weights_dir: Path | None, *, task: str) -> SiteFiles:
    path = folder / "data" if (folder / "data").is_dir() else folder
    if not path.is_dir():
        raise ConfigError(f"there is no data of site '{name}': expected a folder '{folder / 'data'}'")
    suffixes = {file.suffix.lower() for file in path.iterdir() if file.is_file()}
    kind = next((kind for suffix, kind in _DATA_KINDS.items() if suffix in suffixes), "images")
    if (kind == "arrays" and task == "features") or task in ("series", "text"):
        kind = task
    kind = "masks" if task == "segmentation" else kind
    return SiteFiles(kind, path.resolve(), weights_dir and weights_dir.resolve())
