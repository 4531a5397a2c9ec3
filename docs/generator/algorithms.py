"""Pages of algorithms: every method, strategy, weighting and codec with its settings, its paper and its file."""

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from consilium.client.methods import METHODS
from consilium.common.codecs import CODECS
from consilium.common.study.codecs import CodecConfig
from consilium.common.study.methods import MethodConfig
from consilium.common.study.ranges import variants
from consilium.common.study.strategies import StrategyConfig
from consilium.common.study.weightings import FactorConfig, FactorSettings
from consilium.schema.field_docs import field_docs
from consilium.server.strategies import STRATEGIES
from consilium.server.weighting import WEIGHTINGS
from docs.generator.markdown import page, paragraph, summary, table
from docs.generator.settings import COLUMNS, settings_rows


@dataclass(frozen=True)
class Registry:
    """The algorithms of one kind: classes by name, their settings, and how a study names one.

    Args:
        common: settings that all of them have, which stand once at the head of the page.
    """

    page: str
    title: str
    introduction: str
    classes: Mapping[str, type[Any]]
    settings: Any
    common: type[BaseModel] | None = None


REGISTRIES = (
    Registry(
        "methods",
        "Methods",
        'What each site shares, trains and serves: `[method]` with `kind = "..."` and the settings below. '
        "[Choosing](../coordinator/choosing.md) says how the parts fit together.",
        METHODS,
        MethodConfig,
    ),
    Registry(
        "strategies",
        "Strategies",
        "How the server makes new global weights from the updates: `[strategy]` with `kind` and its settings. Server "
        "optimisers act on trained weights only; BatchNorm's running statistics are averaged, integers stay exact.",
        STRATEGIES,
        StrategyConfig,
    ),
    Registry(
        "weightings",
        "Weightings",
        "How much each site counts: the product of the factors in `[[weighting.factors]]`, each with `kind`, "
        "`exponent` and its settings. The signals and shares of every round are in `rounds.csv` and the report.",
        WEIGHTINGS,
        FactorConfig,
        FactorSettings,
    ),
    Registry(
        "codecs",
        "Codecs",
        "How weights and updates travel, stage after stage: `[[uplink]]` and `[[downlink]]`, each with `kind` and its "
        "settings. [Codecs](../coordinator/codecs.md) says which to take.",
        CODECS,
        CodecConfig,
    ),
)


def registry_page(registry: Registry) -> str:
    """Return the page of one registry, one section for every algorithm."""
    settings = {model.model_fields["kind"].default: model for model in variants(registry.settings)}
    lines = [f"# {registry.title}", "", *paragraph(registry.introduction)]
    shared = set() if registry.common is None else field_docs(registry.common).keys()
    if registry.common is not None:
        lines += ["All of them have:", "", *table(COLUMNS, settings_rows(registry.common))]
    for name, cls in registry.classes.items():
        rows = [row for row in settings_rows(settings[name]) if row[0].strip("`") not in {"kind", *shared}]
        lines += _algorithm(name, cls, settings[name], rows)
    return page(lines)


def _algorithm(name: str, cls: type[Any], settings: type[BaseModel], rows: list[tuple[str, str, str]]) -> Iterator[str]:
    yield from (f"## `{name}`", "", *paragraph(summary(settings)))
    if rows:
        yield from table(COLUMNS, rows)
    text = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "")
    paper = next((part for part in text.split("\n\n") if "http" in part), "")
    file = cls.__module__.removeprefix("consilium.").replace(".", "/") + ".py"
    yield from paragraph(f"{_linked(paper)} [`{file}`](../../{file})")


def _linked(paper: str) -> str:
    """Return a citation whose links are links."""
    return re.sub(r"https?://[^\s,;)]+", lambda match: f"<{match.group()}>", " ".join(paper.split()))
