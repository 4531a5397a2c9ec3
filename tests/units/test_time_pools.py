"""`data split` of a table with times until an event: events at every site, and a study that runs unedited."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import write_site
from lifelines.datasets import load_lung

from consilium.client.operations.doctor.columns import check_columns
from consilium.common.errors import ConfigError, DataError
from consilium.common.study.load import load_site, load_study
from consilium.common.study.task_base import Survival
from consilium.comparison.cells import make_cell, run_cell
from consilium.comparison.site_files import find_sites
from consilium.data.options import SplitOptions
from consilium.data.split import split_pool

ASKED: dict[str, Any] = {"label": "time", "event": "status"}


def _lung(folder: Path, **columns: Any) -> Path:
    """Write lifelines' lung data with some columns replaced, and return the file."""
    load_lung().assign(**columns).to_csv(folder / "lung.csv", index=False)
    return folder / "lung.csv"


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Return the folder of lung data in three sites, and the sentences."""
    folder = tmp_path_factory.mktemp("lung")
    return folder / "out", split_pool(_lung(folder), folder / "out", SplitOptions("iid", sites=3, **ASKED))


def test_each_site_has_its_share_of_events(split: tuple[Path, list[str]]) -> None:
    """Sizes, and numbers of events, differ by at most one between sites; every row is at one of them."""
    tables = [pd.read_csv(file) for file in sorted(split[0].glob("*/data/patients.csv"))]
    assert len(load_lung()) == sum(map(len, tables))
    for counts in ([len(table) for table in tables], [int(table["status"].sum()) for table in tables]):
        assert max(counts) - min(counts) <= 1


def test_the_study_learns_the_time(split: tuple[Path, list[str]]) -> None:
    """`task.survival` has both columns, and neither is learned from."""
    task = load_study(split[0] / "study.toml").task
    assert Survival(time="time", event="status") == task.survival_times
    assert {"age", "sex", "ph.ecog"} <= {*task.columns} and not {"time", "status"} & {*task.columns}  # type: ignore[union-attr]  # a table
    assert not any("censored" in sentence for sentence in split[1])


def test_sites_with_few_events_are_named(tmp_path: Path, split: tuple[Path, list[str]]) -> None:
    """A fifth of 55 events are enough for an interval; of 9 they are not."""
    assert not any("for testing" in sentence for sentence in split[1])
    few = load_lung()["status"] * (load_lung().index < 40)
    notes = split_pool(_lung(tmp_path, status=few), tmp_path / "out", SplitOptions("iid", sites=3, **ASKED))
    said = [note for note in notes if "for testing" in note]
    assert 3 == len(said) and "rows with the event 'status', of which about" in said[0]
    assert said[0].endswith("with fewer than 10 a concordance index has no interval")


def test_check_and_comparison_run_on_it(tmp_path: Path, split: tuple[Path, list[str]]) -> None:
    """The study that was written is checked, trained and compared as it is; only the rounds are fewer."""
    out = split[0]
    study = load_study(out / "study.toml")
    settings = write_site(tmp_path, "site-01", data=str(out / "site-01" / "data"))
    (checked,) = check_columns(load_site(settings), study)
    assert "event 'status' seen in" in checked.message and not checked.fix
    files = find_sites(out, study, weights_dir=None)
    short = study.model_copy(update={"rounds": 3})
    for kind, model in (("federated", "personal"), ("usual", "usual")):
        cell = make_cell("fedavg", short, seed=0, split=0, kind=kind)  # type: ignore[arg-type]  # both are kinds
        result = run_cell(cell, files, tmp_path, kind)
        assert result.error is None and {"site-01", "site-02", "site-03"} == {*result.sites}
        values = [site.metrics[model]["c_index"] for site in result.sites.values()]
        assert all(value is not None and 0.3 < value < 0.9 for value in values)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"status": 2}, "column 'status': 228 of 228 rows are neither 1 or true nor 0 or false"),
        ({"status": 1}, "the event 'status' was seen in every row, so that no time is censored"),
        ({"status": 0}, "the event 'status' was seen in no row"),
        ({"time": -1}, "column 'time': 228 of 228 rows are no number of at least 0"),
    ],
)
def test_a_pool_without_usable_times_is_a_sentence(tmp_path: Path, columns: dict[str, int], sentence: str) -> None:
    """It names the column, and how many rows are wrong."""
    with pytest.raises(DataError, match=sentence):
        split_pool(_lung(tmp_path, **columns), tmp_path / "out", SplitOptions("iid", sites=3, **ASKED))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"label": None}, "--event needs --label, the column with the time until the event"),
        ({"tolerance": 3.0}, "--event does not go with --tolerance"),
        ({"event": "time"}, "--event and --label are both 'time', expected two columns"),
        ({"group": "status"}, "--event and --group are both 'status', expected two columns"),
    ],
)
def test_options_that_do_not_fit_an_event_are_refused(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    """Before the file is read."""
    with pytest.raises(ConfigError, match=sentence):
        split_pool(tmp_path / "none.csv", tmp_path / "out", SplitOptions("iid", sites=3, **(ASKED | options)))


def test_rows_without_a_time_or_an_event_are_counted(tmp_path: Path) -> None:
    """They are at no site, and the record says how many there were."""
    time = load_lung()["time"].where(load_lung().index != 5)
    split_pool(_lung(tmp_path, time=time), tmp_path / "out", SplitOptions("iid", sites=2, **ASKED))
    assert "rows_without_label = 1" in (tmp_path / "out" / "federation.toml").read_text(encoding="utf-8")
