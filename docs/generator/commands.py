"""The page of commands: every one with its arguments and options, as the command line itself knows them."""

import inspect
from collections.abc import Iterator
from typing import Any

import click
import typer.main

from consilium.commands.main import app
from docs.generator.markdown import page, paragraph, table

COLUMNS = ("argument", "value", "meaning")

_EVERYWHERE = {"help", "install_completion", "show_completion"}
"""Options that need no explanation of ours."""

_WORDS = {"integer": "whole number", "float": "number", "file": "path"}


def commands_page() -> str:
    """Return the page of commands."""
    lines = ["# Commands", "", *paragraph("`consilium COMMAND --help` prints the same.")]
    for path, command in commands(typer.main.get_command(app), ("consilium",)):
        lines += _command(path, command)
    return page(lines)


def commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command that a person types, groups before their members."""
    yield path, command
    if isinstance(command, click.Group):
        for name, member in command.commands.items():
            if not member.hidden:
                yield from commands(member, (*path, name))


def _command(path: tuple[str, ...], command: click.Command) -> Iterator[str]:
    yield from (f"## `{' '.join(path)}`", "")
    for text in inspect.cleandoc(command.help or "").split("\n\n"):
        yield from paragraph(" ".join(text.replace("\b", "").split()))
    parameters = [
        item for item in command.params if item.name not in _EVERYWHERE and not getattr(item, "hidden", False)
    ]
    if not isinstance(command, click.Group):
        arguments = [_argument(item) for item in parameters if isinstance(item, click.Argument)]
        options = ["[OPTIONS]"] if len(parameters) > len(arguments) else []
        yield from ("```text", " ".join([*path, *arguments, *options]), "```", "")
    if parameters:
        yield from table(COLUMNS, [_parameter(item) for item in parameters])
    if command.epilog:
        yield from _examples(command.epilog)


def _examples(epilog: str) -> Iterator[str]:
    """Yield the commands at the end of a help text."""
    lines = [line.strip().removeprefix("$ ") for line in epilog.replace("\b", "").splitlines()]
    examples = [line for line in lines if line.startswith("consilium ")]
    if examples:
        yield from ("```sh", *examples, "```", "")


def _argument(item: click.Parameter) -> str:
    name = (item.metavar or item.name or "").upper().strip("[]")
    return name if item.required else f"[{name}]"


def _parameter(item: click.Parameter) -> tuple[str, str, str]:
    names = [_argument(item)] if isinstance(item, click.Argument) else [*item.opts, *item.secondary_opts]
    help_ = " ".join((getattr(item, "help", None) or "").split())
    return ", ".join(f"`{name}`" for name in names), "; ".join(filter(None, (_what(item), _default(item)))), help_


def _what(item: click.Parameter) -> str:
    if getattr(item, "is_flag", False):
        return "switch"
    if isinstance(item.type, click.Choice):
        words = ", ".join(f"`{choice}`" for choice in item.type.choices)
    else:
        name = item.type.name.removesuffix(" range")
        words = " ".join([_WORDS.get(name, name), *_bounds(item.type)])
    return words + (", repeatable" if getattr(item, "multiple", False) else "")


def _bounds(kind: Any) -> list[str]:
    limits = (("≥", getattr(kind, "min", None)), ("≤", getattr(kind, "max", None)))
    return [f"{sign} {value}" for sign, value in limits if value is not None]


def _default(item: click.Parameter) -> str:
    default = item.get_default(click.Context(click.Command("any")), call=True)
    if item.required:
        return "required"
    if default is None or default in ((), []) or type(default).__name__ == "Sentinel":
        return ""
    if isinstance(default, bool):
        return "default on" if default else ""
    return f"default `{default}`" if str(default) else ""
