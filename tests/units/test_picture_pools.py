"""Pools of pictures of more than 8 bits: `data split` finds which levels are black and white, and takes no series."""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consilium.client.data import read_data
from consilium.common.errors import ConfigError, DataError
from consilium.common.study.load import load_study
from consilium.common.study.site import ArraysData
from consilium.data.options import SplitOptions
from consilium.data.split import split_pool


def pool(path: Path, x: Any) -> Path:
    """Write a pool of two classes."""
    np.savez(path, x=x, y=np.arange(len(x)) % 2)
    return path


def pictures(low: float, high: float, kind: Any) -> Any:
    """Return 120 pictures whose levels go from `low` to `high`."""
    x = np.random.default_rng(0).uniform(low, high, (120, 12, 10, 1)).astype(kind)
    x[0, 0, 0], x[0, 0, 1] = low, high
    return x


@pytest.mark.parametrize(
    ("low", "high", "kind", "expected"),
    [
        (0, 4095, np.uint16, [0.0, 4095.0]),
        (3, 900, np.uint16, [0.0, 1023.0]),
        (0, 60000, np.uint16, None),
        (0, 255, np.uint8, None),
        (0, 1, np.float32, None),
        (-1000, 3000, np.int16, [-1000.0, 3000.0]),
        (-0.5, 2.25, np.float64, [-1.0, 3.0]),
    ],
)
def test_a_study_gets_the_levels_of_its_pool(tmp_path: Path, low: float, high: float, kind: Any, expected: Any) -> None:
    """12 bits in 16, Hounsfield units and floats: set, said, and every site of the study can read its part."""
    x = pictures(low, high, kind)
    said = split_pool(pool(tmp_path / "p.npz", x), tmp_path / "f", SplitOptions("iid", sites=2))
    assert tomllib.loads((tmp_path / "f" / "study.toml").read_text())["task"].get("pixel_range") == expected
    assert [one.startswith("the pixels are from") for one in said] == [True] * (expected is not None)
    study = load_study(tmp_path / "f" / "study.toml")
    for site in study.sites:
        config = ArraysData(path=tmp_path / "f" / site / "data")
        raw = read_data(config, study.task, study.split, site=site, min_examples=2).raw
        assert (60, ()) == (len(raw.y), raw.odd)
        assert float(raw.x.min()) >= -2 and float(raw.x.max()) <= 2  # 0 and 1 less 0.5, over 0.25
    if expected is not None:
        with pytest.raises(ConfigError, match="--by feature is for pictures of 8 bits"):
            split_pool(tmp_path / "p.npz", tmp_path / "g", SplitOptions("feature", sites=2))


@pytest.mark.parametrize("shape", [(120, 300, 12), (120, 300, 1), (120, 64, 3)])
def test_a_series_is_no_pool_of_pictures(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Whatever its numbers are."""
    x = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    with pytest.raises(DataError, match=r"may be a series \(N, T, C\), which is no picture"):
        split_pool(pool(tmp_path / "p.npz", x), tmp_path / "f", SplitOptions("iid", sites=2))
    assert not (tmp_path / "f" / "study.toml").exists()
