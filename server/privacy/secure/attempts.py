"""How often a round of secure sums was tried, on the disk: after a restart sites are asked what they can answer.

A round that nobody was asked to unmask is asked anew under the next number, with whatever sites there are. Once sites
were asked to unmask it, only the same sum can be had: the same number, the same cohort, the same sites that had sent.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from consilium.common.errors import StateError
from consilium.common.host.files import write_atomically
from consilium.common.study.names import SiteName
from consilium.common.study.record import Record
from consilium.common.study.sentences import describe

FILE = "secure.json"
"""File of a run's folder."""


class Attempt(Record):
    """One attempt at a round.

    Args:
        survivors: the sites whose updates are in the sum, once sites were asked to unmask it.
    """

    round: int
    number: Annotated[int, Field(ge=1)]
    cohort: tuple[SiteName, ...]
    survivors: tuple[SiteName, ...] | None = None


def next_attempt(folder: Path, *, round_number: int, cohort: tuple[str, ...]) -> Attempt:
    """Return the attempt with which a round is to be asked; it is on the disk.

    Raises:
        StateError: the file cannot be read or written.
    """
    path = folder / FILE
    try:
        last = Attempt.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        last = None
    except OSError as error:
        raise StateError(f"cannot read '{path}': {error.strerror or error}") from error
    except ValidationError as error:
        raise StateError(f"'{path}' is damaged, so that the run cannot go on: {describe(error, FILE)}") from error
    if last is not None and last.round == round_number and last.survivors is not None:
        return last
    number = last.number + 1 if last is not None and last.round == round_number else 1
    return keep(folder, Attempt(round=round_number, number=number, cohort=cohort))


def keep(folder: Path, attempt: Attempt) -> Attempt:
    """Write an attempt down, and return it.

    Raises:
        StateError: the folder is unwritable or the disk is full.
    """
    write_atomically(folder / FILE, attempt.model_dump_json().encode())
    return attempt
