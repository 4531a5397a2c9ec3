"""The command `consilium adapt`: a federated model at a site that never took part."""

from pathlib import Path
from typing import Annotated

import typer

from consilium.commands.parameters import Settings, console, examples
from consilium.commands.scripting import Document, with_json

app = typer.Typer()


@app.command(
    epilog=examples(
        "consilium adapt model",
        "consilium adapt runs/first/model site/site.toml --steps 50 --out adapted",
    )
)
@with_json
def adapt(
    model: Annotated[
        Path, typer.Argument(help="The federation's model: the folder `model` of a run, or `models/global` of a site.")
    ],
    settings: Settings = Path("site/site.toml"),
    study: Annotated[Path | None, typer.Option(help="The study.toml; default: the accepted one.")] = None,
    steps: Annotated[int, typer.Option(help="How many steps of plain SGD on the site's training examples.")] = 100,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Learning rate of every start; default: the study's for local adaptation, or for training."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write adapt.json, adapt.svg and the adapted model into this folder.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the order of examples; default: the study's.")
    ] = None,
) -> Document:
    """Adapt a federated model at a site that never took part; show what it gains over starting without it."""
    from consilium.adaptation.adapt import adapt_site
    from consilium.adaptation.terminal import print_adaptation
    from consilium.common.host.extras import check_extra
    from consilium.common.host.files import check_writable

    screen = console()
    if out is not None:
        check_extra("the picture of --out", "report")
        check_writable(out, what="the folder for the results")
    result = adapt_site(
        settings, model=model, study_file=study, steps=steps, learning_rate=learning_rate, seed=seed, out=out
    )
    print_adaptation(result, screen)
    if out is not None:
        from consilium.adaptation.picture import write_adaptation

        write_adaptation(out, result)
        written = f"{out / 'adapt.json'}, {out / 'adapt.svg'}, {out / 'model'}"
        screen.print(f"written: {written}", highlight=False, soft_wrap=True)
    return {**result.as_json(), "folder": out}
