"""The command `consilium calibrate`: how sure a model may be, by its site's validation rows."""

from pathlib import Path
from typing import Annotated

import typer

from consilium.commands.parameters import console, examples
from consilium.commands.predict import Model
from consilium.commands.scripting import Document, with_json

app = typer.Typer()


@app.command(
    epilog=examples(
        "consilium calibrate site",
        "consilium calibrate site/state/STUDY/RUN/models/global --site site/site.toml",
    )
)
@with_json
def calibrate(
    model: Model,
    site: Annotated[
        Path, typer.Option(help="The site.toml of the site that wrote the model: its validation rows are used.")
    ] = Path("site/site.toml"),
    level: Annotated[
        float, typer.Option(help="For numbers: share of new patients whose true value shall lie in the interval.")
    ] = 0.9,
) -> Document:
    """Calibrate a model's probabilities, or the interval of its numbers, on the site's validation rows."""
    from consilium.common.model import Temperature
    from consilium.serving.calibrate import calibrate as calibrated
    from consilium.serving.find import find_model

    folder = find_model(model)
    result = calibrated(folder, site, level=level)
    found, screen = result.calibration, console()
    if isinstance(found, Temperature):
        (loss, then), (error, after) = found.log_loss, found.calibration_error
        sure = "too sure" if found.temperature > 1 else "not sure enough"
        lines = [
            f"temperature {found.temperature:.3g}, fitted on {found.num} validation rows: the model was {sure}",
            f"of rows that were not fitted on: log loss {loss:.3f} -> {then:.3f}, expected calibration error "
            f"{error:.3f} -> {after:.3f}",
            "written into the model's folder; predictions are calibrated from now on"
            if result.helps
            else "that does not help, so the model stays as it was",
        ]
    else:
        lines = [
            f"answer - {found.width:.4g} to answer + {found.width:.4g} holds the true value of {found.level:.0%} of "
            f"new patients like these {found.num}",
            "written into the model's folder; predictions have an interval from now on",
        ]
    for line in lines:
        screen.print(line, highlight=False, soft_wrap=True, markup=False)
    return {"model": folder, "calibration": found.model_dump(mode="json"), "written": result.helps}
