"""Pools of picture files: `data split` copies them to sites, byte for byte, with patients and copies together."""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pool_pictures import CLASSES, held, picture, pictures
from scanner_files import dicom

from consilium.client.data import read_data
from consilium.common.errors import ConfigError, DataError
from consilium.common.study.load import load_study
from consilium.common.study.site import ImageFolderData
from consilium.data.options import By, SplitOptions
from consilium.data.split import split_pool


@pytest.mark.parametrize("by", ["iid", "interleaved", "dirichlet", "quantity", "classes"])
def test_every_picture_is_at_one_site_as_it_was(tmp_path: Path, by: By) -> None:
    """Same bytes, same names, none lost, none twice; the study reads each site's part, and counts agree."""
    pool, out = pictures(tmp_path / "pool"), tmp_path / "out"
    more: dict[str, Any] = {"labels_per_site": 1} if by == "classes" else {}
    said = split_pool(pool, out, SplitOptions(by, sites=2, min_examples=5, seed=1, **more))
    assert said[0] == "60 .png read"
    whole = {path.relative_to(pool).as_posix(): path.read_bytes() for path in pool.rglob("*.png")}
    files = held(out)
    assert len(whole) == sum(map(len, files.values()))
    assert whole == {name: content for of in files.values() for name, content in of.items()}
    study = load_study(out / "study.toml")
    task: Any = study.task
    assert (12, 1, None) == (task.size, task.channels, task.pixel_range)
    counts = tomllib.loads((out / "federation.toml").read_text())["examples"]
    for site in study.sites:
        config = ImageFolderData(path=out / site / "data")
        raw = read_data(config, study.task, study.split, site=site, min_examples=2).raw
        assert counts[site] == {label: raw.y.tolist().count(place) for place, label in enumerate(CLASSES)}


def test_the_same_command_gives_the_same_federation(tmp_path: Path) -> None:
    """Study, record and picture to the last byte; another picture gives another digest of the pool."""
    pool, options = pictures(tmp_path / "pool"), SplitOptions("dirichlet", sites=2, min_examples=5)
    for name in ("a", "b"):
        split_pool(pool, tmp_path / name, options)
    for file in ("study.toml", "federation.toml", "federation.svg"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    picture(pool / "ill" / "P0_0.png", 1000)
    split_pool(pool, tmp_path / "c", options)
    first, other = (tomllib.loads((tmp_path / name / "federation.toml").read_text()) for name in "ac")
    assert len(first["pool_sha256"]) == 64
    assert first["pool_sha256"] != other["pool_sha256"]


def test_copies_are_at_one_site_whatever_their_format(tmp_path: Path) -> None:
    """Ten pictures lie there as PNG, as BMP and under another name: each three are at one site."""
    pool = pictures(tmp_path / "pool", 10)
    for number in range(10):
        for name in (f"again{number}.bmp", f"once-more{number}.png"):
            picture(pool / CLASSES[number % 2] / name, number)
    said = split_pool(pool, tmp_path / "out", SplitOptions("iid", sites=3, min_examples=1))
    assert "20 of 30 examples are exact copies of others; copies are at one site" in said
    for of in held(tmp_path / "out").values():
        numbers = [
            int(name.rpartition(".")[0].lstrip("abcdefghijklmnopqrstuvwxyz-/").rpartition("_")[2]) for name in of
        ]
        assert {3} == {numbers.count(number) for number in numbers}


def test_deeper_folders_become_part_of_a_name_where_names_are_alike(tmp_path: Path) -> None:
    """`ill/2020/a.png` and `ill/2021/a.png` are two pictures at sites, which read no deeper than a class."""
    pool, out = pictures(tmp_path / "pool", 20), tmp_path / "out"
    picture(pool / "ill" / "2020" / "a.png", 100)
    picture(pool / "ill" / "2021" / "a.png", 101)
    picture(pool / "well" / "2021" / "b.png", 102)
    split_pool(pool, out, SplitOptions("iid", sites=2, min_examples=2))
    names = {name for of in held(out).values() for name in of}
    assert {"ill/2020-a.png", "ill/2021-a.png", "well/b.png"} < names
    assert 23 == len(names)


def parted(folder: Path) -> Path:
    """Write 40 pictures below `train` and 20 below `test`, of which one is also among the former."""
    for number in range(60):
        picture(folder / ("train" if number < 40 else "test") / CLASSES[number % 2] / f"{number}.png", number)
    picture(folder / "train" / "ill" / "copy.png", 40)
    return folder


def test_an_official_test_set_is_the_same_at_every_site(tmp_path: Path) -> None:
    """The pictures below `test`, and no copy of them, are every site's common test set."""
    said = split_pool(
        parted(tmp_path / "pool"), tmp_path / "out", SplitOptions("iid", sites=2, min_examples=2, official_test=True)
    )
    assert "20 official test images are every site's 'test', and no site's own" in said
    assert "1 images are left out: the test set has the same" in said
    study, files = load_study(tmp_path / "out" / "study.toml"), held(tmp_path / "out")
    tests = [{name: of[name] for name in of if name.startswith("test/")} for of in files.values()]
    assert [20, 20] == list(map(len, tests))
    assert tests[0] == tests[1]
    assert 40 == sum(len(of) - 20 for of in files.values())
    for site in study.sites:
        config = ImageFolderData(path=tmp_path / "out" / site / "data")
        raw = read_data(config, study.task, study.split, site=site, min_examples=2).raw
        assert (20, 20) == (raw.num_common, raw.num_own)


def test_without_it_all_parts_are_pooled(tmp_path: Path) -> None:
    """As those of an `.npz` file are; the classes are those below the parts."""
    split_pool(parted(tmp_path / "pool"), tmp_path / "out", SplitOptions("iid", sites=2, min_examples=2))
    assert 61 == sum(map(len, held(tmp_path / "out").values()))
    assert CLASSES == load_study(tmp_path / "out" / "study.toml").task.classes


def test_progress_counts_pictures_and_sites(tmp_path: Path) -> None:
    """Each picture as it is read and each site as it is written, up to all of them."""
    told = list[tuple[str, int, int]]()
    options = SplitOptions("iid", sites=2, min_examples=5)
    split_pool(pictures(tmp_path / "pool", 20), tmp_path / "f", options, progress=lambda *step: told.append(step))
    assert [("pictures read", done, 20) for done in range(21)] == told[:21]
    assert [("sites written", done, 2) for done in range(3)] == told[21:]


def test_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    """By suffix, in classes and beside them; hidden files are nobody's, and a folder without pictures is no class."""
    pool = pictures(tmp_path / "pool", 20)
    for name in ("ill/notes.txt", "README.md", "well/.hidden", "empty/list.csv"):
        (pool / name).parent.mkdir(exist_ok=True)
        (pool / name).write_text("x")
    said = split_pool(pool, tmp_path / "out", SplitOptions("iid", sites=2, min_examples=2))
    assert "20 .png read; passed over: 1 .csv, 1 .md, 1 .txt" == said[0]
    assert CLASSES == load_study(tmp_path / "out" / "study.toml").task.classes


def test_sizes_and_colours_of_the_study_are_those_of_the_pictures(tmp_path: Path) -> None:
    """Colour if one has it; the usual longer side, at most 224, and a sentence where pictures are resized."""
    pool = pictures(tmp_path / "pool", 4)
    for number, size in enumerate((250, 300, 300, 300, 300, 300, 310)):
        picture(pool / "ill" / f"{number}.jpg", number, size=size, colour=True)
    said = split_pool(pool, tmp_path / "out", SplitOptions("iid", sites=2, min_examples=2))
    task: Any = load_study(tmp_path / "out" / "study.toml").task
    assert (224, 3) == (task.size, task.channels)
    sizes = "from 12 x 12 to 310 x 310 pixels (width x height), most often 300 x 300"
    assert f"the pictures are {sizes}: every site resizes them to task.size = 224" in said


def test_levels_of_more_than_8_bits_get_a_range(tmp_path: Path) -> None:
    """12 of 16 bits in PNG are black at 0 and white at 4095; DICOM files know their own bits."""
    pool = tmp_path / "pool"
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 4096, (9, 9), dtype=np.uint16)
        path = pool / CLASSES[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    split_pool(pool, tmp_path / "a", SplitOptions("iid", sites=2, min_examples=2))
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 4096, (9, 9), dtype=np.uint16)
        path = pool / CLASSES[number % 2] / f"{number}.png"
        path.unlink()
        path.with_suffix(".dcm").write_bytes(dicom(pixels, bits=12))
    split_pool(pool, tmp_path / "b", SplitOptions("iid", sites=2, min_examples=2))
    ranges = [load_study(tmp_path / name / "study.toml").task.pixel_range for name in "ab"]  # type: ignore[union-attr]  # pictures
    assert [(0.0, 4095.0), None] == ranges


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"label": "y"}, "--label is for tables; the class of a picture file is the folder that it lies in"),
        ({"by": "column", "column": "a", "sites": None, "min_examples": None}, "picture files have no such columns"),
        ({"by": "feature"}, "--by feature changes pixels, and picture files are copied as they are"),
        ({"tolerance": 1.0}, "--tolerance is for labels that are numbers"),
        ({"series": True}, "--series is for an .npz file or a table; the pool holds picture files"),
        ({"delimiter": ";"}, "--delimiter is for tables; picture files have no rows of text"),
        ({"official_test": True}, "folders called train and test above the classes"),
        ({"group": "patient"}, "expected for a folder of images 'folder' or a pattern"),
        ({"group": "folder"}, "lies in its class itself, expected in a patient's folder"),
        ({"group": "^(Q[0-9]+)_"}, "has a name that does not fit, as split.group"),
    ],
)
def test_options_that_mean_nothing_for_picture_files_are_refused(
    tmp_path: Path, options: dict[str, Any], error: str
) -> None:
    """With a sentence, before anything is written."""
    pool = pictures(tmp_path / "pool", 12)
    wanted: dict[str, Any] = {"by": "iid", "sites": 2, "min_examples": 2, **options}
    with pytest.raises((ConfigError, DataError), match=error):
        split_pool(pool, tmp_path / "out", SplitOptions(**wanted))
    assert not (tmp_path / "out").exists()


def test_folders_that_are_no_pool_are_refused(tmp_path: Path) -> None:
    """No class, one class, a damaged picture, and a name that no study can have."""
    options = SplitOptions("iid", sites=2, min_examples=2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected a sub-folder for each class, there is none"):
        split_pool(tmp_path / "empty", tmp_path / "out", options)
    picture(tmp_path / "one" / "ill" / "a.png", 1)
    with pytest.raises(DataError, match=r"are in 1 folders of classes, expected at least two; 1 .png read"):
        split_pool(tmp_path / "one", tmp_path / "out", options)
    pool = pictures(tmp_path / "pool", 12)
    (pool / "ill" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing else")
    with pytest.raises(DataError, match=r"1 of 13 pictures cannot be used: image 'ill/bad.png' is corrupt"):
        split_pool(pool, tmp_path / "out", options)
    (pool / "ill" / "bad.png").unlink()
    picture(pool / "a\x1b[2Jb" / "a.png", 1)
    with pytest.raises(DataError, match=r"has a control character in it") as error:
        split_pool(pool, tmp_path / "out", options)
    assert "\x1b" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_link_that_leads_out_of_the_pool_is_named(tmp_path: Path) -> None:
    """A pool from elsewhere must not have other files copied to the sites."""
    pool = pictures(tmp_path / "pool")
    (pool / "ill" / "x.png").symlink_to(picture(tmp_path / "other.png", 99))
    with pytest.raises(DataError, match=r"'ill/x.png' is a link that leads out of the pool, expected the picture"):
        split_pool(pool, tmp_path / "out", SplitOptions("iid", sites=2, min_examples=5))
