"""What several commands take: parameters with one help text each, options read off a dataclass, examples, a console."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_origin, get_type_hints

import typer

if TYPE_CHECKING:
    from rich.console import Console

R = TypeVar("R")

Home = Annotated[
    Path, typer.Option("--home", help="The server's own folder: certificates, keys, the register of sites.")
]
Folder = Annotated[Path, typer.Option("--folder", help="The site's own folder: key, settings, personal models.")]
Runs = Annotated[Path, typer.Option("--runs", help="The folder in which each run gets a folder of its own.")]
Study = Annotated[Path, typer.Argument(help="The study's settings, study.toml.")]
Settings = Annotated[Path, typer.Argument(help="The site's settings, site.toml.")]

Data = Annotated[
    Path | None, typer.Option(envvar="CONSILIUM_DATA", help="Where the data lies; default: 'data' in the folder.")
]
DataKind = Annotated[
    Literal["images", "table", "arrays", "features", "series", "text", "masks"],
    typer.Option(
        envvar="CONSILIUM_KIND",
        help="A folder of images per class or with masks, tables, one .npz file of images or features, or texts.",
    ),
]
MetricsAt = Annotated[str | None, typer.Option(envvar="CONSILIUM_METRICS", help="host:port on which to offer metrics.")]


def console() -> "Console":
    """Return a console; output that goes to a file gets lines wide enough for the table."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=130)


def examples(*lines: str) -> str:
    """Return the end of a command's help: each example is a whole command line."""
    return "\n\n".join(["Examples:", *(f"$ {line}" for line in lines)])


def with_options(record: type[Any]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Turn a function that takes `options`, a dataclass, into a command with one parameter per annotated field.

    Fields of type `Annotated[..., typer.Option(...)]` or `Annotated[..., typer.Argument(...)]` become parameters of
    the command, with the field's default; other fields keep their defaults. The function's other parameters stay.
    """
    hints = get_type_hints(record, include_extras=True)
    own = [field for field in fields(record) if get_origin(hints[field.name]) is Annotated]

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        @wraps(function)
        def command(**values: Any) -> R:
            options = record(**{field.name: values.pop(field.name) for field in own})
            return function(options=options, **values)

        parameters = []
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name != "options":
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
                continue
            for field in own:
                default = inspect.Parameter.empty if field.default is MISSING else field.default
                kind = inspect.Parameter.KEYWORD_ONLY
                parameters.append(inspect.Parameter(field.name, kind, default=default, annotation=hints[field.name]))
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # what typer reads
        return command

    return decorate
