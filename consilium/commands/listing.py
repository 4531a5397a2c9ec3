"""The command `consilium list`: every algorithm that a study can name."""

import typer

from consilium.commands.parameters import console, examples

app = typer.Typer()


@app.command("list", epilog=examples("consilium list"))
def list_() -> None:
    """List every method, strategy, weighting and codec that a study can name, with settings, defaults and paper."""
    from consilium.commands.catalogue import print_sections

    print_sections(console())
