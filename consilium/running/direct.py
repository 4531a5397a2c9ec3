"""Sites of one process without a wire between: plans and replies stay objects, payloads stay as they are.

What the wire needs checked is checked there: JSON from outside, its length, who sent it. Here the server's own plan
reaches the very code that answers it in a deployed site, with the site's policy before it, and the reply comes back as
that code made it. What a plan and a reply would have weighed on the wire is counted all the same.
"""

import math
import time
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path

from consilium.client.app import answer_plan, answer_read, forget_sites
from consilium.client.site.beginnings import Models, taking_turns
from consilium.common.protocol.parse import parse_plan
from consilium.common.protocol.plans import HandshakePlan, Plan
from consilium.running.engine import Engine
from consilium.server.study.exchange import Answer, Mailing, crashed, cut_off, gone

OnSite = Callable[[str], None]
"""`on_site(site)` is called before a site answers."""


def unheard(site: str) -> None:
    """Tell nobody which site is asked."""


class DirectExchange:
    """Sites by name, each with its `site.toml`; answers are made when they are taken, in the order of the plans."""

    patient = False

    def __init__(self, sites: Mapping[str, Path], engine: Engine, *, on_site: OnSite = unheard) -> None:
        self._sites, self._engine, self._on_site, self._names = sites, engine, on_site, frozenset(sites)
        self._models: Models = {}
        if engine.at_once > 1:
            forget_sites()  # those of a run before may share a model, which they cannot at the same time

    def connected(self) -> frozenset[str]:
        """Return the names of all sites."""
        return self._names

    def converse(self) -> "DirectConversation":
        """Return a conversation in which plans stay open over several rounds."""
        return DirectConversation(self._sites, self._engine, self._on_site, self._models)


class DirectConversation:
    """A `Conversation` with sites of this process."""

    def __init__(self, sites: Mapping[str, Path], engine: Engine, on_site: OnSite, models: Models) -> None:
        self._sites, self._engine, self._on_site, self._models = sites, engine, on_site, models
        self._open: dict[str, tuple[Plan, bytes | None]] = {}
        self._answered: dict[str, Answer] = {}

    def open(self) -> frozenset[str]:
        """Return the sites whose answer to a plan has not been taken yet."""
        return frozenset(self._open)

    def send(self, mailing: Mailing) -> None:
        """Take plans in; those of sites that are not there are answered first."""
        away = {site: plan for site, plan in mailing.plans.items() if site not in self._sites}
        plans = away | {site: plan for site, plan in mailing.plans.items() if site not in away}
        self._open |= {site: (plan, mailing.payload_for(site)) for site, plan in plans.items()}

    def answers(
        self, *, absent_seconds: float | None = None, until: Callable[[], float] = lambda: math.inf
    ) -> Generator[Answer, None, None]:
        """Yield one answer for every open plan: a site is always there, and is waited for until it has answered."""
        while self._open:
            site = next(iter(self._open))
            if site not in self._sites:
                del self._open[site]
                yield gone(site)
                continue
            if site not in self._answered:
                self._let_answer()
            del self._open[site]
            yield self._answered.pop(site)
            if until() <= time.monotonic():
                late = list(self._open)
                self.give_up(late)
                yield from map(cut_off, late)

    def give_up(self, sites: Collection[str]) -> None:
        """Take back the open plans of some sites."""
        for site in sites:
            self._open.pop(site, None)
            self._answered.pop(site, None)

    def close(self) -> None:
        """Take back all open plans."""
        self._open, self._answered = {}, {}

    def _let_answer(self) -> None:
        """Let as many of the next sites answer as the engine does at once."""
        waiting = (site for site in self._open if site in self._sites and site not in self._answered)
        sites, alone = list(islice(waiting, self._engine.at_once)), self._engine.at_once == 1
        with taking_turns(self._models) if alone else nullcontext():
            answers = self._engine.answers([partial(self._answer, site, *self._open[site]) for site in sites])
        self._answered |= dict(zip(sites, answers, strict=True))

    def _answer(self, site: str, plan: Plan, payload: bytes | None) -> Answer:
        self._on_site(site)
        path, text = self._sites[site], plan.model_dump_json()
        bytes_down = len(text) + len(payload or b"")
        try:
            if isinstance(plan, HandshakePlan):  # whose study a site reads by its own settings
                reply, content = answer_read(path, lambda: (parse_plan(text), payload))
            else:
                reply, content = answer_plan(path, plan, payload)
        except Exception as error:  # as a deployed site's worker does: what it did not foresee is an answer too
            return crashed(site, f"{type(error)}:<'{error}'>", bytes_down=bytes_down)
        bytes_up = len(reply.model_dump_json()) + len(content or b"")
        return Answer(site, reply=reply, payload=content, bytes_up=bytes_up, bytes_down=bytes_down)
