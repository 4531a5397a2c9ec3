"""A run as MLflow keeps it: a study is an experiment, a run a run, rounds are steps, report and model are artefacts."""

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Before MLflow is imported, which reads them once: no calls home, and a server that is away is given up within moments.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own use of what others announce to remove
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.tracking import MlflowClient

from consilium.common.errors import clean
from consilium.history.flat import Setting
from consilium.tracking.addresses import without_password
from consilium.tracking.points import MODEL, Point

for _noisy in ("mlflow", "urllib3"):
    logging.getLogger(_noisy).setLevel(logging.ERROR)

RUN_TAG, STARTED_TAG = "consilium.run", "consilium.started"
MARK = "federation/seconds/round"
"""A number that every round has: its history says which rounds are there."""
_MOST_METRICS, _MOST_PARAMS = 1000, 100
"""Most of each in one request, by MLflow's own limits."""
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


class MlflowWriter:
    """Writes one run into a tracking server or a database; one that is there already is continued.

    Args:
        uri: as MLflow writes it, `sqlite:///mlflow.db` or `http://host:5000`.
        run: name of the run's folder.
        started: when the run first started; with the name, what the run is known by.
    """

    def __init__(self, uri: str, *, study: str, run: str, started: str) -> None:
        self._uri, self._study, self._name, self._started = uri, clean(study), clean(run), started
        self._known: set[str] = set()
        self._run = ""
        self._client: Any = None

    @property
    def place(self) -> str:
        """Where it writes, without a password."""
        return f"MLflow at {clean(without_password(self._uri), 200)}, experiment '{self._study}', run '{self._name}'"

    def begin(self, settings: Mapping[str, Setting]) -> int:
        """Find the run, or make it, and return the last round that is there."""
        self._client = MlflowClient(tracking_uri=self._uri)
        experiment = self._experiment()
        known = f"tags.`{RUN_TAG}` = '{self._name}' and tags.`{STARTED_TAG}` = '{self._started}'"
        runs = self._client.search_runs([experiment], filter_string=known, max_results=1)
        if runs:
            self._run, self._known = runs[0].info.run_id, set(runs[0].data.params)
            self._client.update_run(self._run, status="RUNNING")
        else:
            tags = {RUN_TAG: self._name, STARTED_TAG: self._started}
            self._run = self._client.create_run(experiment, run_name=self._name, tags=tags).info.run_id
        self.describe(settings)
        return max((metric.step for metric in self._client.get_metric_history(self._run, MARK)), default=0)

    def describe(self, settings: Mapping[str, Setting]) -> None:
        """Write settings as parameters; MLflow refuses to have one twice, so known ones stay."""
        params = [Param(name, str(value)) for name, value in settings.items() if name not in self._known]
        self._known |= settings.keys()
        for first in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self._run, params=params[first : first + _MOST_PARAMS])

    def write(self, points: Sequence[Point]) -> None:
        """Write points as metrics, the mark of the round last: a round that was cut off is written again."""
        metrics = [
            Metric(metric_name(point), point.value, int(point.time.timestamp() * 1000), point.step) for point in points
        ]
        metrics.sort(key=lambda metric: metric.key == MARK)
        for first in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self._run, metrics=metrics[first : first + _MOST_METRICS])

    def end(self, points: Sequence[Point], *, status: str, files: Sequence[Path]) -> None:
        """Write the test scores unless they are there, the files, and how the run ended."""
        there = set(self._client.get_run(self._run).data.metrics)
        self.write([point for point in points if metric_name(point) not in there])
        for file in files:
            place = MODEL if file.parent.name == MODEL else None
            self._client.log_artifact(self._run, str(file), artifact_path=place)
        self._client.log_batch(self._run, tags=[RunTag("consilium.status", status)])
        if status in _STATUS:
            self._client.set_terminated(self._run, status=_STATUS[status])

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(self._study)
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(self._study, artifact_location=_artefacts(self._uri)))


def metric_name(point: Point) -> str:
    """Return the name of a point's metric: `sites/berlin/accuracy/personal`, `federation/bytes/up`."""
    return f"federation/{point.name}" if point.site is None else f"sites/{point.site}/{point.name}"


def _artefacts(uri: str) -> str | None:
    """Return where artefacts lie of runs in a database file: next to it; None: where the server says."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()
