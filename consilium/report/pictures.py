"""Test pictures that sites let leave, for the page of a report."""

import base64
import io
from pathlib import Path

from PIL import Image

from consilium.common.errors import ProtocolError, StateError
from consilium.common.segmentation.shown import FOLDER, MOST_BYTES, shown_in
from consilium.common.study.study import StudyConfig


def pictures_in(folder: Path, study: StudyConfig) -> dict[str, list[str]]:
    """Return each site's pictures in a run's folder as addresses that hold them: PNG, made here of pixels alone.

    Raises:
        StateError: a file cannot be read, or holds something else.
    """
    found = dict[str, list[str]]()
    for site in study.sites if study.task.label_kind == "masks" else ():
        path = folder / FOLDER / f"{site}.rgb"
        try:
            if not path.is_file():
                continue
            with path.open("rb") as file:
                shown = shown_in(file.read(MOST_BYTES + 1))
        except (OSError, ProtocolError) as error:
            raise StateError(f"cannot read '{path}': {error}") from error
        found[site] = [_address(Image.fromarray(pixels)) for pixels in shown]
    return found


def _address(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
