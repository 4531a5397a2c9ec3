"""The files that a run leaves, against what its log says of them: result, checkpoint, final model."""

import json
from pathlib import Path

from pydantic import ValidationError

from consilium.common.errors import ConsiliumError, StateError
from consilium.common.events.run import RunFinished
from consilium.common.host.files import sha256_of
from consilium.common.model.folder import RECORD, read_arrays, read_record
from consilium.common.protocol.plans import study_digest
from consilium.common.results import RoundRecord, RunResult
from consilium.common.stopping import best_of, stopped_by
from consilium.common.study.sentences import describe
from consilium.common.weights.arrays import digest
from consilium.privacy.audit.log import Attempt, RunLog
from consilium.server.strategies import ServerState
from consilium.server.study.checkpoint import load_checkpoint
from consilium.server.study.run_folder import RunFolder
from consilium.server.study.stopping import points_of


def check_files(folder: Path, log: RunLog, *, files: list[str], notes: list[str], problems: list[str]) -> None:
    """Check a run's files, and add what was found of each: a file, what cannot be checked, or a problem."""
    records, state = RunFolder(folder), None
    try:
        if records.checkpoint.is_file():
            state = _checkpoint(records, log)
            files.append(f"checkpoint: its weights are those after round {state.round}")
        else:
            notes.append("there is no checkpoint")
    except ConsiliumError as error:
        problems.append(str(error))
    if log.finished is None:
        notes.append("the run has not finished, so there are neither a result nor final weights to check")
        return
    for check in (_result, _model):
        try:
            files.append(check(records, log, log.finished, state))
        except ConsiliumError as error:
            problems.append(str(error))


def _checkpoint(records: RunFolder, log: RunLog) -> ServerState:
    """Return the state in a run's checkpoint, whose weights are those after one of the run's rounds.

    Raises:
        StateError: it is damaged, or has other weights.
    """
    state = load_checkpoint(records.checkpoint, study_digest=log.digest)
    weights = {one.number: one.event.weights for one in log.final}
    if (found := digest(state.weights)) != weights.get(state.round):
        raise StateError(
            f"'{records.checkpoint}' was changed: its weights are {found[:12]}, but the log has "
            f"{weights.get(state.round, 'none')[:12]} after round {state.round}"
        )
    return state


def _result(records: RunFolder, log: RunLog, finished: RunFinished, _: ServerState | None) -> str:
    if (found := sha256_of(records.result)) != finished.result:
        raise StateError(
            f"'{records.result}' was changed: its SHA-256 is {found[:12]}, but the log has {finished.result[:12]}"
        )
    try:
        result = RunResult.model_validate(json.loads(records.result.read_bytes()))
    except (ValidationError, ValueError) as error:
        what = describe(error, "result.json") if isinstance(error, ValidationError) else str(error)
        raise StateError(f"'{records.result}' is no result: {what}") from error
    if study_digest(result.study) != log.digest:
        raise StateError(f"'{records.result}' is of other settings than those that the log names")
    own = tuple(
        RoundRecord(**{name: getattr(one.event, name) for name in RoundRecord.model_fields}) for one in log.final
    )
    if own != result.rounds:
        raise StateError(f"'{records.result}' has other rounds than the log")
    check_end(records.result, result)
    return "result.json: its digest is the log's, and its rounds are the log's"


def check_end(path: Path, result: RunResult) -> None:
    """Check that a run ended with the round with which its study says that it does.

    Raises:
        StateError: it ended with another one.
    """
    study, last = result.study, len(result.rounds)
    for number in range(1, last):
        points = points_of(study.stopping, result.rounds[:number])
        if stopped_by(study.stopping, points) is not None:
            raise StateError(f"'{path}': the study stops after round {number}, but the run went on to round {last}")
    expected = None if last >= study.rounds else stopped_by(study.stopping, points_of(study.stopping, result.rounds))
    if result.stopped != expected or (last < study.rounds and expected is None):
        raise StateError(
            f"'{path}' has {last} of {study.rounds} rounds, and says that the run "
            f"{'ended as planned' if result.stopped is None else result.stopped.text}: its rounds do not say so"
        )


def best_round(log: RunLog) -> Attempt | None:
    """Return the round with whose model a run ends where that is the best one; None where it is the last."""
    stopping = log.study.stopping
    if stopping is None or stopping.final == "last":
        return None
    best = best_of(stopping, points_of(stopping, [one.event for one in log.final]))
    return None if best is None else next(one for one in log.final if one.number == best.round)


def _model(records: RunFolder, log: RunLog, finished: RunFinished, state: ServerState | None) -> str:
    path = records.model / RECORD
    if (found := sha256_of(path)) != finished.model:
        raise StateError(f"'{path}' was changed: its SHA-256 is {found[:12]}, but the log has {finished.model[:12]}")
    read_record(records.model)
    found, after = digest(read_arrays(records.model)), log.final[-1].event.weights if log.final else ""
    served = after if state is None else digest(state.served)
    if (best := best_round(log)) is not None:
        served = best.event.weights_before
    if found != served:
        raise StateError(f"model '{records.model}' has the weights {found[:12]}, but the run ended with {served[:12]}")
    which = "the last round" if best is None else f"the best one, which was measured in round {best.number}"
    return f"model: its files are those that the log names, and its weights those of {which}"
