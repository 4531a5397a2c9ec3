"""The reference says what the code says."""

import pytest
from pydantic import Field

from consilium.common.errors import EXIT_CODES
from consilium.common.study.record import Record
from consilium.schema.field_docs import field_docs
from docs.generate import REFERENCE, pages
from docs.generator.settings import settings_page


def test_reference_is_what_the_code_says() -> None:
    """Byte for byte, and no page more; after a change run `python -m docs.generate`."""
    committed = {path.name: path.read_text(encoding="utf-8") for path in REFERENCE.iterdir()}
    assert pages() == committed


def test_every_exit_code_is_explained() -> None:
    """Each once, those of the command line too."""
    rows = [line for line in pages()["exit-codes.md"].splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert sorted({0, 2, 130, *EXIT_CODES.values()}) == [int(row.split("|")[1]) for row in rows]


def test_setting_without_a_docstring_is_refused() -> None:
    """A key that nobody explains does not get into the reference."""
    with pytest.raises(ValueError, match=r"_Silent: no docstring under \['rounds'\]"):
        field_docs(_Silent)


def test_settings_page_shows_type_range_default_and_meaning() -> None:
    """One row for every key, with the sentence under the field."""
    page = settings_page("some.toml", "Some settings.", _Settings)
    assert "| `rounds` | whole number ≥ 1, ≤ 9; default `3` | Rounds of training. |" in page
    assert "| `name` | text; required | What it is called. |" in page
    assert "| `steps` | number > 0; default none | Or so many steps; none: by `rounds`. |" in page


class _Silent(Record):
    rounds: int = 3


class _Settings(Record):
    name: str
    """What it is called."""
    rounds: int = Field(default=3, ge=1, le=9)
    """Rounds of training."""
    steps: float | None = Field(default=None, gt=0)
    """Or so many steps; None: by `rounds`."""
