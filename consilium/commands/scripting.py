"""The option `--json`: one JSON document on standard output for programs, whatever a command says to people elsewhere.

A command returns its document, and prints for people as ever; with `--json` all of that goes to standard error. Errors
are a document too: `{"error": ..., "kind": ..., "exit_code": ...}`, with the sentence on standard error as without.
"""

import contextlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

OPTION = "--json"

Json = Annotated[
    bool, typer.Option(OPTION, help="One JSON document on standard output; everything for people on standard error.")
]

Document = Mapping[str, Any]
"""What a program gets to know of a command: names, numbers, texts, lists and paths."""


@dataclass(frozen=True)
class Outcome:
    """A document of a command that ends with an exit code of its own though it did what it was asked to."""

    document: Document
    exit_code: int = 0


def with_json(function: Callable[..., Document | Outcome]) -> Callable[..., None]:
    """Turn a function that returns its document into a command with the option `--json`."""

    @wraps(function)
    def command(*, as_json: bool, **values: Any) -> None:
        if as_json:
            with contextlib.redirect_stdout(sys.stderr):
                outcome = function(**values)
        else:
            outcome = function(**values)
        if not isinstance(outcome, Outcome):
            outcome = Outcome(outcome)
        if as_json:
            print_document(outcome.document)
        if outcome.exit_code:
            raise typer.Exit(outcome.exit_code)

    own = inspect.signature(function).parameters.values()
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    parameters.append(inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # what typer reads
    return command


def print_document(document: Document) -> None:
    """Print a document as one JSON object; paths are texts, and a number that is none is null."""
    typer.echo(json.dumps(_plain(document), ensure_ascii=False, indent=2, allow_nan=False))


def print_error(kind: str, sentence: str, exit_code: int) -> None:
    """Print the document of a command that failed."""
    print_document({"error": sentence, "kind": kind, "exit_code": exit_code})


def wants_json(arguments: Sequence[str]) -> bool:
    """Return whether a command line asks for a document, also where it is wrong otherwise."""
    return OPTION in arguments


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and value - value != 0 else value
