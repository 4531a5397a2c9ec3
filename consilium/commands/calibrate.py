"""The command `consilium calibrate`: how sure a model may be, by its site's validation rows."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilium.commands.parameters import console, examples
from consilium.commands.predict import Model
from consilium.commands.scripting import Document, with_json
from consilium.common.errors import clean

if TYPE_CHECKING:  # torch is imported only where the command runs
    from consilium.common.model import Temperature
    from consilium.serving.calibrate import Calibrated

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
    from consilium.serving.calibrate import calibrate as calibrated
    from consilium.serving.find import find_model

    folder = find_model(model)
    result = calibrated(folder, site, level=level)
    found, screen = result.calibration, console()
    for line in _lines(result):
        screen.print(line, highlight=False, soft_wrap=True, markup=False)
    written = None if found is None else found.model_dump(mode="json")
    return {"model": folder, "calibration": written, "written": result.helps}


def _lines(result: "Calibrated") -> list[str]:
    from consilium.common.model import Residuals, Temperature

    found, now = result.calibration, "written into the model's folder; predictions are calibrated from now on"
    if isinstance(found, Residuals):
        return [
            f"answer - {found.width:.4g} to answer + {found.width:.4g} holds the true value of {found.level:.0%} of "
            f"new patients like these {found.num}",
            "written into the model's folder; predictions have an interval from now on",
        ]
    lines = list[str]()
    if isinstance(found, Temperature):
        lines += _of_one(found)
    elif result.labels is not None:
        for label, one in result.labels.tried.items():
            stays = "" if label in result.labels.helps else "; that does not help, so this label stays as it was"
            first, second = _of_one(one)
            lines += [f"{clean(label)}: {first}", f"  {second}{stays}"]
        lines += [f"{clean(label)}: stays as it was: {why}" for label, why in result.labels.skipped.items()]
    return [*lines, now if result.helps else "that does not help, so the model stays as it was"]


def _of_one(found: "Temperature") -> tuple[str, str]:
    (loss, then), (error, after) = found.log_loss, found.calibration_error
    sure = "too sure" if found.temperature > 1 else "not sure enough"
    return (
        f"temperature {found.temperature:.3g}, fitted on {found.num} validation rows: the model was {sure}",
        f"of rows that were not fitted on: log loss {loss:.3f} -> {then:.3f}, expected calibration error "
        f"{error:.3f} -> {after:.3f}",
    )
