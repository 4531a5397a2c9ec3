"""The keys of a run's sites at the server, which passes them on and can neither make nor change one."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from consilium.common.errors import ConsiliumError
from consilium.common.protocol.plans import KeysPlan, PeersPlan, Plan, SignedKey, study_digest
from consilium.common.protocol.replies import KeysReply, PeersReply
from consilium.common.study.study import StudyConfig
from consilium.server.study.exchange import Answer, Exchange, ask
from consilium.server.study.handshake import expect


@dataclass(eq=False)
class KeyRing:
    """The keys that sites have made for a run, and which site has which of them; it is filled anew after a restart."""

    _keys: dict[str, SignedKey] = field(default_factory=dict)
    _held: dict[str, frozenset[str]] = field(default_factory=dict)

    def prepare(
        self, exchange: Exchange, study: StudyConfig, run: str, sites: Collection[str]
    ) -> dict[str, ConsiliumError]:
        """See to it that each of some sites has the keys of all of them, as far as they answer.

        Returns:
            The sites that have not, each with the reason.
        """
        problems = self._collect(exchange, study, run, [site for site in sites if site not in self._keys])
        ready = frozenset(sites) - problems.keys()
        lacking = [site for site in sorted(ready) if not ready <= self._held.get(site, frozenset())]
        return problems | self._pass_on(exchange, study, run, lacking, ready)

    def _collect(
        self, exchange: Exchange, study: StudyConfig, run: str, sites: Collection[str]
    ) -> dict[str, ConsiliumError]:
        plans = {site: KeysPlan(study=study_digest(study.seen_by(site)), run=run, site=site) for site in sorted(sites)}
        problems = dict[str, ConsiliumError]()
        for answer in _asked(exchange, study, plans):
            try:
                self._keys[answer.site] = expect(answer, KeysReply, run).signed
            except ConsiliumError as error:
                problems[answer.site] = error
        return problems

    def _pass_on(
        self, exchange: Exchange, study: StudyConfig, run: str, sites: Collection[str], keys_of: frozenset[str]
    ) -> dict[str, ConsiliumError]:
        keys = {site: self._keys[site] for site in sorted(keys_of)}
        plans = {
            site: PeersPlan(study=study_digest(study.seen_by(site)), run=run, site=site, keys=keys) for site in sites
        }
        problems = dict[str, ConsiliumError]()
        for answer in _asked(exchange, study, plans):
            try:
                expect(answer, PeersReply, run)
                self._held[answer.site] = self._held.get(answer.site, frozenset()) | keys_of
            except ConsiliumError as error:
                problems[answer.site] = error
        return problems


def _asked(exchange: Exchange, study: StudyConfig, plans: Mapping[str, Plan]) -> Iterator[Answer]:
    if plans:
        timeout, absent = study.round_timeout_seconds, study.absent_seconds
        yield from ask(exchange, plans, timeout_seconds=timeout, absent_seconds=absent)
