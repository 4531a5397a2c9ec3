"""Commitments to data that a hospital has opened: the file that it hands to an auditor."""

import hashlib
from pathlib import Path

from pydantic import ValidationError

from consilium.common.errors import ConfigError
from consilium.common.protocol.plans import RunName
from consilium.common.study.names import Sha256, SiteName
from consilium.common.study.record import Record
from consilium.common.study.sentences import describe


class Opened(Record):
    """What a hospital shows of the data that it had in a run.

    Args:
        data: digest (SHA-256) of the examples in their splits.
        opening: with it, the digest gives the commitment that the site sent before the first round.
    """

    site: SiteName
    run: RunName
    data: Sha256
    opening: Sha256

    @property
    def commitment(self) -> str:
        """The commitment that these open."""
        return hashlib.sha256(f"{self.opening}\n{self.data}".encode()).hexdigest()


def read_opened(path: Path) -> Opened:
    """Return what a hospital's file opens.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        return Opened.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read '{path}': {error.strerror or error}") from error
    except ValidationError as error:
        raise ConfigError(
            f"'{path}' is no opened commitment, as 'consilium audit open' writes it: {describe(error, path.name)}"
        ) from error
