"""Paths that were typed with `~`: shells leave it as it is in `--out=~/results`, and in variables of a service."""

from typing import Any

import click
from typer.models import TyperPath

from consilium.common.host.files import with_home


class HomePath(TyperPath):
    """A path in which `~` at the beginning is the home folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path as click does, with the home folder in place of `~`."""
        return super().convert(with_home(value), param, ctx)


def with_home_paths(command: click.Command) -> click.Command:
    """Return a command, or a group with all its commands, of which every path may begin with `~`."""
    for param in command.params:
        if isinstance(param.type, click.Path):
            param.type = _with_home(param.type)
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            with_home_paths(inner)
    return command


def _with_home(kind: click.Path) -> HomePath:
    return HomePath(
        exists=kind.exists,
        file_okay=kind.file_okay,
        dir_okay=kind.dir_okay,
        writable=kind.writable,
        readable=kind.readable,
        resolve_path=kind.resolve_path,
        allow_dash=kind.allow_dash,
        path_type=kind.type,
        executable=kind.executable,
    )
