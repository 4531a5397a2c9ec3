"""Options of `consilium demo`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer


@dataclass(frozen=True)
class DemoOptions:
    """Options of `consilium demo`; None: what suits the data.

    Args:
        cache: where the backbone is kept that the first demo of the digits trains.
    """

    data: Annotated[
        Literal["digits", "heart-disease", "images"],
        typer.Option(help="digits come with the installation; the others need --data-dir."),
    ] = "digits"
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data, for heart-disease and images.")] = None
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of training; default: what suits the data.")] = None
    method: Annotated[
        str | None, typer.Option(help="Personalisation method; default: fine_tune. 'consilium list' shows all.")
    ] = None
    strategy: Annotated[str | None, typer.Option(help="How the server makes new weights; default: fedavg.")] = None
    weighting: Annotated[
        str | None, typer.Option(help="How much each site counts: factors with commas between, e.g. size,loss.")
    ] = None
    model: Annotated[str | None, typer.Option(help="A model's name, e.g. small_cnn, squeezenet1_0, mlp.")] = None
    pretrained: Annotated[Path | None, typer.Option(help="A weights file (.safetensors, .pt, .th).")] = None
    seed: Annotated[int, typer.Option(min=0, help="The seed of everything random.")] = 42
    compare: Annotated[
        bool, typer.Option(help="Also run personal heads, random initial weights and a private study.")
    ] = True
    runs: Annotated[Path, typer.Option(help="The folder in which each run gets a folder of its own.")] = Path("runs")
    cache: Path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "consilium"
