"""The commands about a model's folder: `consilium model show`."""

import typer

from consilium.commands.parameters import console, examples
from consilium.commands.predict import Model
from consilium.commands.scripting import Document, with_json

app = typer.Typer(help="Look at a finished model.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Look at a finished model."""


@app.command("show", epilog=examples("consilium model show site/state/STUDY/RUN/models/personal"))
@with_json
def show(model: Model) -> Document:
    """Show what a model is, where it comes from, how good it was, and whether its files are whole."""
    from consilium.serving.show import print_model
    from consilium.serving.show import show as looked_at

    shown = looked_at(model)
    print_model(shown, console())
    return shown.as_json()
