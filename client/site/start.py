"""What a site goes on from in a round: the study that its run began with, and what it kept after an earlier round."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from consilium.client.site.kept import Kept
from consilium.client.site.manifest import readable
from consilium.client.site.state_folder import STUDY, StateFolder
from consilium.common.errors import Damaged, ProtocolError, StateError
from consilium.common.protocol.plans import FinishPlan, RoundPlan
from consilium.common.study.study import StudyConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Start:
    """What a site goes on from.

    Args:
        instead: the round of the earlier state that stands in for the one in force, 0 for none at all; None: it is the
            one in force.
    """

    kept: Kept
    instead: int | None = None


def load_kept(
    folder: StateFolder,
    plan: RoundPlan | FinishPlan,
    study: StudyConfig,
    *,
    known: Mapping[str, Kept],
    start_anew: bool = False,
) -> Start:
    """Return what a site kept after its last update that counted; nothing before the first.

    Where its file is damaged, that of the update before stands in for it, without what was on its way to the server.

    Args:
        start_anew: without any, go on as a site that joins late, unless the server counts on what was kept.

    Raises:
        StateError: it cannot be read, or it is gone and the server counts on it, or nobody has said to start anew.
    """
    problem = ""
    try:
        if (kept := folder.load(plan.accepted, known=known)) is not None:
            return Start(kept)
    except Damaged as error:
        problem = f" ({error})"
        earlier = None if study.method.matched else folder.load_earlier(plan.accepted or 0, known=known)
        if earlier is not None:
            log.warning("%s; the state after round %d stands in for it run=%s", error, earlier[0], plan.run)
            return Start(replace(earlier[1], residual={}, sent={}), earlier[0])
    who, what = f"site '{folder.site}'", f"what it kept after round {plan.accepted} of run '{plan.run}'"
    if study.method.matched and isinstance(plan, RoundPlan):
        raise StateError(
            f"{who} no longer has {what}, which the server counts on in every later round (method "
            f"'{study.method.kind}'): put its state folder back, or start a new run{problem}"
        )
    if not start_anew:
        raise StateError(
            f"{who} no longer has {what}, such as its own model{problem}: put its state folder back from a backup, or "
            'set on_lost_state = "start_anew" in its site.toml, and it goes on as a site that joins late'
        )
    log.warning("state is gone, this site goes on as one that joins late run=%s round=%d", plan.run, plan.round)
    return Start(Kept(), 0)


def study_of(root: Path, *, run: str, digest: str, site: str) -> StudyConfig:
    """Return the study that a run began with at this site.

    Args:
        root: the site's `state_dir`.
        run: a valid name; it becomes part of a path.
        digest: of the study, as the plan gives it.

    Raises:
        ProtocolError: the run had no handshake here, or its study was another one.
        StateError: what was kept cannot be read.
    """
    begun = dict[str, Path]()
    for path in sorted(root.glob(f"*/{run}/{STUDY}")):
        with readable(path, site=site):
            content = path.read_bytes()
            begun[hashlib.sha256(content).hexdigest()] = path
            if digest in begun:
                return StudyConfig.model_validate_json(content)
    if not begun:
        raise ProtocolError(f"site '{site}': run '{run}' had no handshake here, which is where a run begins")
    raise ProtocolError(
        f"site '{site}': the plan is of another study ({digest[:12]}) than the one that run '{run}' began with "
        f"({', '.join(known[:12] for known in begun)}); start a new run"
    )
