"""A run's curves in TensorBoard and MLflow: the numbers of the event log, each once, and a run that no tracker ends."""

import json
import math
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeSites, MakeStudy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from typer.testing import CliRunner

from consilium.commands.main import app
from consilium.common.errors import ConfigError, StateError
from consilium.common.events.log import EventLog
from consilium.common.events.run import (
    STUDY_EVENTS,
    CheckpointSaved,
    RoundFinished,
    RunEvent,
    RunFailure,
    RunFinished,
    RunResumed,
    RunStarted,
    RunSubmitted,
)
from consilium.common.results import SiteRound
from consilium.running.in_process import run_in_process
from consilium.running.run import save_report
from consilium.tracking.contract import Writer
from consilium.tracking.points import MOST_CURVES_OF_SITES, points_of, settings_of
from consilium.tracking.settled import Settled
from consilium.tracking.targets import Target, parse_target, writer_for
from consilium.tracking.tracker import Tracking, export_run

SHARES = {"berlin": 40, "lyon": 30, "porto": 24}


@pytest.fixture
def run_folder(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> Path:
    """The folder of a run that finished, with its report and weights."""
    folder = tmp_path / "runs" / "first"
    save_report(folder, run_in_process(make_study(), make_sites(), folder))
    return folder


def started(**changes: Any) -> RunStarted:
    """Return the start of a run of two sites."""
    values: dict[str, Any] = {"rounds": 3, "sites": ("berlin", "lyon"), "quorum": 2}
    return RunStarted(**values | {"method": "fedavg", "strategy": "fedavg", "codec": "identity"} | changes)


def round_event(number: int, *, loss: float = 0.5, sites: tuple[str, ...] = ("berlin", "lyon")) -> RoundFinished:
    """Return a round in which every site measured the same loss."""
    metrics = {"global.loss": loss, "personal.accuracy": 0.75, "made.up": 1.0, "<b>.loss": 2.0}
    one = SiteRound(num_examples=10, seconds=0.25, metrics=metrics, weight=1 / len(sites))
    return RoundFinished(round=number, asked=sites, accepted=sites, sites=dict.fromkeys(sites, one), bytes_up=100)


def write_events(folder: Path, *events: RunEvent) -> Path:
    """Append events to a run's log."""
    for event in events:
        EventLog(folder / "events.jsonl").log(event)
    return folder


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Return step and value of every point of a curve, as TensorBoard reads it."""
    read = EventAccumulator(str(folder))
    read.Reload()
    return [(event.step, event.value) for event in read.Scalars(tag)]


def hyperparameters(folder: Path) -> dict[str, Any]:
    """Return the last hyperparameters that TensorBoard finds in a folder, as JSON has them."""
    read = EventAccumulator(str(folder / "federation"))
    read.Reload()
    start = HParamsPluginData.FromString(read.PluginTagToContent("hparams")["_hparams_/session_start_info"])
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in start.session_start_info.hparams.items()}


def logged_rounds(folder: Path) -> list[RoundFinished]:
    """Return the rounds in a run's log."""
    events = EventLog(folder / "events.jsonl").read(STUDY_EVENTS)
    return [event for event in events if isinstance(event, RoundFinished)]


def mlflow_client(uri: str) -> Any:
    """Return MLflow's own client."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at import, of MLflow's own
        from mlflow.tracking import MlflowClient
    return MlflowClient(tracking_uri=uri)


# --- TensorBoard -----------------------------------------------------------------------------------


def test_tensorboard_has_every_curve_of_every_site(run_folder: Path) -> None:
    """Losses, accuracies, shares and seconds per site are those of the log, in float32; so are the federation's."""
    place = export_run(run_folder, Target("tensorboard"))
    assert f"tensorboard --logdir {run_folder / 'tensorboard'}" == place
    rounds = logged_rounds(run_folder)
    for site, rows in SHARES.items():
        folder = run_folder / "tensorboard" / "sites" / site
        for tag, name in (("loss/global", "global.loss"), ("accuracy/local", "local.accuracy")):
            expected: list[Any] = [
                (event.round, pytest.approx(event.sites[site].metrics[name], rel=1e-6)) for event in rounds
            ]
            assert expected == scalars(folder, tag)
        assert [pytest.approx(event.sites[site].weight, rel=1e-6) for event in rounds] == [
            value for _, value in scalars(folder, "share")
        ]
        assert {event.sites[site].num_examples for event in rounds} == {
            int(value) for _, value in scalars(folder, "work/examples")
        }
        assert rows > rounds[0].sites[site].num_examples
    federation = run_folder / "tensorboard" / "federation"
    assert [(event.round, event.bytes_up) for event in rounds] == scalars(federation, "bytes/up")
    norms: list[Any] = [(event.round, pytest.approx(event.update_norm, rel=1e-6)) for event in rounds]
    assert norms == scalars(federation, "norm/update")


def test_tensorboard_has_means_and_test_scores(run_folder: Path) -> None:
    """The federation's curve is the mean of the sites'; the last point of `test/` is right answers over test rows."""
    export_run(run_folder, Target("tensorboard"))
    federation = run_folder / "tensorboard" / "federation"
    for event, (_, value) in zip(logged_rounds(run_folder), scalars(federation, "loss/personal"), strict=True):
        losses = [of.metrics["personal.loss"] for of in event.sites.values()]
        assert pytest.approx(math.fsum(losses) / 3, rel=1e-6) == value
    sites = json.loads((run_folder / "result.json").read_text())["sites"]
    shares = {name: of["test"]["personal"] / of["test"]["num_test"] for name, of in sites.items()}
    mean: list[Any] = [(3, pytest.approx(sum(shares.values()) / 3, rel=1e-6))]
    assert mean == scalars(federation, "test/personal")
    berlin = run_folder / "tensorboard" / "sites" / "berlin"
    own: list[Any] = [(3, pytest.approx(shares["berlin"], rel=1e-6))]
    assert own == scalars(berlin, "test/personal")


def test_tensorboard_has_the_study_as_hyperparameters(run_folder: Path) -> None:
    """Numbers as numbers, texts as texts; no column's name, and no site's."""
    export_run(run_folder, Target("tensorboard"))
    values = hyperparameters(run_folder / "tensorboard")
    expected = {"training.learning_rate": 0.1, "rounds": 3, "num_sites": 3, "num_columns": 2, "method.kind": "fedavg"}
    assert expected == {name: values[name] for name in expected}
    assert "task.columns.a.kind" not in values and not any("berlin" in str(value) for value in values.values())


def test_exported_twice_a_point_is_there_once(run_folder: Path) -> None:
    """The second export replaces the first, in a folder of one's own as well."""
    out = run_folder.parent / "curves"
    for _ in range(2):
        export_run(run_folder, Target("tensorboard", str(out)))
    assert [1, 2, 3] == [step for step, _ in scalars(out / "federation", "bytes/up")]
    assert 4 == len([path for path in out.rglob("*") if path.is_file()])


# --- which rounds count ----------------------------------------------------------------------------


def test_round_that_a_crash_undid_counts_as_it_was_run_again(tmp_path: Path) -> None:
    """Round 2 has no checkpoint when the run ends: of its two records the later one is shown, once."""
    events = [started(), round_event(1), CheckpointSaved(round=1), round_event(2, loss=9.0)]
    events += [RunFailure(error="RunFailed", message="gone"), started(), RunResumed(round=1)]
    events += [round_event(2, loss=0.25), CheckpointSaved(round=2), RunFinished(seconds=1.0)]
    export_run(write_events(tmp_path / "run", *events), Target("tensorboard"))
    assert [(1, 0.5), (2, 0.25)] == scalars(tmp_path / "run" / "tensorboard" / "federation", "loss/global")


def test_round_whose_checkpoint_was_written_and_not_logged_counts(tmp_path: Path) -> None:
    """The resumed run goes on after round 1, so round 1 is final and is not run again."""
    events = [started(), round_event(1), started(), RunResumed(round=1), round_event(2), RunFinished(seconds=1.0)]
    settled = Settled()
    assert [1, 2] == [done.round for event in events if (done := settled.take(event)) is not None]


def test_rounds_that_are_written_are_not_written_again() -> None:
    """Where an earlier writer came as far as round 2, only round 3 is new."""
    settled = Settled(written=2)
    events = [event for number in (1, 2, 3) for event in (round_event(number), CheckpointSaved(round=number))]
    assert [3] == [done.round for event in events if (done := settled.take(event)) is not None]


def test_only_known_measures_become_curves() -> None:
    """What a site calls its numbers is no name of a curve."""
    names = {point.name for point in points_of(round_event(1)) if point.site == "berlin"}
    assert {"loss/global", "accuracy/personal", "share", "work/seconds", "work/examples"} == names


def test_many_sites_have_curves_of_their_means_alone() -> None:
    """A tracker draws each site by itself, and a thousand of them are of no use."""
    sites = tuple(f"s-{number}" for number in range(MOST_CURVES_OF_SITES + 1))
    points = points_of(round_event(1, sites=sites))
    assert {None} == {point.site for point in points}
    assert 0.5 == next(point.value for point in points if point.name == "loss/global")


def test_settings_are_flat_plain_and_clean(make_study: MakeStudy) -> None:
    """Tables in tables and lists of tables have points between their names; no control character passes."""
    weighting = {"factors": [{"kind": "size"}, {"kind": "loss"}]}
    settings = settings_of(make_study(weighting=weighting, uplink=[{"kind": "int8"}], sites=list("ab"), quorum=1))
    assert ("size", "loss") == (settings["weighting.factors.1.kind"], settings["weighting.factors.2.kind"])
    assert ("up: int8, down: identity", 2, "6") == tuple(
        settings[key] for key in ("codec", "num_sites", "model.hidden")
    )
    assert not any(name.startswith(("sites", "task.columns", "uplink")) for name in settings)


# --- live ------------------------------------------------------------------------------------------


def test_live_run_is_written_while_it_goes_on(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """The first round can be read before the last one is there; afterwards all are, and the sentence says where."""
    folder = tmp_path / "runs" / "live"
    said: list[str] = []
    early: list[tuple[int, float]] = []
    with Tracking(folder, [Target("tensorboard")], say=said.append, study=make_study()):
        write_events(folder, started(), round_event(1), CheckpointSaved(round=1))
        deadline = time.monotonic() + 20
        while not early and time.monotonic() < deadline:
            time.sleep(0.1)
            if (folder / "tensorboard" / "federation").is_dir():
                early = scalars(folder / "tensorboard" / "federation", "bytes/up") if _has(folder, "bytes/up") else []
        write_events(folder, round_event(2), CheckpointSaved(round=2), RunFinished(seconds=1.0))
    assert [(1, 100.0)] == early
    assert [(1, 100.0), (2, 100.0)] == scalars(folder / "tensorboard" / "federation", "bytes/up")
    assert [f"tracked: tensorboard --logdir {folder / 'tensorboard'}"] == said
    assert 0.1 == hyperparameters(folder / "tensorboard")["training.learning_rate"]


def _has(folder: Path, tag: str) -> bool:
    read = EventAccumulator(str(folder / "tensorboard" / "federation"))
    read.Reload()
    return tag in read.Tags()["scalars"]


class _Broken:
    """A tracker that fails at some call."""

    place = "nowhere"

    def __init__(self, at: str) -> None:
        self._at = at

    def _fail(self, where: str) -> None:
        if where == self._at:
            raise RuntimeError(f"disk \x1b[31mfull at {where}\nand more")

    def begin(self, settings: Any) -> int:
        self._fail("begin")
        return 0

    def describe(self, settings: Any) -> None:
        self._fail("describe")

    def write(self, points: Any) -> None:
        self._fail("write")

    def end(self, points: Any, *, status: str, files: Any) -> None:
        self._fail("end")


@pytest.mark.parametrize("at", ["begin", "write", "end"])
def test_tracker_that_fails_does_not_end_the_run(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """One sentence without control characters; the run has its result, and another tracker all of its points."""

    def writers(target: Target, run: Any) -> Writer:
        return _Broken(at) if target.kind == "mlflow" else writer_for(target, run)

    monkeypatch.setattr("consilium.tracking.tracker.writer_for", writers)
    said: list[str] = []
    with Tracking(tmp_path / "run", [Target("mlflow"), Target("tensorboard")], say=said.append):
        run_in_process(make_study(), make_sites(), tmp_path / "run")
    assert (tmp_path / "run" / "result.json").is_file()
    assert 2 == len(said) and said[-1].startswith("tracked: tensorboard")
    assert rf"tracking ended, mlflow: disk \x1b[31mfull at {at}; the run goes on" in said[0] and "more" not in said[0]
    assert 3 == len(scalars(tmp_path / "run" / "tensorboard" / "federation", "bytes/up"))


def test_tracker_that_hangs_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that never answers holds nobody up for longer than the end of a run waits."""
    free = threading.Event()

    class Hanging(_Broken):
        def write(self, points: Any) -> None:
            free.wait(30)

    monkeypatch.setattr("consilium.tracking.tracker.END_SECONDS", 0.2)
    monkeypatch.setattr("consilium.tracking.tracker.writer_for", lambda *_: Hanging("never"))
    said: list[str] = []
    with Tracking(tmp_path / "run", [Target("mlflow")], say=said.append) as tracking:
        write_events(tmp_path / "run", started(), round_event(1), CheckpointSaved(round=1))
        time.sleep(0.1)
    free.set()
    tracking._thread.join(10)
    assert "tracking did not end within" in said[0]


# --- MLflow ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database of MLflow's; to make one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def test_mlflow_has_the_curves_parameters_and_files(run_folder: Path, mlflow_uri: str) -> None:
    """One run with the numbers of the log, the study's settings, how it ended, the report's page and the weights."""
    place = export_run(run_folder, Target("mlflow", mlflow_uri))
    assert place.endswith("experiment 'quick', run 'first'")
    client = mlflow_client(mlflow_uri)
    experiment = client.get_experiment_by_name("quick")
    (run,) = client.search_runs([experiment.experiment_id], filter_string="tags.`consilium.run` = 'first'")
    rounds = logged_rounds(run_folder)
    history = client.get_metric_history(run.info.run_id, "sites/lyon/accuracy/personal")
    expected = [(event.round, event.sites["lyon"].metrics["personal.accuracy"]) for event in rounds]
    assert expected == sorted((metric.step, metric.value) for metric in history)
    sites = json.loads((run_folder / "result.json").read_text())["sites"]
    test = sites["porto"]["test"]
    assert test["global_"] / test["num_test"] == run.data.metrics["sites/porto/test/global"]
    assert ("0.1", "mlp", "FINISHED") == (
        run.data.params["training.learning_rate"],
        run.data.params["model.name"],
        run.info.status,
    )
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"report.html", "report.json", "rounds.csv"} < files and files & {"model/weights.safetensors", "model"}


def test_mlflow_run_that_goes_on_has_each_point_once(tmp_path: Path, mlflow_uri: str) -> None:
    """Tracked to round 1, continued by another process, exported once more: one run, one point per round."""
    folder, target = tmp_path / "twice", Target("mlflow", mlflow_uri)
    write_events(
        folder, RunSubmitted(run="twice", study="resumed"), started(), round_event(1), CheckpointSaved(round=1)
    )
    client = mlflow_client(mlflow_uri)
    export_run(folder, target)
    experiment = client.get_experiment_by_name("resumed").experiment_id
    assert ["RUNNING"] == [run.info.status for run in client.search_runs([experiment])]
    write_events(folder, started(), RunResumed(round=1), round_event(2, loss=0.25), RunFinished(seconds=1.0))
    for _ in range(2):
        export_run(folder, target)
    (run,) = client.search_runs([experiment])
    history = client.get_metric_history(run.info.run_id, "federation/loss/global")
    assert ("FINISHED", [(1, 0.5), (2, 0.25)]) == (
        run.info.status,
        sorted((metric.step, metric.value) for metric in history),
    )


def test_mlflow_server_that_is_away_is_a_sentence_without_the_password(run_folder: Path) -> None:
    """Given up within moments; the sentence names the tool."""
    began = time.monotonic()
    with pytest.raises(StateError, match="run 'first' was not exported, mlflow: ") as caught:
        export_run(run_folder, Target("mlflow", "http://ward:secret@127.0.0.1:9"))
    assert "secret" not in str(caught.value) and time.monotonic() - began < 60


# --- the command line ------------------------------------------------------------------------------


def test_export_command_says_where_it_wrote(run_folder: Path, tmp_path: Path) -> None:
    """Into the folder that --out names."""
    arguments = ["runs", "export", "first", "--runs", str(run_folder.parent), "--to", "tensorboard"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert 0 == done.exit_code, done.output
    assert f"tensorboard --logdir {tmp_path / 'out'}" in done.output
    assert 3 == len(scalars(tmp_path / "out" / "federation", "bytes/up"))


@pytest.mark.parametrize("text", ["wandb", "", "tensorflow:x", "mlflow;x"])
def test_unknown_tool_is_a_sentence(text: str) -> None:
    """It names those that there are."""
    with pytest.raises(ConfigError, match="--track: must be tensorboard, tensorboard:DIR, mlflow or mlflow:URI, got"):
        parse_target(text)


def test_missing_package_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setattr("consilium.common.host.extras.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'consilium\[mlflow\]'"):
        parse_target("mlflow:http://localhost:5000")


def test_detached_run_is_not_tracked() -> None:
    """Nobody is left who would; the sentence names the export."""
    done = CliRunner().invoke(app, ["run", "study.toml", "--detach", "--track", "tensorboard"])
    assert isinstance(done.exception, ConfigError) and "consilium runs export" in str(done.exception)


def test_folder_without_a_run_is_a_sentence(tmp_path: Path) -> None:
    """Also one of a Flower app, whose start says other things."""
    with pytest.raises(ConfigError, match="holds no run of a study that has started"):
        export_run(tmp_path, Target("tensorboard"))
