"""Writes TOML: values on one line, and whole studies; the standard library only reads it."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from common.study.study import StudyConfig


def toml_value(value: Any) -> str:
    """Return a value as TOML on one line: text, a number, a boolean, a list, or a table in braces."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml_key(key)} = {toml_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for this character, which JSON lets stand.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Sequence):
        return "[" + ", ".join(toml_value(inner) for inner in value) + "]"
    return json.dumps(value)


def toml_key(name: str) -> str:
    """Return a key, in quotes where it needs them."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_value(name)


def study_text(study: StudyConfig) -> str:
    """Return a `study.toml` that reads as this study, with every setting that is not absent."""
    told = study.model_dump(mode="json", exclude_none=True)
    plain = {key: value for key, value in told.items() if not isinstance(value, Mapping)}
    lines = [f"{key} = {toml_value(value)}" for key, value in plain.items()]
    for name in (name for name in told if name not in plain):
        lines += ["", f"[{name}]", *(f"{key} = {toml_value(value)}" for key, value in told[name].items())]
    return "\n".join(lines) + "\n"
