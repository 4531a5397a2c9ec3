"""The README's tables say what the code says."""

import itertools
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from paths import ROOT
from pydantic import BaseModel

from client.methods import METHODS
from common.errors import EXIT_CODES
from common.study.load import load_site, load_study
from common.study.methods import MethodConfig
from common.study.ranges import variants
from common.study.site import SiteConfig
from common.study.strategies import StrategyConfig
from common.study.study import StudyConfig
from common.study.weightings import FactorConfig
from server.strategies import STRATEGIES
from server.weighting import WEIGHTINGS

README = (ROOT / "README.md").read_text(encoding="utf-8")


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from models_in(argument)


def origins_in(annotation: object) -> Iterator[object]:
    """What a type is made of, at any depth, e.g. `dict` and `Literal`."""
    yield typing.get_origin(annotation)
    for argument in typing.get_args(annotation):
        yield from origins_in(argument)


ALGORITHMS = {
    **{name: f"{name}.kind" for name in ("method", "strategy")},
    **{name: name for name in ("weighting.factors", "uplink", "downlink")},
}
"""Settings of algorithms stand in tables of their own."""


ENTRIES = {"columns": "column", "scale": "column", "flower": "name"}
"""What the keys of a table of free names are called."""


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if (algorithm := ALGORITHMS.get(f"{prefix}{name}")) is not None:
            yield algorithm
            continue
        kinds = set(origins_in(field.annotation))
        many = dict in kinds
        path = f"{prefix}{name}" + (f".<{ENTRIES[name]}>" if many else "")
        nested = list(models_in(field.annotation))
        if many and typing.Literal in kinds:
            yield f"{prefix}{name}"
        for inner in nested:
            yield from keys(inner, path + ".")
        if not nested:
            yield path


def table(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, row by row."""
    section = README.split(f"\n## {heading}\n", 1)[1]
    lines = list(
        itertools.takewhile(lambda line: line.startswith("|"), section[section.index("\n|") + 1 :].splitlines())
    )
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


def first_cells(heading: str) -> list[str]:
    """The first column of the first table under a heading."""
    return [cells[0].strip("`") for cells in table(heading)]


@pytest.mark.parametrize(("heading", "model"), [("`study.toml`", StudyConfig), ("`site.toml`", SiteConfig)])
def test_configuration_table_lists_every_key_once(heading: str, model: type[BaseModel]) -> None:
    """The table has the keys of the pydantic model, no more and no fewer, each once."""
    listed = first_cells(heading)
    assert sorted(set(keys(model))) == sorted(listed)


def test_exit_code_table_lists_every_code() -> None:
    """Every error class's code stands in the table."""
    assert {0, 2, 130, *EXIT_CODES.values()} == {int(cell) for cell in first_cells("Exit codes")}


def settings_of(variant: type[BaseModel]) -> str:
    """The settings column: every field with its default; `exponent` is every factor's."""
    fields = {name: field.default for name, field in variant.model_fields.items() if name not in ("kind", "exponent")}
    texts = {None: "none", True: "true", False: "false"}

    def told(default: object) -> str:
        return texts[default] if isinstance(default, bool | None) else str(default)

    return ", ".join(f"`{name}` {told(default)}" for name, default in fields.items())


@pytest.mark.parametrize(
    ("heading", "registry", "config"),
    [
        ("Methods and models", METHODS, MethodConfig),
        ("Strategies", STRATEGIES, StrategyConfig),
        ("Weightings", WEIGHTINGS, FactorConfig),
    ],
)
def test_algorithm_tables_list_every_one_with_settings_and_defaults(
    heading: str, registry: Mapping[str, object], config: object
) -> None:
    """Every registered algorithm has a row; its settings are the fields of its variant, with their defaults."""
    rows = {cells[0].strip("`"): cells[-2] for cells in table(heading)}
    assert list(registry) == list(rows)
    assert {variant.model_fields["kind"].default: settings_of(variant) for variant in variants(config)} == rows


def test_examples_in_the_readme_are_valid(tmp_path: Path) -> None:
    """The study.toml and site.toml shown are accepted as they stand."""
    study, site = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "study.toml").write_text(study)
    (tmp_path / "site.toml").write_text(site)
    assert "pneumonia" == load_study(tmp_path / "study.toml").name
    assert tmp_path / "data" == load_site(tmp_path / "site.toml").data.path
