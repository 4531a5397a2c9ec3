"""The command `consilium export`: a finished model in a form that needs neither consilium nor torch."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from consilium.commands.parameters import console, examples
from consilium.commands.predict import Model, WeightsDir
from consilium.commands.scripting import Document, with_json

app = typer.Typer()


class To(StrEnum):
    """Forms of a model."""

    onnx = "onnx"
    torch_export = "torch-export"


@app.command(
    epilog=examples(
        "consilium export site --to onnx --out exported",
        "consilium export site --int8 --site site/site.toml --out small",
        "consilium export model --to torch-export --out exported",
        "consilium export site --prune 0.5 --data labelled.csv --out pruned",
    )
)
@with_json
def export(
    model: Model,
    out: Annotated[Path, typer.Option(help="A new or empty folder for the files.")],
    to: Annotated[
        To, typer.Option(help="The form: onnx runs without torch, torch-export with the same torch.")
    ] = To.onnx,
    int8: Annotated[
        bool, typer.Option("--int8", help="Also write the model in int8, and measure what that costs.")
    ] = False,
    prune: Annotated[
        float | None, typer.Option(help="Strike out this share of the weights, the smallest first, e.g. 0.5.")
    ] = None,
    prune_curve: Annotated[
        bool, typer.Option("--prune-curve", help="Measure the model without 0 %, 10 %, ... 90 % of its weights.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="Labelled rows to check and measure with: a table, a folder, an .npz file.")
    ] = None,
    site: Annotated[
        Path | None, typer.Option(help="The site.toml of the site whose training and validation rows are used.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="What tells whose a row of --data is: a column, an array, folder, or a pattern.")
    ] = None,
    weights_dir: WeightsDir = None,
) -> Document:
    """Export a finished model with its preparation of inputs, checked row by row against the model itself."""
    from consilium.common.host.extras import check_extra

    check_extra("consilium export", "export")
    from consilium.serving.export.export import Wanted, check_out, export_model, write_export
    from consilium.serving.export.terminal import print_export

    check_out(out)
    wanted = Wanted(to.value, int8=int8, prune=prune, curve=prune_curve, data=data, site=site, group=group)
    wanted.check()
    made = export_model(model, wanted, weights_dir=weights_dir)
    write_export(made, out)
    screen = console()
    print_export(made.export, screen)
    screen.print(f"written: {out}", highlight=False, soft_wrap=True, markup=False)
    return {**made.export.model_dump(mode="json"), "out": out}
