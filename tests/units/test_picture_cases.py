"""The inputs of pictures that went wrong for others: what is right of each, from the shared collection of cases."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import SHARED
from PIL import Image

from consilium.client.data import read_data
from consilium.client.data.base import RawData
from consilium.common.errors import DataError
from consilium.common.study.site import ImageFolderData
from consilium.common.study.task import ImageTask
from consilium.common.study.training import SplitConfig

MAKER = SHARED / "cases" / "make_cases.py"
pytestmark = pytest.mark.skipif(not MAKER.is_file(), reason="needs the shared cases")

TASK = ImageTask(classes=("normal", "pneumonia"), size=96, channels=1)
WHOLE = SplitConfig(test=0, validation=0, copies="ignore")  # all pictures of a case are the same one


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of pictures, written once."""
    spec = importlib.util.spec_from_file_location("make_cases", MAKER)
    assert spec is not None and spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    folder = tmp_path_factory.mktemp("cases")
    maker.pictures(folder)
    return folder


def read(folder: Path, task: ImageTask = TASK, **settings: Any) -> RawData:
    """Return a site's pictures."""
    return read_data(ImageFolderData(path=folder, **settings), task, WHOLE, site="rom", min_examples=2).raw


def test_twelve_bits_become_what_eight_are(cases: Path) -> None:
    """The picture that ended at 0.05 of white: noticed, and with the range within two levels of the one of 8 bits."""
    dark = read(cases / "png16_12bit")
    assert float(dark.x.max()) < 0.06
    (sentence,) = dark.odd
    assert sentence.endswith("12 of 16 bits are used: ask the coordinator to set task.pixel_range = [0, 4095]")
    bright = read(cases / "png16_12bit", TASK.model_copy(update={"pixel_range": (0.0, 4095.0)}))
    assert bright.odd == ()
    # 16 v / 4095 is v / 255 to within 0.4 %; the rest is Pillow's rounding of 8 bits.
    assert float((bright.x - read(cases / "eight_bit").x).abs().max()) < 2 / 255


def test_a_picture_on_its_side_is_learned_upright(cases: Path) -> None:
    """Stored with the bright half on the left, to be turned to the right: bright on top, higher than wide."""
    raw = read(cases / "exif")
    assert "all of 64 x 96 pixels (width x height)" in raw.seen
    with Image.open(next((cases / "exif" / "normal").iterdir())) as stored:
        upright = stored.rotate(-90, expand=True).convert("L").resize((96, 96), Image.Resampling.BILINEAR)
    expected = np.asarray(upright, np.float32) / 255
    # To grey before or after a change of size: the same but for rounding.
    assert float(np.abs(raw.x[0, 0].numpy() - expected).mean()) < 0.01
    assert float(np.abs(raw.x[0, 0].numpy() - expected.T).mean()) > 0.05


def test_what_is_not_read_is_counted_and_read_where_depth_says_so(cases: Path) -> None:
    """24 of 424 files, and 24 of 84, were once '24 examples, 0 skipped'."""
    mixed = read(cases / "mixed")
    assert mixed.reading[0].startswith("24 .png read; passed over: 400 .dcm ")
    assert "400 .dcm" in read(cases / "mixed", formats=("png",)).reading[0]
    nested = read(cases / "nested")
    assert (24, True) == (len(nested.y), "passed over: 60 .png deeper than data.depth = 0: set" in nested.odd[0])
    assert [84, 60] == [len(read(cases / name, depth=1).y) for name in ("nested", "only_nested")]


def test_folders_without_a_readable_picture_are_refused_with_the_reason(cases: Path) -> None:
    """The files that are there are counted, with what would read them."""
    with pytest.raises(DataError, match=r"passed over: 60 \.png deeper than data\.depth = 0: set data\.depth = 1"):
        read(cases / "only_nested")
    with pytest.raises(DataError, match=r"passed over: 60 \.dcm "):
        read(cases / "only_dcm")


def test_pages_that_are_not_read_are_said(cases: Path) -> None:
    """Ten pages in each of 24 files; the first one is read."""
    raw = read(cases / "multipage")
    assert raw.odd == (
        "216 more pages or frames of 24 files are not read: only the first of each file is (of a volume, its slices)",
    )
    assert float((raw.x - read(cases / "eight_bit").x).abs().max()) == 0
