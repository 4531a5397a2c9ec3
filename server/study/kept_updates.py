"""The updates of a run's rounds, each with its digest: in the log always, and on the disk where the study keeps them.

Under the run's folder, `updates/initial.safetensors` holds the weights that round 1 begins with, and
`updates/round-N/SITE.safetensors` what a site's accepted update was decoded to, with control variates under `control/`.
With them an auditor applies the study's strategy again, from round to round.
"""

from pathlib import Path

from consilium.common.codecs import form_of
from consilium.common.codecs.container import parts
from consilium.common.errors import StateError
from consilium.common.host.files import scratch_here, write_atomically
from consilium.common.protocol.plans import CONTROL
from consilium.common.weights.arrays import Array, Weights, digest, with_prefix
from consilium.server.strategies import Update

UPDATES, INITIAL = "updates", "initial.safetensors"
"""Folder of the kept updates in a run's folder, and its file of the initial weights."""
_MODE = 0o600


def arrays_of(update: Update) -> dict[str, Array]:
    """Return all arrays of an update, control variates under their prefix."""
    return {**update.delta, **with_prefix(update.control, CONTROL)}


def digest_of(update: Update) -> str:
    """Return the SHA-256 (hex) of an update as it was decoded; empty in `scratch`, whose log nobody reads."""
    return digest(arrays_of(update)) if scratch_here() is None else ""


def kept_update(folder: Path, site: str, *, round_number: int) -> Path:
    """Return where a site's update is kept below a run's folder."""
    return folder / UPDATES / f"round-{round_number}" / f"{site}.safetensors"


def kept_weights(folder: Path) -> Path:
    """Return where the weights that round 1 begins with are kept below a run's folder."""
    return folder / UPDATES / INITIAL


def keep(path: Path, arrays: Weights) -> None:
    """Write arrays to a file of a run's folder.

    Raises:
        StateError: the folder is unwritable or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, parts(arrays, form_of(arrays)), mode=_MODE)


def forget_round(folder: Path, round_number: int) -> None:
    """Delete what an earlier attempt at a round has kept: its updates were never applied.

    Raises:
        StateError: a file cannot be deleted.
    """
    try:
        for path in kept_update(folder, "any", round_number=round_number).parent.glob("*.safetensors"):
            path.unlink()
    except OSError as error:
        raise StateError(f"cannot delete the updates of round {round_number}: {error.strerror or error}") from error
