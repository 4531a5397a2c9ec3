"""Runs that a person at this site has approved by name, `approved-runs.json` beside its `site.toml`.

It needs no pydantic: the process that talks to the server reads it too.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from consilium.common.errors import StateError
from consilium.common.host.files import write_atomically

FILE = "approved-runs.json"


@dataclass(frozen=True)
class RunApproval:
    """One approved run.

    Args:
        study: digest of the study that it was refused with before; empty where it had not been asked for yet.
        since: ISO time in UTC.
    """

    run: str
    study: str
    since: str


def approve_run(folder: Path, run: str, *, study: str = "") -> RunApproval:
    """Approve a run; no other study than `study` is then obeyed under its name, if that is given.

    Args:
        folder: the site's.

    Raises:
        StateError: the file is damaged, or the folder is unwritable.
    """
    approval = RunApproval(run, study, datetime.now(UTC).isoformat(timespec="seconds"))
    _write(folder, {**approved_runs(folder), run: approval})
    return approval


def withdraw_run(folder: Path, run: str) -> bool:
    """Withdraw a run's approval; return whether there was one.

    Raises:
        StateError: the file is damaged, or the folder is unwritable.
    """
    before = approved_runs(folder)
    if run in before:
        _write(folder, {name: approval for name, approval in before.items() if name != run})
    return run in before


def approved_runs(folder: Path) -> dict[str, RunApproval]:
    """Return the approved runs by name.

    Raises:
        StateError: the file is damaged.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_bytes())
        return {run: RunApproval(run, str(values["study"]), str(values["since"])) for run, values in content.items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StateError(f"cannot read '{path}': {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StateError(f"'{path}' is damaged, so no run is approved: approve the runs again after deleting it") from (
            error
        )


def _write(folder: Path, approvals: dict[str, RunApproval]) -> None:
    content = {run: {"study": each.study, "since": each.since} for run, each in sorted(approvals.items())}
    write_atomically(folder / FILE, json.dumps(content, indent=1).encode(), mode=0o600)
