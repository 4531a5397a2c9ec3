"""The runs that were refused because nobody here has approved them, from the audit log, for the administrator."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from consilium.client.privacy.audit import FILE
from consilium.common.errors import ConfigError, PolicyRefused
from consilium.common.host.chained import ChainedLog
from consilium.common.protocol.plans import RunName
from consilium.common.study.sentences import describe


@dataclass(frozen=True)
class AskedRun:
    """A run's first plan that was refused.

    Args:
        study: digest of the study that it was to begin with; empty where its plan was not read.
        time: of the last refusal, ISO.
    """

    run: str
    study: str
    time: str


def runs_asked(state_dir: Path) -> dict[str, AskedRun]:
    """Return the runs whose handshake the policy refused, each as it was refused last.

    Raises:
        StateError: the audit log was changed.
    """
    found = {}
    for entry, _ in ChainedLog(state_dir / FILE, what="audit log").heads():
        if entry.get("answer") == PolicyRefused.__name__ and entry.get("kind") == "handshake":
            run = str(entry.get("run"))
            found[run] = AskedRun(run, str(entry.get("study", "")), str(entry.get("time")))
    return found


def check_run_name(run: str) -> None:
    """Check a run's name that was typed.

    Raises:
        ConfigError: no run can have it.
    """
    try:
        TypeAdapter(RunName).validate_python(run)
    except ValidationError as error:
        raise ConfigError(describe(error, "name of a run")) from error
