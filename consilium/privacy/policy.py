"""A site's policy in words: every rule with its value, where that comes from, and why a careful hospital wants it."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import tomli_w

from consilium.client.privacy.policy.reading import FILE
from consilium.common.errors import ConfigError
from consilium.common.host.files import write_atomically
from consilium.common.study.load import load_policy
from consilium.common.study.policy import PolicyConfig
from consilium.common.study.record import Record
from consilium.common.study.site import SiteConfig
from consilium.schema.field_docs import field_docs

OF_THE_SITE = (
    *("accept_ranges", "max_runs", "test_readings"),
    *("share_class_counts", "class_counts_epsilon", "share_scale", "share_error_details"),
)
"""Settings of the `site.toml` that limit a server too; each stands in one of the two files only."""
_WIDTH = 116
_EXAMPLES: Mapping[str, Any] = {"expires": date(2027, 12, 31), "min_noise": 0.5}
"""Values shown for rules that are off where they are not set."""


@dataclass(frozen=True)
class RuleInForce:
    """One rule as it holds at a site.

    Args:
        source: the file that says so, or `default`.
    """

    rule: str
    value: Any
    source: str
    why: str

    def shown(self) -> str:
        """Return the value for people."""
        match self.value:
            case None:
                return "none"
            case bool():
                return "yes" if self.value else "no"
            case Mapping():
                return ", ".join(f"{name} {words}" for name, words in self.value.items())
            case [*items]:
                return ", ".join(map(str, items)) or "(empty)"
        return str(self.value)


def rules_in_force(settings: Path, site: SiteConfig) -> list[RuleInForce]:
    """Return every rule of a site, those of its `site.toml` last.

    Raises:
        ConfigError: the policy is wrong.
    """
    path = settings.parent / FILE
    policy = load_policy(path) if os.path.lexists(path) else PolicyConfig()
    rows = _rows(policy, tuple(PolicyConfig.model_fields), file=FILE)
    return [*rows, *_rows(site, OF_THE_SITE, file=settings.name)]


def _rows(record: Record, names: Sequence[str], *, file: str) -> list[RuleInForce]:
    why, own = field_docs(type(record)), record.model_fields_set
    values = {name: getattr(record, name) for name in names}
    return [RuleInForce(name, value, file if name in own else "default", why[name]) for name, value in values.items()]


def as_json(rows: Sequence[RuleInForce]) -> list[dict[str, Any]]:
    """Return rules as a program reads them."""
    return [{**asdict(row), "value": row.shown() if isinstance(row.value, date) else row.value} for row in rows]


def in_words(rows: Sequence[RuleInForce]) -> list[str]:
    """Return two lines or more per rule: its value and source, and under it why it is there."""
    lines = []
    for row in rows:
        lines.append(f"{row.rule} = {row.shown()}  ({row.source})")
        lines += textwrap.wrap(row.why, _WIDTH, initial_indent="    ", subsequent_indent="    ")
    return lines


def policy_text() -> str:
    """Return a `policy.toml` with every default and why it is there, for a hospital to read through."""
    lines = ["# This hospital's policy. No plan of a server goes past it; a change holds from the next plan on."]
    for name, why in field_docs(PolicyConfig).items():
        lines += ["", *textwrap.wrap(why, _WIDTH, initial_indent="# ", subsequent_indent="# ")]
        value = PolicyConfig.model_fields[name].default
        if value is None:
            lines.append(f"# {_line(name, _EXAMPLES[name])}")
        else:
            lines.append(_line(name, list(value) if isinstance(value, tuple) else value))
    return "\n".join(lines) + "\n"


def _line(name: str, value: Any) -> str:
    """Return a setting on one line of TOML."""
    if isinstance(value, list):
        inner = ", ".join(tomli_w.dumps({"x": each}).removeprefix("x = ").rstrip() for each in value)
        return f"{name} = [{inner}]"
    return tomli_w.dumps({name: value}).rstrip()


def init_policy(folder: Path) -> Path:
    """Write a site's `policy.toml` with the defaults, and return where it lies.

    Raises:
        ConfigError: there is one already.
        StateError: the folder is unwritable.
    """
    path = folder / FILE
    if path.exists():
        raise ConfigError(f"'{path}' exists already and is not overwritten: edit it")
    write_atomically(path, policy_text().encode())
    return path
