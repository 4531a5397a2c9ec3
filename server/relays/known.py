"""What a relay keeps of a run: its study, and what the leaves announced in the handshake."""

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from consilium.common.errors import StateError
from consilium.common.host.files import write_atomically
from consilium.common.protocol.cards import Count
from consilium.common.protocol.replies import MAX_BUFFERS, ArrayName
from consilium.common.study.names import Sha256, SiteName
from consilium.common.study.record import Record
from consilium.common.study.sentences import describe
from consilium.common.study.study import StudyConfig

FILE = "relayed.json"
"""In a run's folder at a relay."""


class Known(Record):
    """A run as a relay knows it.

    Args:
        digest: of the whole study, by which plans name it.
        study: as one of the leaves sees it.
        sizes: training examples that each leaf announced.
        buffers: names of the shared arrays that gradients do not move.
    """

    digest: Sha256
    study: StudyConfig
    sizes: dict[SiteName, Count] = Field(default_factory=dict)
    buffers: tuple[ArrayName, ...] = Field(default=(), max_length=MAX_BUFFERS)

    def leaves_study(self, leaves: tuple[str, ...]) -> StudyConfig:
        """Return the study by which a relay checks and weighs its leaves' updates: as if they were all of its sites.

        Each counts as it does at the server, whatever the others' weights are.
        """
        changes: dict[str, Any] = {"sites": leaves, "num_sites": None, "relays": {}, "over_selection": 0.0}
        return self.study.model_copy(update={**changes, "weighting": self.study.weights_by})


def read_known(folder: Path) -> Known | None:
    """Return what was kept of a run; None if nothing was.

    Raises:
        StateError: it is damaged, or cannot be read.
    """
    path = folder / FILE
    try:
        return Known.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"cannot read '{path}': {error.strerror or error}") from error
    except ValidationError as error:
        raise StateError(
            f"'{path}' is damaged: delete it, then 'consilium run --resume' at the server, which greets the sites "
            f"anew ({describe(error, FILE)[:300]})"
        ) from error


def write_known(folder: Path, known: Known) -> None:
    """Keep what is known of a run.

    Raises:
        StateError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(f"cannot make '{folder}': {error.strerror or error}") from error
    write_atomically(folder / FILE, known.model_dump_json().encode(), mode=0o600)
