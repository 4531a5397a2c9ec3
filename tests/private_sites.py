"""Private studies of a few sites in one process, for tests."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from conftest import PLAIN_SGD, MakeSites, MakeStudy

from consilium.client.privacy.entry import Entry
from consilium.client.privacy.ledger import PrivacyLedger
from consilium.client.site.site import Site
from consilium.common.codecs import Identity
from consilium.common.protocol.plans import HandshakePlan, RoundPlan, study_digest
from consilium.common.protocol.replies import HandshakeReply
from consilium.common.study.study import StudyConfig

COLUMNS = {"a": {"kind": "number"}, "b": {"kind": "number"}}
FIXED = {name: {"mean": 0.0, "std": 1.0} for name in COLUMNS}
TASK = {"kind": "table", "classes": ["no", "yes"], "label": "ill", "columns": COLUMNS, "scale": FIXED}


def private(make_study: MakeStudy, promise: Mapping[str, Any] | None = None, **changes: Any) -> StudyConfig:
    """Return a private study of three sites; 100 patients each where they declare them."""
    settings = {"task": TASK, "training": PLAIN_SGD, "privacy": {"examples": promise or {"epsilon": 3.0}}}
    return make_study(**settings | changes)


def ledger_of(path: Path) -> tuple[Entry, ...]:
    """Return the lines of a site's privacy ledger."""
    return PrivacyLedger.open(path.parent / "state", path.parent.name).entries()


def begun(site: Site, study: StudyConfig, *, run: str = "run") -> HandshakeReply:
    """Shake hands with a site."""
    reply, _ = site.answer(HandshakePlan(run=run, site="berlin", study=study), None)
    assert isinstance(reply, HandshakeReply)
    return reply


def asked(study: StudyConfig, number: int = 1, *, run: str = "run", accepted: int | None = None) -> RoundPlan:
    """Return the plan of a round."""
    digest = study_digest(study)
    return RoundPlan(study=digest, run=run, site="berlin", round=number, asked=number, accepted=accepted)


def weights_of(site: Site, by: float = 0.0) -> bytes:
    """Return the initial weights with something added, as a payload."""
    return Identity().encode(
        {name: np.add(array, by, dtype=array.dtype) for name, array in site.learner.shared.items()}
    )


def alone(
    make_sites: MakeSites, make_study: MakeStudy, promise: Mapping[str, Any] | None = None, **settings: Any
) -> tuple[Path, StudyConfig]:
    """Return a site of 120 rows in a private study of its own."""
    settings = {"declared_examples": 100} | settings
    path = make_sites({"berlin": 120}, **{name: one for name, one in settings.items() if one is not None})["berlin"]
    return path, private(make_study, promise, sites=["berlin"])
