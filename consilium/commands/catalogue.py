"""What a study can name: every strategy, weighting, method and codec with its settings, defaults and paper."""

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from consilium.client.methods import METHODS
from consilium.common.codecs import CODECS
from consilium.common.study.codecs import CodecConfig
from consilium.common.study.methods import MethodConfig
from consilium.common.study.ranges import variants
from consilium.common.study.strategies import StrategyConfig
from consilium.common.study.weightings import FactorConfig
from consilium.server.strategies import STRATEGIES
from consilium.server.weighting import WEIGHTINGS


@dataclass(frozen=True)
class Entry:
    """One algorithm: its name in a study.toml, what it does, its settings as text, and where it comes from."""

    name: str
    what: str
    settings: tuple[str, ...]
    paper: str
    link: str


@dataclass(frozen=True)
class Section:
    """One registry, and how its entries are written in a study.toml."""

    title: str
    how: str
    entries: tuple[Entry, ...]


def sections() -> tuple[Section, ...]:
    """Return everything a study can name, registry by registry."""
    return (
        Section(
            "methods",
            'what each site trains and keeps: [method] kind = "..."',
            _entries(METHODS, MethodConfig),
        ),
        Section(
            "strategies",
            'how the server makes new weights: [strategy] kind = "..."',
            _entries(STRATEGIES, StrategyConfig),
        ),
        Section(
            "weightings",
            'how much each site counts: [[weighting.factors]] kind = "...", multiplied, each with an exponent',
            _entries(WEIGHTINGS, FactorConfig),
        ),
        Section(
            "codecs",
            'how weights travel, stage after stage: [[uplink]] kind = "..." and [[downlink]] kind = "..."',
            _entries(CODECS, CodecConfig),
        ),
    )


def print_sections(console: Console) -> None:
    """Print every section as plain lines that can be searched."""
    for section in sections():
        console.print(Text(f"{section.title}: ", style="bold") + Text(section.how), soft_wrap=True)
        width = max(len(entry.name) for entry in section.entries)
        for entry in section.entries:
            console.print(Text(f"  {entry.name:{width}}  ", style="bold") + Text(entry.what), soft_wrap=True)
            indent = " " * (width + 4)
            if entry.settings:
                console.print(Text(f"{indent}{', '.join(entry.settings)}"), soft_wrap=True)
            if entry.link:
                console.print(Text(f"{indent}{entry.paper} {entry.link}", style="dim"), soft_wrap=True)
        console.print()


def _entries(registry: Mapping[str, type[Any]], config: Any) -> tuple[Entry, ...]:
    models = {model.model_fields["kind"].default: model for model in variants(config)} if config is not None else {}
    return tuple(_entry(name, cls, models.get(name)) for name, cls in registry.items())


def _entry(name: str, cls: type[Any], model: type[BaseModel] | None) -> Entry:
    text = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "")
    link = re.search(r"https?://[^\s,;)]+", text)
    what = (inspect.getdoc(model) or "") if model is not None else (inspect.getdoc(cls) or "")
    settings = tuple(_settings(model)) if model is not None else ()
    paper = _citation(text) if link else ""
    return Entry(name, " ".join(what.split("\n\n")[0].split()), settings, paper, link.group() if link else "")


def _citation(text: str) -> str:
    """Return the paragraph that cites, up to the link: authors, title, where and when."""
    paragraph = next((part for part in text.split("\n\n") if "http" in part), "")
    return " ".join(paragraph.split("http")[0].split()).rstrip(" ,(;")


def _settings(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if name == "kind":
            continue
        choices = get_args(field.annotation) if get_origin(field.annotation) not in (Union, UnionType) else ()
        default = "none" if field.default is None else str(field.default).lower()
        known = f" ({' | '.join(map(str, choices))})" if choices and all(isinstance(c, str) for c in choices) else ""
        yield name if field.is_required() else f"{name} = {default}{known}"
