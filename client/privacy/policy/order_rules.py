"""Rules that need the order alone: whether a study was accepted, the run approved, the day, how often, how much."""

import os
import time
from pathlib import Path

from consilium.client.privacy.policy.approvals import approved_runs
from consilium.client.privacy.policy.case import Case, today

MEASURED_SECONDS = 10.0
"""How long a measured size of a state folder is used again."""
_sizes: dict[Path, tuple[float, int]] = {}


def accepted_study(case: Case) -> str | None:
    """Refuse every plan where no study was accepted; whether it is the accepted one, `check_accepted` says."""
    if not case.policy.accepted_study or (case.folder / "study.toml").is_file():
        return None
    return (
        "has accepted no study, and its policy obeys no other: the coordinator sends a bundle with the study "
        "('consilium server approve --study'), and the site accepts it"
    )


def approve_runs(case: Case) -> str | None:
    """Refuse a run that nobody here has approved, and one that was approved with another study."""
    if not case.policy.approve_runs:
        return None
    approval = approved_runs(case.folder).get(case.run)
    if approval is None:
        return (
            f"approves each run by hand, and run '{case.run}' is not approved yet: its administrator reads what it "
            f"asks for and runs 'consilium site approve-run {case.run}'; then start it again"
        )
    if case.digest and approval.study and approval.study != case.digest:
        return (
            f"has approved run '{case.run}' with study {approval.study[:12]}, and is asked for another one, "
            f"{case.digest[:12]}: start a new run, or have this one approved again"
        )
    return None


def expires(case: Case) -> str | None:
    """Refuse every plan after the last day."""
    last = case.policy.expires
    return f"obeys no plan after {last.isoformat()}" if last is not None and today() > last else None


def requests_per_hour(case: Case) -> str | None:
    """Refuse a plan if enough were obeyed within the last hour."""
    most = case.policy.requests_per_hour
    return f"obeys {most} plans an hour, and has obeyed as many" if case.recent >= most else None


def max_state_mb(case: Case) -> str | None:
    """Refuse every plan while the state folder is too large."""
    most = case.policy.max_state_mb
    if size_of(case.state_dir) <= most * 1_000_000:
        return None
    return f"keeps at most {most} MB of state, and has more: its administrator deletes folders of runs that are over"


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder, as they were a moment ago."""
    measured, size = _sizes.get(folder, (float("-inf"), 0))
    if time.monotonic() - measured > MEASURED_SECONDS:
        size = sum(_bytes(Path(place, name)) for place, _, names in os.walk(folder) for name in names)
        _sizes[folder] = time.monotonic(), size
    return size


def forget_sizes() -> None:
    """Measure anew from now on."""
    _sizes.clear()


def _bytes(file: Path) -> int:
    try:
        return file.lstat().st_size
    except OSError:  # it was deleted meanwhile
        return 0
