"""Masks as pictures: what `predict` writes is read as it was said, and a site's own pictures have both outlines."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from consilium.client.data import Examples
from consilium.client.data.mask_files import decode_masks
from consilium.client.data.mask_target import MaskTarget
from consilium.client.site.overlays import PAGE, write_overlays
from consilium.common.errors import ConfigError
from consilium.common.segmentation.shown import FOLDER
from consilium.common.study.task import SegmentationTask
from consilium.serving.masks import folder_of, png_of, write_masks
from consilium.serving.predict import check_out

TASK = SegmentationTask(classes=("background", "liver", "kid & ney"), size=8, channels=1)


def drawn() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return three masks."""
    masks = np.zeros((3, 8, 8), dtype=np.uint8)
    masks[:, 1:4, 1:4], masks[1, 6, 6] = 1, 2
    return masks


def test_written_masks_are_read_again_as_they_were(tmp_path: Path) -> None:
    """A file for each picture in their order, for their owner alone; pixels are the classes, colours are for people."""
    out = tmp_path / "said.csv"
    write_masks(drawn(), out)
    files = sorted(folder_of(out).iterdir())
    assert ["00001.png", "00002.png", "00003.png"] == [file.name for file in files]
    assert {0o600} == {file.stat().st_mode & 0o777 for file in files}
    for file, mask in zip(files, drawn(), strict=True):
        (found,) = decode_masks(file, TASK, [(8, 8)], name=file.name)  # type: ignore[misc]  # it is no Bad
        np.testing.assert_array_equal(mask, found)
    with Image.open(io.BytesIO(png_of(drawn()[1]))) as image:
        colours = image.convert("RGB")
    assert 3 == len({colours.getpixel(place) for place in ((0, 0), (2, 2), (6, 6))})


def test_masks_of_other_pictures_do_not_stay_beside_new_ones(tmp_path: Path) -> None:
    """Three pictures, then one; files of other names are nobody's to remove."""
    out = tmp_path / "said.csv"
    write_masks(drawn(), out)
    (folder_of(out) / "notes.txt").write_text("x")
    write_masks(drawn()[:1], out)
    assert ["00001.png", "notes.txt"] == sorted(file.name for file in folder_of(out).iterdir())


def test_masks_that_are_there_already_are_not_replaced(tmp_path: Path) -> None:
    """A folder of an earlier prediction needs --force, as its file does."""
    out = tmp_path / "said.csv"
    folder_of(out).mkdir()
    with pytest.raises(ConfigError, match=r"said-masks' exists already"):
        check_out(out, [], force=False)
    check_out(out, [], force=True)


def test_overlays_show_truth_and_answer_of_the_worst_to_the_best(tmp_path: Path) -> None:
    """Six of ten pictures; green where the truth's outline is, orange where the answer's is; names are escaped."""
    y = torch.zeros(10, 8, 8, dtype=torch.uint8)
    y[:, 2:6, 2:6] = 1
    answers = y.clone()
    for place in range(10):
        answers[place, 2:6, 2 : 2 + place // 3] = 0  # the first ones are right, the last ones miss most
    examples = Examples(torch.rand(10, 1, 8, 8), y, MaskTarget(3))
    write_overlays(tmp_path, examples, answers, TASK.classes)
    page = (tmp_path / FOLDER / PAGE).read_text(encoding="utf-8")
    files = sorted((tmp_path / FOLDER).glob("*.png"))
    assert 6 == len(files) == page.count("<img")
    assert "test-00010.png" in page and page.index("test-00010.png") < page.index("test-00001.png")
    assert "liver 1.00" in page and "kid & ney" not in page
    with Image.open(files[-1]) as image:
        assert (256, 256) == image.size
        colours = {tuple(one) for one in np.unique(np.asarray(image).reshape(-1, 3), axis=0).tolist()}
    assert {(0, 158, 115), (230, 159, 0)} <= colours
    assert {0o600} == {file.stat().st_mode & 0o777 for file in files}


def test_overlays_of_pictures_without_any_class_are_plain(tmp_path: Path) -> None:
    """A picture of one grey level without masks is drawn too, and said to have none."""
    empty = torch.zeros(2, 8, 8, dtype=torch.uint8)
    write_overlays(tmp_path, Examples(torch.ones(2, 1, 8, 8), empty, MaskTarget(3)), empty, TASK.classes)
    assert 2 == (tmp_path / FOLDER / PAGE).read_text(encoding="utf-8").count("Dice: no class")
