"""A simulation from its data to its results: `consilium simulate` and `cs.simulate_devices`."""

import csv
import io
import json
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import consilium.common
from consilium.common.errors import ConfigError
from consilium.common.host.files import check_writable, only_one, write_atomically
from consilium.common.model import ModelRecord, Preprocessing, Provenance, write_model
from consilium.common.privacy.accounting import Charge, delta_for, epsilon_of
from consilium.common.protocol.plans import study_digest
from consilium.common.study.study import StudyConfig
from consilium.devices.convert import open_users
from consilium.devices.learning import Learning
from consilium.devices.measure import measure_constant
from consilium.devices.population import Population
from consilium.devices.result import QUANTILES, DevicePrivacy, DeviceResult, DeviceRound, Measured, ProfileResult
from consilium.devices.rounds import measured_again, run_rounds
from consilium.devices.simulation import CHECKPOINT, KEY, Simulation, Step, prepare

RESULT, TABLE, PAGE, MODEL = "result.json", "rounds.csv", "report.html", "model"
_ARRAYS = "users"
"""The folder in a run's in which the arrays of a file are written."""


@dataclass(frozen=True, eq=False)
class Progress:
    """How far a simulation is: rounds so far, and the result after the last."""

    rounds: tuple[DeviceRound, ...]
    of: int
    result: DeviceResult | None = None


def with_users(study: StudyConfig, population: Population) -> StudyConfig:
    """Return the study with the number of users that the data have, and a delta for it where the study says none."""
    assert study.devices is not None
    values, privacy = study.model_dump(mode="json", exclude_none=True), study.privacy.sites
    values["devices"]["users"] = population.users
    if privacy is not None and "delta" not in privacy.model_fields_set:
        values["privacy"]["sites"]["delta"] = delta_for(population.users)
    return StudyConfig.model_validate(values)


def simulation_steps(study: StudyConfig, data: Path, folder: Path) -> Generator[Progress, None, DeviceResult]:
    """Run a study of devices in a folder, one round at a time; write its results there and return them.

    A folder with a checkpoint of the same study goes on from it.

    Args:
        data: a folder of arrays, an `.npz` file or a Parquet file.

    Raises:
        ConsiliumError: what cannot be used, or ended the run.
    """
    if study.devices is None:
        raise ConfigError("devices: the study has no [devices], which says how many users a round takes")
    began, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    check_writable(folder, what="the folder of the simulation")
    with only_one(folder / ".lock", otherwise=f"another simulation is running in '{folder}'"):
        population = open_users(data, study, folder / _ARRAYS)
        study = with_users(study, population)
        learning = Learning.of(study, population)
        simulation = prepare(learning, folder, folder.resolve().name, study_digest(study))
        step = None
        for step in run_rounds(simulation):
            yield Progress(step.rounds, study.rounds)
        assert step is not None
        if not step.scores:  # the run had ended before, and its results were not written
            step = replace(step, scores=measured_again(simulation, step.state))
        result = _result(simulation, step, started=started, seconds=round(time.monotonic() - began, 3))
        _write(simulation, step, result)
    yield Progress(result.rounds, study.rounds, result)
    return result


def is_begun(folder: Path) -> bool:
    """Return whether a folder has a run that can go on."""
    return (folder / CHECKPOINT).is_file()


def _result(simulation: Simulation, step: Step, *, started: str, seconds: float) -> DeviceResult:
    learning, panel = simulation.learning, simulation.panel
    constant = measure_constant(learning, panel)
    scores = {"constant": constant, **step.scores}
    groups = dict[str, dict[str, Measured]]()
    for place, name in enumerate(learning.population.group_names):
        of = panel.groups == place
        groups[name] = {model: told for model, one in scores.items() if (told := one.told(of)) is not None}
    return DeviceResult(
        study=learning.study,
        run=simulation.run,
        started=started,
        seconds=seconds,
        users=simulation.users,
        rows=learning.population.rows,
        touched=step.touched,
        unmeasured=panel.left_out,
        privacy=_privacy(simulation, step.rounds),
        rounds=step.rounds,
        measured={model: told for model, one in step.scores.items() if (told := one.told()) is not None},
        groups=groups,
        profiles=_over_rounds(step.rounds),
        constant=constant.told(),
    )


def _privacy(simulation: Simulation, rounds: tuple[DeviceRound, ...]) -> DevicePrivacy | None:
    """Return what the weights tell of a user: every round counts, also one in which nobody answered."""
    privacy, multiplier, devices = simulation.privacy, simulation.multiplier, simulation.study.devices
    if privacy is None or multiplier is None or devices is None:
        return None
    rate = devices.cohort / simulation.users
    return DevicePrivacy(
        epsilon=epsilon_of([Charge("sgd", multiplier, rate, len(rounds))], privacy.delta),
        delta=privacy.delta,
        multiplier=multiplier,
        clip=privacy.clip,
        rate=rate,
        rounds=len(rounds),
    )


def _over_rounds(rounds: tuple[DeviceRound, ...]) -> dict[str, ProfileResult]:
    found = dict[str, dict[str, int]]()
    for record in rounds:
        for name, one in record.profiles.items():
            sums = found.setdefault(name, dict.fromkeys(ProfileResult.model_fields, 0))
            for field, value in one.model_dump().items():
                sums[field] += value
    return {name: ProfileResult(**sums) for name, sums in found.items()}


def _write(simulation: Simulation, step: Step, result: DeviceResult) -> None:
    folder = simulation.folder
    _save_model(simulation, step)
    write_atomically(folder / TABLE, table_of(result.rounds).encode())
    write_atomically(folder / RESULT, (result.model_dump_json(indent=1) + "\n").encode())
    (folder / KEY).unlink(missing_ok=True)  # whoever had it could take the noise off again


def _save_model(simulation: Simulation, step: Step) -> None:
    study, made = simulation.study, simulation.learning.beginning
    record = ModelRecord(
        task=study.task,
        model=study.model,
        method=study.method,
        complete=False,
        preprocessing=Preprocessing.of_scale(study.task, simulation.learning.population.scale),
        provenance=Provenance(
            study=study.name,
            study_digest=simulation.digest,
            seed=study.seed,
            run=simulation.run,
            round=step.state.round,
            served="global",
            num_sites=simulation.users,
            created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            consilium=consilium.common.__version__,
        ),
    )
    if step.state.weights and set(step.state.weights) <= set(made.initial):
        write_model(simulation.folder / MODEL, record, step.state.served, mode=0o644)


def table_of(rounds: tuple[DeviceRound, ...]) -> str:
    """Return the rounds as CSV: a line each, models as columns such as `global.score`."""
    plain = [name for name in DeviceRound.model_fields if name not in ("measured", "profiles")]
    models = sorted({name for record in rounds for name in record.measured})
    told = [f"{model}.{what}" for model in models for what in ("loss", "score", *(f"q{q:g}" for q in QUANTILES))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*plain, *told])
    for record in rounds:
        row = [getattr(record, name) for name in plain]
        for model in models:
            one = record.measured.get(model)
            values = [""] * (2 + len(QUANTILES)) if one is None else [one.loss, one.score, *one.quantiles]
            row += values
        writer.writerow(["" if value is None else value for value in row])
    return text.getvalue()


def document_of(result: DeviceResult, folder: Path) -> dict[str, object]:
    """Return what a program gets to know: the result without its study, and where the files are."""
    plain: dict[str, object] = json.loads(result.model_dump_json(exclude={"study"}))
    return {**plain, "folder": folder, "report": folder / PAGE}
