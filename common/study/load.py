"""Read `study.toml` and `site.toml`, with a sentence for everything that is wrong."""

import difflib
import tomllib
from pathlib import Path
from typing import Any

from pydantic import (
    ValidationError,
)

from common.errors import ConfigError
from common.host.text import clean
from common.study.names import _IN_WORDS
from common.study.site import SiteConfig
from common.study.study import StudyConfig

MAX_PROBLEMS = 20
"""How many problems of one file or message are told."""

_PATHS = ("ca_certificate", "private_key", "certificate", "study_key", "state_dir", "weights_dir")


def load_study(path: Path) -> StudyConfig:
    """Read and check a `study.toml`.

    Raises:
        ConfigError: the file is missing, is not TOML, or a key or value is wrong.
    """
    study = parse_study(_read_toml(path), source=str(path))
    if study.num_sites is not None:
        raise ConfigError(f"num_sites: is counted, not set; remove it ({path})")
    return study


def parse_study(values: dict[str, Any], *, source: str) -> StudyConfig:
    """Check the values of a study; `source` is named in errors."""
    try:
        return StudyConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, source)) from error


def load_site(path: Path) -> SiteConfig:
    """Read and check a `site.toml`; relative paths are taken from the file's folder.

    Raises:
        ConfigError: the file is missing, is not TOML, or a key or value is wrong.
    """
    values = _read_toml(path)
    folder = path.resolve().parent
    for key in _PATHS:
        value = values.get(key, SiteConfig.model_fields[key].default)
        if isinstance(value, str | Path):
            values[key] = folder / value
    if isinstance(values.get("data"), dict):
        paths = {key: values["data"][key] for key in ("path", "test") if isinstance(values["data"].get(key), str)}
        values["data"] |= {key: folder / path for key, path in paths.items()}
    return parse_site(values, source=str(path))


def parse_site(values: dict[str, Any], *, source: str) -> SiteConfig:
    """Check the values of a site's settings; `source` is named in errors."""
    try:
        return SiteConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, source)) from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read '{path}': {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError; so is a number of 5000 digits
        raise ConfigError(f"'{path}' is not valid TOML: {error}") from error


def describe(error: ValidationError, source: str) -> str:
    """Return a validation error as one sentence per problem: `where: what, got value (file)`.

    What comes from outside must neither fill a log nor steer a terminal: long values and long lists of problems are
    cut, and control characters written out.
    """
    problems = error.errors(include_url=False)
    sentences = [_sentence(problem, source) for problem in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        sentences.append(f"... and {len(problems) - MAX_PROBLEMS} more problems ({source})")
    return "\n".join(sentences)


def _sentence(problem: Any, source: str) -> str:
    where = _shortened(".".join(str(part) for part in problem["loc"]))
    prefix = f"{where}: " if where else ""
    match problem["type"]:
        case "extra_forbidden":
            what = "unknown key; see the README's configuration table"
        case "missing":
            what = "is required, got nothing"
        case "union_tag_invalid":
            known = problem["ctx"]["expected_tags"].replace("'", "")
            tag = _shortened(problem["ctx"]["tag"])
            close = difflib.get_close_matches(tag, known.split(", "), n=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            what = f"there is no kind '{tag}'; {hint}known: {known}"
        case "value_error":
            what = str(problem["ctx"]["error"])
        case "string_pattern_mismatch" if problem["ctx"]["pattern"] in _IN_WORDS:
            what = f"must be {_IN_WORDS[problem['ctx']['pattern']]}, got {_shortened(repr(problem['input']))}"
        case _:
            text = _shortened(problem["msg"].replace("Input should", "must"))
            what = f"{text}, got {_shortened(repr(problem['input']))}"
    return clean(f"{prefix}{what} ({source})", 2000)


def _shortened(text: str, limit: int = 200) -> str:
    """Return the first `limit` characters and how many there were."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
