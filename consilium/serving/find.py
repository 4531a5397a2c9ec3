"""Finds the one model that a path stands for: its folder, a run, a site's folder or state."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilium.common.errors import ModelError, clean, listed
from consilium.common.model import RECORD, read_record

MODEL_FOLDER = "model"
"""Where a coordinator's run and an adaptation keep theirs."""
_DEEPEST = 6
"""How deep models lie below a site's folder, at most: state/STUDY/RUN/models/personal, and one more."""
_MOST_ENTRIES = 100_000
_MOST_NAMED = 5


@dataclass(frozen=True)
class _Candidate:
    """A model below a path: whose it is, and when it was written, as its record says."""

    folder: Path
    study: str
    site: str
    run: str
    served: str
    created: str


def find_model(path: Path) -> Path:
    """Return the folder of the model that a path stands for.

    That is the folder itself, or its `model`; else, of the models below it, the personal one of the newest run. Models
    of several studies or sites are not chosen from.

    Raises:
        ModelError: there is none, several are as likely, or the folder cannot be read.
    """
    try:
        if path.name == RECORD and path.is_file():
            return path.parent
        for folder in (path, path / MODEL_FOLDER):
            if (folder / RECORD).is_file():
                return folder
        below = [_candidate(folder) for folder in _folders(path)] if path.is_dir() else []
    except OSError as error:
        where = clean(str(error.filename or path))
        raise ModelError(f"model '{clean(str(path))}': cannot read '{where}': {error.strerror or error}") from error
    if not below:
        read_record(path)  # which says what is missing
    return _chosen(path, below)


def _folders(path: Path) -> Iterator[Path]:
    """Yield folders with a record, in the order of their names.

    Raises:
        OSError: a folder cannot be listed.
        ModelError: there are far more files than a site's folder has.
    """
    seen, level = 0, len(path.parts)
    for root, folders, files in os.walk(path, onerror=_raised):
        seen += len(files) + len(folders)
        if seen > _MOST_ENTRIES:
            raise ModelError(f"model '{clean(str(path))}': too many files to search: name the model's own folder")
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if RECORD in files and (Path(root) / RECORD).is_file():  # a pipe would be waited for
            yield Path(root)
        if RECORD in files or len(Path(root).parts) - level >= _DEEPEST:
            folders.clear()


def _raised(error: OSError) -> None:
    raise error


def _candidate(folder: Path) -> _Candidate:
    """Return what a record says of itself; a damaged one is refused with its sentence.

    Raises:
        ModelError: the record is damaged.
    """
    try:
        come: dict[str, Any] = json.loads((folder / RECORD).read_bytes())["provenance"]
        names = ("study", "site", "run", "served", "created")
        return _Candidate(folder, *(str(come.get(name) or "") for name in names))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        come_from = read_record(folder).provenance
        return _Candidate(
            folder, come_from.study, come_from.site or "", come_from.run, come_from.served, come_from.created
        )


def _chosen(path: Path, below: Sequence[_Candidate]) -> Path:
    if len({(one.study, one.site) for one in below}) > 1:
        raise _several(path, below, "models of several studies or sites")
    newest = max(below, key=lambda one: (one.created, one.run)).run
    of_run = [one for one in below if one.run == newest]
    personal = [one for one in of_run if one.served == "personal"]
    left = personal or of_run
    if len(left) > 1:
        raise _several(path, left, "several models")
    return left[0].folder


def _several(path: Path, models: Sequence[_Candidate], what: str) -> ModelError:
    names = listed([f"'{clean(str(one.folder.relative_to(path)))}'" for one in models], _MOST_NAMED)
    return ModelError(f"'{clean(str(path))}' holds {what}: {names}; name one")
