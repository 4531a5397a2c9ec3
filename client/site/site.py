"""One site in one study: its answer to every kind of plan.

The steps of a round and of the end of a study are in `round.py` and `finish.py`; this module joins them with the state
folder. Of trained arrays, only the delta of the shared ones leaves the site.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from consilium.client.methods import build_method, private_steps
from consilium.client.models import device_of, divide
from consilium.client.privacy.commitment import Commitment, commitment_key
from consilium.client.privacy.secure.peers import read_peers
from consilium.client.privacy.secure.run_keys import RunKeys
from consilium.client.privacy.secure.sums import SecureSums
from consilium.client.served.summary import summary_of
from consilium.client.site.announced import Announced
from consilium.client.site.answers import Answers
from consilium.client.site.feature_cache import FEATURES, FeatureCache
from consilium.client.site.finish import read_test_once
from consilium.client.site.handshake import Facts, Origin, check_scale, read_origin
from consilium.client.site.kept import Kept
from consilium.client.site.learner import Learner
from consilium.client.site.masked import digest_of, masked
from consilium.client.site.overlays import shown_of
from consilium.client.site.promise import Promise, noise_of, promise_of
from consilium.client.site.readings import Readings
from consilium.client.site.received import receive
from consilium.client.site.round import play_round, received_in
from consilium.client.site.start import Start, load_kept
from consilium.client.site.state_folder import StateFolder
from consilium.client.site.versions import versions_in
from consilium.client.training.private import check_private
from consilium.common.codecs import Identity, Payload
from consilium.common.errors import ProtocolError
from consilium.common.host.keys import read_private_key
from consilium.common.protocol.plans import (
    FinishPlan,
    HandshakePlan,
    InitialWeightsPlan,
    KeysPlan,
    PeersPlan,
    Plan,
    RelayPlan,
    RoundPlan,
    ScalePlan,
    UnmaskPlan,
)
from consilium.common.protocol.replies import (
    FinishReply,
    HandshakeReply,
    InitialWeightsReply,
    KeysReply,
    PeersReply,
    Reply,
    RoundReply,
    ScaleReply,
    UnmaskReply,
)
from consilium.common.study.policy import UNBOUND, PolicyConfig
from consilium.common.study.scale import Scale
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig


class Site:
    """Answers the plans of one study at one site; keeps data and model in memory between them."""

    def __init__(self, config: SiteConfig, study: StudyConfig, *, policy: PolicyConfig = UNBOUND) -> None:
        """Read the data and build the initial model.

        Args:
            policy: the hospital's, whose limits hold over the study's.

        Raises:
            DataError: the data is missing, corrupt or too small.
            ModelError: the model or its pretrained weights do not fit.
        """
        self._config, self._study, self._policy = config, study, policy
        self._device = device_of(config.device)
        self._method = build_method(study.method)
        self._last: dict[str, Kept] = {}
        self._learner: Learner | None = None
        self._promise: Promise | None = None
        self._agreed: tuple[str, Scale | None] | None = None
        self._clear: tuple[tuple[RoundPlan, str], RoundReply, bytes] | None = None
        self._origin: Origin | None = read_origin(config, study, self._method, self._device)
        self._facts = self._origin.facts
        self.size = self._origin.size
        """Bytes of its data, and of its model where it has one to itself."""
        self._readings = Readings.of(config, study, data=self._facts.data_digest)
        if not study.task.agrees_on_scale:
            self._scale_by(study.task.fixed_scale)

    @property
    def facts(self) -> Facts:
        """What is reported of the data and of the initial weights."""
        return self._facts

    @property
    def learner(self) -> Learner:
        """What this site learns with, once the scale of its inputs is known."""
        if self._learner is None:
            raise ProtocolError(f"site '{self._config.name}': the scale of the inputs is not agreed on yet")
        return self._learner

    def answer(self, plan: Plan, payload: Payload | None) -> tuple[Reply, bytes | None]:
        """Do what a plan asks and return the reply with its payload.

        Raises:
            ConsiliumError: what could not be done.
        """
        began, folder = time.monotonic(), self._folder(plan)
        match plan:
            case HandshakePlan():
                return self._shake_hands(plan, folder, began), None
            case ScalePlan():
                check_scale(plan.scale, self._study.task, site=self._config.name)
                folder.save_scale(plan.scale)
                self._scale_for(plan.run, plan.scale)
                return ScaleReply(**self._stamp(plan, began)), None
            case InitialWeightsPlan():
                return InitialWeightsReply(**self._stamp(plan, began)), Identity().encode(self._facts.shared)
            case KeysPlan():
                return KeysReply(**self._stamp(plan, began), signed=self._sums(plan, folder).keys.signed_key()), None
            case PeersPlan():
                self._sums(plan, folder).keys.take_peers(plan)
                return PeersReply(**self._stamp(plan, began)), None
            case RoundPlan():
                if self._study.privacy.secure_aggregation:
                    return self._masked_round(plan, payload, folder, began)
                return self._round(plan, payload, folder, began)
            case UnmaskPlan():
                opened = self._sums(plan, folder).unmask(plan, payload)
                return UnmaskReply(**self._stamp(plan, began), round=plan.round, attempt=plan.attempt), opened
            case FinishPlan():
                reply = self._finish(plan, payload, folder, began)
                return reply, shown_of(folder.path) if self._config.share_overlays else None
            case RelayPlan():
                raise ProtocolError(f"site '{self._config.name}' is asked what relays are asked, and is none")

    def _shake_hands(self, plan: HandshakePlan, folder: StateFolder, began: float) -> HandshakeReply:
        readings, facts = self._readings, self._facts
        made = len(readings.made())
        folder.check()  # a state folder that cannot be written is an error before training, not after
        folder.save_study(self._study)
        if self._promise is not None:
            self._promise.begin(plan)
        key = commitment_key(self._config.state_dir, site=self._config.name)
        announced = {
            "test_readings": made,
            "test_readings_allowed": readings.allowed,
            "data_commitment": Commitment.of(facts.data_digest, run=plan.run, key=key).value,
        }
        return HandshakeReply(
            **self._stamp(plan, began),
            versions=versions_in(self._study, self._config),
            card=facts.card.model_copy(update=announced),
            initial_digest=facts.initial_digest,
            shared_digest=facts.shared_digest,
            shared_buffers=tuple(sorted(facts.buffers)),
        )

    def _round(
        self, plan: RoundPlan, payload: Payload | None, folder: StateFolder, began: float
    ) -> tuple[RoundReply, bytes]:
        learner, promise = self._learner_for(plan), self._promise
        start = self._start(plan, folder, learner)

        def play(before: Callable[[], None]) -> tuple[RoundReply, bytes]:
            result = play_round(learner, plan, payload, start.kept, before=before)
            stopping = self._study.stopping
            best = plan.best if stopping is not None and stopping.final == "best" else None
            sha256 = folder.save(result.kept, round_number=plan.round, accepted=plan.accepted, best=best)
            self._last = {sha256: result.kept}
            num_examples = len(learner.data.train) if promise is None else promise.announced.sizes.train
            stamp = self._stamp(plan, began) | {"state_of": start.instead}
            reply = RoundReply(**stamp, round=plan.round, num_examples=num_examples, metrics=result.metrics)
            return reply, result.payload

        if promise is None:
            return play(lambda: None)
        return Answers(folder.path, self._config.name).once(promise, plan, payload, play)

    def _masked_round(
        self, plan: RoundPlan, payload: Payload | None, folder: StateFolder, began: float
    ) -> tuple[RoundReply, bytes]:
        """Do what a round asks, and mask the update; asked again from the same weights, it is not trained anew."""
        sums, learner = self._sums(plan, folder), self._learner_for(plan)
        sums.check(plan)
        kept = self._start(plan, folder, learner).kept
        received = digest_of(received_in(learner, plan, payload, kept))
        asked = plan.model_copy(update={"secure": None}), received
        if self._clear is None or self._clear[0] != asked:
            self._clear = None
            self._clear = asked, *self._round(asked[0], payload, folder, began)
        _, reply, clear = self._clear
        payload = masked(sums, plan, reply, clear, received=received, buffers=learner.buffers)
        return reply.model_copy(update=self._stamp(plan, began)), payload

    def _sums(self, plan: Plan, folder: StateFolder) -> SecureSums:
        """Return the secure sums of a plan's run.

        Raises:
            ProtocolError: the study has none.
        """
        config = self._config
        if not self._study.privacy.secure_aggregation:
            raise ProtocolError(f"site '{config.name}': the study says nothing of secure aggregation, the plan does")
        keys = RunKeys(
            site=config.name,
            study=self._study,
            run=plan.run,
            folder=folder.path,
            own_key=lambda: read_private_key(config.private_key),
            checked=lambda: read_peers(config.peers, site=config.name),
        )
        return SecureSums(keys, least=self._policy.least_of_sum)

    def _finish(self, plan: FinishPlan, payload: Payload | None, folder: StateFolder, began: float) -> FinishReply:
        learner = self._learner_for(plan)
        received = receive(learner, payload)
        counts = folder.load_counts(plan.round)  # asked again, it answers with what it read then
        instead = None
        if counts is None:
            start = self._start(plan, folder, learner)
            counts = read_test_once(learner, folder, self._readings, plan, received, start.kept, promise=self._promise)
            instead = start.instead
        spent = None if self._promise is None else self._promise.spent()
        return FinishReply(**self._stamp(plan, began), round=plan.round, test=counts, privacy=spent, state_of=instead)

    def _start(self, plan: RoundPlan | FinishPlan, folder: StateFolder, learner: Learner) -> Start:
        """Return what this site goes on from, without arrays that this study shares."""
        anew = self._config.on_lost_state == "start_anew"
        start = load_kept(folder, plan, self._study, known=self._last, start_anew=anew)
        return replace(start, kept=start.kept.within(learner.names))

    def _folder(self, plan: Plan) -> StateFolder:
        folder = StateFolder.of(self._config.state_dir, study=self._study.name, run=plan.run, site=self._config.name)
        return replace(folder, data=self._facts.data_digest)

    def _learner_for(self, plan: RoundPlan | FinishPlan) -> Learner:
        """Return what this site learns with, scaled as was agreed on in the plan's run, also after a restart.

        Raises:
            ProtocolError: the study has no such round; the local-only model would get the training of that many.
        """
        if plan.round > self._study.rounds:
            raise ProtocolError(
                f"site '{self._config.name}': the server asks for round {plan.round}, but the study has "
                f"{self._study.rounds}"
            )
        if self._study.task.agrees_on_scale and (self._agreed is None or self._agreed[0] != plan.run):
            self._scale_for(plan.run, self._folder(plan).load_scale())
        return self.learner

    def _scale_for(self, run: str, scale: Scale | None) -> None:
        if self._agreed is None or self._agreed[1] != scale:
            self._scale_by(scale)
        self._agreed = run, scale

    def _scale_by(self, scale: Scale | None) -> None:
        """Scale the examples, by the site's own training rows where there is no scale, and cut the model."""
        self._agreed = self._learner = None  # a scale that cannot be used leaves no half of it in force
        if self._origin is None:
            self._origin = read_origin(self._config, self._study, self._method, self._device)
            self._facts = self._origin.facts
        model, initial = self._origin.model, self._origin.initial
        data = self._origin.data.scaled(scale).on_device(self._device)
        summary = summary_of(self._origin.data).to_bytes() if self._config.models else None
        self._origin = None  # images are large; another run's scale, which is rare, reads them anew
        model.module.to(self._device)
        digest = f"{self._facts.data_digest} scaled by {data.scale}"
        tail, inputs = model, data
        if self._study.training.augment is None:  # features are those of pictures as they are
            tail, inputs = FeatureCache(self._config.state_dir / FEATURES, digest).apply(model, data)
        self._learner = Learner(
            site=self._config.name,
            study=self._study,
            method=self._method,
            model=tail,
            names=divide(tail, self._method),
            initial={name: initial[name] for name in tail.names},
            frozen={name: array for name, array in initial.items() if name not in tail.names},
            data=inputs,
            scale=data.scale,
            micro_batch_size=self._config.micro_batch_size,
            written=frozenset(self._config.models),
            summary=summary,
        )
        if (announced := self._facts.announced) is not None:
            self._promise_by(self._learner, announced)

    def _promise_by(self, learner: Learner, announced: Announced) -> None:
        """Find the noise of a private study's training.

        Raises:
            ModelError: the model cannot be trained privately.
            PolicyRefused: the study promises less than this site's policy demands.
            PrivacyBudgetSpent: the privacy ledger is lost or was put back.
        """
        check_private(learner.model)
        learner = replace(learner, noise=noise_of(self._study, announced, learner.data.train.groups))
        steps = private_steps(self._method, learner.work(1))
        promise = promise_of(self._config, self._study, self._policy, announced, steps=steps)
        assert learner.noise is not None
        self._learner = replace(learner, noise=replace(learner.noise, multiplier=promise.multiplier))
        self._promise = promise

    def _stamp(self, plan: Plan, began: float) -> dict[str, Any]:
        """Return the facts that every reply has; a private study is told whole seconds, since time tells of data."""
        seconds = time.monotonic() - began
        seconds = seconds if self._promise is None else math.ceil(seconds)
        return {"run": plan.run, "site": plan.site, "pid": os.getpid(), "seconds": seconds}
