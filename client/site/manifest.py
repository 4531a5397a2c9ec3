"""Which rounds' states a site has kept in a run, and where: `manifest.json`, or this process's memory in `scratch`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError

from consilium.client.site.kept import Kept
from consilium.common.errors import StateError, clean
from consilium.common.host.files import scratch_here
from consilium.common.host.twice import read_twice, write_twice
from consilium.common.study.names import Sha256
from consilium.common.study.record import Record
from consilium.common.study.sentences import describe

log = logging.getLogger(__name__)

PRIVATE = 0o600
"""Mode of a site's own files."""
MANIFEST = "manifest.json"
"""File of a run's folder: the rounds whose states are kept, with the sha256 of their files."""


class Entry(Record):
    """A round's state: the file that it lies in, and its sha256; in memory, what stands for it there."""

    round: int = Field(ge=1)
    file: str
    sha256: Sha256

    @model_validator(mode="after")
    def _check(self) -> "Entry":
        if self.file != file_of(self.round):
            raise ValueError(f"round {self.round} lies in '{clean(self.file, 80)}', expected '{file_of(self.round)}'")
        return self


class Manifest(Record):
    """The states that a site has kept in a run.

    `data`: digest of the site's split data, which the run must not continue without.
    """

    site: str
    data: str
    rounds: tuple[Entry, ...] = ()


def file_of(round_number: int) -> str:
    """Return the name of the file of a round's state."""
    return f"round-{round_number:06d}.safetensors"


def read_manifest(folder: Path, *, site: str) -> Manifest | None:
    """Return the manifest in a run's folder; None before the first round.

    Raises:
        StateError: it cannot be read.
    """
    path, memory = folder / MANIFEST, scratch_here()
    known = None if memory is None else memory.get(path)
    if isinstance(known, Manifest):
        return known
    if (content := kept_twice(path, site=site)) is None:
        return None
    with readable(path, site=site):
        return Manifest.model_validate_json(content)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a run's folder; files of states that it does not name are deleted.

    Raises:
        StateError: the folder is unwritable or the disk is full.
    """
    named, memory = {entry.file for entry in manifest.rounds}, scratch_here()
    if memory is not None:
        before = memory.get(folder / MANIFEST)
        memory.put(folder / MANIFEST, manifest)
        for entry in before.rounds if isinstance(before, Manifest) else ():
            if entry.file not in named and not memory.drop(folder / entry.file):
                (folder / entry.file).unlink(missing_ok=True)
        return
    write_twice(folder / MANIFEST, manifest.model_dump_json().encode(), mode=PRIVATE)
    for path in folder.glob("round-*.safetensors"):
        if path.name not in named:
            path.unlink()


def keep_in_memory(path: Path, kept: Kept) -> bool:
    """Keep a state in memory in place of a file; return False where it belongs on the disk."""
    memory = scratch_here()
    if memory is None:
        return False
    memory.drop(path)
    return memory.put(path, kept, size=sum(array.nbytes for array in kept.to_arrays().values()))


def kept_in_memory(path: Path) -> Kept | None:
    """Return the state that is kept in place of a file; None where there is none."""
    memory = scratch_here()
    known = None if memory is None else memory.get(path)
    return known if isinstance(known, Kept) else None


def kept_twice(path: Path, *, site: str) -> bytes | None:
    """Return what a small file of a site's state or its copy holds, None where there is neither.

    Raises:
        StateError: it cannot be read.
    """
    with readable(path, site=site):
        content, problem = read_twice(path)
    if problem:
        log.warning("%s", problem)
    return content


@contextmanager
def readable(path: Path, *, site: str) -> Iterator[None]:
    """Say which file of a site's state cannot be read, for whatever reason.

    Raises:
        StateError: reading it failed.
    """
    try:
        yield
    except ValidationError as error:
        raise StateError(f"site '{site}': {describe(error, str(path))}") from error
    except OSError as error:
        raise StateError(f"site '{site}': cannot read '{path}': {error.strerror or error}") from error
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise StateError(f"site '{site}': cannot read '{path}': {clean(str(error), 200)}") from error
