"""One site in one study: its data, its model and its state, and the answer to every kind of plan.

Composes a method with what all methods need: put received and personal weights into the model, measure
the global, the served and the local-only model, keep personal arrays on this site's disk, and send the
delta of the shared arrays and nothing else.
"""

import math
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import nn

import common
from client.data import Examples, SiteData, load_data, noise_key, noisy_counts
from client.feature_cache import FeatureCache
from client.methods import Method, build_method
from client.models import Model, build_model, get_weights, set_weights
from client.readings import Readings
from client.site_state import StateFolder
from client.training import Evaluation, LocalWork, evaluate, train
from common.algorithms import (
    CANDIDATE_LOSSES,
    CANDIDATES,
    EFFECTIVE_STEPS,
    RECEIVED_LOSS,
    START_LOSS,
    UPDATE_LOSS,
    WITHOUT_ERROR,
)
from common.codecs import Identity, Payload, build_chain
from common.config import SiteConfig, StudyConfig
from common.errors import ModelError, ProtocolError, StateError, UpdateRejected
from common.protocol import (
    CONTROL,
    FinishPlan,
    FinishReply,
    HandshakePlan,
    HandshakeReply,
    InitialWeightsPlan,
    InitialWeightsReply,
    Plan,
    Reply,
    RoundPlan,
    RoundReply,
    TestCounts,
    Versions,
)
from common.seeds import seed_for
from common.weights import Array, Weights, check_finite, check_like, digest, is_float, subtract, under, with_prefix

PERSONAL, LOCAL, METHOD, SENT, HELD, UPLINK = "personal/", "local/", "method/", "sent/", "held/", "uplink/"
BEST = {"personal": "best/", "local": "best_local/"}
"""Name spaces of the served and the local-only model of the round with the least validation loss."""
"""Name spaces of the state file: personal arrays of the model, the local-only model, a method's memory; where the
study needs them, shared arrays as this site trained and as it received them, and what the codec did not send."""
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
        self._data = on_device(
            load_data(
                config.data,
                study.task,
                study.split,
                site=config.name,
                min_examples=study.min_examples,
                share_class_counts=config.share_class_counts,
            ),
            self._device,
        )
        self._card = self._data.card
        if config.class_counts_epsilon is not None and self._card.class_counts is not None:
            key = noise_key(config.state_dir, site=config.name)
            counts = noisy_counts(self._card.class_counts, study.task.classes, config.class_counts_epsilon, key=key)
            self._card = self._card.model_copy(update={"class_counts": counts})
        self._model = build_model(
            study.model,
            input_shape=self._data.input_shape,
            num_outputs=study.task.num_outputs,
            weights_dir=config.weights_dir,
            seed=seed_for(study.seed, "initial weights"),
        )
        whole = get_weights(self._model.module)
        self._initial_digest = digest(whole)
        self._model.module.to(self._device)
        self._data_digest = _digest_of(self._data)
        cache = FeatureCache(config.state_dir / FEATURES, self._data_digest)
        self._model, self._data = cache.apply(self._model, self._data)
        self._initial = {name: whole[name] for name in self._model.names}
        self._frozen = {name: array for name, array in whole.items() if name not in self._initial}
        self._method = build_method(study.method)
        self._needs = study.needs
        self._names = divide(self._model, self._method)
        self._last: dict[str, Weights] = {}
        self._readings = Readings.of(config, study, data=self._data_digest)

    def answer(self, plan: Plan, payload: Payload | None) -> tuple[Reply, bytes | None]:
        """Do what a plan asks and return the reply with its payload.

        Raises:
            ConsiliumError: what could not be done.
        """
        began = time.monotonic()
        match plan:
            case HandshakePlan():
                return self._shake_hands(plan, began), None
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

    def _round(self, plan: RoundPlan, payload: Payload | None, began: float) -> tuple[Reply, bytes]:
        state = self._state(plan)
        kept = state.load(before_round=plan.round, known=self._last)
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
            local, local_rounds = self._train_alone(
                kept, until_round=plan.round, serving_after=tuned_by, seconds=budget
            )
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
        self._last = {state.save(joined, round_number=plan.round): joined}
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
        self, kept: Mapping[str, Array], *, until_round: int, serving_after: LocalWork | None, seconds: float = math.inf
    ) -> tuple[dict[str, Array], int]:
        """Train the local-only model up to a round; return its weights and the round they are of.

        A site that has missed many rounds catches up over several: after `seconds` the rest is left to the next.
        Rounds in which this site was not asked are caught up, and what the method trains before serving
        (fine-tuning) is added to what is left in the model for measuring, so that both sides of the comparison
        have the same budget. The order of examples is that of the federated training.
        """
        local, done = under(kept, LOCAL), int(kept[LOCAL_ROUNDS]) if LOCAL_ROUNDS in kept else 0
        self._put(local)
        began = time.monotonic()
        while done < until_round:
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
        kept = state.load(before_round=plan.round + 1, known=self._last)
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
            whole, metrics["global.loss"] = int(seen.right.sum()), seen.loss
            scores["global"] = seen.logits.numpy()
        work = self._work(plan.round + 1)
        module = self._method.personalise(self._model, under(kept, METHOD), work)
        served = evaluate(module, test)
        # Names, order and units; how this site scaled a table's columns is not in it.
        task = self._study.task.model_dump_json(exclude_none=True)
        state.save_served(self._whole(module), {"study": self._study.name, "run": plan.run, "task": task})
        metrics["personal.loss"], scores["personal"] = served.loss, served.logits.numpy()
        alone = None
        if self._study.local_baseline:
            self._train_alone(kept, until_round=plan.round, serving_after=work)
            alone = evaluate(self._model.module, test)
            metrics["local.loss"], scores["local"] = alone.loss, alone.logits.numpy()
        for which, prefix in BEST.items():
            if best := {name: array for name, array in under(kept, prefix).items() if name in self._names.moving}:
                self._put(best)
                scores[f"{which}.best"] = evaluate(self._model.module, test).logits.numpy()
        state.save_scores(scores)

        counts = earlier or TestCounts(
            num_test=len(test),
            majority=int(test.right(constant).sum()),
            local=None if alone is None else int(alone.right.sum()),
            global_=whole,
            personal=int(served.right.sum()),
            pairs=None if alone is None else _pairs(alone.right, served.right),
        )
        self._readings.note(counts, run=plan.run, weights=weights, round_number=plan.round)
        _check_measured(metrics)  # only now: that a loss is not finite tells of the test split too
        state.save_counts(counts, round_number=plan.round)
        return FinishReply(**_stamp(plan, began), round=plan.round, test=counts)

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


def _digest_of(data: SiteData) -> str:
    """Return the sha256 of what is trained, validated and tested on: one more row is another split of all."""
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    arrays = {f"{name}.{kind}": getattr(part, kind).cpu().numpy() for name, part in parts.items() for kind in "xy"}
    return digest(arrays)


def _check_measured(metrics: Mapping[str, float]) -> None:
    """Refuse to report NaN or infinity; what was kept from the round before stays in force."""
    if bad := sorted(name for name, value in metrics.items() if not math.isfinite(value)):
        raise UpdateRejected("not_finite", f"{', '.join(bad)}: not a finite number; training has diverged")


def _pairs(local: torch.Tensor, personal: torch.Tensor) -> tuple[int, int, int, int]:
    both, only_local = int((local & personal).sum()), int((local & ~personal).sum())
    return both, only_local, int((~local & personal).sum()), int((~local & ~personal).sum())


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

    return SiteData(train=move(data.train), validation=move(data.validation), test=move(data.test), card=data.card)
