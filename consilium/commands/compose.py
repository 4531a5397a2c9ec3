"""The hidden command `consilium compose`: what the containers of 'docker compose up' run."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from consilium.commands.parameters import Runs, console, examples

app = typer.Typer()


@app.command(hidden=True, epilog=examples("consilium compose prepare", "consilium compose run"))
def compose(
    step: Annotated[Literal["prepare", "run"], typer.Argument(help="The container's step.")],
    runs: Runs = Path("/runs"),
) -> None:
    """Do one step of the containers of 'docker compose up'."""
    from consilium.demo import containers as steps

    out = console()
    if step == "prepare":
        steps.prepare(out)
    else:
        from consilium.report.terminal import print_report

        print_report(steps.run(out, runs), out)
