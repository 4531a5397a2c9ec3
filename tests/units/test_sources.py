"""The makers of hospitals' folders: real data in, folders that a site can read out."""

import hashlib
from pathlib import Path

import pytest
from paths import SHARED
from PIL import Image
from site_data import load_data

from consilium.common.errors import DataError
from consilium.common.study.site import ImageFolderData, TableData
from consilium.common.study.training import SplitConfig
from consilium.data.federation import Federation
from consilium.data.sources import digits_hospitals, heart_disease_hospitals, image_folder_hospitals

HEART = SHARED / "data" / "heart_disease"
ROW = "63.0,1.0,1.0,145.0,233.0,1.0,2.0,150.0,0.0,2.3,3.0,?,6.0,2"
HEART_FILES = [f"processed.{site}.data" for site in ("cleveland", "hungarian", "switzerland", "va")]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """The three hospitals of digits, written once."""
    return digits_hospitals(tmp_path_factory.mktemp("digits"))


def site_images(path: Path, *names: str, mode: str = "L") -> None:
    """Write one small image for each `<site>/<class>/<file>` in `names`."""
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (4, 4)).save(path / name)


# --- digits ----------------------------------------------------------------------------------------


def test_digits_hospitals_have_their_sizes_and_every_class(digits: Federation) -> None:
    """The reader accepts each hospital: 1000, 500 and 200 images of 16 x 16, ten classes, none alike."""
    counts = {}
    for site, folder in digits.folders.items():
        data = load_data(
            ImageFolderData(path=folder),
            digits.task,
            SplitConfig(),
            site=site,
            min_examples=20,
            share_class_counts=True,
        )
        assert data.input_shape == (1, 16, 16)
        counts[site] = data.card.class_counts or {}
    assert {"berlin": 1000, "lyon": 500, "porto": 200} == {site: sum(of.values()) for site, of in counts.items()}
    assert all(min(of.values()) >= 8 and len(of) == 10 for of in counts.values())
    assert counts["berlin"]["0"] / 1000 > 3 * counts["porto"]["0"] / 200


def test_digits_of_two_hospitals_are_never_the_same(digits: Federation) -> None:
    """File names are numbers in the public set, and no number is at two hospitals."""
    numbers = [file.name for folder in digits.folders.values() for file in folder.glob("*/*.png")]
    assert 1700 == len(numbers) == len(set(numbers))


def test_digits_hospitals_differ_in_scanner(digits: Federation) -> None:
    """Paper is black in berlin, grey in lyon and white in porto: the usual pixel of the corners says so."""
    corners = {}
    for site, folder in digits.folders.items():
        values = []
        for file in sorted(folder.glob("*/*.png"))[::5]:
            with Image.open(file) as image:
                values.append(int(image.getpixel((0, 0))))  # type: ignore[arg-type] # one channel: one number
        corners[site] = sorted(values)[len(values) // 2]
    assert corners["berlin"] < 30 < 70 < corners["lyon"] < 120 < 220 < corners["porto"]


def test_digits_hospitals_are_the_same_at_every_call(digits: Federation, tmp_path: Path) -> None:
    """Every file has the same bytes when written again elsewhere."""
    again = digits_hospitals(tmp_path)
    first, second = (
        {
            f"{site}/{file.relative_to(folder)}": hashlib.sha256(file.read_bytes()).hexdigest()
            for site, folder in federation.folders.items()
            for file in folder.glob("*/*.png")
        }
        for federation in (digits, again)
    )
    assert first == second


# --- heart disease ---------------------------------------------------------------------------------


@pytest.mark.skipif(not HEART.is_dir(), reason="the heart disease files are not part of the repository")
def test_heart_disease_hospitals_have_flambys_rows(tmp_path: Path) -> None:
    """Rows with a missing value dropped leave FLamby's 303, 261, 46 and 130, with 13 features."""
    federation = heart_disease_hospitals(HEART, tmp_path)
    rows = {}
    for site, folder in federation.folders.items():
        data = load_data(TableData(path=folder), federation.task, SplitConfig(), site=site, min_examples=20)
        rows[site] = data.card.num_examples
        assert data.input_shape == (13,)
    assert {"cleveland": 303, "hungarian": 261, "switzerland": 46, "va": 130} == rows


def test_heart_disease_table_has_header_and_empty_cells(tmp_path: Path) -> None:
    """'?' becomes an empty cell, and every degree of disease above 0 becomes 'yes'."""
    for name in HEART_FILES:
        (tmp_path / name).write_text(f"{ROW}\n{ROW[:-1]}0\n")
    folder = heart_disease_hospitals(tmp_path, tmp_path / "out").folders["va"]
    assert [
        "age,sex,cp,trestbps,chol,fbs,restecg,thalach,exang,oldpeak,slope,ca,thal,disease",
        "63.0,1.0,1.0,145.0,233.0,1.0,2.0,150.0,0.0,2.3,3.0,,6.0,yes",
        "63.0,1.0,1.0,145.0,233.0,1.0,2.0,150.0,0.0,2.3,3.0,,6.0,no",
    ] == (folder / "patients.csv").read_text().splitlines()


def test_missing_heart_disease_file_is_named(tmp_path: Path) -> None:
    """The first source file that is not there is in the sentence."""
    (tmp_path / HEART_FILES[0]).write_text(ROW)
    with pytest.raises(DataError, match=r"source file '.*processed\.hungarian\.data' does not exist"):
        heart_disease_hospitals(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("row", ["63.0,1.0", ROW[:-1] + "x"])
def test_malformed_heart_disease_file_is_named_with_its_line(tmp_path: Path, row: str) -> None:
    """A row of another shape is refused with file and line, without its values."""
    for name in HEART_FILES:
        (tmp_path / name).write_text(f"{ROW}\n\n{row}\n")
    with pytest.raises(DataError, match=r"cleveland\.data', line 3: expected 14 columns") as caught:
        heart_disease_hospitals(tmp_path, tmp_path / "out")
    assert "63.0" not in str(caught.value)


# --- any folder of images --------------------------------------------------------------------------


def test_image_folder_hospitals_use_what_lies_there(tmp_path: Path) -> None:
    """Sites are folders with a name made fit, classes the sorted union, grey images one channel."""
    site_images(tmp_path, "Charité Berlin/b/1.png", "lyon/a/1.png", "lyon/b/1.jpg", ".hidden/c/1.png")
    federation = image_folder_hospitals(tmp_path, size=8)
    assert {"charit-berlin": tmp_path / "Charité Berlin", "lyon": tmp_path / "lyon"} == dict(federation.folders)
    assert (("a", "b"), 1, 8) == (federation.task.classes, federation.task.channels, federation.task.size)  # type: ignore[union-attr] # images


def test_image_folder_with_a_colour_image_has_three_channels(tmp_path: Path) -> None:
    """One colour image in the sample is enough; a corrupt file says nothing."""
    site_images(tmp_path, "berlin/a/1.png", "lyon/b/1.png")
    (tmp_path / "lyon" / "b" / "2.png").write_bytes(b"x")
    assert 1 == image_folder_hospitals(tmp_path).task.channels  # type: ignore[union-attr] # images
    site_images(tmp_path, "lyon/b/3.png", mode="RGB")
    assert 3 == image_folder_hospitals(tmp_path).task.channels  # type: ignore[union-attr] # images


def test_image_folders_that_cannot_be_a_federation_are_refused(tmp_path: Path) -> None:
    """No folder, one site, one class, or a name of which nothing is left: a sentence each."""
    with pytest.raises(DataError, match="does not exist or is not a folder"):
        image_folder_hospitals(tmp_path / "nowhere")
    site_images(tmp_path, "berlin/a/1.png")
    with pytest.raises(DataError, match="has 1 sites, expected at least 2"):
        image_folder_hospitals(tmp_path)
    site_images(tmp_path, "lyon/a/1.png")
    with pytest.raises(DataError, match="has 1 classes, expected at least 2"):
        image_folder_hospitals(tmp_path)
    (tmp_path / "__").mkdir()
    with pytest.raises(DataError, match="gives no site name"):
        image_folder_hospitals(tmp_path)


def test_two_folders_with_one_site_name_are_refused(tmp_path: Path) -> None:
    """Folders that differ only in what a site name may not hold are both named."""
    site_images(tmp_path, "site 1/a/1.png", "site_1/b/1.png")
    with pytest.raises(DataError, match=r"folders 'site 1' and 'site_1' in .* both give site name 'site-1'"):
        image_folder_hospitals(tmp_path)
