"""Write and read ServerStates: one safetensors file after every round, replaced atomically, and the two before it."""

import contextlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from consilium.common.codecs import Payload, form_of
from consilium.common.codecs.container import parts
from consilium.common.errors import StateError, clean
from consilium.common.host.files import write_atomically
from consilium.common.study.study import StudyConfig
from consilium.common.weights.arrays import Array, Weights, bytes_view, under
from consilium.server.strategies.contract import BestRound, ServerState
from consilium.server.study.checkpoint_files import KEPT, earlier_checkpoints, set_aside

LAYOUT = "5"
"""Version of the file's layout; a release with another one cannot read it."""


class _Damaged(Exception):
    """A checkpoint is not there, or not what was written."""


def save_checkpoint(path: Path, state: ServerState, *, run: str, study_digest: str) -> None:
    """Write `state` to `path` and keep those of the two rounds before; a crash leaves the previous checkpoint whole.

    Those of the same and of later rounds, from before the run went back, are deleted.

    Raises:
        StateError: the folder is unwritable or the disk is full.
    """
    arrays = {f"{part}/{name}": array for part, items in _parts(state).items() for name, array in items.items()}
    names = {"buffers": json.dumps(sorted(state.buffers)), "holders": json.dumps(sorted(state.holders))}
    names |= {part: json.dumps(dict(numbers), sort_keys=True) for part, numbers in _per_site(state).items()}
    if (best := state.best) is not None:
        facts = {"round": best.round, "asked": dict(best.asked), "accepted": dict(best.accepted)}
        names["best"] = json.dumps(facts, sort_keys=True)
    notes = {"layout": LAYOUT, "run": run, "round": str(state.round), "study_digest": study_digest, **names}
    notes["crc32"] = _sum_of(arrays, notes)
    _set_aside(path, before=state.round)
    write_atomically(path, parts(arrays, form_of(arrays), notes=notes))
    _forget(path, before=state.round)


def _set_aside(path: Path, *, before: int) -> None:
    """Give the present checkpoint a second name if it is of an earlier round; a file system without links moves it."""
    with contextlib.suppress(OSError, SafetensorError, KeyError, TypeError, ValueError):  # damaged: it is not kept
        with safe_open(path, framework="numpy") as file:
            number = int((file.metadata() or {})["round"])
        if 0 <= number < before:
            earlier = set_aside(path, number)
            earlier.unlink(missing_ok=True)
            try:
                os.link(path, earlier)
            except OSError:
                path.replace(earlier)


def _forget(path: Path, *, before: int) -> None:
    earlier = earlier_checkpoints(path)
    kept = [each for number, each in earlier if number < before][: KEPT - 1]
    for _, each in earlier:
        if each not in kept:
            with contextlib.suppress(OSError):  # it costs room, and is tried again after the next round
                each.unlink()


def load_newest(path: Path, *, study_digest: str) -> tuple[ServerState, tuple[str, ...]]:
    """Read the newest checkpoint that is whole, and a sentence on each newer one that is not.

    Raises:
        StateError: none is whole, or the newest whole one is of another release or of other study settings.
    """
    problems: list[str] = []
    for each in [path, *(earlier for _, earlier in earlier_checkpoints(path))]:
        try:
            return _load(each, study_digest=study_digest), tuple(problems)
        except _Damaged as problem:
            problems.append(str(problem))
    raise StateError("; ".join(problems))


def gone_back(study: StudyConfig, state: ServerState, problems: Sequence[str]) -> str:
    """Return the sentence on a run that goes on from an earlier checkpoint.

    Args:
        problems: what is wrong with each newer one.

    Raises:
        StateError: the study must not: the noise or the masks of rounds that it would run again are used up.
    """
    what = "; ".join(problems)
    if study.privacy.sites is not None or study.privacy.secure_aggregation:
        raise StateError(
            f"{what}; the one after round {state.round} is whole, but rounds of a study with "
            f"{'privacy.sites' if study.privacy.sites is not None else 'privacy.secure_aggregation'} cannot be run "
            "again, as their two results together would tell more than the study promises: put the newest checkpoint "
            "back from a backup, or start a new run"
        )
    return f"{what}; the run went on from the one after round {state.round}, and later rounds are run again"


def load_checkpoint(path: Path, *, study_digest: str) -> ServerState:
    """Read a ServerState back.

    Raises:
        StateError: no such file, a damaged file, or one of another release or of other study settings.
    """
    try:
        return _load(path, study_digest=study_digest)
    except _Damaged as problem:
        raise StateError(str(problem)) from problem


def _load(path: Path, *, study_digest: str) -> ServerState:
    notes, arrays = _read(path)
    if notes.get("layout") != LAYOUT:
        raise StateError(
            f"checkpoint '{path}' was written by another release of consilium: finish the run with that release, or "
            "start a new run"
        )
    if notes.get("study_digest") != study_digest:
        raise StateError(
            f"checkpoint '{path}' belongs to run '{clean(str(notes.get('run')))}' with other study settings; "
            "continue with the study.toml of that run, or start a new run"
        )
    return ServerState(
        round=int(notes["round"]),
        weights=under(arrays, "weights/"),
        buffers=frozenset(json.loads(notes["buffers"])),
        memory=under(arrays, "memory/"),
        along=under(arrays, "along/"),
        held=under(arrays, "held/"),
        link=under(arrays, "link/"),
        holders=frozenset(json.loads(notes["holders"])),
        shares=json.loads(notes["shares"]),
        asked=json.loads(notes["asked"]),
        accepted=json.loads(notes["accepted"]),
        strikes=json.loads(notes["strikes"]),
        against=json.loads(notes["against"]),
        undone=json.loads(notes["undone"]),
        weighting={name: float(value) for name, value in under(arrays, "weighting/").items()},
        best=BestRound(weights=under(arrays, "best/"), **json.loads(notes["best"])) if "best" in notes else None,
    )


def _read(path: Path) -> tuple[dict[str, str], dict[str, Array]]:
    """Return the notes and arrays of a checkpoint that is whole to the last bit."""
    try:
        with safe_open(path, framework="numpy") as file:
            notes, names = file.metadata() or {}, file.keys()
            arrays: dict[str, Array] = {name: file.get_tensor(name) for name in names}
        header: Payload = next(parts(arrays, form_of(arrays), notes=notes))
        with path.open("rb") as written:
            is_whole = written.read(len(header)) == header  # to the last blank: readers pass over some that changed
    except OSError as error:
        raise _Damaged(f"cannot read checkpoint '{path}': {clean(error.strerror or str(error))}") from error
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, MemoryError) as error:
        raise _Damaged(f"checkpoint '{path}' is damaged or no checkpoint: {clean(str(error))}") from error
    if notes.pop("crc32", None) != _sum_of(arrays, notes) or not is_whole:
        raise _Damaged(f"checkpoint '{path}' is damaged: its content is not what its checksum says")
    return notes, arrays


def _sum_of(arrays: Weights, notes: Mapping[str, str]) -> str:
    """Return a checksum over all of a checkpoint; 25 ms for 100 MB."""
    form = [(name, arrays[name].dtype.str, arrays[name].shape) for name in sorted(arrays)]
    checksum = zlib.crc32(json.dumps([sorted(notes.items()), form]).encode())
    for name in sorted(arrays):
        checksum = zlib.crc32(bytes_view(arrays[name]), checksum)
    return f"{checksum:08x}"


def _per_site(state: ServerState) -> dict[str, Mapping[str, float]]:
    counts = {"asked": state.asked, "accepted": state.accepted, "strikes": state.strikes, "against": state.against}
    return {**counts, "shares": state.shares, "undone": state.undone}


def _parts(state: ServerState) -> dict[str, Weights]:
    numbers = {name: np.array(value, dtype=np.float64) for name, value in state.weighting.items()}
    arrays = {"weights": state.weights, "memory": state.memory, "along": state.along}
    best = {} if state.best is None else {"best": state.best.weights}
    return {**arrays, "weighting": numbers, "held": state.held, "link": state.link, **best}
