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
from consilium.common.study.sentences import describe
from consilium.common.weights.arrays import digest
from consilium.privacy.audit.log import RunLog
from consilium.server.strategies import ServerState
from consilium.server.study.checkpoint import load_checkpoint
from consilium.server.study.run_folder import RunFolder


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
    return "result.json: its digest is the log's, and its rounds are the log's"


def _model(records: RunFolder, log: RunLog, finished: RunFinished, state: ServerState | None) -> str:
    path = records.model / RECORD
    if (found := sha256_of(path)) != finished.model:
        raise StateError(f"'{path}' was changed: its SHA-256 is {found[:12]}, but the log has {finished.model[:12]}")
    read_record(records.model)
    found, after = digest(read_arrays(records.model)), log.final[-1].event.weights if log.final else ""
    served = after if state is None else digest(state.served)
    if found != served:
        raise StateError(f"model '{records.model}' has the weights {found[:12]}, but the run ended with {served[:12]}")
    return "model: its files are those that the log names, and its weights those of the last round"
