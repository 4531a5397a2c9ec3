"""Who is attacked: a federation of real sites in one process, and a server that sends what it likes and keeps all.

The attacker owns the server. It may put other weights in the place of the study's (`sending`), and reads everything
that reaches it: each reply's payload, or under secure aggregation the mean that the sum gives, and the counts. It keeps
to the protocol otherwise, and cannot read the sites' disks.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Message
from torch import Tensor

from consilium.client.app import forget_sites
from consilium.client.flower.message import plan_of
from consilium.client.site.site import Site
from consilium.common.codecs import Identity
from consilium.common.flower.message import PLAN_RECORD, unpack
from consilium.common.privacy.secure.fixed import Mean
from consilium.common.protocol.plans import RoundPlan
from consilium.common.results import RunResult
from consilium.common.study.load import load_site, parse_study
from consilium.common.study.study import StudyConfig
from consilium.common.weights.arrays import Weights
from consilium.running.in_process import Answering, run_in_process, write_local_site
from consilium.server.privacy.secure import round as secure_round

VICTIM = "site-1"


@dataclass(frozen=True)
class Defence:
    """What protects the victim.

    Args:
        epsilon: of `privacy.examples` for the whole run; None for no noise.
        sites: how many sites a secure sum is over; 1: the server sees the victim's update by itself.
    """

    epsilon: float | None = None
    sites: int = 1

    @property
    def name(self) -> str:
        """Return what the tables call it."""
        parts = [] if self.epsilon is None else [f"eps {self.epsilon:g}"]
        parts += [] if self.sites == 1 else [f"sum of {self.sites}"]
        return " + ".join(parts) or "nothing"

    @property
    def settings(self) -> dict[str, Any]:
        """Return the study's `[privacy]`."""
        noise = {} if self.epsilon is None else {"examples": {"epsilon": self.epsilon}}
        return noise if self.sites == 1 else noise | {"secure_aggregation": True}


DEFENCES = (
    Defence(),
    *(Defence(epsilon) for epsilon in (8.0, 3.0, 1.0)),
    *(Defence(sites=sites) for sites in (3, 5)),
    Defence(8.0, sites=3),
)


@dataclass(frozen=True, eq=False)
class Seen:
    """What the server has after one round.

    Args:
        delta: the victim's update, or the mean over the sites where that is all there is.
        result: of the run.
    """

    delta: Weights
    result: RunResult


@dataclass(eq=False)
class Server:
    """A server that the attacker owns: a delivery of messages that reads along, and sends `weights` where given."""

    weights: Weights | None = None
    updates: dict[str, Weights] = field(default_factory=dict)
    means: list[Weights] = field(default_factory=list)

    def __call__(self, site: str, message: Message, answering: Answering) -> Message:
        """Deliver one message."""
        plan, _ = plan_of(message)
        if isinstance(plan, RoundPlan) and self.weights is not None:
            message.content.config_records[PLAN_RECORD]["payload"] = Identity().encode(self.weights)
        answer = answering(message)
        if isinstance(plan, RoundPlan) and plan.secure is None and not answer.has_error():
            _, payload = unpack(answer.content.config_records)
            if payload is not None:  # a site that refuses sends none, and the run ends with its sentence
                self.updates[site] = {name: array.copy() for name, array in Identity().decode(payload).items()}
        return answer

    @contextmanager
    def reading_sums(self) -> Iterator[None]:
        """Read every mean that secure aggregation gives: the server's own variable."""
        names = vars(secure_round)
        honest = names["to_mean"]

        def read(*args: Any, **kwargs: Any) -> Mean:
            mean: Mean = honest(*args, **kwargs)
            self.means.append(mean.delta)
            return mean

        names["to_mean"] = read
        try:
            yield
        finally:
            names["to_mean"] = honest


def attacked(study: StudyConfig, sites: Mapping[str, Path], folder: Path, weights: Weights | None = None) -> Seen:
    """Run a study to its end under the attacker's server and return what it has.

    Args:
        weights: sent in the place of the study's in every round; None: an honest run that is read along.

    Raises:
        ConsiliumError: what ended the run.
    """
    server = Server(weights)
    try:
        with server.reading_sums():
            result = run_in_process(study, sites, folder, deliver=server)
    finally:
        forget_sites()
    return Seen(server.means[-1] if server.means else server.updates[VICTIM], result)


def write_sites(folder: Path, data: Mapping[str, Mapping[str, Any]]) -> dict[str, Path]:
    """Write a `site.toml` for each site's `[data]` below `folder`, and return the files; nothing optional is shared."""
    files = {}
    for name, settings in data.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        files[name] = write_local_site(folder / name, dict(settings), models=())
    return files


def make_study(task: Mapping[str, Any], sites: Mapping[str, Path], defence: Defence, **changes: Any) -> StudyConfig:
    """Return a study of one round of plain SGD; `changes` to it come last."""
    training = {"batch_size": 8, "steps": 1, "learning_rate": 0.1, "momentum": 0.0}
    values = {
        **{"name": "attacked", "sites": sorted(sites), "rounds": 1, "task": task, "local_baseline": False},
        **{"method": {"kind": "fedavg"}, "split": {"test": 0.34, "validation": 0.0}},
        **{"privacy": defence.settings, "round_timeout_seconds": 600, **changes},
    }
    return parse_study(values | {"training": training | changes.get("training", {})}, source="attacked")


def inside(study: StudyConfig, site: Path) -> Site:
    """Return a site as only it sees itself, to score an attack by: its training rows, and the model it builds."""
    return Site(load_site(site), study.seen_by(site.parent.name))


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % interval, by Student's t over independent repeats."""
    from scipy.stats import t

    array = np.asarray(values, np.float64)
    if len(array) < 2:
        return float(array.mean()), float("nan")
    return float(array.mean()), float(t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / len(array) ** 0.5)


def nearest(rows: Tensor, candidates: Tensor) -> Tensor:
    """Return for each row the least of the largest differences to a candidate, over its columns: `(N,)`."""
    if not len(candidates):
        return torch.full((len(rows),), torch.inf)
    return torch.cdist(rows.double(), candidates.double(), p=torch.inf).min(dim=1).values
