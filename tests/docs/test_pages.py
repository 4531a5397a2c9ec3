"""Pages of the documentation: what they name exists, and what they count is so."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from pages import BLOCK, PAGES, name_of
from paths import ROOT
from task_cases import NO_BATCH_NORM, NO_CLASSES, NO_NUMBER, NO_PICTURES

from consilium.client.data import READERS
from consilium.client.methods import METHODS
from consilium.common.codecs import CODECS
from consilium.common.study.models import SMALL_NAMES
from consilium.common.study.text_models import TEXT_SETTINGS
from consilium.server.strategies import STRATEGIES
from consilium.server.weighting import WEIGHTINGS

README = (ROOT / "README.md").read_text(encoding="utf-8")

FOLDERS = r"(?:common|server|client|consilium|docs|tests|benchmarks|examples|docker|dashboards)"
PLACE = re.compile(rf"`({FOLDERS}/[\w./-]*\w/?)`")
"""A file or folder of the project, named in the text."""
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_page_links_to_what_is_there(page: Path) -> None:
    """Every relative link leads to a file, or in the README to a folder: a page for a browser has none of folders."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    links = [link for link in LINK.findall(text) if not re.match(r"[a-z]+:", link)]
    holds = Path.exists if page.name == "README.md" else Path.is_file
    assert [] == [link for link in links if not holds(page.parent / link)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_page_names_files_that_are_there(page: Path) -> None:
    """Every file and folder of the project that the text names exists; NAME stands for one that a reader writes."""
    places = [place for place in PLACE.findall(page.read_text(encoding="utf-8")) if "NAME" not in place]
    assert [] == [place for place in places if not (ROOT / place).exists() and not (ROOT / f"{place}.py").exists()]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_page_names_no_machine(page: Path) -> None:
    """No path of somebody's own machine."""
    assert None is re.search(r"/(?:work|home|tmp|root|Users)/", page.read_text(encoding="utf-8"))


def test_readme_is_short() -> None:
    """A README is read in one go."""
    assert len(README.splitlines()) <= 120


def test_readme_shows_the_table_that_the_demo_prints() -> None:
    """Line by line, without the rule below the head and the empty line."""
    (table,) = re.findall(r"```text\n(site  .*?)```", README, flags=re.DOTALL)
    printed = (ROOT / "benchmarks" / "results" / "demo.txt").read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(printed) if line.startswith("site  "))
    whole = [line.rstrip() for line in printed[start : start + 9]]
    assert [line for line in whole if line and not line.startswith("─")] == table.splitlines()


def test_readme_counts_what_can_be_chosen() -> None:
    """As many methods, strategies, weightings and codecs as the registries hold."""
    sizes = [len(registry) for registry in (METHODS, STRATEGIES, WEIGHTINGS, CODECS)]
    sentence = "{} methods, {} strategies, {} weightings and {} codecs".format(*sizes)
    assert sentence in README.replace("\n", " ")


@pytest.mark.parametrize(
    ("page", "heading", "registry"),
    [
        ("coordinator/choosing.md", "Methods", METHODS),
        ("coordinator/codecs.md", "Codecs: how weights and updates travel", CODECS),
        ("hospital/your-data.md", "Your data", READERS),
    ],
)
def test_table_lists_everything_in_the_registry(page: str, heading: str, registry: Mapping[str, object]) -> None:
    """The first column of the first table under the heading has the registry's names."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    section = re.split(rf"^#+ {re.escape(heading)}\n", text, flags=re.MULTILINE)[1]
    table = re.search(r"(?:^\|.*\n)+", section, flags=re.MULTILINE)
    assert table is not None
    assert sorted(registry) == sorted(re.findall(r"^\| \[?`(\w+)`", table[0], flags=re.MULTILINE))


@pytest.mark.parametrize("page", ["coordinator/choosing.md", "coordinator/pretrained.md"])
def test_page_lists_every_model_of_our_own(page: str) -> None:
    """In the table under Models, and `transformer` of the package transformers with them."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    section = re.split(r"^#+ Models\n", text, flags=re.MULTILINE)[1].split("\n#")[0]
    assert {*SMALL_NAMES, *TEXT_SETTINGS} <= set(re.findall(r"`(\w+)`", section))


def test_page_lists_what_a_label_that_is_no_class_refuses() -> None:
    """Every method, weighting, metric and setting of training that the contract tests hold a task to."""
    text = (ROOT / "docs" / "coordinator" / "choosing.md").read_text(encoding="utf-8")
    section = re.split(r"^## What cannot be combined\n", text, flags=re.MULTILINE)[1].split("\n## ")[0]
    named = {name.rpartition(".")[2] for name in re.findall(r"`([\w.]+)`", section)}
    assert {part.split()[-1] for part in NO_CLASSES | NO_NUMBER | NO_PICTURES | NO_BATCH_NORM} <= named


def test_map_has_every_room() -> None:
    """Each package of the four stands in the table of the page on how it works inside."""
    text = (ROOT / "docs" / "inside" / "index.md").read_text(encoding="utf-8")
    rooms = {
        str(file.parent.relative_to(ROOT))
        for top in ("common", "server", "client", "consilium")
        for file in (ROOT / top).glob("*/__init__.py")
        if not file.parent.is_symlink()
    }
    assert set() == rooms - set(re.findall(r"`([\w/]+)`", text))
