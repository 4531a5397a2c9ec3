"""The command `consilium predict`: a finished model answers about new patients."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from consilium.commands.parameters import console, examples
from consilium.commands.scripting import Document, with_json

app = typer.Typer()

Model = Annotated[
    Path, typer.Argument(help="A model's folder, or a site's folder, state or run that holds one.", metavar="MODEL")
]
WeightsDir = Annotated[
    Path | None,
    typer.Option("--weights-dir", help="Where the study's pretrained file lies, for a model of the coordinator."),
]


@app.command(
    epilog=examples(
        "consilium predict site patients.csv",
        "consilium predict site/state/STUDY/RUN/models/personal scans --out scans.csv",
        "consilium predict model patients.csv --keep patient_id --out named.csv",
    )
)
@with_json
def predict(
    model: Model,
    data: Annotated[
        list[Path], typer.Argument(help="A table, a folder, an .npz file, or pictures; without labels.", metavar="DATA")
    ],
    out: Annotated[Path, typer.Option(help="The file for the predictions; - for standard output.")] = Path(
        "predictions.csv"
    ),
    keep: Annotated[
        list[str] | None, typer.Option(help="A column of the data to hand through, e.g. a number of patients.")
    ] = None,
    weights_dir: WeightsDir = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file of --out if there is one.")] = False,
) -> Document:
    """Predict with a finished model: one line for each example, with the probability of every class or the value."""
    from rich.console import Console

    from consilium.common.errors import ConfigError
    from consilium.serving.masks import folder_of
    from consilium.serving.predict import STDOUT, check_out, csv_of, write_predictions
    from consilium.serving.predict import predict as answered
    from consilium.serving.terminal import print_predictions

    check_out(out, data, force=force)
    if out == STDOUT and sys.stdout is sys.stderr:
        raise ConfigError("--out: - and --json both want standard output; give a file")
    predictions = answered(model, data, keep=keep or (), weights_dir=weights_dir)
    if out == STDOUT and predictions.answers.masks is not None:
        raise ConfigError(
            "--out: a model of masks writes a picture for each, in a folder next to a file: give its name"
        )
    if out == STDOUT:
        print_predictions(predictions, Console(stderr=True))
        for piece in csv_of(predictions):
            sys.stdout.buffer.write(piece)
        sys.stdout.flush()
        return {**predictions.as_json(), "out": None}
    write_predictions(predictions, out)
    screen = console()
    print_predictions(predictions, screen)
    screen.print(f"written: {out}", highlight=False, soft_wrap=True, markup=False)
    if predictions.answers.masks is not None:
        screen.print(f"written: {folder_of(out)}, a mask for each", highlight=False, soft_wrap=True, markup=False)
    return {**predictions.as_json(), "out": out}
