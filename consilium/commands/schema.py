"""The command `consilium schema`: JSON Schema of study.toml, site.toml and policy.toml for editors."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from consilium.commands.parameters import examples

app = typer.Typer()


@app.command(
    "schema",
    epilog=examples("consilium schema study --out study.schema.json", "consilium schema site"),
)
def schema(
    file: Annotated[
        Literal["study", "site", "policy"], typer.Argument(help="The file: study.toml, site.toml or policy.toml.")
    ] = "study",
    out: Annotated[Path | None, typer.Option(help="Write it into this file; default: print it.")] = None,
) -> None:
    """Write the JSON Schema of a settings file: an editor with it offers keys and marks wrong values."""
    from consilium.common.host.files import write_atomically
    from consilium.schema.schema import schema_text

    text = schema_text(file)
    if out is None:
        typer.echo(text, nl=False)
        return
    write_atomically(out, text.encode())
    typer.echo(f"written: {out}; first line of a {file}.toml in the same folder: #:schema ./{out.name}")
