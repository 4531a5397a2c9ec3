"""The README's tables say what the code says."""

import itertools
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from client.methods import METHODS
from common.config import SiteConfig, StudyConfig, load_site, load_study
from common.errors import EXIT_CODES

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from models_in(argument)


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        many = typing.get_origin(field.annotation) is dict
        path = f"{prefix}{name}" + (".<column>" if many else "")
        nested = list(models_in(field.annotation))
        for inner in nested:
            yield from keys(inner, path + ".")
        if not nested:
            yield path


def first_cells(heading: str) -> list[str]:
    """The first column of the first table under a heading."""
    section = README.split(f"\n## {heading}\n", 1)[1]
    lines = list(
        itertools.takewhile(lambda line: line.startswith("|"), section[section.index("\n|") + 1 :].splitlines())
    )
    return [line.split("|")[1].strip().strip("`") for line in lines[2:]]


@pytest.mark.parametrize(("heading", "model"), [("`study.toml`", StudyConfig), ("`site.toml`", SiteConfig)])
def test_configuration_table_lists_every_key_once(heading: str, model: type[BaseModel]) -> None:
    """The table has the keys of the pydantic model, no more and no fewer, each once."""
    listed = first_cells(heading)
    assert sorted(set(keys(model))) == sorted(listed)


def test_exit_code_table_lists_every_code() -> None:
    """Every error class's code stands in the table."""
    assert {0, 2, 130, *EXIT_CODES.values()} == {int(cell) for cell in first_cells("Exit codes")}


def test_method_table_lists_every_method() -> None:
    """Every registered method has a row."""
    assert sorted(METHODS) == sorted(first_cells("Methods and models"))


def test_examples_in_the_readme_are_valid(tmp_path: Path) -> None:
    """The study.toml and site.toml shown are accepted as they stand."""
    study, site = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "study.toml").write_text(study)
    (tmp_path / "site.toml").write_text(site)
    assert "pneumonia" == load_study(tmp_path / "study.toml").name
    assert tmp_path / "data" == load_site(tmp_path / "site.toml").data.path
