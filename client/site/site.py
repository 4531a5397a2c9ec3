"""One site in one study: its data, its model and its state, and the answer to every kind of plan.

Composes a method with what all methods need: put received and personal weights into the model, measure
the global, the served and the local-only model, keep personal arrays on this site's disk, and send the
delta of the shared arrays and nothing else.
"""

import logging
import math
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import nn

import common
from client.data import Examples, SiteData, UnscaledData, noise_key, noisy_counts, read_site
from client.methods import Method, build_method, extended
from client.models import Model, build_model, get_weights, set_weights
from client.site.feature_cache import FeatureCache
from client.site.readings import Readings
from client.site.state_folder import StateFolder
from client.training.local_work import Evaluation, LocalWork, evaluate, train
from common.codecs import Identity, Payload, build_chain
from common.data.patients import Patients
from common.data.scale import Scale
from common.errors import ModelError, ProtocolError, StateError, UpdateRejected
from common.protocol import (
    CONTROL,
    FinishPlan,
    FinishReply,
    HandshakePlan,
    HandshakeReply,
    InitialWeightsPlan,
    InitialWeightsReply,
    PatientCounts,
    Plan,
    Reply,
    RoundPlan,
    RoundReply,
    ScalePlan,
    ScaleReply,
    TestCounts,
    Versions,
)
from common.seeds import seed_for
from common.study.signals import (
    CANDIDATE_LOSSES,
    CANDIDATES,
    EFFECTIVE_STEPS,
    RECEIVED_LOSS,
    START_LOSS,
    UPDATE_LOSS,
    WITHOUT_ERROR,
)
from common.study.site import SiteConfig
from common.study.study import StudyConfig
from common.weights.arithmetic import subtract
from common.weights.arrays import Array, Weights, digest, is_float, under, with_prefix
from common.weights.checks import check_finite, check_like

log = logging.getLogger(__name__)

PERSONAL, LOCAL, METHOD, SENT, HELD, UPLINK = "personal/", "local/", "method/", "sent/", "held/", "uplink/"
"""Name spaces of the state file: personal arrays of the model, the local-only model, a method's memory; where the
study needs them, shared arrays as this site trained and as it received them, and what the codec did not send."""
BEST = {"personal": "best/", "local": "best_local/"}
"""Name spaces of the served and the local-only model of the round with the least validation loss."""
HELD_ROUND = "held_round"
"""The round whose weights are held."""
CATCH_UP_PART = 0.25
"""Which part of the time for a round may go into rounds that the local-only model has missed."""
FEATURES = ".features"
"""Folder of the state folder for the features of a frozen backbone."""
LOCAL_ROUNDS = "local_rounds"
"""How many rounds' work the local-only model has had."""


@dataclass(frozen=True)
class Names:
    """How a model's arrays are divided in a study.

    Args:
        moving: what training may change: trainable parameters, and buffers of layers in training mode.
        shared: the part of `moving` that leaves the site.
        personal: the part of `moving` that never does.
    """

    moving: frozenset[str]
    shared: frozenset[str]
    personal: frozenset[str]


def divide(model: Model, method: Method) -> Names:
    """Divide a model's arrays by the method and the BatchNorm policy.

    Raises:
        ModelError: the method keeps everything personal although it is one that shares (for example
            `fedper` with `trainable = "head"`).
    """
    moving, may_leave = model.moving, method.shared(model)
    shared = moving & may_leave - (model.batch_norm if model.batch_norm_policy == "local" else frozenset())
    if may_leave and not shared:
        raise ModelError(
            f"method '{type(method).__name__}' shares nothing of this model: what is trainable is all personal; "
            "train more of it (model.trainable) or choose another method"
        )
    return Names(moving, shared, moving - shared)


@dataclass(frozen=True)
class Received:
    """What came from the server: the shared weights, and what travelled along."""

    weights: Weights
    control: Weights
    candidates: Mapping[str, Weights]


@cache
def versions() -> Versions:
    """Return the versions that must be equal at every site."""
    return Versions(
        consilium=common.__version__,
        flwr=version("flwr"),
        torch=torch.__version__.partition("+")[0],
        torchvision=version("torchvision"),
        python=".".join(platform.python_version_tuple()[:2]),
    )


class Site:
    """Answers the plans of one study at one site; keeps data and model in memory between them."""

    def __init__(self, config: SiteConfig, study: StudyConfig) -> None:
        """Read the data and build the initial model.

        Raises:
            DataError: the data is missing, corrupt or too small.
            ModelError: the model or its pretrained weights do not fit.
        """
        self._config, self._study = config, study
        self._device = device_of(config.device)
        self._method = build_method(study.method)
        self._needs = study.needs
        self._last: dict[str, Weights] = {}
        self._run: str | None = None
        self._read()
        self._readings = Readings.of(config, study, data=self._data_digest)
        if not study.task.agrees_on_scale:
            self._scale_by(study.task.fixed_scale)

    def _read(self) -> None:
        """Read the data and build the whole model; what is agreed on in the handshake needs no scale."""
        config, study = self._config, self._study
        data = read_site(config, study, share_class_counts=config.share_class_counts)
        self._unscaled: UnscaledData | None = data
        self._data_digest = data.digest
        self._card = data.card
        if study.task.agrees_on_scale and config.share_scale:
            self._card = self._card.model_copy(update={"moments": data.moments()})
        if config.class_counts_epsilon is not None and self._card.class_counts is not None:
            key = noise_key(config.state_dir, site=config.name)
            counts = noisy_counts(self._card.class_counts, study.task.classes, config.class_counts_epsilon, key=key)
            self._card = self._card.model_copy(update={"class_counts": counts})
        model = build_model(
            study.model,
            input_shape=data.input_shape,
            num_outputs=study.task.num_outputs,
            weights_dir=config.weights_dir,
            seed=seed_for(study.seed, "initial weights"),
        )
        self._model = extended(self._method, model, data.input_shape)
        self._initial = get_weights(self._model.module)
        self._initial_digest = digest(self._initial)
        self._names = divide(self._model, self._method)

    def _scale_by(self, scale: Scale | None) -> None:
        """Scale the examples, by the site's own training rows where there is no scale, and cut the model."""
        self._run = None  # until all is done: a scale that cannot be used leaves no half of it in force
        if self._unscaled is None:
            self._read()
        assert self._unscaled is not None
        data = on_device(self._unscaled.scaled(scale), self._device)
        self._unscaled = None  # images are large; another run's scale, which is rare, reads them anew
        self._agreed, self._scale = scale, data.scale
        self._model.module.to(self._device)
        cache = FeatureCache(self._config.state_dir / FEATURES, f"{self._data_digest} scaled by {data.scale}")
        self._model, self._data = cache.apply(self._model, data)
        whole = self._initial
        self._initial = {name: whole[name] for name in self._model.names}
        self._frozen = {name: array for name, array in whole.items() if name not in self._initial}
        self._names = divide(self._model, self._method)

    def answer(self, plan: Plan, payload: Payload | None) -> tuple[Reply, bytes | None]:
        """Do what a plan asks and return the reply with its payload.

        Raises:
            ConsiliumError: what could not be done.
        """
        began = time.monotonic()
        if isinstance(plan, RoundPlan | FinishPlan):
            self._check_round(plan)
            self._be_scaled(plan)
        match plan:
            case HandshakePlan():
                return self._shake_hands(plan, began), None
            case ScalePlan():
                return self._take_scale(plan, began), None
            case InitialWeightsPlan():
                return InitialWeightsReply(**_stamp(plan, began)), Identity().encode(self._shared_initial())
            case RoundPlan():
                return self._round(plan, payload, began)
            case FinishPlan():
                return self._finish(plan, self._received(payload), began), None

    def _shake_hands(self, plan: Plan, began: float) -> HandshakeReply:
        state, made = self._state(plan), len(self._readings.made())
        state.check()  # an unwritable state folder is told before training, not after
        state.save_study(self._study)
        return HandshakeReply(
            **_stamp(plan, began),
            versions=versions(),
            card=self._card.model_copy(
                update={"test_readings": made, "test_readings_allowed": self._readings.allowed},
            ),
            initial_digest=self._initial_digest,
            shared_digest=digest(self._shared_initial()),
            shared_buffers=tuple(sorted(self._buffers)),
        )

    def _take_scale(self, plan: ScalePlan, began: float) -> ScaleReply:
        """Scale by what was agreed on, and keep it for as long as the run goes on.

        Raises:
            ProtocolError: it is not one for this study's columns, or another than this run has trained with.
            DataError: the examples cannot be scaled by it.
        """
        who, task = f"site '{self._config.name}'", self._study.task
        if not task.agrees_on_scale:
            raise ProtocolError(f"{who}: the server sent a scale, but this study leaves none to the handshake")
        if plan.scale is None and task.scale == "federation":
            raise ProtocolError(f"{who}: the server sent no scale, but the study says task.scale = 'federation'")
        if plan.scale is not None and len(plan.scale.mean) != len(task.scaled_columns):
            raise ProtocolError(
                f"{who}: the server sent a scale of {len(plan.scale.mean)} columns, expected one of "
                f"{len(task.scaled_columns)}"
            )
        self._state(plan).save_scale(plan.scale)
        self._scale_for(plan.run, plan.scale)
        return ScaleReply(**_stamp(plan, began))

    def _check_round(self, plan: RoundPlan | FinishPlan) -> None:
        """Refuse a round that the study does not have: the local-only model gets up to so many rounds' training."""
        if plan.round > (rounds := self._study.rounds):
            raise ProtocolError(
                f"site '{self._config.name}': the server asks for round {plan.round}, but the study has {rounds}"
            )

    def _be_scaled(self, plan: Plan) -> None:
        """Scale as was agreed on in a plan's run, as a site that was started again must."""
        if self._study.task.agrees_on_scale and self._run != plan.run:
            self._scale_for(plan.run, self._state(plan).load_scale())

    def _scale_for(self, run: str, scale: Scale | None) -> None:
        if self._unscaled is not None or self._agreed != scale:
            self._scale_by(scale)
        self._run = run

    @property
    def _buffers(self) -> frozenset[str]:
        """Shared arrays that gradients do not move; no lossy codec touches them."""
        return self._names.shared - self._model.trainable

    def _shared_initial(self) -> dict[str, Array]:
        return {name: self._initial[name] for name in sorted(self._names.shared)}

    def _received(self, payload: Payload | None) -> Received:
        """Decode and check what the server sent: the shared weights, and along with them only what the study says."""
        if payload is None:
            raise ProtocolError("the server sent a plan without weights")
        return self._checked(Identity().decode(payload))

    def _advanced(self, payload: Payload | None, kept: Mapping[str, Array], *, base: int) -> Received:
        """Add the difference that the server sent to the weights of round `base`.

        Raises:
            StateError: this site does not hold them; the server sends them in full next time.
        """
        held = under(kept, HELD)
        if payload is None or not held or int(kept[HELD_ROUND]) != base:
            raise StateError(f"site '{self._config.name}' does not hold the weights of round {base} any more")
        chain = build_chain(self._study.downlink, exact=self._buffers, feedback=False)
        return self._checked(chain.advance(held, bytes(payload)))

    def _checked(self, arrays: Weights) -> Received:
        check_finite(arrays, who="weights from the server")
        expected = self._shared_initial()
        weights = {name: array for name, array in arrays.items() if "/" not in name}
        check_like(weights, expected, who="weights from the server")
        control = under(arrays, CONTROL) if self._study.strategy.kind == "scaffold" else {}
        if control:
            trained = {name: array for name, array in expected.items() if name in self._model.trainable}
            check_like(control, trained, who="control variate from the server")
        wanted = CANDIDATES if self._needs & set(CANDIDATE_LOSSES) else ()
        candidates = {name: found for name in wanted if (found := under(arrays, f"{name}/"))}
        for name, candidate in candidates.items():
            check_like(candidate, expected, who=f"{name} from the server")
        known = len(weights) + len(control) + sum(len(candidate) for candidate in candidates.values())
        if known != len(arrays):
            raise ProtocolError("the server sent arrays along with the weights that this study has no use for")
        return Received(weights, control, candidates)

    def _state(self, plan: Plan) -> StateFolder:
        folder = StateFolder.of(self._config.state_dir, study=self._study.name, run=plan.run, site=self._config.name)
        return replace(folder, data=self._data_digest)

    def _work(self, round_number: int, *, control: Weights | None = None) -> LocalWork:
        settings = self._study.training
        return LocalWork(
            examples=self._data.train,
            seed=seed_for(self._study.seed, "training", round_number, self._config.name),
            validation=self._data.validation,
            control=control or {},
            micro_batch_size=self._config.micro_batch_size,
            **settings.model_dump(),
        )

    def _put(self, *parts: Weights) -> None:
        """Put the initial weights into the model, then each of `parts` over them."""
        merged = dict(self._initial)
        for part in parts:
            merged.update(part)
        set_weights(self._model.module, merged)

    def _personal(self, kept: Mapping[str, Array]) -> dict[str, Array]:
        """Return the personal arrays of the state, except those that this study shares.

        A plan with another method in the same run must not turn what was personal into an update.
        """
        return {name: array for name, array in under(kept, PERSONAL).items() if name in self._names.personal}

    def _kept(self, state: StateFolder, plan: RoundPlan | FinishPlan) -> dict[str, Array]:
        """Return what this site kept after its last update that counted; nothing before the first.

        A site whose state folder was lost goes on as one that joins late, unless the server counts on what it kept.

        Raises:
            StateError: it cannot be read, or it is gone and the server counts on it.
        """
        if (kept := state.load(plan.accepted, known=self._last)) is not None:
            return kept
        who, what = f"site '{self._config.name}'", f"what it kept after round {plan.accepted} of run '{plan.run}'"
        if self._study.method.matched and isinstance(plan, RoundPlan):
            raise StateError(
                f"{who} no longer has {what}, which the server counts on in every later round (method "
                f"'{self._study.method.kind}'): put its state folder back, or start a new run"
            )
        log.warning("state is gone, this site goes on as one that joins late run=%s round=%d", plan.run, plan.round)
        return {}

    def _round(self, plan: RoundPlan, payload: Payload | None, began: float) -> tuple[Reply, bytes]:
        state = self._state(plan)
        kept = self._kept(state, plan)
        received = self._received(payload) if plan.base is None else self._advanced(payload, kept, base=plan.base)
        personal, work = self._personal(kept), self._work(plan.round, control=received.control)
        metrics = self._signals_before(plan, received, kept, work)
        measuring = plan.round % self._study.evaluate_every == 0 or plan.round == self._study.rounds

        self._put(received.weights, personal)
        if measuring and not self._names.personal:
            metrics |= self._measured("global", self._model.module)
        outcome = self._method.train(self._model, under(kept, METHOD), work)
        metrics |= {"train.loss": outcome.loss, **outcome.metrics}
        after = get_weights(self._model.module, self._names.moving)
        for arrays in (after, outcome.memory, outcome.control):
            check_finite(arrays, who="weights after training")
        trained = {name: after[name] for name in sorted(self._names.shared)}
        personal = {name: after[name] for name in self._names.personal}
        if UPDATE_LOSS in self._needs and len(work.validation):
            metrics[UPDATE_LOSS] = evaluate(self._model.module, work.validation).loss

        self._put(received.weights, personal)
        served = self._model.module
        if measuring:
            served = self._method.personalise(self._model, outcome.memory, work)
            metrics |= self._measured("personal", served)
        best = self._best("personal", kept, metrics) if served is self._model.module else {}
        budget = CATCH_UP_PART * self._study.round_timeout_seconds
        local, local_rounds = dict[str, Array](), 0
        if self._study.local_baseline:
            tuned_by = work if measuring else None
            local, local_rounds = self._train_alone(kept, rounds=plan.asked, serving_after=tuned_by, seconds=budget)
            if measuring:
                metrics |= self._measured("local", self._model.module)
            best |= self._best("local", kept, metrics)
        _check_measured(metrics)

        rounds = {LOCAL_ROUNDS: np.array(local_rounds)}
        parts: dict[str, Weights] = {PERSONAL: personal, LOCAL: local, METHOD: outcome.memory}
        if WITHOUT_ERROR in self._needs:
            parts[SENT] = trained
        if self._study.downlink:
            held = {name: array.copy() for name, array in received.weights.items()}  # they lie in the payload
            parts[HELD], rounds[HELD_ROUND] = held, np.array(plan.round)
        parts[""] = rounds | best
        content, parts[UPLINK], lost = self._coded(plan, received, trained, outcome.control, under(kept, UPLINK))
        if lost is not None:
            metrics["uplink.nmse"] = lost
        joined = _joined(parts)
        self._last = {state.save(joined, round_number=plan.round, accepted=plan.accepted): joined}
        reply = RoundReply(**_stamp(plan, began), round=plan.round, num_examples=len(self._data.train), metrics=metrics)
        return reply, content

    def _coded(
        self, plan: RoundPlan, received: Received, trained: Weights, control: Weights, memory: Weights
    ) -> tuple[bytes, Weights, float | None]:
        """Return the update's payload, what the codec keeps, and how much coding lost (None without a codec)."""
        along = with_prefix(control, CONTROL)
        if not self._study.uplink:
            return Identity().encode(subtract(trained, received.weights) | along), {}, None
        chain = build_chain(self._study.uplink, exact=self._buffers)
        nothing = {name: np.zeros_like(array) for name, array in along.items()}
        seed = seed_for(self._study.seed, "uplink", plan.round, self._config.name)
        coded = chain.encode({**trained, **along}, {**received.weights, **nothing}, memory=memory, seed=seed)
        return coded.payload, coded.memory, coded.nmse

    def _signals_before(
        self, plan: RoundPlan, received: Received, kept: Mapping[str, Array], work: LocalWork
    ) -> dict[str, float]:
        """Measure what the study's strategy and weighting ask for before training, and nothing else."""
        personal, found = self._personal(kept), dict[str, float]()
        if EFFECTIVE_STEPS in self._needs:
            found[EFFECTIVE_STEPS] = work.effective_steps
        if START_LOSS in self._needs:
            found[START_LOSS] = self._evaluated(received.weights, personal, on=work.examples).loss
        if not len(work.validation):
            return found
        if RECEIVED_LOSS in self._needs:
            found[RECEIVED_LOSS] = self._evaluated(received.weights, personal, on=work.validation).loss
        for name, candidate in received.candidates.items():
            found[f"{name}.loss"] = self._evaluated(candidate, personal, on=work.validation).loss
        if WITHOUT_ERROR in self._needs:
            sent = under(kept, SENT)
            if plan.share == 0 or sent:
                others = leave_one_out(received.weights, sent, plan.share)
                found[WITHOUT_ERROR] = 1 - self._evaluated(others, personal, on=work.validation).accuracy
        return found

    def _evaluated(self, *parts: Weights, on: Examples) -> Evaluation:
        self._put(*parts)
        return evaluate(self._model.module, on)

    def _train_alone(
        self, kept: Mapping[str, Array], *, rounds: int, serving_after: LocalWork | None, seconds: float = math.inf
    ) -> tuple[dict[str, Array], int]:
        """Train the local-only model for as many rounds as this site was asked in; return it and how many it has had.

        So both sides of the comparison have the same budget: a round without this site trains neither, and one whose
        reply did not count is caught up. After `seconds` what is left of that waits for the next round. What the
        method trains before serving (fine-tuning) is added to what is left in the model for measuring. The order of
        examples is that of the federated training in the first so many rounds.
        """
        local, done = under(kept, LOCAL), int(kept[LOCAL_ROUNDS]) if LOCAL_ROUNDS in kept else 0
        self._put(local)
        began = time.monotonic()
        while done < rounds:
            done += 1
            train(self._model, self._method.budget(self._work(done)).per_round)
            if time.monotonic() - began > seconds:
                break
        local = get_weights(self._model.module, self._names.moving)
        tuning = self._method.budget(serving_after).before_serving if serving_after is not None else None
        if tuning is not None:
            train(self._model, tuning)
        return local, done

    def _measured(self, which: str, module: nn.Module) -> dict[str, float]:
        if not len(self._data.validation):
            return {}
        seen = evaluate(module, self._data.validation)
        return {f"{which}.loss": seen.loss, f"{which}.accuracy": seen.accuracy}

    def _best(self, which: str, kept: Mapping[str, Array], metrics: Mapping[str, float]) -> dict[str, Array]:
        """Return what to keep of the best round so far, if the study asks for it: this one's model or the one kept."""
        prefix, least = BEST[which], f"{BEST[which]}/loss"
        loss = metrics.get(f"{which}.loss", math.inf)
        if not self._study.keep_best:
            return {}
        if loss == math.inf or (least in kept and float(kept[least]) <= loss):
            return {name: array for name, array in kept.items() if name.startswith(prefix)}
        now = with_prefix(get_weights(self._model.module, self._names.moving), prefix)
        return {**now, least: np.array(loss)}

    def _finish(self, plan: FinishPlan, received: Received, began: float) -> FinishReply:
        """Read the test split, once: majority class, local only, global and served model on it.

        Raises:
            ProtocolError: it was read with other final weights, as often as this site's settings allow.
        """
        state = self._state(plan)
        if (told := state.load_counts(plan.round)) is not None:  # asked again: the test split is not read twice
            return FinishReply(**_stamp(plan, began), round=plan.round, test=told)
        kept = self._kept(state, plan)
        test, metrics = self._data.test, dict[str, float]()
        if not len(test):
            raise ProtocolError(f"site '{self._config.name}' has no test examples: split.test is 0")
        personal = self._personal(kept)
        weights = digest({**received.weights, **_joined({PERSONAL: personal, METHOD: under(kept, METHOD)})})
        earlier = self._readings.check(weights=weights, round_number=plan.round)

        constant = self._data.train.constant()
        whole, scores = None, {"labels": test.y.cpu().numpy(), "majority": constant.cpu().numpy()}
        self._put(received.weights, personal)
        if not self._names.personal:
            seen = evaluate(self._model.module, test)
            whole, metrics["global.loss"] = seen.right, seen.loss
            scores["global"] = seen.logits.numpy()
        work = self._work(plan.round + 1)
        module = self._method.personalise(self._model, under(kept, METHOD), work)
        served = evaluate(module, test)
        state.save_served(self._whole(module), self._served_notes(plan))
        metrics["personal.loss"], scores["personal"] = served.loss, served.logits.numpy()
        alone = None
        if self._study.local_baseline:
            self._train_alone(kept, rounds=plan.asked, serving_after=work)
            alone = evaluate(self._model.module, test)
            metrics["local.loss"], scores["local"] = alone.loss, alone.logits.numpy()
        for which, prefix in BEST.items():
            if best := {name: array for name, array in under(kept, prefix).items() if name in self._names.moving}:
                self._put(best)
                scores[f"{which}.best"] = evaluate(self._model.module, test).logits.numpy()
        if test.groups is not None:
            scores["groups"] = test.groups.numpy()
        state.save_scores(scores)

        right = {"majority": test.right(constant), "personal": served.right}
        right |= {} if alone is None else {"local": alone.right}
        right |= {} if whole is None else {"global_": whole}
        counts = earlier or _counts(right, test.groups)
        self._readings.note(counts, run=plan.run, weights=weights, round_number=plan.round)
        _check_measured(metrics)  # only now: that a loss is not finite tells of the test split too
        state.save_counts(counts, round_number=plan.round)
        return FinishReply(**_stamp(plan, began), round=plan.round, test=counts)

    def _served_notes(self, plan: Plan) -> dict[str, str]:
        """Return what who uses the served model must know: names, order, units and scale of its inputs."""
        task = self._study.task.model_dump_json(exclude_none=True)
        scale = {} if self._scale is None else {"scale": self._scale.model_dump_json()}
        return {"study": self._study.name, "run": plan.run, "task": task, **scale}

    def _whole(self, module: nn.Module) -> dict[str, Array]:
        """Return all arrays of what is served, the frozen backbone's too: a file that is of use without this site."""
        prefix = next((name for name, part in module.named_modules() if part is self._model.module), "")
        return get_weights(module) | with_prefix(self._frozen, f"{prefix}." if prefix else "")


def leave_one_out(weights: Weights, own: Weights, share: float) -> dict[str, Array]:
    """Return `(weights - share * own) / (1 - share)`: the mean of the others' (Jiang 2023, FedCE, section 3.2).

    Integer arrays are kept as they are, and so is all of it where the site had no part, or was alone.
    """
    if not 0 < share < 1 - 1e-9:
        return dict(weights)
    return {
        name: ((array.astype(np.float64) - share * own[name].astype(np.float64)) / (1 - share)).astype(array.dtype)
        if is_float(array)
        else array
        for name, array in weights.items()
    }


def _check_measured(metrics: Mapping[str, float]) -> None:
    """Refuse to report NaN or infinity; what was kept from the round before stays in force."""
    if bad := sorted(name for name, value in metrics.items() if not math.isfinite(value)):
        raise UpdateRejected("not_finite", f"{', '.join(bad)}: not a finite number; training has diverged")


def _counts(right: Mapping[str, torch.Tensor], groups: torch.Tensor | None) -> TestCounts:
    """Return how many answers of each model are right, and sums over patients where one has several rows.

    Args:
        right: per model of `TestCounts`, which of the test rows it has right `(N,)`.
        groups: the patient of each row `(N,)`; None: every row is one.
    """
    rows = {name: of.cpu().numpy().astype(np.int64) for name, of in right.items()}
    local, personal = rows.get("local"), rows["personal"]
    counts: dict[str, Any] = {name: int(of.sum()) for name, of in rows.items()}
    if local is not None:
        both = int((local & personal).sum())
        only_local, only_personal = counts["local"] - both, counts["personal"] - both
        counts["pairs"] = (both, only_local, only_personal, len(local) - both - only_local - only_personal)
    if groups is not None and len(torch.unique(groups)) < len(groups):
        differing = {} if local is None else {"difference": personal - local}
        sums = {name: Patients.of_rows(of, groups.numpy()) for name, of in (rows | differing).items()}
        counts["patients"] = PatientCounts(**sums)
    return TestCounts(num_test=len(personal), **counts)


def _stamp(plan: Plan, began: float) -> dict[str, Any]:
    return {"run": plan.run, "site": plan.site, "pid": os.getpid(), "seconds": time.monotonic() - began}


def _joined(parts: Mapping[str, Weights]) -> dict[str, Array]:
    return {name: array for prefix, weights in parts.items() for name, array in with_prefix(weights, prefix).items()}


def device_of(wanted: str) -> torch.device:
    """Return the device that a site's settings name.

    Raises:
        ModelError: a GPU is wanted and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelError("device is 'cuda', but torch finds no GPU on this machine; set device to 'auto' or 'cpu'")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def on_device(data: SiteData, device: torch.device) -> SiteData:
    """Return the data with its examples on `device`."""
    if device.type == "cpu":
        return data

    def move(part: Examples) -> Examples:
        return replace(part, x=part.x.to(device), y=part.y.to(device))

    return replace(data, train=move(data.train), validation=move(data.validation), test=move(data.test))
