"""What is kept to save time: sites in memory, readings of files, settings. None of it changes a number."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import SIZES, TRAINING, console, options, write_sites
from conftest import MakeSites, MakeStudy, write_table
from torch import fx

import consilium.client.app
import consilium.client.data.kept
from consilium.client.app import forget_sites
from consilium.client.data import keep_readings, read_data
from consilium.client.data.whole import read_whole
from consilium.client.models import build_model, cut
from consilium.client.site.memory import has_room
from consilium.client.site.site import Site
from consilium.client.site.state_folder import StateFolder
from consilium.client.wire.books import settings_of
from consilium.common.study.site import TableData
from consilium.common.study.task import NumberColumn, TableTask
from consilium.common.study.training import ModelConfig, SplitConfig
from consilium.comparison.compare import compare
from consilium.running.in_process import run_in_process

pytestmark = pytest.mark.usefixtures("few_trees")

TASK = TableTask(classes=("no", "yes"), label="ill", columns={"a": NumberColumn(), "b": NumberColumn()})
MANY = {f"site-{number:02}": 24 for number in range(12)}


@pytest.fixture(autouse=True)
def _nothing_warm() -> Iterator[None]:
    forget_sites()
    yield
    forget_sites()


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the sites that are built, as they are."""
    names: list[str] = []
    build = Site.__init__

    def noting(self: Site, config: Any, study: Any, **named: Any) -> None:
        names.append(config.name)
        build(self, config, study, **named)

    monkeypatch.setattr(Site, "__init__", noting)
    return names


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the paths that are read, as they are."""
    paths: list[Path] = []
    real: Callable[..., Any] = read_whole

    def noting(reader: Any, config: Any, *rest: Any, **named: Any) -> Any:
        paths.append(config.path)
        return real(reader, config, *rest, **named)

    monkeypatch.setattr(consilium.client.data, "read_whole", noting)
    return paths


def raw_of(path: Path, **split: Any) -> torch.Tensor:
    """Return all inputs of the table in a folder."""
    config = TableData(kind="table", path=path)
    return read_data(config, TASK, SplitConfig(**split), site="berlin", min_examples=2).raw.x


# --- sites in memory -------------------------------------------------------------------------------


def run_many(make_sites: MakeSites, make_study: MakeStudy, folder: Path) -> dict[str, bytes]:
    """Run three rounds of more sites than are kept in any case; return what each site serves."""
    sites = make_sites(MANY, under=folder.parent.name)
    study = make_study(sites=sorted(MANY), rounds=3)
    run_in_process(study, sites, folder)
    state = {
        name: StateFolder.of(path.parent / "state", study=study.name, run=folder.name, site=name).path
        for name, path in sites.items()
    }
    return {name: (path / "models/personal/weights.safetensors").read_bytes() for name, path in state.items()}


def test_many_sites_are_built_once_while_there_is_room(
    make_sites: MakeSites, make_study: MakeStudy, tmp_path: Path, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more sites than fit into `LEAST_WARM_BYTES` each is built once in a run, not once per round."""
    monkeypatch.setattr(consilium.client.app, "LEAST_WARM_BYTES", 1)
    monkeypatch.setattr(consilium.client.app, "has_room", lambda: True)
    run_many(make_sites, make_study, tmp_path / "roomy" / "run")
    assert sorted(MANY) == sorted(built)


def test_without_room_sites_are_built_anew_and_serve_the_same(
    make_sites: MakeSites, make_study: MakeStudy, tmp_path: Path, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory is short no more sites are kept than fit; what each serves is the same, bit for bit."""
    monkeypatch.setattr(consilium.client.app, "has_room", lambda: True)
    expected = run_many(make_sites, make_study, tmp_path / "roomy" / "run")
    del built[:]
    size = next(iter(consilium.client.app._warm.values())).site.size
    forget_sites()
    monkeypatch.setattr(consilium.client.app, "has_room", lambda: False)
    monkeypatch.setattr(consilium.client.app, "LEAST_WARM_BYTES", 4 * size)
    found = run_many(make_sites, make_study, tmp_path / "narrow" / "run")
    assert len(built) > len(MANY)
    assert 5 == len(consilium.client.app._warm)
    assert expected == found


def test_many_small_sites_stay_in_memory_without_room(
    make_sites: MakeSites, make_study: MakeStudy, tmp_path: Path, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sites of a few rows are kept by their bytes, not by their number, also on a machine that is short of memory."""
    monkeypatch.setattr(consilium.client.app, "has_room", lambda: False)
    run_many(make_sites, make_study, tmp_path / "narrow" / "run")
    assert sorted(MANY) == sorted(built)


@pytest.mark.parametrize(
    ("machine", "group", "room"),
    [
        ("MemTotal: 1000 kB\nMemAvailable: 300 kB\n", {}, True),
        ("MemTotal: 1000 kB\nMemAvailable: 200 kB\n", {}, False),
        ("MemTotal: 1000 kB\nMemAvailable: 900 kB\n", {"memory.max": "max", "memory.current": "1"}, True),
        ("MemTotal: 1000 kB\nMemAvailable: 900 kB\n", {"memory.max": "100", "memory.current": "80"}, False),
        ("MemTotal: 1000 kB\nMemAvailable: 900 kB\n", {"memory.max": "100", "memory.current": "60"}, True),
        ("MemTotal: 1000 kB\n", {}, False),
        (None, {}, False),
    ],
)
def test_room_is_a_quarter_of_the_memory(
    machine: str | None, group: dict[str, str], room: bool, tmp_path: Path
) -> None:
    """There is room while a quarter of the machine's memory, and of a container's, is free; else, or untold, not."""
    if machine is not None:
        (tmp_path / "meminfo").write_text(machine, encoding="ascii")
    for name, text in group.items():
        (tmp_path / name).write_text(f"{text}\n", encoding="ascii")
    assert room is has_room(machine=tmp_path / "meminfo", group=tmp_path)


def test_settings_that_change_are_read_again(make_sites: MakeSites) -> None:
    """A `site.toml` is read once, and anew when it was written again."""
    path = make_sites({"berlin": 24})["berlin"]
    first = settings_of(path)
    assert first is settings_of(path)
    path.write_text(f"share_class_counts = true\n{path.read_text(encoding='utf-8')}", encoding="utf-8")
    assert settings_of(path).share_class_counts


# --- readings of files -----------------------------------------------------------------------------


def test_files_are_read_once_while_they_stay_as_they_are(tmp_path: Path, read: list[Path]) -> None:
    """Another seed of the split needs no second reading; a file that changed, or one more, is seen."""
    write_table(tmp_path / "data.csv", rows=30, seed=0)
    with keep_readings():
        first = raw_of(tmp_path)
        assert first is raw_of(tmp_path, seed=1, validation_seed=2)
        assert 1 == len(read)
        write_table(tmp_path / "data.csv", rows=31, seed=0)
        assert 31 == len(raw_of(tmp_path))
        write_table(tmp_path / "more.csv", rows=20, seed=1)
        assert 51 == len(raw_of(tmp_path))
    assert 3 == len(read)


def test_what_is_said_of_patients_is_another_reading(tmp_path: Path, read: list[Path]) -> None:
    """Rows that are read with another idea of what a patient is are not mistaken for each other."""
    write_table(tmp_path / "data.csv", rows=30, seed=0)
    with keep_readings():
        raw_of(tmp_path)
        raw_of(tmp_path, copies="ignore")
    assert 2 == len(read)


def test_nothing_is_kept_where_nobody_asks(tmp_path: Path, read: list[Path]) -> None:
    """A deployed site holds its rows once: outside `keep_readings` every call reads."""
    write_table(tmp_path / "data.csv", rows=30, seed=0)
    with keep_readings():
        raw_of(tmp_path)
    raw_of(tmp_path)
    raw_of(tmp_path)
    assert 3 == len(read)


def test_what_does_not_fit_is_read_anew(tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Readings beyond `MOST_BYTES` together are not kept."""
    for name in ("small", "large"):
        (tmp_path / name).mkdir()
        write_table(tmp_path / name / "data.csv", rows=30 if name == "small" else 60, seed=0)
    monkeypatch.setattr(consilium.client.data.kept, "MOST_BYTES", 1000)  # 30 rows of two float64 and an int64 are 720
    with keep_readings():
        for name in ("small", "large", "small", "large"):
            raw_of(tmp_path / name)
    assert [tmp_path / "small", tmp_path / "large", tmp_path / "large"] == read


def test_a_comparison_reads_every_site_once(tmp_path: Path, read: list[Path], make_study: MakeStudy) -> None:
    """However many studies a comparison runs, before and after the choice, each site's files are read once."""
    folder = write_sites(tmp_path / "sites")
    study = make_study(sites=list(SIZES), rounds=2, split={"test": 0.3, "validation": 0.2}, training=TRAINING)
    compare(options(folder, study, tmp_path / "out", refit=True), console())
    assert sorted(read) == sorted({folder / name / "data" for name in SIZES})


# --- models ----------------------------------------------------------------------------------------


def test_a_model_without_frozen_layers_is_not_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where training moves every parameter there is nothing to cut, and no graph is made to find that out."""
    model = build_model(ModelConfig(name="mlp"), input_shape=(3,), num_outputs=1, weights_dir=None, seed=0)
    monkeypatch.setattr(fx.Tracer, "trace", lambda *_: pytest.fail("it was traced"))
    assert cut(model) is None
