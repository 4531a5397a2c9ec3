"""Texts, plays and tables of series go from `data split` and `site check` to `compare` without an edited file."""

import io
from pathlib import Path
from typing import Any

import pytest
from paths import SHARED
from rich.console import Console
from series_files import waves, write_long

from consilium.client.operations.doctor.data import check_data, check_scale
from consilium.client.operations.doctor.model import check_model
from consilium.common.study.load import load_study, study_text
from consilium.common.study.site import SiteConfig
from consilium.comparison.compare import compare
from consilium.comparison.options import CompareOptions
from consilium.comparison.report import Report
from consilium.comparison.rows import LOCAL
from consilium.data.options import Next, SplitOptions
from consilium.data.split import split_pool

TEXTS: dict[str, Any] = {"by": "dirichlet", "sites": 3, "alpha": 2.0, "text": "text", "label": "label"}


def checked(folder: Path) -> None:
    """See that no check of data, scale and model fails at any site."""
    study = load_study(folder / "study.toml")
    for site in study.sites:
        values = {"name": site, "server": "localhost:1", "ca_certificate": "ca.pem", "private_key": "site.key"}
        data = {"kind": study.task.kind, "path": folder / site / "data"}
        config = SiteConfig.model_validate(values | {"state_dir": "state", "data": data})
        for finding in (check_data(config, study), check_scale(config, study), check_model(config, study)):
            assert "FAIL" != finding.status, finding


def compared(folder: Path, *, rounds: int) -> Report:
    """Compare the study as it is, but for its number of rounds; return the report."""
    study = load_study(folder / "study.toml").model_copy(update={"rounds": rounds})
    (folder / "study.toml").write_text(study_text(study))
    asked = CompareOptions(study=folder / "study.toml", out=folder / "out", seeds=1, jobs=1)
    return compare(asked, Console(file=io.StringIO(), width=1000))


def compared_twice(folder: Path, metric: tuple[float, float] = (0.0, 1.0)) -> None:
    """Compare two rounds; joined and alone, the mean score lies between these numbers."""
    report = compared(folder, rounds=2)
    for name in ("FedAvg + fine-tuning", LOCAL):
        line = report.line(name)
        assert line is not None
        mean = line.numbers.over["mean"]
        assert mean is not None and metric[0] <= mean.value <= metric[1]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public texts are not part of the repository")
@pytest.mark.parametrize("file", ["test.csv", pytest.param("train.csv", marks=pytest.mark.nightly)])
def test_film_reviews_are_divided_checked_and_compared(tmp_path: Path, file: str) -> None:
    """SST-2: two rounds of a small model of texts are right more often than chance."""
    split_pool(SHARED / "data" / "sst2" / file, tmp_path / "f", SplitOptions(**TEXTS))
    checked(tmp_path / "f")
    compared_twice(tmp_path / "f", (0.5, 1.0))


@pytest.mark.nightly  # of about 100 classes every draw of an interval takes its time
@pytest.mark.skipif(not SHARED.is_dir(), reason="the plays are not part of the repository")
@pytest.mark.parametrize("following", ["character", "word"])
def test_plays_are_divided_by_speaker_checked_and_compared(tmp_path: Path, following: Next) -> None:
    """The beginning of Shakespeare's plays: what follows is guessed better than by chance among 97 or 100."""
    lines = (SHARED / "data" / "shakespeare" / "tinyshakespeare.txt").read_text()[:60_000]
    (tmp_path / "play.txt").write_text(lines.rsplit("\n\n", 1)[0])
    options = SplitOptions("interleaved", 2, min_examples=10, next=following, group="speaker")
    split_pool(tmp_path / "play.txt", tmp_path / "f", options)
    checked(tmp_path / "f")
    compared_twice(tmp_path / "f", (0.02, 1.0))


def test_a_table_of_series_is_divided_checked_and_compared(tmp_path: Path) -> None:
    """Sines of one and of two periods."""
    x, y = waves(120, 20, seed=1)
    write_long(tmp_path / "pool.csv", list(x), y.tolist(), channels=["pulse"])
    split_pool(tmp_path / "pool.csv", tmp_path / "f", SplitOptions("iid", 2, label="label", series=True))
    checked(tmp_path / "f")
    compared_twice(tmp_path / "f")
