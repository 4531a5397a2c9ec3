"""Blocks on the pages: Python runs, commands are parsed or run, settings are accepted.

Python blocks run in a folder with a small study and its finished run, `runs/example`. A block of commands runs there
too if `<!-- run -->` stands above it; all others are only parsed, as they need a server, other data or an hour.
"""

import contextlib
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main
import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own
from conftest import write_site, write_table
from pages import BLOCK, PAGES, name_of
from paths import ROOT
from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from typer.testing import CliRunner

from consilium.commands.main import app
from consilium.common.results import RunResult
from consilium.common.study.acceptance import ranges_of
from consilium.common.study.load import load_study, parse_site, parse_study
from consilium.common.study.policy import PolicyConfig
from consilium.report.files import write_report
from consilium.report.report import build_report
from consilium.running.in_process import run_in_process

RUN = "<!-- run -->\n"

PROGRAMS_OF_OTHERS = {"docker", "cp", "mkdir", "pip", "sudo", "journalctl", "kubectl"}
"""Not parsed: they need an engine, an index or a right, or are not ours."""

STUDY = """
name = "quick"
sites = ["berlin", "lyon", "porto"]
rounds = 2

[task]
kind = "table"
label = "ill"
classes = ["no", "yes"]
columns.a.kind = "number"
columns.b.kind = "number"

[model]
name = "linear"

[[weighting.factors]]
kind = "size"
exponent = 0.5

[[weighting.factors]]
kind = "loss"
"""


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study, three sites, one that never took part, and a finished run."""
    folder = tmp_path_factory.mktemp("example")
    (folder / "study.toml").write_text(STUDY, encoding="utf-8")
    sites = {}
    for number, name in enumerate(("berlin", "lyon", "porto", "site")):
        sites[name] = write_site(folder / name, name)
        write_table(folder / name / "data.csv", rows=100, seed=number)
    (folder / "site" / "study.toml").write_text(STUDY, encoding="utf-8")
    study, run = load_study(folder / "study.toml"), folder / "runs" / "example"
    run_in_process(study, {name: sites[name] for name in study.sites}, run)
    result = RunResult.model_validate_json((run / "result.json").read_text(encoding="utf-8"))
    write_report(run, build_report(result))
    shutil.copytree(run / "model", folder / "model")
    return folder


def commands_in(text: str) -> Iterator[list[str]]:
    """Yield the words of every command of a block; comments are left out, lines that go on are joined."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def parse(words: list[str], *, whole: bool = True) -> None:
    """Parse a `consilium` command as the command line would, without running it.

    Args:
        whole: False for a command in a sentence, which may leave out its arguments.
    """
    command: click.Command = typer.main.get_command(app)
    context, rest = click.Context(command, info_name="consilium"), words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        member = command.get_command(context, rest[0])
        assert member is not None, f"no command '{rest[0]}': {shlex.join(words)}"
        command, rest = member, rest[1:]
    if not whole and not rest:
        return
    with contextlib.suppress(click.exceptions.Exit, *(() if whole else (click.BadParameter,))):
        command.make_context(command.name, rest, parent=context)


def check_command(words: list[str]) -> None:
    """Check that a command, its options and the files of ours that it names are there."""
    match words:
        case ["consilium", *_]:
            parse(words)
        case ["make", *targets]:
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            known = set(re.findall(r"^([a-z0-9]+):", makefile, flags=re.MULTILINE))
            assert {target for target in targets if "=" not in target} <= known, words
        case ["python", "-m", "pytest", *arguments]:
            assert [] == [item for item in arguments if item.startswith("tests/") and not (ROOT / item).exists()]
        case ["python", "-m", module, *_]:
            assert (ROOT / f"{module.replace('.', '/')}.py").exists(), words
        case ["python", file, *arguments]:
            text = (ROOT / file).read_text(encoding="utf-8")
            assert [] == [item for item in arguments if item.startswith("--") and f'"{item}"' not in text]
        case ["helm", "install", _, chart, *arguments]:
            values: Any = yaml.safe_load((ROOT / chart / "values.yaml").read_text(encoding="utf-8"))
            for name in (item.partition("=")[0] for item in arguments if "=" in item):
                assert reduce(dict.__getitem__, name.split("."), values) is not None, words
        case [program, *_]:
            assert program in PROGRAMS_OF_OTHERS, f"nobody checks this command: {words}"


def shell(example: Example) -> None:
    """Check every command of a block, and run it if that is asked for."""
    text = str(example.parsed)
    if re.search(r"^\$ ", text, flags=re.MULTILINE):
        text = "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
    wanted = example.document.text[: example.region.start].endswith(RUN)
    for words in commands_in(text):
        check_command(words)
        if wanted:
            assert "consilium" == words[0]
            done = CliRunner().invoke(app, words[1:], catch_exceptions=False)
            assert 0 == done.exit_code, f"{shlex.join(words)}\n{done.output}"


def settings(example: Example) -> None:
    """Check that a whole study.toml, site.toml or policy.toml is accepted, and that a part of one is TOML."""
    content = tomllib.loads(str(example.parsed))
    if "sites" in content:
        ranges_of(parse_study(content, source="page"), source="page")
    elif "state_dir" in content:
        parse_site(content, source="page")
    elif content.keys() <= PolicyConfig.model_fields.keys():
        PolicyConfig.model_validate(content)


SYBIL = Sybil(
    parsers=[
        PythonCodeBlockParser(),
        *(CodeBlockParser(language=language, evaluator=shell) for language in ("sh", "console")),
        CodeBlockParser(language="toml", evaluator=settings),
    ],
    path=str(ROOT),
)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_of_a_page_hold(page: Path, example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of the page, in its order; names that one block of Python makes are there in the next."""
    monkeypatch.chdir(example)
    document: Document = SYBIL.parse(page)
    for block in document.examples():
        block.evaluate()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_sentences_are_there(page: Path) -> None:
    """Every `consilium ...` in the text names a command and options that exist."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for quoted in re.findall(r"`(consilium [^`]+)`", text):
        words = shlex.split(" ".join(quoted.split()))
        if not any(word.isupper() and len(word) > 1 for word in words[1:2]) and "..." not in words:
            parse(words, whole=False)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_what_it_is(page: Path) -> None:
    """A block without a language would be checked by nobody."""
    fences = re.findall(r"^```+(.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert all(fences[::2]) and not any(fences[1::2])
