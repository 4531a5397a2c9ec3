"""Read `study.toml`, `site.toml` and `policy.toml`, write the first two, and say what is wrong in sentences."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from consilium.common.errors import ConfigError
from consilium.common.host.files import with_home, write_atomically
from consilium.common.study.acceptance import check_words, ranges_of
from consilium.common.study.column_patterns import has_patterns, with_names
from consilium.common.study.policy import PolicyConfig
from consilium.common.study.sentences import describe
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig

NO_SITE = "make a site with 'consilium site init', or run this command in the folder in which 'consilium site init' ran"
"""What to do where there is no site's folder."""

_PATHS = ("ca_certificate", "private_key", "certificate", "study_key", "peers", "state_dir", "weights_dir")


def load_study(path: Path) -> StudyConfig:
    """Read and check a `study.toml`; patterns of columns become the names of the columns of a table.

    Raises:
        ConfigError: the file is missing, is not TOML, or a key or value is wrong; or it is of users without names.
    """
    study = parse_study(with_names(_read_toml(path), path.parent, source=str(path)), source=str(path))
    if study.num_sites is not None:
        raise ConfigError(f"num_sites: is counted, not set; remove it ({path})")
    ranges_of(study, source=str(path))
    if study.devices is not None:
        raise ConfigError(
            f"devices: a study of users without names is simulated: consilium simulate {path} --data DATA ({path})"
        )
    return study


def load_device_study(path: Path, *, users: int | None, **devices: Any) -> StudyConfig:
    """Read and check a `study.toml` with `[devices]`.

    Args:
        users: how many users there are; None: as the file says, if it does.
        devices: settings of `[devices]` that replace those of the file; None leaves them.

    Raises:
        ConfigError: the file is missing, is not TOML, or a key or value is wrong; or it has no `[devices]`.
    """
    values = with_names(_read_toml(path), path.parent, source=str(path))
    if not isinstance(table := values.get("devices", {}), dict):
        return parse_study(values, source=str(path))
    given = {name: value for name, value in {"users": users, **devices}.items() if value is not None}
    if "devices" not in values and "cohort" not in given:
        raise ConfigError(
            f"devices: '{path}' has no [devices], which says how many users a round takes: add it, or give --cohort"
        )
    return parse_study({**values, "devices": {**table, **given}}, source=str(path))


def study_source(path: Path) -> str:
    """Return the text of a `study.toml` as sites get it: as it is, or with columns' names in place of patterns.

    Raises:
        ConfigError: the file cannot be read, or there is no table to take names from.
    """
    values = _read_toml(path)
    if not has_patterns(values):
        return path.read_text(encoding="utf-8")
    return tomli_w.dumps(with_names(values, path.parent, source=str(path)))


def parse_study(values: dict[str, Any], *, source: str) -> StudyConfig:
    """Check the values of a study; `source` is named in errors."""
    try:
        return StudyConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, source)) from error


def load_site(path: Path) -> SiteConfig:
    """Read and check a `site.toml`; paths may begin with `~`, relative ones are taken from the file's folder.

    Raises:
        ConfigError: the file is missing, is not TOML, or a key or value is wrong.
    """
    if not path.exists():
        raise ConfigError(f"cannot read '{path}': there is no such file; {NO_SITE}")
    values = _read_toml(path)
    folder = path.resolve().parent
    for key in _PATHS:
        value = values.get(key, SiteConfig.model_fields[key].default)
        if isinstance(value, str | Path):
            values[key] = folder / with_home(value)
    if isinstance(values.get("data"), dict):
        paths = {key: values["data"][key] for key in ("path", "test") if isinstance(values["data"].get(key), str)}
        values["data"] |= {key: folder / with_home(path) for key, path in paths.items()}
    return parse_site(values, source=str(path))


def parse_site(values: dict[str, Any], *, source: str) -> SiteConfig:
    """Check the values of a site's settings; `source` is named in errors."""
    try:
        config = SiteConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, source)) from error
    if not isinstance(config.accept_ranges, bool):
        check_words(config.accept_ranges, what="accept_ranges", source=source)
    return config


def load_policy(path: Path) -> PolicyConfig:
    """Read and check a `policy.toml`.

    Raises:
        ConfigError: the file is missing, is not TOML, or a key or value is wrong.
    """
    try:
        return PolicyConfig.model_validate(_read_toml(path))
    except ValidationError as error:
        raise ConfigError(describe(error, str(path))) from error


def study_text(study: StudyConfig) -> str:
    """Return a `study.toml` that reads as this study, with every setting that is not absent."""
    return tomli_w.dumps(study.model_dump(mode="json", exclude_none=True))


def site_text(values: Mapping[str, Any]) -> str:
    """Return a `site.toml` with these settings; paths may be `Path`s, and settings that are None are left out.

    Raises:
        ConfigError: a key or value is wrong.
    """
    plain = _plain(values)
    parse_site(plain, source="site.toml")
    return tomli_w.dumps(plain)


def write_site(path: Path, values: Mapping[str, Any]) -> None:
    """Write a `site.toml`; for its owner alone to read.

    Raises:
        ConfigError: a key or value is wrong.
        StateError: it cannot be written.
    """
    write_atomically(path, site_text(values).encode(), mode=0o600)


def setting(key: str, value: str) -> str:
    """Return the line of a settings file that sets a key to a text, whatever characters it holds."""
    return tomli_w.dumps({key: value}).rstrip("\n")


def _plain(value: Any) -> Any:
    """Return what TOML can hold: paths as text, and no setting that is None."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items() if inner is not None}
    return str(value) if isinstance(value, Path) else value


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read '{path}': {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError; so is a number of 5000 digits
        raise ConfigError(f"'{path}' is not valid TOML: {error}") from error
