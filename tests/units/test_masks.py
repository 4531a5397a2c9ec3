"""Pictures and their masks are read in pairs, and what does not fit is refused by the file's name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from consilium.client.data import Examples, read_data
from consilium.client.data.scale import UnscaledData
from consilium.common.errors import ConfigError, ConsiliumError, DataError
from consilium.common.study.site import ArraysData, MasksData
from consilium.common.study.task import SegmentationTask
from consilium.common.study.training import SplitConfig

TASK = SegmentationTask(classes=("background", "liver", "kidney"), size=8, channels=1)
WHOLE = SplitConfig(test=0.5, validation=0.0)
Array = npt.NDArray[Any]


def save(folder: Path, name: str, values: Array, *, mode: str | None = None) -> None:
    """Write an array as a picture."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    (image if mode is None else image.convert(mode)).save(path)


def pair(number: int, size: int = 8) -> tuple[Array, Array]:
    """Return a picture that no other one equals, and its mask."""
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[1:3, 1:4], mask[5, number % size] = 1, 2
    return (mask * 60 + number).astype(np.uint8), mask


def write(folder: Path, count: int = 6, *, below: str = "") -> Path:
    """Write pictures and masks of the same names."""
    for number in range(count):
        picture, mask = pair(number)
        save(folder / "images", f"{below.format(number)}{number}.png", picture)
        save(folder / "masks", f"{below.format(number)}{number}.png", mask)
    return folder


def read(folder: Path, task: SegmentationTask = TASK, *, split: SplitConfig = WHOLE, **settings: Any) -> UnscaledData:
    """Read a folder as a site does."""
    return read_data(MasksData(path=folder, **settings), task, split, site="rom", min_examples=2)


def refusal(folder: Path, task: SegmentationTask = TASK, **settings: Any) -> str:
    """Return the sentence with which a folder is refused."""
    with pytest.raises(ConsiliumError) as caught:
        read(folder, task, **settings)
    return str(caught.value)


def test_pictures_are_read_with_the_masks_of_their_names(tmp_path: Path) -> None:
    """As many masks as pictures, of one byte a pixel, whichever lossless format each is in."""
    write(tmp_path)
    (tmp_path / "masks" / "3.png").unlink()
    save(tmp_path / "masks", "3.tif", pair(3)[1])
    (tmp_path / "masks" / "notes.txt").write_text("drawn by hand", encoding="utf-8")
    raw = read(tmp_path).raw
    assert (6, 1, 8, 8) == tuple(raw.x.shape)
    assert "torch.uint8" == str(raw.y.dtype)
    np.testing.assert_array_equal(np.stack([pair(number)[1] for number in range(6)]), raw.y.numpy())
    np.testing.assert_allclose(raw.x[4, 0].numpy() * 255, pair(4)[0], atol=1e-4)


def test_the_card_counts_pictures_that_hold_each_class(tmp_path: Path) -> None:
    """Five pictures of six hold a liver; pixels are not counted."""
    write(tmp_path)
    save(tmp_path / "masks", "0.png", np.where(pair(0)[1] == 1, 0, pair(0)[1]).astype(np.uint8))
    found = read_data(MasksData(path=tmp_path), TASK, WHOLE, site="rom", min_examples=2, share_class_counts=True).card
    assert {"background": 6, "liver": 5, "kidney": 6} == found.class_counts


def test_masks_are_resized_by_the_nearest_pixel(tmp_path: Path) -> None:
    """No class appears along an edge that neither side is of."""
    picture = np.arange(256, dtype=np.uint8).reshape(16, 16)
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[:, 8:] = 2
    for number in range(6):
        save(tmp_path / "images", f"{number}.png", np.roll(picture, number))
        save(tmp_path / "masks", f"{number}.png", mask)
    assert {0, 2} == set(np.unique(read(tmp_path).raw.y.numpy()).tolist())


def test_two_classes_may_be_black_and_white(tmp_path: Path) -> None:
    """0 and 255 are the two classes, in a picture of one bit too; with three they are no classes."""
    two = SegmentationTask(classes=("background", "liver"), size=8, channels=1)
    for number in range(6):
        picture, mask = pair(number)
        save(tmp_path / "images", f"{number}.png", picture)
        drawn = ((mask > 0) * 255).astype(np.uint8)
        save(tmp_path / "masks", f"{number}.png", drawn, mode="1" if number % 2 else None)
    np.testing.assert_array_equal(np.stack([pair(one)[1] > 0 for one in range(6)]), read(tmp_path, two).raw.y.numpy())
    assert "mask 'masks/0.png' holds a number that is no class, expected 0 to 2" in refusal(tmp_path)


def test_coloured_masks_hold_the_places_of_their_palette(tmp_path: Path) -> None:
    """A mask with a palette, as programs for drawing write it, is read by its numbers and not by its colours."""
    write(tmp_path)
    image = Image.fromarray(pair(2)[1]).convert("P")
    image.frombytes(pair(2)[1].tobytes())
    image.putpalette([0, 0, 0, 250, 10, 10, 10, 250, 10])
    image.save(tmp_path / "masks" / "2.png")
    np.testing.assert_array_equal(pair(2)[1], read(tmp_path).raw.y[2].numpy())


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (None, "image 'images/2.png' has no mask, expected a file of the same name in folder 'masks'"),
        (np.zeros((8, 4), dtype=np.uint8), "mask 'masks/2.png' has 8 x 4 pixels, its picture 8 x 8"),
        (np.full((8, 8), 3, dtype=np.uint8), "mask 'masks/2.png' holds a number that is no class, expected 0 to 2"),
        (np.zeros((8, 8, 3), dtype=np.uint8), "mask 'masks/2.png' has pixels of kind RGB, expected one channel"),
        (b"no picture", "mask 'masks/2.png' is corrupt or not one of BMP, PNG, TIFF, NIfTI"),
    ],
    ids=["none", "size", "class", "colour", "corrupt"],
)
def test_mask_that_does_not_fit_is_named(tmp_path: Path, mask: Any, sentence: str) -> None:
    """The file and what is wrong with it; the picture is left out where so many may be."""
    write(tmp_path)
    (tmp_path / "masks" / "2.png").unlink()
    if isinstance(mask, bytes):
        (tmp_path / "masks" / "2.png").write_bytes(mask)
    elif mask is not None:
        save(tmp_path / "masks", "2.png", mask)
    assert sentence in refusal(tmp_path)
    found = read(tmp_path, max_skipped=1)
    assert (5, 1) == (len(found.raw.y), found.card.num_skipped)


def test_files_that_share_a_name_are_refused(tmp_path: Path) -> None:
    """Nothing says which of two masks is meant, or of which of two pictures one is."""
    write(tmp_path)
    save(tmp_path / "masks", "1.tif", pair(1)[1])
    assert "folder 'masks' has '1.png' and '1.tif', expected one file of a name" in refusal(tmp_path)
    (tmp_path / "masks" / "1.tif").unlink()
    save(tmp_path / "images", "1.bmp", pair(1)[0])
    assert "folder 'images' has '1.bmp' and '1.png', expected one file of a name" in refusal(tmp_path)


def test_folders_that_are_missing_are_named(tmp_path: Path) -> None:
    """Both folders have to be there, with a picture; a mask without one is told."""
    (tmp_path / "images").mkdir()
    assert "has no folder 'masks', expected pictures in 'images' and their masks" in refusal(tmp_path)
    (tmp_path / "masks").mkdir()
    assert f"no picture in folder '{tmp_path / 'images'}'" in refusal(tmp_path)
    write(tmp_path)
    save(tmp_path / "masks", "9.png", pair(1)[1])
    assert ("1 masks without a picture are passed over",) == read(tmp_path).raw.reading


def test_patients_are_the_first_folders_or_parts_of_names(tmp_path: Path) -> None:
    """Two pictures of a patient stay together, in either form; a picture of nobody is refused."""
    for number in range(8):
        picture, mask = pair(number)
        save(tmp_path / "images", f"P{number // 2}/a/{number}.png", picture)
        save(tmp_path / "masks", f"P{number // 2}/a/{number}.png", mask)
    assert list("00112233") == [one[1] for one in read(tmp_path, split=by("folder")).raw.patients or ()]
    save(tmp_path / "images", "8.png", pair(8)[0])
    save(tmp_path / "masks", "8.png", pair(8)[1])
    assert "image '8.png' lies in no folder of its patient, as split.group = 'folder'" in refusal(
        tmp_path, split=by("folder")
    )
    flat = write(tmp_path / "flat", below="P{}_")
    assert list("012345") == [one[1] for one in read(flat, split=by("^(P[0-9]+)_")).raw.patients or ()]
    assert "has a name that does not fit, as split.group = '^(Q[0-9]+)_'" in refusal(flat, split=by("^(Q[0-9]+)_"))


def by(group: str) -> SplitConfig:
    """Return a split by patients."""
    return WHOLE.model_copy(update={"group": group})


def test_parts_come_from_a_file_or_are_drawn(tmp_path: Path) -> None:
    """A table names each picture's part; a word that is neither a table nor folders is none."""
    write(tmp_path)
    words = ["train", "train", "validation", "test", "train", "test"]
    rows = "\n".join(f"images/{number}.png,{word}" for number, word in enumerate(words))
    (tmp_path / "split.csv").write_text(f"file,part\n{rows}\n", encoding="utf-8")
    found = read(tmp_path, split=SplitConfig(parts="split.csv")).parts
    assert ([0, 1, 4], [2], [3, 5]) == (found.train.tolist(), found.validation.tolist(), found.test.tolist())
    with pytest.raises(
        ConfigError, match=r"split.parts is 'part', expected for pictures with masks 'folder' or a .csv"
    ):
        read(tmp_path, split=SplitConfig(parts="part"))


def test_parts_are_the_folders_above_pictures_and_masks(tmp_path: Path) -> None:
    """As benchmarks have them; a folder of another name is named, and so is a part without masks."""
    for number, (part, count) in enumerate({"train": 3, "val": 1, "test": 2}.items()):
        for place in range(count):
            picture, mask = pair(10 * number + place)
            save(tmp_path, f"{part}/images/{place}.png", picture)
            save(tmp_path, f"{part}/masks/{place}.png", mask)
    split = SplitConfig(parts="folder")
    found = read(tmp_path, split=split)
    assert (3, 1, 2) == tuple(len(part) for part in (found.parts.train, found.parts.validation, found.parts.test))
    levels = [
        sorted(found.raw.x[rows].amin(dim=(1, 2, 3)).mul(255).round().tolist())
        for rows in (torch.from_numpy(found.parts.train), torch.from_numpy(found.parts.test))
    ]
    assert [[0, 1, 2], [20, 21]] == levels
    (tmp_path / "val" / "masks").rename(tmp_path / "val" / "other")
    assert "data folder" in refusal(tmp_path, split=split) and "has no folder 'masks'" in refusal(tmp_path, split=split)
    (tmp_path / "val").rename(tmp_path / "more")
    assert "folder 'more' is none of train, validation or test" in refusal(tmp_path, split=split)


def test_slices_of_volumes_are_paired_and_of_one_patient(tmp_path: Path) -> None:
    """The slices of a mask lie where those of its picture do; a volume whose mask has other numbers is named."""
    nibabel = pytest.importorskip("nibabel")
    task = SegmentationTask(**{**TASK.model_dump(), "slices": {"at": [0.25, 0.75]}, "pixel_range": [0, 100]})
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for number in range(4):
        mask = np.zeros((8, 8, 4), dtype=np.uint8)
        mask[2:5, 2:5, 1], mask[5:, 5:, 3] = 1, 2
        picture = (mask * 20 + number).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(picture, np.eye(4)), tmp_path / "images" / f"{number}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), tmp_path / "masks" / f"{number}.nii")
    raw = read(tmp_path, task).raw
    assert (8, 4) == (len(raw.y), len(set(raw.patients or ())))
    assert [{0, 1}, {0, 2}] == [set(np.unique(one).tolist()) for one in raw.y[:2].numpy()]
    np.testing.assert_array_equal(raw.y[0].numpy() * 20, raw.x[0, 0].numpy() * 100)
    nibabel.save(nibabel.Nifti1Image(mask + np.float32(0.5), np.eye(4)), tmp_path / "masks" / "0.nii")
    assert "mask 'masks/0.nii' holds numbers that are not whole" in refusal(tmp_path, task)


def arrays(path: Path, **changes: Array) -> Path:
    """Write pictures and masks as arrays."""
    pairs = [pair(number) for number in range(6)]
    held: dict[str, Any] = {name: np.stack(part) for name, part in zip("xy", zip(*pairs, strict=True), strict=True)}
    np.savez(path, **held | changes)
    return path


def test_arrays_are_as_files_of_the_same_pictures(tmp_path: Path) -> None:
    """The same pictures and masks in an .npz file give the same tensors."""
    files, held = read(write(tmp_path / "f")).raw, read(arrays(tmp_path / "a.npz")).raw
    np.testing.assert_array_equal(files.x.numpy(), held.x.numpy())
    np.testing.assert_array_equal(files.y.numpy(), held.y.numpy())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"y": np.zeros(6, dtype=np.int64)}, "array 'y' has shape (6,), expected (6, 8, 8): a mask for each picture"),
        ({"y": np.zeros((6, 8, 8))}, "array 'y' has type float64, expected whole numbers: the classes of pixels"),
        ({"y": np.full((6, 8, 8), 7)}, "file 'a.npz', mask 0 holds a number that is no class, expected 0 to 2"),
        ({"classes": np.array(["a", "b", "c"])}, "array 'classes' differs from the study's classes"),
    ],
    ids=["one number", "floats", "class", "names"],
)
def test_arrays_that_do_not_fit_are_named(tmp_path: Path, changes: Mapping[str, Array], sentence: str) -> None:
    """The array, and what was expected of it."""
    assert sentence in refusal(arrays(tmp_path / "a.npz", **changes))


def test_splits_are_stratified_by_the_rarest_class(tmp_path: Path) -> None:
    """Of forty pictures ten hold a kidney: a quarter of the test pictures do."""
    pairs = [pair(number) for number in range(40)]
    masks = np.stack([np.where((mask == 2) & (number >= 10), 0, mask) for number, (_, mask) in enumerate(pairs)])
    np.savez(tmp_path / "a.npz", x=np.stack([picture for picture, _ in pairs]), y=masks)
    data = read(tmp_path / "a.npz", split=SplitConfig(test=0.2, validation=0.25)).scaled(None)
    kidneys = [int((part.y == 2).flatten(1).any(dim=1).sum()) for part in (data.train, data.validation, data.test)]
    assert [6, 2, 2] == kidneys
    assert all(isinstance(part, Examples) and part.y.shape[1:] == (8, 8) for part in (data.train, data.test))


def test_another_kind_of_data_is_refused(tmp_path: Path) -> None:
    """Arrays of classes are no masks."""
    with pytest.raises(ConfigError, match="masks"):
        read_data(ArraysData(path=arrays(tmp_path / "a.npz")), TASK, WHOLE, site="rom", min_examples=2)
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "nowhere.npz")
