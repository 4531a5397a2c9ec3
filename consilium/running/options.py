"""Options of `consilium flower run`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer


@dataclass(frozen=True)
class AppOptions:
    """Options of `consilium flower run`."""

    app: Annotated[Path, typer.Argument(help="The app's folder, with its pyproject.toml.")]
    runs: Annotated[Path, typer.Option(help="The folder in which each run gets a folder of its own.")] = Path("runs")
    sites: Annotated[
        str | None, typer.Option(help="Names of sites with commas between; default: all that are connected.")
    ] = None
    run_config: Annotated[str, typer.Option(help="Settings of the app in this run: 'rounds=5 name=\"x\"'.")] = ""
    most_mb: Annotated[
        int | None,
        typer.Option(min=1, help="Largest reply of a site in MB; default: 16, or four times what was sent."),
    ] = None
