"""What a relay keeps of the means that it sent: one for each round of a run, which is all it ever sends of that round.

From the means of {a, b, c} and of {a, b} with the same weights anybody reckons the update of c. Of one set of two sites
or more there is nothing to subtract. So whoever asks for a round again gets the answer that was sent, whichever sites
are there by then.
"""

import hashlib
from collections.abc import Collection
from pathlib import Path

from pydantic import Field, ValidationError

from consilium.common.codecs import Payload
from consilium.common.errors import ProtocolError, StateError, listed
from consilium.common.host.files import write_atomically
from consilium.common.protocol.plans import ROUNDS_BACK
from consilium.common.protocol.relays import LeafAnswer
from consilium.common.study.names import Sha256
from consilium.common.study.record import Record
from consilium.common.study.sentences import describe

FOLDER = "means"
"""In a run's folder at a relay."""


class SentMean(Record):
    """A mean that was sent.

    Args:
        weights: SHA-256 of the payload that the sites trained from.
        answers: of the sites in the mean.
    """

    round: int = Field(ge=1)
    weights: Sha256
    answers: tuple[LeafAnswer, ...]


def digest_of_weights(payload: Payload) -> str:
    """Return the digest by which a mean knows what its sites trained from."""
    return hashlib.sha256(payload).hexdigest()


def keep_mean(run: Path, sent: SentMean, update: bytes) -> None:
    """Keep a mean before it is sent, and forget those of rounds that no server asks for again.

    Args:
        run: the run's folder.

    Raises:
        StateError: the folder cannot be written.
    """
    write_atomically(_arrays(run, sent.round), update, mode=0o600)
    write_atomically(_facts(run, sent.round), sent.model_dump_json().encode(), mode=0o600)
    for number in _rounds(run):
        if number < sent.round - ROUNDS_BACK:
            _arrays(run, number).unlink(missing_ok=True)
            _facts(run, number).unlink(missing_ok=True)


def mean_sent(run: Path, number: int) -> tuple[SentMean, bytes] | None:
    """Return the mean that was sent of a round; None if none was.

    Raises:
        ProtocolError: the round is so long over that its mean is no longer kept.
        StateError: what was kept is damaged, or cannot be read.
    """
    newest = max(_rounds(run), default=0)
    if number < newest - ROUNDS_BACK:
        raise ProtocolError(
            f"a mean of round {newest} was sent already, and of rounds before {newest - ROUNDS_BACK} none is sent "
            f"again; asked for round {number}: start a new run"
        )
    try:
        sent = SentMean.model_validate_json(_facts(run, number).read_bytes())
        return sent, _arrays(run, number).read_bytes()
    except FileNotFoundError as error:
        if not _facts(run, number).exists():
            return None
        raise StateError(f"there is no '{_arrays(run, number)}', which was sent: start a new run") from error
    except OSError as error:
        raise StateError(f"cannot read the mean of round {number} in '{run}': {error.strerror or error}") from error
    except ValidationError as error:
        path = _facts(run, number)
        raise StateError(
            f"'{path}' is damaged, so it is not known which mean was sent: start a new run "
            f"({describe(error, path.name)[:300]})"
        ) from error


def sent_again(relay: str, sent: SentMean, leaves: Collection[str], weights: str) -> list[LeafAnswer]:
    """Return the answers of a relay's sites to a round of which a mean was sent: the same ones, and none of the others.

    Args:
        weights: the digest of those that are to be trained from now.

    Raises:
        ProtocolError: the weights are others, or the sites in the mean are not asked all again.
    """
    who, inside = f"relay '{relay}' has sent its mean of round {sent.round}", {one.site: one for one in sent.answers}
    if weights != sent.weights:
        raise ProtocolError(
            f"{who}, from other weights than those sent now, and makes one mean a round: start a new run"
        )
    if missing := sorted(inside.keys() - set(leaves)):
        raise ProtocolError(f"{who}, which holds {listed(missing, 5)} too, and now asked for the round without it")
    late = f"{who} without site '{{}}', and a second mean with it would show its update: it counts from the next round"
    return [inside.get(leaf) or LeafAnswer(site=leaf, problem="late", detail=late.format(leaf)) for leaf in leaves]


def _facts(run: Path, number: int) -> Path:
    return run / FOLDER / f"{number}.json"


def _arrays(run: Path, number: int) -> Path:
    return run / FOLDER / f"{number}.safetensors"


def _rounds(run: Path) -> list[int]:
    """Return the rounds of which a mean is kept."""
    return [int(path.stem) for path in (run / FOLDER).glob("*.json") if path.stem.isdecimal()]
