"""`consilium evaluate` of a model of masks: what is read, Dice and distance of each class, and the page."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mask_models import ORGANS, mask_model, organs, write_pairs
from PIL import Image
from scipy.spatial.distance import cdist

from consilium.client.data import read_data
from consilium.client.data.inputs import read_inputs
from consilium.client.served.load import load_model
from consilium.common.errors import DataError
from consilium.common.study.site import MasksData
from consilium.common.study.training import SplitConfig
from consilium.serving.evaluate import evaluate, write_numbers
from consilium.serving.page import page_of


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three classes."""
    return mask_model(tmp_path_factory.mktemp("organs") / "model")


def dice_of(truth: np.ndarray, said: np.ndarray, one: int) -> float:
    """Return the mean Dice of a class over the pictures that have it, pixel by pixel."""
    found = []
    for true, answer in zip(truth == one, said == one, strict=True):
        both, whole = int((true & answer).sum()), int(true.sum() + answer.sum())
        found += [2 * both / whole] if whole else []
    return float(np.mean(found))


def far_of(true: np.ndarray, said: np.ndarray) -> float:
    """Return HD95 of two regions that are not empty, by the distances of all pairs of their outlines' pixels."""
    lines = []
    for region in (true, said):
        wide = np.pad(region, 1)
        inside = wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
        lines.append(np.argwhere(region & ~inside))
    apart = cdist(*lines)
    return float(max(np.percentile(apart.min(axis=axis), 95) for axis in (0, 1)))


def test_dice_and_distance_of_each_class_are_those_of_its_pixels(model: Path, tmp_path: Path) -> None:
    """By another way of counting, of the masks that the model answers; the mean is over the classes."""
    x, y = organs(24)
    np.savez(tmp_path / "new.npz", x=x, y=y)
    done = evaluate(model, tmp_path / "new.npz")
    served = load_model(model)
    said = served.masks(served.prepared(read_inputs(tmp_path / "new.npz", ORGANS, labelled=True)).x).numpy()
    found = {(one.name, one.of): one.interval for one in done.metrics}
    values = {name: one.value for name, one in found.items() if one is not None}
    each = [dice_of(y, said, one) for one in (1, 2)]
    assert each == pytest.approx([values["dice", "liver"], values["dice", "kidney"]], abs=1e-12)
    assert np.mean(each) == pytest.approx(values["dice", ""], abs=1e-12)
    pairs = [(true, answer) for true, answer in zip(y == 1, said == 1, strict=True) if true.any() or answer.any()]
    far = [far_of(*pair) if pair[0].any() and pair[1].any() else np.hypot(7, 7) for pair in pairs]
    assert np.mean(far) == pytest.approx(values["hd95", "liver"], abs=1e-12)
    mean = found["dice", ""]
    assert mean is not None and mean.bounds is not None and mean.bounds[0] < mean.value < mean.bounds[1]


def test_intervals_are_of_patients_who_are_drawn_with_all_their_pictures(model: Path, tmp_path: Path) -> None:
    """Every picture four times: with the patient's folder the interval is that of one each, without it is narrower."""
    x, y = organs(12)
    single = evaluate(model, write_pairs(tmp_path / "once", x, y, below="p{}"), group="folder")
    folder = tmp_path / "often"
    for copy in range(4):
        for name, pixels in (("images", x), ("masks", y)):
            for number, one in enumerate(pixels):
                path = folder / name / f"p{number}" / f"{copy}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(one).save(path)
    grouped, alone = evaluate(model, folder, group="folder"), evaluate(model, folder)

    def width(of: object) -> float:
        (low, high) = of.metrics[0].interval.bounds  # type: ignore[attr-defined]  # an evaluation
        return float(high - low)

    assert (12, 12, 48) == tuple(one.truth.patients for one in (single, grouped, alone))
    assert width(single) == pytest.approx(width(grouped), rel=0.05)
    assert width(alone) < 0.7 * width(grouped)


def test_labelled_inputs_are_bit_for_bit_a_sites_own(tmp_path: Path) -> None:
    """Of files and of arrays; the sizes are those of the files, and names those below the folder of pictures."""
    x, y = organs(6, size=(16, 12))
    folder = write_pairs(tmp_path / "pairs", x, y)
    np.savez(tmp_path / "pairs.npz", x=x, y=y)
    split = SplitConfig(test=0.5, validation=0.0)
    for path in (folder, tmp_path / "pairs.npz"):
        raw = read_data(MasksData(path=path), ORGANS, split, site="rom", min_examples=2).raw
        inputs = read_inputs(path, ORGANS, labelled=True)
        assert inputs.y is not None and torch.equal(raw.x, inputs.x) and torch.equal(raw.y, inputs.y)
        assert ((16, 12),) * 6 == inputs.sizes
    assert ["00.png", "01.png"] == list(read_inputs(folder, ORGANS, labelled=True).names[:2])
    unlabelled = read_inputs(folder, ORGANS, labelled=False)
    assert torch.equal(raw.x, unlabelled.x) and None is unlabelled.y


def test_pictures_whose_mask_cannot_be_used_are_named(model: Path, tmp_path: Path) -> None:
    """One lacks its mask, one has a mask of another size: both are in no number, and said."""
    folder = write_pairs(tmp_path / "pairs", *organs(14))
    (folder / "masks" / "03.png").unlink()
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(folder / "masks" / "05.png")
    done = evaluate(model, folder)
    assert 12 == done.num
    assert ["03.png", "05.png"] == [one.name for one in done.question.prepared.unread]
    assert "has no mask" in done.question.prepared.unread[0].reason
    assert "4 x 4 pixels, its picture 8 x 8" in done.question.prepared.unread[1].reason


def test_pictures_without_masks_are_refused(model: Path, tmp_path: Path) -> None:
    """A folder of pictures alone says what is expected."""
    folder = write_pairs(tmp_path / "pairs", *organs(3))
    with pytest.raises(DataError, match="has no folder 'images', expected pictures in 'images' and their masks"):
        evaluate(model, folder / "images")


def test_page_and_numbers_say_how_well_each_class_fits(model: Path, tmp_path: Path) -> None:
    """A table class by class without the background; no confusion of pixels; how many pictures hold each class."""
    x, y = organs(12)
    y[:4][y[:4] == 2] = 0
    np.savez(tmp_path / "new.npz", x=x, y=y)
    done = evaluate(model, tmp_path / "new.npz")
    page = page_of(done)
    assert "Class by class" in page and "95 % Hausdorff distance in pixels" in page and "kidney" in page
    assert "confusion matrix" not in page and "most frequent class of each pixel" in page
    held = json.loads(write_numbers(tmp_path, done).read_text(encoding="utf-8"))
    assert {"background": 12, "liver": 12, "kidney": 8} == {one["class"]: one["num"] for one in held["labels"]}
    assert {(None, "dice"), ("kidney", "hd95")} <= {(one.get("class"), one["name"]) for one in held["metrics"]}
    assert ["liver", "kidney"] == [name for name, *_ in done.by_class]
