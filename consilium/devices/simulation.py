"""What all rounds of a simulation work on, and what of it lies on the disk: records, and the key of the noise."""

import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from consilium.common.errors import ModelError, StateError, listed
from consilium.common.host.files import not_written, write_atomically
from consilium.common.study.privacy import SiteLevelPrivacy
from consilium.common.study.study import StudyConfig
from consilium.devices.cohort import Seed
from consilium.devices.learning import Learning
from consilium.devices.measure import Panel, Scores
from consilium.devices.result import DeviceRound
from consilium.server.privacy.noise import Entropy, noise_multiplier
from consilium.server.strategies import ServerState, Strategy, strategy_of
from consilium.server.study.checkpoint import load_newest
from consilium.server.weighting import Weighting, build_weighting

CHECKPOINT, ROUNDS, KEY, DATA = "checkpoint.safetensors", "rounds.jsonl", "noise.key", "data.sha256"


@dataclass(frozen=True, eq=False)
class Simulation:
    """What all rounds work on.

    Args:
        digest: of the study; a checkpoint of another one is refused.
        multiplier: the noise of a round in units of the clip; None without noise.
    """

    folder: Path
    run: str
    digest: str
    learning: Learning
    panel: Panel
    strategy: Strategy
    weighting: Weighting
    multiplier: float | None

    @property
    def study(self) -> StudyConfig:
        """The study."""
        return self.learning.study

    @property
    def users(self) -> int:
        """How many users there are."""
        return self.learning.population.users

    @property
    def privacy(self) -> SiteLevelPrivacy | None:
        """What hides a user; None: nothing does."""
        return self.study.privacy.sites


@dataclass(frozen=True, eq=False)
class Step:
    """How far a simulation is.

    Args:
        rounds: of all that is done.
        scores: of the last round's measurement, by model; empty in a round that measures none.
    """

    state: ServerState
    rounds: tuple[DeviceRound, ...]
    scores: dict[str, Scores]
    touched: int | None


def prepare(learning: Learning, folder: Path, run: str, digest: str) -> Simulation:
    """Return a simulation; the noise is found here, once.

    Raises:
        ModelError: a private study's model has arrays that noise would make useless.
    """
    study, population = learning.study, learning.population
    assert study.devices is not None
    names, trainable = learning.beginning.names, learning.beginning.model.trainable
    privacy = study.privacy.sites
    if privacy is not None and (still := sorted(names.shared - trainable)):
        raise ModelError(
            f"privacy.sites: arrays {listed(still, 4)} are running statistics or whole numbers, which noise would "
            "make useless: set model.batch_norm = 'freeze', or take a model without BatchNorm"
        )
    rate = study.devices.cohort / population.users
    return Simulation(
        folder=folder,
        run=run,
        digest=digest,
        learning=learning,
        panel=Panel.of(learning),
        strategy=strategy_of(study, num_sites=population.users),
        weighting=build_weighting(study.weights_by),
        multiplier=None if privacy is None else noise_multiplier(privacy, rounds=study.rounds, rate=rate),
    )


def begun(simulation: Simulation) -> tuple[ServerState, tuple[DeviceRound, ...]]:
    """Return the state and the rounds so far: those of the checkpoint where there is one.

    Raises:
        StateError: what was written cannot be read, or is of another study or of other data.
    """
    made, folder = simulation.learning.beginning, simulation.folder
    data = simulation.learning.population.digest()
    if not (folder / CHECKPOINT).is_file():
        write_atomically(folder / ROUNDS, b"")
        write_atomically(folder / DATA, data.encode())
        if simulation.multiplier is not None:
            write_atomically(folder / KEY, secrets.token_bytes(32), mode=0o600)
        return simulation.strategy.init(made.shared, made.names.shared - made.model.trainable), ()
    state, _ = load_newest(folder / CHECKPOINT, study_digest=simulation.digest)
    _check_data(folder, data)
    try:
        lines = (folder / ROUNDS).read_text(encoding="utf-8").splitlines()[: state.round]
        rounds = tuple(DeviceRound.model_validate_json(line) for line in lines)
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise StateError(f"'{folder / ROUNDS}' is damaged or gone: start a new run") from error
    if len(rounds) != state.round:
        raise StateError(f"'{folder / ROUNDS}' holds {len(rounds)} rounds, expected {state.round}: start a new run")
    write_atomically(folder / ROUNDS, "".join(f"{line}\n" for line in lines).encode())
    return state, rounds


def _check_data(folder: Path, data: str) -> None:
    try:
        expected = (folder / DATA).read_bytes()
    except OSError as error:
        raise StateError(f"cannot read '{folder / DATA}': {error.strerror or error}: start a new run") from error
    if expected != data.encode():
        raise StateError(
            f"the users' rows are not those with which the run in '{folder}' began: give the same data, or start a new "
            "run (with the same noise on other rows, the difference of two models would show a user)"
        )


def append(path: Path, record: DeviceRound) -> None:
    """Write a round's record behind those before it.

    Raises:
        StateError: the disk is full, or the file cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{record.model_dump_json()}\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise not_written(path, error) from error


def chance_of(simulation: Simulation) -> Seed:
    """Return what cohorts and devices are drawn from: the study's seed, or in a private study a secret of the run.

    The promise holds against those who do not know who took part, and the study's seed is published.

    Raises:
        StateError: the key is gone.
    """
    if simulation.privacy is None:
        return simulation.study.seed
    return hashlib.sha256(b"who takes part " + _key(simulation.folder / KEY)).hexdigest()


def entropy_of(path: Path, number: int) -> Entropy:
    """Return what the noise of a round is made of: a key of this run that the operating system drew.

    A round that is run again after a stop has the same noise, so that no two noises of one round are ever seen.

    Raises:
        StateError: the key is gone.
    """
    key, count = _key(path), 0

    def entropy(length: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.shake_256(key + f" {number} {count}".encode()).digest(length)

    return entropy


def _key(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StateError(f"cannot read '{path}', of which the noise is made: {error.strerror or error}") from error
