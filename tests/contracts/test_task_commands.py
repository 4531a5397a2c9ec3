"""Every task from its run to all that is done with a finished model: each step works, or ends with a sentence."""

import asyncio
import csv
import itertools
import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from task_cases import CASES, SITES
from typer.testing import CliRunner

from consilium.commands.main import app
from consilium.common.errors import EXIT_CODES, ConsiliumError
from consilium.common.results import RunResult
from consilium.common.study.load import parse_study, study_text
from consilium.running.in_process import run_in_process
from consilium.running.run import save_report
from consilium.serving.serve.answering import load_served
from consilium.serving.serve.app import build_app

pytestmark = pytest.mark.usefixtures("few_trees")

NEW = 8
"""The seed of rows that no site has."""


@dataclass(frozen=True)
class Finished:
    """A finished run of a task, and new rows.

    Args:
        federation: the folder with the study and the sites, each with its settings and what the run left.
        run: the run's folder.
        new: labelled rows that no site has.
        newcomer: the settings of a site that never took part.
    """

    federation: Path
    run: Path
    new: Path
    newcomer: Path

    @property
    def model(self) -> Path:
        """The model that a site serves."""
        return next((self.federation / SITES[1] / "state").rglob("models/personal"))

    @property
    def settings(self) -> Path:
        """The settings of that model's site."""
        return self.federation / SITES[1] / "site.toml"

    @property
    def study(self) -> Path:
        """The study's settings."""
        return self.federation / "study.toml"


def finished_of(task: str, folder: Path) -> Finished:
    """Run a task's study to its report, and write new rows."""
    case, federation = CASES[task], folder / "federation"
    study = parse_study(case.settings(method={"kind": "fedper"}), source="test")
    sites = case.sites(federation)
    (federation / "study.toml").write_text(study_text(study), encoding="utf-8")
    run_in_process(study, sites, folder / "run")
    return Finished(federation, folder / "run", case.write(folder / "new", NEW), case.site(folder / "wien", NEW + 1))


def command(*arguments: object) -> str:
    """Run a command that succeeds, and return what it prints; a sentence of ours goes on as the error that it is."""
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    if isinstance(done.exception, ConsiliumError):
        raise done.exception
    assert 0 == done.exit_code, (done.output, "".join(traceback.format_exception(done.exception)))
    return done.output


def report(of: Finished, _: Path) -> None:
    """The page names every site."""
    save_report(of.run, RunResult.model_validate_json((of.run / "result.json").read_bytes()))
    page = (of.run / "report.html").read_text(encoding="utf-8")
    assert all(site in page for site in SITES)
    assert set(SITES) == json.loads((of.run / "report.json").read_text())["sites"].keys()


def predict(of: Finished, out: Path) -> None:
    """One line for every example; the site's model and the coordinator's answer."""
    for model, name in ((of.model, "site.csv"), (of.run / "model", "coordinator.csv")):
        if (model / "model.json").is_file() and json.loads((model / "model.json").read_text())["complete"]:
            command("predict", model, of.new, "--out", out / name)
    with (out / "site.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines and all(line["reason"] == "" for line in lines)


def evaluate(of: Finished, out: Path) -> None:
    """Numbers and a page, of new rows."""
    _evaluated(out / "new", of.model, of.new)


def evaluate_own(of: Finished, out: Path) -> None:
    """Of the site's own test rows."""
    _evaluated(out / "own", of.model, "--test-rows", of.settings)


def _evaluated(out: Path, *arguments: object) -> None:
    command("evaluate", *arguments, "--out", out)
    assert json.loads((out / "evaluation.json").read_text())["num"] > 0
    assert (out / "index.html").is_file()


def calibrate(of: Finished, _: Path) -> None:
    """By the site's own validation rows."""
    command("calibrate", of.model, "--site", of.settings)


def adapt(of: Finished, out: Path) -> None:
    """At a site that never took part; what is written there answers."""
    model = of.federation / SITES[0] / "state"
    start = next(model.rglob("models/global"), of.run / "model")
    given = ("--study", of.study, "--steps", 3, "--out", out / "adapted")
    command("adapt", start, of.newcomer, *given)
    command("predict", out / "adapted" / "model", of.new, "--out", out / "adapted.csv")


def export(of: Finished, out: Path) -> None:
    """As ONNX, held to torch on the new rows and row by row."""
    command("export", of.model, "--out", out / "onnx", "--data", of.new)
    checked = json.loads((out / "onnx" / "export.json").read_text())["check"]
    assert checked["rows"] > 0 and 0 <= checked["difference"] <= checked["tolerance"]


def export_int8(of: Finished, out: Path) -> None:
    """As ONNX in int8, whose range is taken from the site's rows."""
    command("export", of.model, "--int8", "--site", of.settings, "--out", out / "int8")


def export_torch(of: Finished, out: Path) -> None:
    """As a program of torch."""
    command("export", of.model, "--to", "torch-export", "--out", out / "torch")


def serve(of: Finished, _: Path) -> None:
    """A program's request has one answer for every example; the page for people and the description are there."""
    built = build_app(load_served(of.model), hosts=("127.0.0.1",), token=None)

    async def asked() -> tuple[httpx.Response, ...]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(built), base_url="http://127.0.0.1") as client:
            return (
                await client.get("/"),
                await client.get("/model"),
                await client.post("/predict", **request_of(of.new)),
            )

    page, described, answer = asyncio.run(asked())
    assert (200, 200, 200) == (page.status_code, described.status_code, answer.status_code), answer.text
    said = answer.json()
    assert 0 == said["unread"] and said["predictions"]


def request_of(new: Path) -> dict[str, Any]:
    """Return rows, arrays or pictures as a program sends them."""
    if new.suffix == ".csv":
        with new.open(newline="") as file:
            return {"json": {"rows": list(csv.DictReader(file))[:5]}}
    if new.suffix == ".npz":
        with np.load(new) as arrays:
            return {"json": {"x": arrays["x"][:5].tolist()}}
    files = sorted(file for file in new.rglob("*") if file.is_file())
    if files[0].suffix == ".txt":
        return {"json": {"rows": [{"text": files[0].read_text()}]}}
    pictures = [file for file in files if file.suffix == ".png"]
    return {"files": [("x", (file.name, file.read_bytes())) for file in pictures[:5]]}


def compare(of: Finished, out: Path) -> None:
    """Two methods and one seed; the page names every site, and every study was run."""
    given = ("--methods", "fedavg,fedper", "--seeds", 1, "--jobs", 1, "--out", out / "compared")
    command("compare", of.study, *given)
    page = (out / "compared" / "report.html").read_text(encoding="utf-8")
    assert all(site in page for site in SITES)
    problems = json.loads((out / "compared" / "summary.json").read_text())["problems"]
    assert [] == [text for text in problems if text.startswith(("Failed:", "Not run:"))]


STEPS: Mapping[str, Callable[[Finished, Path], None]] = {
    "report": report,
    "predict": predict,
    "evaluate": evaluate,
    "evaluate --test-rows": evaluate_own,
    "calibrate": calibrate,
    "adapt": adapt,
    "export": export,
    "export --int8": export_int8,
    "export --to torch-export": export_torch,
    "serve": serve,
    "compare": compare,
}
"""What is done with a finished run, by the command."""

PAIRS = tuple(itertools.product(CASES, STEPS))
DAILY = frozenset((task, tuple(STEPS)[place % len(STEPS)]) for place, task in enumerate(CASES))
"""What is done with every change: of every task one command, another one from task to task."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Finished]:
    """Return a function that runs a task's study once."""
    known = dict[str, Finished]()

    def made(task: str) -> Finished:
        if task not in known:
            known[task] = finished_of(task, tmp_path_factory.mktemp("task"))
        return known[task]

    return made


def test_every_task_and_every_command_is_drawn() -> None:
    """None is left to the nightly run alone."""
    assert {task for task, _ in DAILY} == set(CASES)
    assert {step for _, step in DAILY} == set(STEPS)


@pytest.mark.parametrize(
    ("task", "step"), [pytest.param(*pair, marks=() if pair in DAILY else pytest.mark.nightly) for pair in PAIRS]
)
def test_step_works_or_ends_with_a_sentence(
    task: str, step: str, finished: Callable[[str], Finished], tmp_path: Path
) -> None:
    """What a task lacks is listed with it; the sentence has one of the documented exit codes."""
    words = CASES[task].lacks.get(step)
    if words is None:
        STEPS[step](finished(task), tmp_path)
        return
    with pytest.raises(ConsiliumError) as caught:
        STEPS[step](finished(task), tmp_path)
    assert words in str(caught.value)
    assert EXIT_CODES[type(caught.value).__name__] > 1
