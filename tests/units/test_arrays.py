"""Images in an `.npz` file: what is read, that it equals a folder of images, and what is refused."""

import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from site_data import load_data

from consilium.client.data import SiteData
from consilium.common.data import npz
from consilium.common.errors import DataError
from consilium.common.study.site import ArraysData, ImageFolderData
from consilium.common.study.task import ImageTask
from consilium.common.study.training import SplitConfig

WHOLE = SplitConfig(test=0, validation=0)
TASK = ImageTask(classes=("normal", "pneumonia"), size=8, channels=1)
N = 12
LABELS = np.arange(N) // (N // 2)
"""Sorted, as a folder of images is read."""


def pixels(*shape: int, seed: int = 0) -> npz.Array:
    """Return random pixels."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def written(path: Path, **arrays: Any) -> Path:
    """Write an .npz file of pictures; keyword arguments replace its arrays."""
    np.savez_compressed(path, **({"x": pixels(N, 8, 8), "y": LABELS} | arrays))
    return path


def load(path: Path, task: ImageTask = TASK, *, max_skipped: int = 0, split: SplitConfig = WHOLE) -> SiteData:
    """Return a site's data of an .npz file."""
    config = ArraysData(path=path, max_skipped=max_skipped)
    return load_data(config, task, split, site="berlin", min_examples=2)


def error_of(path: Path, task: ImageTask = TASK, *, max_skipped: int = 0) -> str:
    """Return the sentence with which the data are refused."""
    with pytest.raises(DataError) as caught:
        load(path, task, max_skipped=max_skipped)
    return str(caught.value)


# --- what is read ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 5, 16])
@pytest.mark.parametrize(("held", "channels"), [(1, 1), (1, 3), (3, 1), (3, 3)])
def test_arrays_give_what_the_same_images_in_a_folder_give(tmp_path: Path, size: int, held: int, channels: Any) -> None:
    """Bit for bit, for every size and change of colour: some sites may have folders and others arrays."""
    x = pixels(N, 8, 8, held)
    for row, label in enumerate(LABELS):
        folder = tmp_path / "images" / TASK.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[row, ..., 0] if held == 1 else x[row]).save(folder / f"{row:03d}.png")
    many = {"mean": (0.1, 0.2, 0.3)[:channels], "std": (0.5, 0.25, 2.0)[:channels]}
    task = TASK.model_copy(update={"size": size, "channels": channels, "pixel_max": 2.0, **many})
    folder_data = load_data(
        ImageFolderData(path=tmp_path / "images"), task, SplitConfig(), site="berlin", min_examples=2
    )
    arrays_data = load(written(tmp_path / "data.npz", x=x), task, split=SplitConfig())
    assert folder_data.card == arrays_data.card
    for part in ("train", "validation", "test"):
        one, other = getattr(folder_data, part), getattr(arrays_data, part)
        assert torch.equal(one.x, other.x) and torch.equal(one.y, other.y)


def test_channels_may_stand_first_last_or_be_missing(tmp_path: Path) -> None:
    """(N, H, W), (N, H, W, 1) and (N, 1, H, W) are the same grey images; so are colours first and last."""
    grey, colour = pixels(N, 8, 6), pixels(N, 8, 6, 3)
    one, two, three = (
        load(written(tmp_path / f"{i}.npz", x=x)) for i, x in enumerate([grey, grey[..., None], grey[:, None]])
    )
    assert torch.equal(one.train.x, two.train.x) and torch.equal(one.train.x, three.train.x)
    task = TASK.model_copy(update={"channels": 3})
    last = load(written(tmp_path / "last.npz", x=colour), task)
    first = load(written(tmp_path / "first.npz", x=colour.transpose(0, 3, 1, 2)), task)
    assert torch.equal(last.train.x, first.train.x) and (3, 8, 8) == last.input_shape


def test_floats_are_the_same_images_as_bytes(tmp_path: Path) -> None:
    """Floats in 0..1 are scaled like bytes in 0..255; (p * 4 - 1) / 2 for pixel_max 4, mean 1, std 2."""
    x = pixels(N, 8, 8)
    task = TASK.model_copy(update={"pixel_max": 4.0, "mean": (1.0,), "std": (2.0,)})
    data = load(written(tmp_path / "a.npz", x=x.astype(np.float64) / 255), task)
    expected = (x[:, None].astype(np.float64) / 255 * 4 - 1) / 2
    assert np.allclose(expected, data.train.x.numpy(), atol=1e-6)
    assert torch.allclose(data.train.x, load(written(tmp_path / "b.npz", x=x), task).train.x, atol=1e-6)


@pytest.mark.parametrize(("held", "channels"), [(1, 3), (3, 1), (3, 3)])
def test_floats_change_size_and_colour_like_bytes(tmp_path: Path, held: int, channels: Any) -> None:
    """Bytes are rounded on the way, floats are not: they differ by less than two steps of 255."""
    x = pixels(N, 8, 8, held)
    task = TASK.model_copy(update={"size": 5, "channels": channels})
    floats = load(written(tmp_path / "a.npz", x=(x / 255).astype(np.float32)), task).train.x
    eight = load(written(tmp_path / "b.npz", x=x), task).train.x
    assert floats.shape == eight.shape and float((floats - eight).abs().max()) < 2 / 255


def test_a_folder_with_one_file_will_do(tmp_path: Path) -> None:
    """Hidden files and other kinds do not matter; two files do."""
    written(tmp_path / "a.npz")
    written(tmp_path / ".b.npz")
    (tmp_path / "notes.txt").write_text("x")
    assert N == load(tmp_path).card.num_examples
    written(tmp_path / "c.npz")
    assert f"site 'berlin': data folder '{tmp_path}' has 2 .npz files, expected exactly one" == error_of(tmp_path)


def test_classes_in_the_file_must_be_those_of_the_study(tmp_path: Path) -> None:
    """Another order of the same names would teach every label wrongly."""
    assert N == load(written(tmp_path / "a.npz", classes=np.array(TASK.classes))).card.num_examples
    message = error_of(written(tmp_path / "b.npz", classes=np.array(TASK.classes[::-1])))
    assert (
        "site 'berlin': file 'b.npz': array 'classes' differs from the study's classes ['normal', 'pneumonia']"
        == message
    )


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": pixels(N, 8)}, "array 'x' has shape (12, 8), expected (N, H, W), (N, H, W, C) or (N, C, H, W)"),
        ({"x": pixels(N, 8, 8, 2)}, "array 'x' has shape (12, 8, 8, 2), expected"),
        ({"x": pixels(N, 8, 0)}, "array 'x' has shape (12, 8, 0), expected"),
        ({"x": pixels(N, 3, 8, 3)}, "array 'x' of shape (12, 3, 8, 3) has its channels on the second or on the last"),
        (
            {"x": pixels(N, 8, 8).astype(np.int64)},
            "array 'x' has type int64, expected uint8, uint16, int16 or a float type",
        ),
        ({"x": pixels(N - 1, 8, 8)}, "array 'y' has shape (12,), expected (11,), one number for each image"),
        ({"y": LABELS[:, None]}, "array 'y' has shape (12, 1), expected (12,)"),
        ({"y": LABELS.astype(float)}, "array 'y' has type float64, expected integer class numbers"),
        ({"y": np.where(np.arange(N) == 4, 2, LABELS)}, "image 4: its label in 'y' is not one of 0..1"),
        ({"y": np.where(np.arange(N) == 4, -1, LABELS)}, "image 4: its label in 'y' is not one of 0..1"),
        ({"x": np.where(np.arange(N * 64) == 70, np.nan, 0.5).reshape(N, 8, 8)}, "image 1: a pixel is not a finite"),
        ({"x": np.where(np.arange(N * 64) == 70, 255.0, 0.5).reshape(N, 8, 8)}, "image 1: a pixel is outside 0..1"),
        ({"x": np.where(np.arange(N * 64) == 70, -0.1, 0.5).reshape(N, 8, 8)}, "image 1: a pixel is outside 0..1"),
        ({"x": pixels(0, 8, 8), "y": LABELS[:0]}, "no usable image, 0 skipped"),
        ({"x": np.array([None] * N)}, "array 'x' of file 'd.npz' holds Python objects, which are never unpickled"),
    ],
)
def test_unusable_arrays_are_named(tmp_path: Path, arrays: dict[str, Any], sentence: str) -> None:
    """Each fault is a sentence that names the site and the file."""
    message = error_of(written(tmp_path / "d.npz", **arrays))
    assert message.startswith("site 'berlin': ") and "file 'd.npz'" in message
    assert sentence in message


def test_missing_array_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    """A file of another layout says what it holds."""
    np.savez(tmp_path / "d.npz", images=pixels(2, 8, 8), y=np.arange(2))
    message = "site 'berlin': file 'd.npz' has no array 'x', its arrays are: 'images', 'y'"
    assert message == error_of(tmp_path / "d.npz")


def test_missing_path_and_other_files_are_told_apart(tmp_path: Path) -> None:
    """No path, another kind of file, and bytes that are no archive."""
    assert f"data path '{tmp_path / 'no.npz'}' does not exist" in error_of(tmp_path / "no.npz")
    (tmp_path / "x.txt").write_text("x")
    assert "is not an .npz file" in error_of(tmp_path / "x.txt")
    (tmp_path / "d.npz").write_bytes(b"not a zip archive")
    expected = "site 'berlin': file 'd.npz' is not an .npz file (a zip archive of arrays)"
    assert expected == error_of(tmp_path / "d.npz")


def test_bad_images_up_to_max_skipped_are_left_out(tmp_path: Path) -> None:
    """As in a folder of images: counted on the card, refused beyond what the site allows."""
    x = pixels(N, 8, 8) / 255
    x[3, 0, 0] = np.inf
    file = written(tmp_path / "d.npz", x=x, y=np.where(np.arange(N) == 7, 9, LABELS))
    data = load(file, max_skipped=2)
    assert (N - 2, 2) == (data.card.num_examples, data.card.num_skipped)
    assert [0] * 5 + [1] * 5 == sorted(data.train.y.tolist())
    assert "(2 bad examples so far, at most 1 allowed by data.max_skipped)" in error_of(file, max_skipped=1)


def test_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """An array that a few bytes unpack to 5 GiB is refused by what the archive declares."""
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", b"")
        archive.writestr("y.npy", b"")
    declare(tmp_path / "d.npz", size=5 * 2**29)
    message = error_of(tmp_path / "d.npz")
    assert f"arrays of file 'd.npz' unpack to {5 * 2**30} bytes, at most {4 * 2**30} are read" in message


def declare(path: Path, *, size: int) -> None:
    """Write another unpacked size into every entry of a zip archive's directory."""
    content = bytearray(path.read_bytes())
    for match in re.finditer(rb"PK\x01\x02", bytes(content)):
        content[match.start() + 24 : match.start() + 28] = struct.pack("<I", size)
    path.write_bytes(bytes(content))


def test_archive_that_declares_too_little_is_damaged(tmp_path: Path) -> None:
    """A false size in the directory does not pass more bytes than it says."""
    written(tmp_path / "d.npz", x=np.zeros((N, 64, 64), dtype=np.uint8))
    declare(tmp_path / "d.npz", size=300)
    assert "site 'berlin': array 'x' of file 'd.npz' is damaged" in error_of(tmp_path / "d.npz")


def test_header_that_promises_too_much_is_damaged(tmp_path: Path) -> None:
    """NumPy would allocate the shape of the header: an exabyte here."""
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1073741824, 32768, 32768), }"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", npy)
        archive.writestr("y.npy", npy)
    assert "array 'x' of file 'd.npz' is damaged: its header" in error_of(tmp_path / "d.npz")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=8), cut=st.booleans()
)
def test_damaged_file_is_read_or_refused_as_data(tmp_path: Path, changes: list[tuple[int, int]], cut: bool) -> None:
    """Whatever bytes are changed or cut off, it is examples or a DataError, and nothing else."""
    whole = tmp_path / "whole.npz"
    if not whole.exists():
        written(whole)
    content = bytearray(whole.read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    (tmp_path / "d.npz").write_bytes(bytes(content[: changes[0][0] if cut else None]))
    try:
        data = load(tmp_path / "d.npz")
    except DataError:
        return
    assert bool(torch.isfinite(data.train.x).all())
