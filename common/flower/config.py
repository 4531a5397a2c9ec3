"""The settings of a Flower app."""

import math
import re
import tomllib
from collections.abc import Mapping
from typing import Any, TypeAlias

from consilium.common.errors import ConfigError, clean
from consilium.common.flower.files import MAX_DEPTH

Value: TypeAlias = bool | int | float | str
"""Types that a setting of an app may have."""

Config: TypeAlias = Mapping[str, Value]

_PAIR = re.compile(r"(\S+?)=('[^']*'|\"[^\"]*\"|\S+)")


def flat(values: Mapping[str, Any], who: str, prefix: str = "") -> dict[str, Value]:
    """Return settings without tables: the names of nested ones have dots.

    Raises:
        ConfigError: one is not a number, a text, true or false, or is nested too deep.
    """
    plain: dict[str, Value] = {}
    if prefix.count(".") > MAX_DEPTH:
        raise ConfigError(f"{who}: [tool.flwr.app.config] has tables in tables in tables, more than {MAX_DEPTH} deep")
    for key, value in values.items():
        if isinstance(value, dict):
            plain.update(flat(value, who, f"{prefix}{key}."))
        elif isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
            plain[prefix + key] = value
        else:
            raise ConfigError(
                f"{who}: [tool.flwr.app.config] {clean(prefix + key, 80)} is a {type(value).__name__}, expected a "
                "number, a text, true or false"
            )
    return plain


def override(config: Config, text: str) -> dict[str, Value]:
    """Return settings with those in `text` in their places: `k=v k2="x"`, values as in TOML.

    Raises:
        ConfigError: no such pairs, or a name that the app has no setting for.
    """
    rest = _PAIR.sub("", text).strip()
    if rest:
        raise ConfigError(f"--run-config: '{clean(rest, 80)}' is not KEY=VALUE; write e.g. 'rounds=5 name=\"x\"'")
    changed = dict(config)
    for key, value in _PAIR.findall(text):
        if key not in config:
            known = ", ".join(sorted(config)) or "none"
            raise ConfigError(f"--run-config: the app has no setting '{clean(key, 80)}', its settings are: {known}")
        try:
            changed.update(flat({key: tomllib.loads(f"value = {value}")["value"]}, "--run-config"))
        except ValueError:
            raise ConfigError(
                f"--run-config: the value of {clean(key, 80)} must be a number, true, false or a text in quotes, "
                f"got {clean(value, 80)}"
            ) from None
    return changed
