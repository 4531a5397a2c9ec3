"""Pools of picture files whose patients are known: by folders, by names, and by DICOM headers."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool_pictures import CLASSES, held, picture, pictures
from scanner_files import dicom

from consilium.client.data import read_data
from consilium.client.data.inputs import read_inputs
from consilium.common.errors import DataError
from consilium.common.study.load import load_study
from consilium.common.study.site import ImageFolderData
from consilium.common.study.task import ImageTask
from consilium.data.options import SplitOptions
from consilium.data.split import split_pool


@pytest.mark.parametrize("group", ["folder", "^(P[0-9]+)_"])
def test_a_patient_is_at_one_site_and_the_study_knows_it(tmp_path: Path, group: str) -> None:
    """By folders below the classes, in both classes; or by names. Every site reads the same patients."""
    pool, out = tmp_path / "pool", tmp_path / "out"
    for number in range(120):
        patient = f"P{number // 6}"
        parts = (patient, f"{number}.png") if group == "folder" else (f"{patient}_{number}.png",)
        picture(pool.joinpath(CLASSES[number % 2], *parts), number)
    split_pool(pool, out, SplitOptions("iid", sites=2, min_examples=2, group=group))
    study = load_study(out / "study.toml")
    assert group == study.split.group
    places = defaultdict[str, list[str]](list)
    for site in study.sites:
        config = ImageFolderData(path=out / site / "data")
        raw = read_data(config, study.task, study.split, site=site, min_examples=2).raw
        for patient in set(raw.patients or ()):
            places[patient].append(site)
        assert 6 * len(set(raw.patients or ())) == len(raw.y)
    assert {f"P{number}" for number in range(20)} == places.keys()
    assert {1} == {len(sites) for sites in places.values()}


def test_names_that_a_pattern_would_read_otherwise_are_refused(tmp_path: Path) -> None:
    """With its folder in its name the picture would be of nobody; so would two that come to have one name."""
    pool = pictures(tmp_path / "pool", 20)
    for year in ("2020", "2021"):
        picture(pool / "ill" / year / "P7_1.png", int(year))
    options = SplitOptions("iid", sites=2, min_examples=2)
    with pytest.raises(DataError, match=r"several pictures of class 'ill' are called 'P7_1.png', and with its folders"):
        split_pool(pool, tmp_path / "a", SplitOptions("iid", sites=2, min_examples=2, group="^(P[0-9]+)_"))
    picture(pool / "ill" / "2020-P7_1.png", 5)
    with pytest.raises(DataError, match=r"several pictures would be called 'ill/2020-P7_1.png'"):
        split_pool(pool, tmp_path / "b", options)


def test_patients_of_an_official_test_set_are_at_no_site(tmp_path: Path) -> None:
    """Each of ten has a picture in both parts: those of the sites are left out, and said; nobody else is nobody."""
    pool = tmp_path / "pool"
    for number in range(40):
        part = "test" if number % 4 == 0 else "train"
        picture(pool / part / CLASSES[number % 2] / f"P{number // 2}_{number}.png", number)
    options = SplitOptions("iid", sites=2, min_examples=2, official_test=True, group="^(P[0-9]+)_")
    said = split_pool(pool, tmp_path / "out", options)
    assert "10 images are left out: the test set has others of their patients" in said
    files = held(tmp_path / "out")
    own, test = (
        {Path(name).name.split("_")[0] for of in files.values() for name in of if name.startswith("test/") == held_out}
        for held_out in (False, True)
    )
    assert (10, 10) == (len(own), len(test)) and not own & test
    everybody = tmp_path / "everybody"
    for number in range(20):
        picture(everybody / ("test", "train")[number % 2] / CLASSES[number // 2 % 2] / f"P1_{number}.png", number)
    with pytest.raises(DataError, match="no image is left that is not of the test set or of its patients"):
        split_pool(everybody, tmp_path / "none", options)


def scans(folder: Path, *, number: str | None = "4711") -> Path:
    """Write 60 DICOM files of 20 patients, and maybe one whose header has no patient."""
    for at in range(60):
        path = folder / CLASSES[at % 2] / f"{at}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(at).integers(0, 256, (9, 9), dtype=np.uint8)
        path.write_bytes(dicom(pixels, PatientID=f"4711-{at // 3}"))
    if number is None:
        (folder / "ill" / "nobody.dcm").write_bytes(dicom(np.eye(9, dtype=np.uint8), PatientID=""))
    return folder


def test_the_patient_of_a_dicom_header_stays_at_one_site_and_in_one_part(tmp_path: Path, caplog: Any) -> None:
    """Three pictures each, two in one class and one in the other; no number is in a file, a sentence or a log."""
    pool, out = scans(tmp_path / "pool"), tmp_path / "out"
    with caplog.at_level("DEBUG"):
        said = split_pool(pool, out, SplitOptions("iid", sites=2, min_examples=2, group="dicom:PatientID"))
        study, places = load_study(out / "study.toml"), defaultdict[str, list[str]](list)
        for site in study.sites:
            config = ImageFolderData(path=out / site / "data")
            data = read_data(config, study.task, study.split, site=site, min_examples=2)
            for patient in set(data.raw.patients or ()):
                places[patient].append(site)
            groups = data.raw.groups
            assert groups is not None
            parts = [set(groups[rows].tolist()) for rows in (data.parts.train, data.parts.validation, data.parts.test)]
            assert len(set.union(*parts)) == sum(map(len, parts)) == len(set(data.raw.patients or ()))
    assert "dicom:PatientID" == study.split.group
    assert {f"4711-{number}" for number in range(20)} == places.keys()
    assert {1} == {len(sites) for sites in places.values()}
    written = [path.read_text() for path in out.glob("*.*") if path.is_file()]
    assert not any("4711" in text for text in (*said, *written, caplog.text))


@pytest.mark.parametrize("kind", ["empty", "png"])
def test_a_file_without_a_patient_is_refused_by_its_name_alone(tmp_path: Path, kind: str) -> None:
    """An empty number in the header, or a file that has no such header."""
    pool = scans(tmp_path / "pool", number=None if kind == "empty" else "4711")
    name = "nobody.dcm" if kind == "empty" else picture(pool / "ill" / "nobody.png", 1).name
    with pytest.raises(DataError) as refused:
        split_pool(pool, tmp_path / "out", SplitOptions("iid", sites=2, min_examples=2, group="dicom:PatientID"))
    assert str(refused.value) == (
        f"pool '{pool}': image '{name}' names no patient in a DICOM header, as split.group = 'dicom:PatientID' asks for"
    )


def test_predictions_count_patients_by_their_headers(tmp_path: Path) -> None:
    """20 patients of 60 pictures; of one without a number the sentence names the file."""
    pool = scans(tmp_path / "pool", number=None)
    task = ImageTask(classes=CLASSES, size=8, channels=1)
    inputs = read_inputs(pool, task, labelled=True, group="dicom:PatientID")
    assert inputs.groups is not None
    assert (60, 20) == (len(inputs), len(set(inputs.groups.tolist())))
    assert [("ill/nobody.dcm", "image 'ill/nobody.dcm' names no patient in a DICOM header")] == [
        (one.name, one.reason) for one in inputs.unread
    ]
