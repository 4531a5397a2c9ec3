"""The command `consilium site privacy`: what left a site about its patients, to whom, and what may still leave."""

from pathlib import Path
from typing import Annotated

import typer

from consilium.commands.parameters import Settings, console, examples
from consilium.commands.scripting import Document, with_json

app = typer.Typer()


@app.command(
    "privacy",
    epilog=examples("consilium site privacy", "consilium site privacy site/site.toml --out privacy.html"),
)
@with_json
def privacy(
    settings: Settings = Path("site/site.toml"),
    out: Annotated[
        Path | None, typer.Option(help="Write it as one page that opens offline, for the data protection officer.")
    ] = None,
) -> Document:
    """Print what left this site about its patients, with which noise, when and to whom, and what may still leave."""
    from consilium.common.host.files import write_atomically
    from consilium.common.study.load import load_site
    from consilium.privacy.spending import as_json, spending_of
    from consilium.privacy.spending_page import print_spending, render_spending

    spending = spending_of(load_site(settings))
    print_spending(spending, console())
    if out is not None:
        write_atomically(out, render_spending(spending).encode())
        typer.echo(f"written: {out}")
    return as_json(spending)
