"""How far a site's privacy ledger had come, kept in other files than the ledger: so that a lost one is noticed."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from pydantic import Field, ValidationError

from consilium.common.errors import PrivacyBudgetSpent
from consilium.common.host.chained import Head
from consilium.common.host.files import write_atomically
from consilium.common.study.names import Sha256
from consilium.common.study.record import Record

ANCHOR = ".privacy/anchor.json"
"""File of the state folder."""
RUN_HEAD = "privacy-head.json"
"""File of each run's folder."""


class _Mark(Record):
    count: int = Field(ge=0)
    sha256: Sha256


class Marks:
    """The files in one state folder that say how far the ledger had come."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir

    def anchors(self) -> list[tuple[str, Head]]:
        """Return the anchor, if it was written yet, with its file.

        Raises:
            PrivacyBudgetSpent: the file is damaged.
        """
        return list(_read(self._folder / ANCHOR))

    def all(self) -> list[tuple[str, Head]]:
        """Return the anchor and what each run's folder says, each with its file.

        Raises:
            PrivacyBudgetSpent: a file is damaged.
        """
        runs = sorted(self._folder.glob(f"*/*/{RUN_HEAD}"))
        return [*self.anchors(), *(mark for path in runs for mark in _read(path))]

    def put(self, head: Head, study: str | None = None, run: str | None = None) -> None:
        """Write how far the ledger has come, to the anchor and to the folder of a run if it is there.

        Raises:
            StateError: the folder is unwritable or the disk is full.
        """
        content = _Mark(**asdict(head)).model_dump_json().encode()
        anchor = self._folder / ANCHOR
        anchor.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(anchor, content, mode=0o600)
        if study is not None and run is not None and (folder := self._folder / study / run).is_dir():
            write_atomically(folder / RUN_HEAD, content, mode=0o600)


def _read(path: Path) -> Iterator[tuple[str, Head]]:
    try:
        mark = _Mark.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return
    except (OSError, ValidationError) as error:
        raise PrivacyBudgetSpent(
            f"'{path}' cannot be read: it says how far the privacy ledger had come, and nothing leaves before it is "
            "put back"
        ) from error
    yield str(path), Head(mark.count, mark.sha256)
