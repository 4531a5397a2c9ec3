"""Every command that people script answers in JSON: one document on standard output, nothing else, same exit codes."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from consilium.commands.main import app, main
from consilium.commands.scripting import OPTION, Outcome, with_json
from consilium.common.errors import ConfigError, ConnectionRefused

NOT_SCRIPTED = {
    "compose": "a step of the containers, for nobody to type",
    "server start": "runs until it is stopped, and has pages for monitoring",
    "site start": "runs until it is stopped, and has pages for monitoring",
    "relay start": "runs until it is stopped, and has pages for monitoring",
    "serve": "runs until it is stopped, and answers in JSON",
    "schema": "prints a JSON document as it is",
    "new": "writes a folder for people to go on with",
}
"""Commands without `--json`, each with the reason; those under a group of this name too."""


def single_commands(group: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Yield every command that is no group, with what is typed to call it."""
    if not isinstance(group, click.Group):
        yield " ".join(path), group
        return
    for name, command in group.commands.items():
        yield from single_commands(command, (*path, name))


COMMANDS = dict(single_commands(typer.main.get_command(app)))


def has_json(command: click.Command) -> bool:
    """Return whether a command has the option that all of them share."""
    return any(OPTION in param.opts for param in command.params)


def is_listed(path: str) -> bool:
    """Return whether a command, or a group that it is in, is one of those without the option."""
    return any(path == listed or path.startswith(f"{listed} ") for listed in NOT_SCRIPTED)


@pytest.mark.parametrize("path", COMMANDS)
def test_command_answers_programs_or_is_listed_with_the_reason(path: str) -> None:
    """A new command has `--json`, with the help that all have, or says here why not; never both."""
    assert has_json(COMMANDS[path]) != is_listed(path)
    helps = {param.help for param in COMMANDS[path].params if isinstance(param, click.Option) and OPTION in param.opts}
    assert helps <= {"One JSON document on standard output; everything for people on standard error."}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a pool of images and a site, in which commands are called."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "pool.npz", x=rng.integers(0, 255, (90, 8, 8), np.uint8), y=np.arange(90) % 3)
    made = CliRunner().invoke(app, ["site", "init", "--name", "berlin", "--server", "localhost:1"])
    assert 0 == made.exit_code, made.output
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "keys", "code"),
    [
        ("list", {"methods", "strategies", "weightings", "codecs"}, 0),
        ("site init --name lyon --server h:1 --folder lyon", {"site", "folder", "fingerprint", "request"}, 0),
        ("site rotate-key", {"fingerprint", "active", "request"}, 0),
        ("site approve-app --list", {"apps"}, 0),
        ("site backup berlin.backup", {"file", "files", "bytes", "sealed"}, 0),
        ("site check", {"findings", "failures", "exit_code"}, ConfigError.exit_code),
        ("data split pool.npz --out f --by iid --sites 3", {"folder", "study", "record", "sites", "notes"}, 0),
        ("data fetch digits --to digits", {"name", "folder", "about"}, 0),
    ],
)
def test_document_is_all_that_is_on_standard_output(arguments: str, keys: set[str], code: int, folder: Path) -> None:
    """The keys that the documentation names; people's lines are on standard error, and the exit code is the same."""
    runner, words = CliRunner(), arguments.split()
    done = runner.invoke(app, [*words, OPTION])
    assert code == done.exit_code, done.output
    document = json.loads(done.stdout)
    assert keys == document.keys()
    assert document.get("exit_code", code) == code and "error" not in document
    assert done.stderr


def test_without_the_option_nothing_is_changed(folder: Path) -> None:
    """People's lines are on standard output, and no document is."""
    done = CliRunner().invoke(app, ["site", "approve-app", "--list"])
    assert ("no app is approved at this site\n", "") == (done.stdout, done.stderr)


def failure(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[Any, str, str]:
    """Return exit code, standard output and standard error of the program."""
    monkeypatch.setattr(sys, "argv", ["consilium", *arguments])
    monkeypatch.setattr("consilium.commands.main._prepare", lambda: None)
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code, *capfd.readouterr()


@pytest.mark.parametrize(
    ("arguments", "kind", "code"),
    [
        (("server", "sites"), "ConnectionRefused", ConnectionRefused.exit_code),
        (("run", "no.toml"), "ConfigError", ConfigError.exit_code),
        (("site", "accept", "no.json"), "ConfigError", ConfigError.exit_code),
        (("data", "fetch", "nothing", "--to", "x"), "ConfigError", ConfigError.exit_code),
        (("data", "split", "pool.npz"), "UsageError", 2),
        (("server", "sites", "--nothing"), "UsageError", 2),
        (("nothing",), "UsageError", 2),
    ],
)
def test_error_is_a_document_too(
    arguments: tuple[str, ...],
    kind: str,
    code: int,
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`error`, `kind` and `exit_code`, of wrong command lines too; the sentence is on standard error as ever."""
    ended, out, err = failure(capfd, monkeypatch, *arguments, OPTION)
    document = json.loads(out)
    assert ({"error", "kind", "exit_code"}, kind, code) == (document.keys(), document["kind"], document["exit_code"])
    assert code == ended and document["error"] in " ".join(err.replace("│", " ").split())
    ended, out, _ = failure(capfd, monkeypatch, *arguments)
    assert (code, "") == (ended, out)


def test_whatever_a_command_prints_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Also what is printed by way of a console or of `print`; a number that is none becomes null."""
    from rich.console import Console

    def command() -> Mapping[str, Any]:
        print("by print")
        typer.echo("by typer")
        Console().print("by rich")
        return {"path": Path("a"), "nan": float("nan"), "set": {2, 1}, "nested": ({"x": float("inf")},)}

    with_json(command)(as_json=True)
    out, err = capsys.readouterr()
    assert {"path": "a", "nan": None, "set": [1, 2], "nested": [{"x": None}]} == json.loads(out)
    assert ["by print", "by typer", "by rich"] == err.splitlines()


def test_outcome_has_its_own_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    """A command that did what it was asked to, and found something, says both."""
    with pytest.raises(typer.Exit) as ended:
        with_json(lambda: Outcome({"found": 1}, 4))(as_json=True)
    assert (4, {"found": 1}) == (ended.value.exit_code, json.loads(capsys.readouterr().out))
