"""The command `consilium adapt`: a federated model at a site that never took part."""

from pathlib import Path
from typing import Annotated

import typer

from consilium.commands.parameters import Settings, console, examples

app = typer.Typer()


@app.command(
    epilog=examples(
        "consilium adapt --weights global.safetensors",
        "consilium adapt --weights global.safetensors --steps 50 --out adapted",
    )
)
def adapt(
    weights: Annotated[Path, typer.Option(help="The file of the federated model: a run's global.safetensors.")],
    settings: Settings = Path("site/site.toml"),
    study: Annotated[Path | None, typer.Option(help="The study.toml; default: the accepted one.")] = None,
    steps: Annotated[int, typer.Option(help="How many steps of plain SGD on the site's training examples.")] = 100,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Learning rate of every start; default: the study's for local adaptation, or for training."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write adapt.json and adapt.svg into this folder.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the order of examples; default: the study's.")
    ] = None,
) -> None:
    """Adapt a federated model at a site that never took part; show what it gains over starting without it."""
    from consilium.adaptation.adapt import adapt_site
    from consilium.adaptation.picture import write_adaptation
    from consilium.adaptation.terminal import print_adaptation
    from consilium.common.host.files import check_writable

    screen = console()
    if out is not None:
        check_writable(out, what="the folder for the results")
    result = adapt_site(
        settings, weights_file=weights, study_file=study, steps=steps, learning_rate=learning_rate, seed=seed
    )
    print_adaptation(result, screen)
    if out is not None:
        write_adaptation(out, result)
        screen.print(f"written: {out / 'adapt.json'}, {out / 'adapt.svg'}", highlight=False, soft_wrap=True)
