"""Where the cells of a comparison meet Ray: what is given to it, what is taken, and what can be wrong; without Ray."""

import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from comparing import SETTINGS, console, options, write_sites
from conftest import MakeStudy
from processes import call

from consilium.client.site.versions import versions
from consilium.common.errors import ConfigError
from consilium.common.host.ports import free_port
from consilium.common.study.study import StudyConfig
from consilium.comparison import ray_pool
from consilium.comparison.cells import Cell, make_cell, run_cell
from consilium.comparison.compare import compare
from consilium.comparison.node import Delivery, problem_here, run_here
from consilium.comparison.ray_pool import check_address, taken
from consilium.comparison.results import CellResult
from consilium.comparison.runner import run_cells
from consilium.comparison.site_files import SiteFiles, find_sites


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with both sites' data."""
    return write_sites(tmp_path / "federation")


@pytest.fixture
def study(make_study: MakeStudy) -> StudyConfig:
    """Return a quick study of them."""
    return make_study(**{**SETTINGS, "rounds": 1})


def test_only_unfinished_cells_are_given_to_ray(
    study: StudyConfig, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all are finished Ray is not even started; results are taken as those of processes are."""
    given: list[tuple[list[Cell], str, int]] = []

    def run(
        todo: Mapping[Cell, str], sites: Mapping[str, SiteFiles], out: Path, *, address: str, jobs: int
    ) -> Iterator[tuple[Cell, CellResult]]:
        given.append((list(todo), address, jobs))
        for cell, key in todo.items():
            yield cell, run_cell(cell, sites, out, key)

    monkeypatch.setattr(ray_pool, "run_on_ray", run)
    cells = [make_cell("fedavg", study, seed=seed, split=0) for seed in (0, 1)]
    files = find_sites(folder, study, weights_dir=None)
    first = run_cells(cells[:1], files, tmp_path, jobs=2, ray="local")
    both = run_cells(cells, files, tmp_path, jobs=2, ray="local")
    again = run_cells(cells, files, tmp_path, jobs=2, ray="local")
    assert [(cells[:1], "local", 1), (cells[1:], "local", 1)] == given
    assert both == again
    assert first[cells[0]] == both[cells[0]]


def test_cell_that_came_from_a_node_is_that_of_this_process(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    """Result and scores, to the bit; and it is finished here."""
    cell, files = make_cell("fedavg", study, seed=0, split=0), find_sites(folder, study, weights_dir=None)
    key = cell.key(files)
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    expected = run_cell(cell, files, here, key)
    result = taken(run_here(cell, files, key, versions()), key, there)
    times: Any = {"seconds": True, "cpu_seconds": True, "rounds": {"__all__": {"bytes_up"}}}
    assert expected.model_dump(exclude=times) == result.model_dump(exclude=times)
    assert (here / f"{key}.safetensors").read_bytes() == (there / f"{key}.safetensors").read_bytes()
    assert {} == run_cells([], files, there, jobs=1, ray="nowhere:1")
    assert result == run_cells([cell], files, there, jobs=1, ray="nowhere:1")[cell]


def test_cell_that_fails_on_a_node_leaves_no_file(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    """It is tried again the next time."""
    broken = study.model_copy(update={"min_examples": 50})
    cell, files = make_cell("fedavg", broken, seed=0, split=0), find_sites(folder, study, weights_dir=None)
    delivery = run_here(cell, files, cell.key(files), versions())
    assert {} == delivery.files
    assert "expected at least 50" in (taken(delivery, "key", tmp_path).error or "")


def test_only_files_of_a_cell_are_written(tmp_path: Path) -> None:
    """Whatever a machine sends, under the name that this one gave the cell."""
    files = {".json": b"{}", ".safetensors": b"", "/../escaped": b"x", ".toml": b"x"}
    taken(Delivery(result=json.dumps({"label": "fedavg"}), files=files), "key", tmp_path)
    assert ["key.json", "key.safetensors"] == sorted(file.name for file in tmp_path.iterdir())


def test_machine_with_other_data_or_versions_is_a_sentence(study: StudyConfig, folder: Path) -> None:
    """Before it trains anything; the comparison stops at the first."""
    cell, files = make_cell("fedavg", study, seed=0, split=0), find_sites(folder, study, weights_dir=None)
    key = cell.key(files)
    assert "" == problem_here(cell, files, key, versions())
    elsewhere = {**files, "lyon": replace(files["lyon"], path=Path("/data/lyon"))}
    assert re.match(
        r"site 'lyon': Ray's machine '.+' has no '/data/lyon'; every machine needs the data under the same path",
        problem_here(cell, elsewhere, key, versions()),
    )
    older = versions().model_copy(update={"torch": "2.0.0"})
    assert re.match(r"Ray's machine '.+' has torch .+, expected 2\.0\.0 as here", problem_here(cell, files, key, older))
    with (folder / "lyon" / "data" / "data.csv").open("a") as file:
        file.write("1.0,1.0,yes\n")
    other = problem_here(cell, files, key, versions())
    assert re.match(r"Ray's machine '.+' has other files than this one under the same paths", other)
    with pytest.raises(ConfigError, match="other files than this one"):
        taken(run_here(cell, files, key, versions()), key, folder)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("", r"^--ray: must be host:port"),
        ("somewhere", r"^--ray: must be host:port"),
        ("http://127.0.0.1:1", r"^--ray: must be host:port"),
        ("127.0.0.1:99999", r"^--ray: the port must be a number"),
        ("ray://127.0.0.1", r"^--ray: must be host:port"),
        ("127.0.0.1:PORT", r"^--ray: nothing answers at '127\.0\.0\.1:\d+' \(Connection refused\): start it"),
        ("ray://127.0.0.1:PORT", r"^--ray: nothing answers at 'ray://127"),
    ],
)
def test_wrong_address_is_a_sentence(address: str, sentence: str) -> None:
    """At once, not after the minutes that Ray would try; PORT stands for one on which nobody listens."""
    with pytest.raises(ConfigError, match=sentence):
        check_address(address.replace("PORT", str(free_port())))


def test_processes_are_not_chosen_for_a_cluster(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    """It has its own."""
    with pytest.raises(ConfigError, match=r"^--jobs: a Ray cluster gives studies to its own processors"):
        compare(options(folder, study, tmp_path / "out", ray="10.0.0.1:6379"), console())


def test_installation_without_ray_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the study is even read."""

    def find_spec(name: str) -> object:
        return None if name == "ray" else importlib.util.find_spec(name)

    monkeypatch.setattr("consilium.common.host.extras.find_spec", find_spec)
    done = call("compare", "no.toml", "--ray", "local", cwd=tmp_path)
    assert 3 == done.returncode
    assert "consilium compare --ray needs ray, which is not installed" in done.stderr
    assert "pip install 'consilium[ray]'" in done.stderr
