"""The command `consilium new`: a package with a part of one's own, from a template."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from consilium.commands.parameters import examples

app = typer.Typer()

Kind = Literal["method", "strategy", "weighting", "model", "reader", "metric"]


@app.command(epilog=examples("consilium new method my_method", "consilium new metric my_metric --out metrics/mine"))
def new(
    kind: Annotated[Kind, typer.Argument(help="What to write.")],
    name: Annotated[str, typer.Argument(help="The name that studies use, and the module's: small letters and '_'.")],
    out: Annotated[Path | None, typer.Option(help="A new folder; default: one of that name here.")] = None,
) -> None:
    """Write a package with a part of your own: settings and implementation, an entry point, and the contract's test."""
    from consilium.new_part.write import new_package

    folder = out if out is not None else Path(name)
    for path in new_package(kind, name, folder):
        typer.echo(f"wrote {path}")
    typer.echo(
        f"next: pip install --no-deps --no-build-isolation -e {folder}, then python -m pytest {folder}; README.md says "
        "how a study names it, and what sites do to allow it"
    )
