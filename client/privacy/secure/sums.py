"""A site's part in the secure sums of a run, with all that it refuses.

What a server may not do, and where it is refused:

- bring in a site: every key bears the signature of a site whose own key people have checked (`PeersPlan`);
- ask for a sum of few: of fewer than three sites, or than this site's policy says, or to which too few have sent;
- take off the masks of one update: this site opens, of each site, either the shares of its own mask or those of its
  masks with others, once per round, and keeps on its disk what it opened before it does;
- ask for a round again with another cohort, to see the difference: this site masks a round anew under a new attempt
  number only while it has opened nothing of it, and never again opens an earlier attempt. Two sums of one round would
  need two thirds of its sites each, which answered neither twice;
- ask for another update under the same masks: the words of a context are remembered by their digest;
- with noise for whole sites, have less of it than the study says, a sum of fewer sites than share it, or two draws of
  one update: the noise follows from the update and the run's key, and a second update of a round gets none.

What is not hidden: a sum is what it is. Sums of two rounds, or two runs, whose sites differ by one tell about that one:
`privacy.examples` hides patients from that.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from consilium.client.privacy.secure.memory import Memory, Sent, write_memory
from consilium.client.privacy.secure.noise import add_noise, check_noise
from consilium.client.privacy.secure.run_keys import RunKeys
from consilium.common.codecs import Payload
from consilium.common.errors import ProtocolError, StateError
from consilium.common.privacy.secure.context import Context, sum_digest
from consilium.common.privacy.secure.fixed import Layout, to_words
from consilium.common.privacy.secure.masks import Words
from consilium.common.privacy.secure.noise import colluding_sites, fewest_answers, noise_share
from consilium.common.privacy.secure.party import Party, sealed_bytes
from consilium.common.privacy.secure.payload import Masked, to_payload
from consilium.common.privacy.secure.sizes import LEAST_SITES, threshold
from consilium.common.privacy.secure.weights import own_weight, per_step
from consilium.common.protocol.plans import RoundPlan, SecureRound, UnmaskPlan
from consilium.common.weights.arrays import Weights


@dataclass(frozen=True, eq=False)
class Masking:
    """One update that is to be masked.

    Args:
        num_examples, metrics: this site's, by which it weighs itself.
        received: digest of the weights that it trained from.
        buffers: arrays that gradients do not move.
    """

    delta: Weights
    control: Weights
    num_examples: int
    metrics: Mapping[str, float]
    received: str
    buffers: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class SecureSums:
    """The secure sums of one run at one site.

    Args:
        least: fewest sites of a sum, by this site's policy.
    """

    keys: RunKeys
    least: int = LEAST_SITES

    @property
    def fewest(self) -> int:
        """Fewest sites of a sum, by the policy and by the study."""
        study = self.keys.study
        return max(LEAST_SITES, self.least, fewest_answers(study) if study.privacy.hides_sites else 0)

    def check(self, plan: RoundPlan) -> None:
        """Check a round's plan before anything is trained for it.

        Raises:
            ProtocolError: a sum that this site does not add to.
        """
        who, asked = f"site '{self.keys.site}': round {plan.round} of run '{self.keys.run}'", plan.secure
        if asked is None:
            raise ProtocolError(f"{who} asks for an update in the clear, but the study says secure_aggregation = true")
        memory, cohort = self.keys.memory(), asked.cohort
        if list(cohort) != sorted(set(cohort)) or self.keys.site not in cohort:
            raise ProtocolError(f"{who}: the cohort must be names in sorted order, each once, with this site's own")
        if len(cohort) < self.fewest:
            raise ProtocolError(
                f"{who} asks for a sum over {len(cohort)} sites, this site adds to sums over at least {self.fewest}"
            )
        study = self.keys.study
        harmless = len(cohort) - threshold(len(cohort))
        if study.privacy.hides_sites and harmless < colluding_sites(study):
            raise ProtocolError(
                f"{who}: of a sum over {len(cohort)} sites {harmless} may work with the server without harm, the study "
                f"promises {colluding_sites(study)} (privacy.sites.colluding)"
            )
        check_noise(study, asked.noise, who=who)
        if unknown := [name for name in cohort if name not in memory.peers]:
            raise ProtocolError(f"{who}: there is no checked key of site '{unknown[0]}' for this run")
        sent = memory.sent
        if sent is not None and plan.round < sent.round:
            raise ProtocolError(f"{who}: this site has masked round {sent.round} already")
        if sent is not None and plan.round == sent.round:
            again = asked.attempt == sent.attempt
            if asked.attempt < sent.attempt or (sent.survivors is not None and not again):
                raise ProtocolError(
                    f"{who}: attempt {asked.attempt} is refused, "
                    + (
                        f"attempt {sent.attempt} was unmasked here: a second sum of a round would show the difference"
                        if sent.survivors is not None
                        else f"this site is at attempt {sent.attempt}"
                    )
                )

    def mask(self, plan: RoundPlan, update: Masking) -> bytes:
        """Return the payload of an update, masked; that it was made is on the disk before.

        Raises:
            ProtocolError: as `check`, and for other weights or another cohort under the same attempt.
            UpdateRejected: numbers that cannot be part of the sum.
            StateError: another update was masked in this very context.
        """
        self.check(plan)
        memory, asked = self.keys.memory(), plan.secure
        assert asked is not None
        words, party = self._words(asked, update), self.keys.party(memory, asked.cohort)
        sent = Sent(
            round=plan.round,
            attempt=asked.attempt,
            cohort=asked.cohort,
            weights=update.received,
            examples=asked.examples,
            loss=asked.loss,
            steps=asked.steps,
            noise=asked.noise,
            words="0" * 64,
        )
        context = self._context(sent)
        sent = self._hidden(memory, sent, words, party)
        self._remember(memory, sent.model_copy(update={"words": party.tag(words, context)}))
        sealed = party.mask(words, context)
        return to_payload(Masked(words, sealed))

    def unmask(self, plan: UnmaskPlan, payload: Payload | None) -> bytes:
        """Return this site's shares of the masks that are to be taken off a round's sum.

        Raises:
            ProtocolError: of another round than the one sent last, of too few sites, or after others were opened.
        """
        memory = self.keys.memory()
        sent, survivors = memory.sent, plan.survivors
        who = f"site '{self.keys.site}': round {plan.round} of run '{self.keys.run}'"
        if sent is None or sent.place != (plan.round, plan.attempt):
            raise ProtocolError(f"{who}: attempt {plan.attempt} is not what this site has sent last")
        _check_survivors(sent, survivors, who=who, site=self.keys.site, least=self.fewest)
        size, text = sealed_bytes(len(sent.cohort)), bytes(payload or b"")
        if len(text) != size * len(survivors):
            raise ProtocolError(f"{who}: the sealed shares have {len(text)} bytes, expected {size * len(survivors)}")
        sealed = {name: text[place * size : (place + 1) * size] for place, name in enumerate(survivors)}
        opened = self.keys.party(memory, sent.cohort).opened(self._context(sent), sealed)
        if sent.survivors is None:
            now = sent.model_copy(update={"survivors": survivors})
            write_memory(self.keys.folder, memory.model_copy(update={"sent": now}))
        return opened

    def _words(self, asked: SecureRound, update: Masking) -> Words:
        weight = own_weight(
            self.keys.study.weights_by,
            self.keys.study.strategy,
            update.num_examples,
            update.metrics,
            examples=asked.examples,
            loss=asked.loss,
        )
        sites = self.keys.study.num_sites or len(self.keys.study.sites)
        privacy, share = self.keys.study.privacy, noise_share(self.keys.study, asked.noise)
        layout = Layout.of(update.delta, update.control, bound=privacy.longest, sites=sites, share=share)
        factor_of = None
        if self.keys.study.strategy.per_step:
            own = per_step(update.metrics, asked.steps or 1.0)
            factor_of = {name: own for name in update.delta if name not in update.buffers}
        return to_words(layout, update.delta, update.control, weight, factor_of=factor_of)

    def _hidden(self, memory: Memory, sent: Sent, words: Words, party: Party) -> Sent:
        """Add this site's share of the noise, where the sum hides whole sites, and return what is to be remembered.

        Raises:
            StateError: another update got noise in this round: a second one would tell as much again.
        """
        share = noise_share(self.keys.study, sent.noise)
        if share is None:
            return sent
        tag, seed = party.noise_seed(words, self._context(sent))
        before = memory.sent
        if before is not None and before.round == sent.round and before.update != tag:
            raise StateError(
                f"site '{self.keys.site}': its update of round {sent.round} is not the one that it has added noise to "
                "before; a second one would tell as much of the site again: start a new run"
            )
        add_noise(words, share, seed=seed)
        return sent.model_copy(update={"update": tag})

    def _remember(self, memory: Memory, sent: Sent) -> None:
        """Write down what is masked before it leaves; a second time only the same is."""
        before = memory.sent
        if before is None or before.place != sent.place:
            write_memory(self.keys.folder, memory.model_copy(update={"sent": sent}))
            return
        if before.words != sent.words and self._context(before) == self._context(sent):
            raise StateError(
                f"site '{self.keys.site}': its update of round {sent.round} is not the one that it has masked before; "
                "no second one is hidden by the same masks: start a new run"
            )
        if self._context(before) != self._context(sent):
            raise ProtocolError(
                f"site '{self.keys.site}': attempt {sent.attempt} at round {sent.round} came with other weights, or "
                "for other sites, than the first time"
            )

    def _context(self, sent: Sent) -> Context:
        return Context(
            study=sum_digest(self.keys.study),
            run=self.keys.run,
            round=sent.round,
            attempt=sent.attempt,
            cohort=sent.cohort,
            weights=sent.weights,
            examples=sent.examples,
            loss=sent.loss,
            steps=sent.steps,
            noise=sent.noise,
        )


def _check_survivors(sent: Sent, survivors: tuple[str, ...], *, who: str, site: str, least: int) -> None:
    """Check the sites whose own masks are to be opened.

    Raises:
        ProtocolError: they are none of the cohort, too few, without this site, or not those of the first time.
    """
    if list(survivors) != sorted(set(survivors)) or not set(survivors) <= set(sent.cohort) or site not in survivors:
        raise ProtocolError(
            f"{who}: those who have sent must be sites of its cohort in sorted order, this one among them"
        )
    fewest = max(threshold(len(sent.cohort)), least)
    if len(survivors) < fewest:
        raise ProtocolError(
            f"{who}: {len(survivors)} of {len(sent.cohort)} sites have sent an update, the sum of fewer than {fewest} "
            "stays masked"
        )
    if sent.survivors is not None and sent.survivors != survivors:
        raise ProtocolError(
            f"{who}: its masks were opened for other sites already: both kinds of a site's masks would show its update"
        )
