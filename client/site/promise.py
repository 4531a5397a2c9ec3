"""What a private study promises a site's patients, the noise that keeps to it, and what it has cost so far.

With `privacy.examples.epsilon`, of which `numbers` is the part for numbers that are no weights:

    how many patients   epsilon numbers / 2       before the first round; nothing where they are declared
    training            epsilon (1 - numbers)     all steps of all rounds; the noise is found from this
    test counts         what is left in the end   as the ledger says

With `privacy.examples.noise` the steps have that noise, and `epsilon (1 - numbers)` is what they and the number of
patients cost. Everything that is drawn is in the ledger before it leaves.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from consilium.client.privacy.ledger import Limit, PrivacyLedger, Spent
from consilium.client.site.announced import Announced
from consilium.client.training.work import Noise
from consilium.common.errors import PolicyRefused, PrivacyBudgetSpent
from consilium.common.privacy.accounting import Charge, delta_for, epsilon_of, noise_for
from consilium.common.protocol.plans import FinishPlan, HandshakePlan, RoundPlan
from consilium.common.protocol.replies import PrivacySpent
from consilium.common.study.policy import PolicyConfig
from consilium.common.study.privacy import ExamplePrivacy
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig

TRAINING, COUNTS = "training", "test counts"
"""What leaves, in the words of the ledger."""
MOST_NOISE = 1e5
"""Test counts with more noise than this say nothing, and are not told."""
_FINER = 1.01


@dataclass(frozen=True, eq=False)
class Promise:
    """A private study at one site.

    Args:
        study: its name.
        data: names the site's data in the ledger, whatever rows it has at the time: most of its patients stay the same.
        announced: how many patients there are.
        rate: probability with which a patient takes part in a step.
        steps: noised steps of a round, of `rounds` rounds.
        limit: of the study, and of the site by its own policy.
    """

    ledger: PrivacyLedger
    site: str
    study: str
    privacy: ExamplePrivacy
    data: str
    announced: Announced
    rate: float
    steps: int
    rounds: int
    limit: Limit

    @functools.cached_property
    def multiplier(self) -> float:
        """The noise of a step, in units of the clip."""
        privacy = self.privacy
        if privacy.noise is not None:
            return privacy.noise
        assert privacy.epsilon is not None
        most, before = privacy.epsilon, tuple(one.charge for one in self.announced.releases)
        steps = max(1, self.steps * self.rounds)
        alone = _noise_for(most * (1 - privacy.numbers), self.limit.delta, self.rate, steps, ())
        return max(alone, _noise_for(most, self.limit.delta, self.rate, steps, before)) if before else alone

    def begin(self, plan: HandshakePlan | RoundPlan | FinishPlan) -> None:
        """Charge the numbers that the handshake and later replies tell, once for all runs of the study.

        Raises:
            PrivacyBudgetSpent: they would cost more than is left.
        """
        before = {(old.study, old.data, old.key) for old in self.ledger.entries()}
        for one in self.announced.releases:
            if (self.study, self.data, one.draw) not in before:
                self._charge([one.charge], run=plan.run, round_number=0, what=one.what, key=one.draw)

    def charge_round(self, plan: RoundPlan, *, key: str) -> None:
        """Charge a round's training; asked again with the same key, it costs nothing.

        Raises:
            PrivacyBudgetSpent: it would cost more than is left.
        """
        self.begin(plan)  # a handshake that was refused, or other data since, leaves them uncharged
        if self.steps:
            cost = Charge("sgd", self.multiplier, self.rate, self.steps)
            self._charge([cost], run=plan.run, round_number=plan.round, what=TRAINING, key=key)

    def noise_of_counts(self, count: int) -> float | None:
        """Return the standard deviation of noise on test counts; None where nothing is left for them.

        Args:
            count: how many counts one patient may change, each by one.
        """
        if not self.privacy.numbers:
            return None
        spent, delta, budget = self._spent().charges, self.limit.delta, self.limit.study
        if budget is None:
            budget = epsilon_of(spent, delta) / (1 - self.privacy.numbers)
        try:
            noise = noise_for(budget, delta, rate=1.0, steps=count, besides=spent)
        except PrivacyBudgetSpent:
            return None
        # Noise of whole numbers may cost a little more than the normal noise that was looked for.
        while noise <= MOST_NOISE and epsilon_of((*spent, Charge("gaussian", noise, steps=count)), delta) > budget:
            noise *= _FINER
        return noise if noise <= MOST_NOISE else None

    def charge_counts(self, noise: float, count: int, plan: FinishPlan) -> None:
        """Charge so many test counts with a noise as `noise_of_counts` returns it.

        Raises:
            PrivacyBudgetSpent: it would cost more than is left.
        """
        self.begin(plan)
        cost = Charge("gaussian", noise, steps=count)
        self._charge([cost], run=plan.run, round_number=plan.round, what=COUNTS, key=None)

    def spent(self) -> PrivacySpent:
        """Return what the study has cost so far."""
        return PrivacySpent(
            epsilon=self._spent().epsilon,
            budget=self.privacy.epsilon,
            delta=self.limit.delta,
            noise=self.multiplier if self.steps else None,
        )

    def _spent(self) -> Spent:
        return self.ledger.spent(study=self.study, data=self.data, limit=self.limit)

    def _charge(self, charges: Sequence[Charge], *, run: str, round_number: int, what: str, key: str | None) -> None:
        self.ledger.charge(
            charges,
            study=self.study,
            run=run,
            round=round_number,
            data=self.data,
            what=what,
            limit=self.limit,
            key=key,
        )


def promise_of(
    config: SiteConfig, study: StudyConfig, policy: PolicyConfig, announced: Announced, *, steps: int
) -> Promise:
    """Return what a private study promises at a site.

    Args:
        steps: noised steps of a round.

    Raises:
        PolicyRefused: the study promises less than the site's policy demands.
        PrivacyBudgetSpent: the site's ledger is lost or was put back.
    """
    privacy = study.privacy.examples
    assert privacy is not None
    sizes = announced.sizes
    promise = Promise(
        ledger=PrivacyLedger.open(config.state_dir, config.name, server=config.server),
        site=config.name,
        study=study.name,
        privacy=privacy,
        data=hashlib.sha256(f"{config.data.kind} {config.data.path.resolve()}".encode()).hexdigest(),
        announced=announced,
        rate=rate_of(study, announced),
        steps=steps,
        rounds=study.rounds,
        limit=Limit(delta=privacy.delta or delta_for(sizes.own), study=privacy.epsilon, site=policy.max_epsilon),
    )
    _check(promise, policy)
    return promise


def noise_of(study: StudyConfig, announced: Announced, groups: Tensor | None) -> Noise:
    """Return the noise of a private study's training, all but how much of it there is.

    Args:
        groups: the patient of each training row; None where every row is a patient's only one.
    """
    privacy = study.privacy.examples
    assert privacy is not None
    return Noise(
        multiplier=1.0,
        clip=privacy.clip,
        rate=rate_of(study, announced),
        units=announced.sizes.train,
        groups=groups if privacy.unit == "patient" else None,
        adaptive=privacy.adaptive_clip,
    )


def rate_of(study: StudyConfig, announced: Announced) -> float:
    """Return the probability with which a patient takes part in a step: a batch of the announced number of them."""
    return min(1.0, study.training.batch_size / announced.sizes.train)


def _check(promise: Promise, policy: PolicyConfig) -> None:
    who, delta = f"site '{promise.site}'", promise.limit.delta
    if delta > policy.max_delta:
        raise PolicyRefused(
            f"{who}: delta {delta:g} of the study's privacy is larger than max_delta = {policy.max_delta:g} of the "
            "site's policy"
        )
    if policy.min_noise is not None and promise.steps and promise.multiplier < policy.min_noise:
        raise PolicyRefused(
            f"{who}: the study's privacy gives each step noise of {promise.multiplier:.4g} times the clip, the site's "
            f"policy asks for at least min_noise = {policy.min_noise:g}"
        )


@functools.lru_cache(maxsize=256)
def _noise_for(epsilon: float, delta: float, rate: float, steps: int, besides: tuple[Charge, ...]) -> float:
    """Return the noise of so many steps; found once, as the search takes a while."""
    return noise_for(epsilon, delta, rate=rate, steps=steps, besides=besides)
