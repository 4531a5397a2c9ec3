"""What tests of whole federations in one process share: deliveries, and what a run leaves at the sites."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import settled_scale
from flwr.app import Error, Message
from safetensors.numpy import load_file
from site_data import load_data

from consilium.client.data import SiteData
from consilium.client.flower.message import plan_of
from consilium.client.site.kept import Kept
from consilium.common.flower.message import unpack
from consilium.common.protocol.parse import parse_reply
from consilium.common.protocol.plans import Plan, RoundPlan
from consilium.common.protocol.replies import Reply
from consilium.common.study.load import load_site
from consilium.common.study.study import StudyConfig
from consilium.running.in_process import Answering, Deliver, deliver_always, run_in_process

BACKBONE = {"backbone.layer1.0.weight", "backbone.layer1.0.bias"}

HEAD = {"head.weight", "head.bias"}


@dataclass
class Seen:
    """One message and its reply, as they crossed the grid."""

    site: str
    plan: Plan
    down: bytes | None
    reply: Reply
    up: bytes | None

    @property
    def number(self) -> int:
        """The round that was asked for; 0 outside rounds."""
        return self.plan.round if isinstance(self.plan, RoundPlan) else 0


@dataclass
class Wire:
    """Delivers everything and remembers it."""

    seen: list[Seen] = field(default_factory=list)

    def __call__(self, site: str, message: Message, answering: Answering) -> Message | None:
        """Deliver one message."""
        plan, down = plan_of(message)
        answer = answering(message)
        text, up = unpack(answer.content.config_records)
        self.seen.append(Seen(site, plan, down, parse_reply(text, site=site), up))
        return answer

    def rounds(self, site: str) -> Iterator[Seen]:
        """Yield what one site was asked and answered in rounds."""
        return (item for item in self.seen if item.site == site and isinstance(item.plan, RoundPlan))


def run(
    study: StudyConfig, sites: Mapping[str, Path], folder: Path, deliver: Deliver = deliver_always, **options: Any
) -> Any:
    """Run a federation to its end and return what is in its result.json."""
    run_in_process(study, sites, folder, deliver=deliver, **options)
    return json.loads((folder / "result.json").read_text())


def data_at(path: Path, study: StudyConfig, folder: Path) -> SiteData:
    """Return a site's data as a run scaled it."""
    site = load_site(path)
    scale = settled_scale(folder)
    return load_data(site.data, study.task, study.split, site=site.name, min_examples=2, scale=scale)


def global_bytes(folder: Path) -> bytes:
    """Return the final weights of a run as they lie on disk."""
    return (folder / "model/weights.safetensors").read_bytes()


def state_dir(path: Path, folder: Path) -> Path:
    """Return the state folder of a site in a run."""
    return path.parent / "state" / "quick" / folder.name


def kept_by(path: Path, folder: Path, number: int) -> Kept:
    """Return what a site kept after a round of a run, read from its disk."""
    return Kept.from_arrays(load_file(state_dir(path, folder) / f"round-{number:06d}.safetensors"))


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a result that is equal from run to run, at whatever sites."""
    rounds = [
        {key: value for key, value in item.items() if not key.endswith("seconds") and key != "bytes_up"}
        for item in result["rounds"]
    ]
    for item in rounds:
        item["sites"] = {
            site: {key: value for key, value in facts.items() if key != "seconds"}
            for site, facts in item["sites"].items()
        }
    own_key = {"data_commitment"}  # each site commits by a key of its own
    sites = {
        site: {name: value for name, value in facts.items() if name not in own_key}
        for site, facts in result["sites"].items()
    }
    return {"rounds": rounds, "sites": sites, "warnings": result["warnings"]}


class Killed(BaseException):
    """The server's process ends here."""


def killed_at(number: int, *, after: int, deliver: Deliver = deliver_always) -> Deliver:
    """Return a delivery in which the server dies in a round, after some sites have answered."""
    answered: list[str] = []

    def dying(site: str, message: Message, answering: Answering) -> Message | None:
        plan, _ = plan_of(message)
        if isinstance(plan, RoundPlan) and plan.round == number:
            if len(answered) == after:
                raise Killed
            answered.append(site)
        return deliver(site, message, answering)

    return dying


def error_reply(message: Message, answering: Answering) -> Message:
    """Return what comes of a site whose process was killed."""
    return Message(Error(code=0, reason="the process was killed"), reply_to=message)


def in_rounds(numbers: set[int], fault: Any, *, at: set[str]) -> Deliver:
    """Return a delivery in which `fault` happens to the sites `at` in some rounds."""

    def deliver(site: str, message: Message, answering: Answering) -> Message | None:
        plan, _ = plan_of(message)
        hit = isinstance(plan, RoundPlan) and plan.round in numbers and site in at
        reply: Message | None = fault(message, answering) if hit else answering(message)
        return reply

    return deliver
