"""Folders of pictures as they come: what is found how deep, what is passed over, what their levels and sizes say."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from consilium.client.data import UnscaledData, read_data
from consilium.client.data.inputs import pictures_inputs, read_inputs
from consilium.client.operations.doctor.data import check_data
from consilium.client.operations.doctor.finding import Finding
from consilium.client.operations.doctor.pictures import check_pictures
from consilium.common.errors import ConfigError, DataError
from consilium.common.study.load import parse_site, parse_study
from consilium.common.study.site import ArraysData, ImageFolderData
from consilium.common.study.task import ImageTask
from consilium.common.study.training import SplitConfig
from consilium.serving.serve.body import asked_in_json
from consilium.serving.serve.refusals import Refusal

Array = npt.NDArray[Any]
TASK = ImageTask(classes=("normal", "pneumonia"), size=32, channels=1)
WHOLE = SplitConfig(test=0, validation=0)

LEVELS = np.arange(4 * 512 * 512).astype(np.uint8)
"""All 256 levels, again and again."""


def scene(number: int, *, shape: tuple[int, int] = (64, 96)) -> Array:
    """Return a picture of 8 bits, another for each number: dark on the right, black on top."""
    base = np.zeros(shape, np.uint8)
    base[:, : shape[1] // 2], base[:20, :] = 200, 30
    chance = np.random.default_rng(number).integers(0, 10, shape)
    return np.clip(base.astype(int) + chance, 0, 255).astype(np.uint8)


def save(folder: Path, *names: str, pixels: Array | None = None) -> Path:
    """Write a picture under each name, each another one."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(number) if pixels is None else pixels[number]).save(folder / name)
    return folder


def both(count: int, form: str) -> list[str]:
    """Return names of pictures of both classes; `form` holds a number."""
    return [f"{label}/{form.format(number)}" for label in TASK.classes for number in range(count)]


def read(folder: Path, task: ImageTask = TASK, *, split: SplitConfig = WHOLE, **settings: Any) -> UnscaledData:
    """Return a site's data of a folder of pictures."""
    return read_data(ImageFolderData(path=folder, **settings), task, split, site="rom", min_examples=2)


def refusal(folder: Path, task: ImageTask = TASK, **settings: Any) -> str:
    """Return the sentence with which a folder is refused."""
    with pytest.raises((DataError, ConfigError)) as caught:
        read(folder, task, **settings)
    return str(caught.value)


def checked(folder: Path, kind: str = "images", **task: Any) -> tuple[Finding, Finding]:
    """Return what `site check` says of data and pictures."""
    site = {"name": "rom", "server": "a:1", "ca_certificate": "a", "private_key": "a", "state_dir": "a"}
    config = parse_site(site | {"data": {"kind": kind, "path": str(folder)}}, source="test")
    about = {"kind": "images", "classes": list(TASK.classes), "size": 32, "channels": 1} | task
    study = parse_study({"name": "x", "sites": ["rom", "ulm"], "task": about, "min_examples": 2}, source="test")
    (pictures,) = check_pictures(config, study)
    return check_data(config, study), pictures


# --- depth ----------------------------------------------------------------------------------------


def test_pictures_in_deeper_folders_are_read_where_depth_says_so(tmp_path: Path) -> None:
    """24 in the classes' folders and 60 in folders of patients in them: 24, 84 or, with a part of them deeper, all."""
    save(tmp_path, *both(12, "p{:02}.png"), *both(30, "patient{}/a.png"))
    assert [24, 84, 84] == [read(tmp_path, depth=depth).card.num_examples for depth in (0, 1, "any")]
    assert read(tmp_path).raw.odd == (
        "24 .png read; passed over: 60 .png deeper than data.depth = 0: set data.depth = 1 (class/patient/picture) in "
        "site.toml to read them",
    )
    assert read(tmp_path, depth=1).raw.odd == ()
    save(tmp_path, "normal/patient1/study/series/b.png")
    assert 85 == read(tmp_path, depth="any").card.num_examples == read(tmp_path, depth=3).card.num_examples
    assert (
        '1 .png deeper than data.depth = 1: set data.depth = "any" in site.toml' in read(tmp_path, depth=1).raw.odd[0]
    )


def test_only_deeper_pictures_are_refused_with_the_reason(tmp_path: Path) -> None:
    """The sentence says where they are, and which setting reads them."""
    save(tmp_path, *both(30, "patient{}/a.png"))
    assert refusal(tmp_path).endswith(
        "passed over: 60 .png deeper than data.depth = 0: set data.depth = 1 (class/patient/picture) in site.toml to "
        "read them"
    )
    assert refusal(tmp_path).startswith(f"site 'rom': no image in the sub-folders of '{tmp_path}', expected files .bmp")


def test_a_patient_is_the_first_folder_below_the_class_at_any_depth(tmp_path: Path) -> None:
    """class/patient/study/picture: all of a patient's studies on one side, in both classes, as in `evaluate`."""
    split = SplitConfig(group="folder", validation=0)
    names = [
        f"{label}/p{n}/study{s}/{n}{s}.png" for n in range(8) for s in range(3) for label in TASK.classes[: 1 + n % 2]
    ]
    save(tmp_path, *names)
    data = read(tmp_path, split=split, depth="any")
    assert (len(names), 8) == (data.card.num_examples, data.card.num_groups)
    assert data.raw.patients is not None and set(data.raw.patients) == {f"p{n}" for n in range(8)}
    inputs = read_inputs(tmp_path, TASK, labelled=True, group="folder")
    assert torch.equal(data.raw.x, inputs.x) and inputs.groups is not None
    assert 8 == len(set(inputs.groups.tolist()))
    assert "data.depth is 0, but split.group = 'folder' reads class/patient/picture" in refusal(
        tmp_path, split=split, depth=0
    )
    assert "set data.depth = 2 in site.toml" in refusal(tmp_path, split=split)


def test_links_in_circles_and_folders_below_the_deepest_are_left(tmp_path: Path) -> None:
    """A folder is met once, and no more than seven folders below a class are entered."""
    save(tmp_path, *both(2, "{}.png"))
    (tmp_path / "normal" / "again").symlink_to(tmp_path / "normal")
    (tmp_path / "normal" / "up").symlink_to(tmp_path)
    deep = "normal/" + "/".join("abcdefg") + "/x.png"
    save(tmp_path, deep, "normal/" + "/".join("abcdefgh") + "/y.png")
    names = {place.name for place in (tmp_path / "normal").rglob("*.png")}
    assert {"x.png", "y.png"} < names
    data = read(tmp_path, depth="any")
    assert 5 + 2 == data.card.num_examples  # the two of 'pneumonia' again, by way of 'up'


@pytest.mark.parametrize("depth", [-1, 8, 1.5, True, "all"])
def test_a_depth_that_is_none_is_a_sentence(depth: Any) -> None:
    """A number of folders, or 'any'."""
    with pytest.raises(ValueError, match="must be a whole number from 0 to 7, or 'any', got"):
        ImageFolderData(path=Path(), depth=depth)


# --- what is passed over --------------------------------------------------------------------------


def test_what_is_passed_over_is_counted_by_suffix(tmp_path: Path) -> None:
    """In the classes' folders and beside them; hidden files and the index of parts do not count."""
    save(tmp_path, *both(12, "p{:02}.png"), "normal/x.JPG")
    for name in (
        "notes.txt",
        "normal/a.txt",
        "normal/b.TXT",
        "normal/.hidden",
        "normal/c.xyz",
        "labels.csv",
        "normal/no",
    ):
        (tmp_path / name).write_text("x")
    (reading,) = read(tmp_path).raw.reading
    assert "1 .jpg, 24 .png read; passed over: 3 .txt, 1 without a suffix, 1 .csv, 1 .xyz" == reading
    rows = "\n".join(f"{path.relative_to(tmp_path).as_posix()},train" for path in tmp_path.rglob("p*.png"))
    (tmp_path / "labels.csv").write_text(
        f"file,part\nnormal/x.JPG,test\nnormal/p00.png,test\n{rows}\n".replace("normal/p00.png,train\n", "", 1)
    )
    split = SplitConfig(parts="labels.csv", validation=0, copies="ignore")
    assert "csv" not in read(tmp_path, split=split).raw.reading[0]


def test_formats_that_a_site_does_not_want_are_passed_over(tmp_path: Path) -> None:
    """A folder with two forms of the same pictures: one is read, the other counted."""
    save(tmp_path, *both(12, "p{:02}.png"), *both(12, "p{:02}.bmp"))
    assert 48 == read(tmp_path).card.num_examples
    data = read(tmp_path, formats=("png",))
    assert (24, ("24 .png read; passed over: 24 .bmp",)) == (data.card.num_examples, data.raw.reading)
    with pytest.raises(ValueError, match="formats"):
        ImageFolderData.model_validate({"path": "a", "formats": ["gif"]})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed_is_a_sentence(tmp_path: Path) -> None:
    """Not a shorter list."""
    save(tmp_path, *both(3, "p/{}.png"))
    (tmp_path / "normal" / "p").chmod(0)
    assert "cannot list data folder" in refusal(tmp_path, depth=1)


# --- levels and sizes -----------------------------------------------------------------------------


def test_twelve_bits_in_sixteen_are_noticed_and_the_range_mends_them(tmp_path: Path) -> None:
    """40 pictures up to 4095 of 65535: the check says what to set, and with it a picture is as bright as in 8 bits."""
    pixels = np.stack([scene(number).astype(np.uint16) * 16 for number in range(40)])
    pixels[0, 0, 0] = 4095
    save(tmp_path / "d", *both(20, "{:02}.png"), pixels=pixels)
    _, about = checked(tmp_path / "d")
    assert ("WARN", True) == (
        about.status,
        about.message.startswith(
            "the largest pixel of 40 pictures is 4,095 of 65,535, as where 12 of 16 bits are used: ask the coordinator "
            "to set task.pixel_range = [0, 4095]"
        ),
    )
    assert 0.07 > float(read(tmp_path / "d").raw.x.max())
    task = TASK.model_copy(update={"pixel_range": (0.0, 4095.0)})
    save(tmp_path / "eight", *both(20, "{:02}.png"), pixels=(pixels // 16).astype(np.uint8))
    eight, twelve = read(tmp_path / "eight").raw.x, read(tmp_path / "d", task).raw.x
    assert float((eight - twelve).abs().max()) < 2 / 255
    assert "PASS" == checked(tmp_path / "d", pixel_range=[0, 4095])[1].status


@pytest.mark.parametrize(
    ("pixels", "task", "sentence"),
    [
        (np.zeros((4, 32, 32), np.uint8), {}, "4 of 4 pictures are of one level all over (black, white or blank)"),
        (np.arange(4096, dtype=np.uint8).reshape(4, 32, 32) % 25, {}, "is 24 of 255: they are nearly black"),
        (
            np.arange(4096, dtype=np.uint16).reshape(4, 32, 32) % 400,
            {"pixel_range": [0, 4095]},
            "pixels of 4 pictures are from 0 to 399, which is less than a tenth of task.pixel_range = [0, 4095]",
        ),
        (
            np.arange(4096, dtype=np.uint16).reshape(4, 32, 32) * 15,
            {"pixel_range": [0, 4095]},
            "pixels of 4 pictures are from 0 to 61,425, most of them beyond task.pixel_range = [0, 4095]",
        ),
        (LEVELS.reshape(4, 512, 512), {}, "pictures of 512 pixels are reduced to the study's 32, by a factor of 16"),
        (LEVELS[:400].reshape(4, 10, 10), {}, "of 10 pixels are enlarged to the study's 32, by a factor of 3.2"),
        (LEVELS[:8192].reshape(4, 32, 64), {}, "4 of 4 pictures are at least 2 times as long as wide"),
    ],
)  # fmt: skip
def test_levels_and_sizes_that_look_wrong_are_said(tmp_path: Path, pixels: Array, task: Any, sentence: str) -> None:
    """Black pictures, a tenth of the levels, another meaning of levels, and sizes far from the study's."""
    save(tmp_path, *both(2, "{}.png"), pixels=pixels)
    wanted = ImageTask.model_validate(TASK.model_dump() | task)
    odd = read(tmp_path, wanted, split=WHOLE.model_copy(update={"copies": "ignore"})).raw.odd
    assert any(sentence in one for one in odd), odd


def test_the_check_shows_levels_sizes_and_labels(tmp_path: Path) -> None:
    """Smallest, largest and mean level of each channel, by hand; sizes; the share of each class."""
    colours = np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3), np.uint8)
    colours[..., 1] //= 2
    save(tmp_path, *both(2, "{}.png"), *both(2, "b{}.png"), pixels=colours)
    Image.fromarray(scene(1, shape=(50, 30))).save(tmp_path / "normal" / "x.png")
    _, about = checked(tmp_path, channels=3)
    assert about.status == "PASS"
    low, high, mean = colours.min((0, 1, 2)), colours.max((0, 1, 2)), colours.mean((0, 1, 2))
    names = ("red", "green", "blue")
    shown = "; ".join(
        f"{n} {a} to {b}, mean {c:.6g}" for n, a, b, c in zip(names, low, high, mean.round(2), strict=True)
    )
    assert f"levels of 8 pictures: {shown} (of 255)" in about.message
    assert "levels of 1 pictures: " in about.message
    assert "from 30 x 50 to 40 x 40 pixels (width x height), most often 40 x 40" in about.message
    assert "labels: normal 55.6%, pneumonia 44.4%" in about.message


def test_copies_are_in_the_check_of_the_data(tmp_path: Path) -> None:
    """Two names of one picture: counted, and on one side."""
    pixels = np.stack([scene(number % 58) for number in range(60)])
    save(tmp_path, *both(30, "{}.png"), pixels=pixels)
    about, _ = checked(tmp_path)
    assert "2 of 60 examples are exact copies of others: they count as the same patient's" in about.message


# --- arrays ---------------------------------------------------------------------------------------


def of_array(path: Path, x: Array, task: ImageTask = TASK) -> UnscaledData:
    """Return a site's data of an .npz file."""
    np.savez(path, x=x, y=np.arange(len(x)) % 2)
    return read_data(ArraysData(path=path), task, WHOLE, site="rom", min_examples=2)


def array_refusal(path: Path, x: Array, task: ImageTask = TASK) -> str:
    """Return the sentence with which an array is refused."""
    with pytest.raises(DataError) as caught:
        of_array(path, x, task)
    return str(caught.value)


@pytest.mark.parametrize("size", [32, 20])
def test_arrays_of_more_bits_are_the_pictures_of_files(tmp_path: Path, size: int) -> None:
    """uint16, int16 and floats of the levels of PNGs of 16 bits: bit for bit the same, with a range and without."""
    stored = np.stack([scene(number, shape=(32, 32)).astype(np.uint16) * 16 for number in range(6)])
    save(tmp_path / "d", *(f"{TASK.classes[n % 2]}/{n}.png" for n in range(6)), pixels=stored)
    for pixel_range in (None, (0.0, 4095.0), (-100.5, 3000.25), "picture"):
        task = TASK.model_copy(update={"pixel_range": pixel_range, "size": size})
        files = read_inputs(tmp_path / "d", task, labelled=False)
        order = np.argsort([int(Path(name).stem) for name in files.names])
        kinds: list[Any] = [np.uint16, ">u2"] if pixel_range is None else [np.uint16, np.int16, np.float32, np.float64]
        for kind in kinds:
            x = of_array(tmp_path / "a.npz", stored[..., None].astype(kind), task).raw.x
            assert torch.equal(files.x[order], x), (pixel_range, kind)
            assert torch.equal(x, pictures_inputs(stored[..., None].astype(kind), task).x)


def test_levels_in_json_are_those_of_the_studys_range() -> None:
    """A request's whole numbers and numbers with a point are both levels; without a range they are pixels 0 to 255."""
    stored = np.stack([scene(number, shape=(32, 32)).astype(np.uint16) * 16 for number in range(2)])
    task = TASK.model_copy(update={"pixel_range": (0.0, 4095.0)})
    expected = pictures_inputs(stored[..., None], task).x
    for numbers in (stored.tolist(), stored.astype(float).tolist()):
        assert torch.equal(expected, asked_in_json(json.dumps({"x": numbers}).encode(), task).inputs.x)
    with pytest.raises(Refusal, match=r"whole numbers outside 0\.\.255"):
        asked_in_json(json.dumps({"x": stored.tolist()}).encode(), TASK)


def test_floats_in_a_stated_range(tmp_path: Path) -> None:
    """In Hounsfield units, (v + 1000) / 2000; without the range they are refused with the setting's name."""
    units = np.random.default_rng(0).uniform(-1500, 1500, (4, 32, 32))
    task = TASK.model_copy(update={"pixel_range": (-1000.0, 1000.0)})
    x = of_array(tmp_path / "a.npz", units, task).raw.x.numpy()[:, 0]
    assert np.allclose(np.clip((units + 1000) / 2000, 0, 1), x, atol=1e-6)
    assert "which is what floats in 'x' must hold without task.pixel_range" in array_refusal(tmp_path / "a.npz", units)
    assert array_refusal(tmp_path / "a.npz", units.astype(np.int16)).endswith(
        "array 'x' has type int16, of which nothing says what is black and what is white: set task.pixel_range in the "
        "study, such as [-1000, 1000] for Hounsfield units"
    )
    window = TASK.model_copy(update={"pixel_range": "window"})
    assert "states no window" in array_refusal(tmp_path / "a.npz", units, window)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((6, 500, 12), "shape (6, 500, 12) may be a series (N, T, C), which is no picture"),
        ((6, 500, 1), "shape (6, 500, 1) may be a series (N, T, C), which is no picture"),
        (
            (6, 64),
            "array 'x' has shape (6, 64), expected (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3; rows of",
        ),
        ((6,), "array 'x' has shape (6,), expected (N, H, W)"),
    ],
)
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int16, np.uint16])
def test_series_and_features_are_never_taken_for_pictures(
    tmp_path: Path, shape: tuple[int, ...], sentence: str, kind: Any
) -> None:
    """Even where all their numbers lie between 0 and 1; said with the shape of pictures that are no squares."""
    x = np.random.default_rng(0).uniform(0, 1, shape).astype(kind)
    assert sentence in array_refusal(tmp_path / "a.npz", x)
    with pytest.raises(DataError, match="array 'x'"):
        pictures_inputs(x, TASK)
    if len(shape) == 3 and kind == np.float32:
        assert "have the shape (N, H, W, 1)" in array_refusal(tmp_path / "a.npz", x)
        assert (6, 1, 32, 32) == of_array(tmp_path / "a.npz", x[..., None]).raw.x.shape


def test_what_looks_wrong_about_an_array_is_said(tmp_path: Path) -> None:
    """The same sentences as of files; floats that were divided by 255 twice use a tenth of 0 to 1."""
    stored = np.stack([scene(number, shape=(32, 32)) for number in range(6)])
    assert "12 of 16 bits are used" in of_array(tmp_path / "a.npz", stored.astype(np.uint16)[..., None] * 16).raw.odd[0]
    twice = of_array(tmp_path / "a.npz", stored / 255 / 255).raw
    assert twice.odd == (
        "pixels of 6 pictures are from 0 to 0.00321415, less than a tenth of 0 to 1: ask the coordinator to set "
        "task.pixel_range",
    )
    assert "PASS" == checked(tmp_path / "b.npz", "arrays")[1].status if of_array(tmp_path / "b.npz", stored) else None


@pytest.mark.parametrize("value", [[5, 1], [0, 1, 2], ["a", 1], "all", [0, 0], {"low": 1}, [0, float("inf")]])
def test_a_range_that_is_none_is_a_sentence(value: Any) -> None:
    """Two numbers, the smaller one first, or one of two words."""
    with pytest.raises(ValueError, match="must be the levels of black and white, the smaller one first, such as"):
        ImageTask.model_validate(TASK.model_dump() | {"pixel_range": value})
