"""The command `consilium evaluate`: a finished model on rows whose labels are known."""

from pathlib import Path
from typing import Annotated

import typer

from consilium.commands.parameters import console, examples
from consilium.commands.predict import Model, WeightsDir
from consilium.commands.scripting import Document, with_json

app = typer.Typer()


@app.command(
    epilog=examples(
        "consilium evaluate site new-patients.csv",
        "consilium evaluate model scans --group folder --out external",
        "consilium evaluate site --test-rows site/site.toml",
    )
)
@with_json
def evaluate(
    model: Model,
    data: Annotated[
        Path | None,
        typer.Argument(
            help="A table, a folder (one per class, or images with masks), or an .npz file.", metavar="DATA"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder for index.html and evaluation.json.")] = Path("evaluation"),
    group: Annotated[
        str | None, typer.Option(help="Whose a row is: a column, an array, 'folder', or a pattern of file names.")
    ] = None,
    test_rows: Annotated[
        Path | None,
        typer.Option("--test-rows", help="The site.toml of the model's site: evaluate its test rows, not DATA."),
    ] = None,
    weights_dir: WeightsDir = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an evaluation that lies in --out.")] = False,
) -> Document:
    """Measure a finished model on data with labels: every metric with its interval, as a table and a page."""
    from consilium.common.errors import ConfigError, clean
    from consilium.serving.evaluate import NUMBERS, write_numbers
    from consilium.serving.evaluate import evaluate as measured
    from consilium.serving.terminal import print_evaluation

    if not force and (out / NUMBERS).exists():
        raise ConfigError(
            f"--out: '{clean(str(out))}' holds an evaluation already: give another folder, or --force to replace it"
        )
    no_page = _why_no_page()
    evaluation = measured(model, data, test_rows=test_rows, group=group, weights_dir=weights_dir)
    screen = console()
    print_evaluation(evaluation, screen)
    files = [write_numbers(out, evaluation)]
    if not no_page:
        from consilium.serving.page import write_page

        files.append(write_page(out, evaluation))
    screen.print(f"written: {', '.join(map(str, files))}", highlight=False, soft_wrap=True, markup=False)
    if no_page:
        screen.print(no_page, highlight=False, soft_wrap=True, markup=False)
    return {**evaluation.as_json(), "files": files}


def _why_no_page() -> str:
    """Return why no page can be drawn here; "" where one can."""
    from consilium.common.errors import ConfigError
    from consilium.common.host.extras import check_extra

    try:
        check_extra("the page", "report")
    except ConfigError as error:
        return str(error)
    return ""
