"""The command `consilium what-leaves`: what the coordinator can see of a hospital in a study."""

from pathlib import Path
from typing import Annotated

import typer

from consilium.commands.parameters import Study, console, examples
from consilium.commands.scripting import Document, with_json

app = typer.Typer()


@app.command(
    "what-leaves",
    epilog=examples("consilium what-leaves study.toml", "consilium what-leaves site/study.toml --out what-leaves.html"),
)
@with_json
def what_leaves(
    study: Study,
    out: Annotated[Path | None, typer.Option(help="Write it as one page that opens offline.")] = None,
) -> Document:
    """Show what the coordinator can see of each site in a study: alone or only in sums, exact or with noise."""
    from consilium.common.host.files import write_atomically
    from consilium.common.study.load import load_study
    from consilium.privacy.deviating import what_deviating_servers_learn
    from consilium.privacy.shapes import shared_shapes
    from consilium.privacy.visibility import visibility
    from consilium.privacy.what_leaves import print_visibility, render_visibility

    settings = load_study(study)
    shapes = shared_shapes(settings)
    print_visibility(settings, shapes, console())
    if out is not None:
        write_atomically(out, render_visibility(settings, shapes).encode())
        typer.echo(f"written: {out}")
    return {
        "study": settings.name,
        "rows": [vars(row) for row in visibility(settings, shapes=shapes)],
        "if_the_server_deviates": what_deviating_servers_learn(settings),
    }
