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

import common
from client.data import Examples, SiteData, load_data
from client.methods import Method, build_method
from client.models import Model, build_model, get_weights, set_weights
from client.site_state import StateFolder
from client.training import LocalWork, evaluate, train
from common.codecs import CODECS, Codec
from common.config import SiteConfig, StudyConfig
from common.errors import ModelError, ProtocolError, UpdateRejected
from common.protocol import (
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
from common.weights import Array, Weights, check_finite, check_like, digest, subtract

PERSONAL, LOCAL, METHOD = "personal/", "local/", "method/"
"""Name spaces of the state file: personal arrays of the model, the local-only model, a method's memory."""
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


def divide(model: Model, method: Method, *, batch_norm: str) -> Names:
    """Divide a model's arrays by the method and the BatchNorm policy.

    Raises:
        ModelError: the method keeps everything personal although it is one that shares (for example
            `fedper` with `trainable = "head"`).
    """
    buffers = model.batch_norm - frozenset(name for name, _ in model.module.named_parameters())
    live = frozenset(name for name in buffers if f"{name.rpartition('.')[0]}.weight" in model.trainable)
    moving = model.trainable | (live if batch_norm != "freeze" else frozenset())
    may_leave = method.shared(model)
    shared = moving & may_leave - (model.batch_norm if batch_norm == "local" else frozenset())
    if may_leave and not shared:
        raise ModelError(
            f"method '{type(method).__name__}' shares nothing of this model: what is trainable is all personal; "
            "train more of it (model.trainable) or choose another method"
        )
    return Names(moving, shared, moving - shared)


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
        self._device = _device(config.device)
        self._data = _moved(
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
        num_classes = len(study.task.classes)
        self._model = build_model(
            study.model,
            input_shape=self._data.input_shape,
            num_outputs=1 if num_classes == 2 else num_classes,
            weights_dir=config.weights_dir,
            seed=seed_for(study.seed, "initial weights"),
        )
        self._initial = get_weights(self._model.module)
        self._model.module.to(self._device)
        self._method = build_method(study.method)
        self._names = divide(self._model, self._method, batch_norm=study.model.batch_norm)
        self._codec: Codec = CODECS[study.codec]()
        self._data_digest = _digest_of(self._data)

    def answer(self, plan: Plan, payload: bytes | None) -> tuple[Reply, bytes | None]:
        """Do what a plan asks and return the reply with its payload.

        Raises:
            ConsiliumError: what could not be done.
        """
        began = time.monotonic()
        match plan:
            case HandshakePlan():
                return self._shake_hands(plan, began), None
            case InitialWeightsPlan():
                return InitialWeightsReply(**_stamp(plan, began)), self._codec.encode(self._shared_initial())
            case RoundPlan():
                return self._round(plan, self._received(payload), began)
            case FinishPlan():
                return self._finish(plan, self._received(payload), began), None

    def _shake_hands(self, plan: Plan, began: float) -> HandshakeReply:
        self._state(plan)  # an unwritable state folder is told before training, not after
        return HandshakeReply(
            **_stamp(plan, began),
            versions=versions(),
            card=self._data.card,
            initial_digest=digest(self._initial),
            shared_digest=digest(self._shared_initial()),
        )

    def _shared_initial(self) -> dict[str, Array]:
        return {name: self._initial[name] for name in sorted(self._names.shared)}

    def _received(self, payload: bytes | None) -> dict[str, Array]:
        if payload is None:
            raise ProtocolError("the server sent a plan without weights")
        weights = self._codec.decode(payload)
        check_like(weights, self._shared_initial(), who="weights from the server")
        check_finite(weights, who="weights from the server")
        return weights

    def _state(self, plan: Plan) -> StateFolder:
        folder = StateFolder.of(self._config.state_dir, study=self._study.name, run=plan.run, site=self._config.name)
        return replace(folder, data=self._data_digest)

    def _work(self, round_number: int) -> LocalWork:
        settings = self._study.training
        return LocalWork(
            examples=self._data.train,
            seed=seed_for(self._study.seed, "training", round_number, self._config.name),
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
        return {name: array for name, array in _part(kept, PERSONAL).items() if name in self._names.personal}

    def _round(self, plan: RoundPlan, received: Weights, began: float) -> tuple[Reply, bytes]:
        state = self._state(plan)
        kept = state.load(before_round=plan.round)
        personal, work = self._personal(kept), self._work(plan.round)
        metrics: dict[str, float] = {}

        self._put(received, personal)
        if not self._names.personal:
            self._measure("global", metrics)
        memory, metrics["train.loss"] = self._method.train(self._model, _part(kept, METHOD), work)
        after = get_weights(self._model.module, self._names.moving)
        check_finite(after, who="weights after training")
        delta = subtract({name: after[name] for name in self._names.shared}, received)
        personal = {name: after[name] for name in self._names.personal}

        self._put(received, personal)
        self._method.personalise(self._model, memory, work)
        self._measure("personal", metrics)
        local = self._train_alone(kept, until_round=plan.round, extra_after=work)
        self._measure("local", metrics)
        _check_measured(metrics)

        parts = {PERSONAL: personal, LOCAL: local, METHOD: memory, "": {LOCAL_ROUNDS: np.array(plan.round)}}
        state.save(_joined(parts), round_number=plan.round)
        reply = RoundReply(**_stamp(plan, began), round=plan.round, num_examples=len(self._data.train), metrics=metrics)
        return reply, self._codec.encode(delta)

    def _train_alone(self, kept: Mapping[str, Array], *, until_round: int, extra_after: LocalWork) -> dict[str, Array]:
        """Train the local-only model up to a round and return its weights.

        Rounds in which this site was not asked are caught up, and the method's extra training (fine-tuning)
        is added to what is left in the model for measuring, so that both sides of the comparison have the
        same budget. The order of examples is that of the federated training.
        """
        local, done = _part(kept, LOCAL), int(kept[LOCAL_ROUNDS]) if LOCAL_ROUNDS in kept else 0
        self._put(local)
        for number in range(done + 1, until_round + 1):
            train(self._model, self._work(number))
        local = get_weights(self._model.module, self._names.moving)
        extra = self._method.extra(extra_after)
        if extra is not None:
            train(self._model, extra)
        return local

    def _measure(self, which: str, metrics: dict[str, float]) -> None:
        if len(self._data.validation):
            seen = evaluate(self._model.module, self._data.validation)
            metrics[f"{which}.loss"], metrics[f"{which}.accuracy"] = seen.loss, seen.accuracy

    def _finish(self, plan: FinishPlan, received: Weights, began: float) -> FinishReply:
        """Read the test split, once: majority class, local only, global and served model on it."""
        state = self._state(plan)
        if (told := state.load_counts(plan.round)) is not None:  # asked again: the test split is not read twice
            return FinishReply(**_stamp(plan, began), round=plan.round, test=told)
        kept = state.load(before_round=plan.round + 1)
        test, metrics = self._data.test, dict[str, float]()
        if not len(test):
            raise ProtocolError(f"site '{self._config.name}' has no test examples: split.test is 0")
        personal = self._personal(kept)

        whole = None
        self._put(received, personal)
        if not self._names.personal:
            seen = evaluate(self._model.module, test)
            whole, metrics["global.loss"] = int(seen.right.sum()), seen.loss
        work = self._work(plan.round + 1)
        self._method.personalise(self._model, _part(kept, METHOD), work)
        served = evaluate(self._model.module, test)
        state.save_served(get_weights(self._model.module), {"study": plan.study.name, "run": plan.run})
        self._train_alone(kept, until_round=plan.round, extra_after=work)
        alone = evaluate(self._model.module, test)
        metrics["personal.loss"], metrics["local.loss"] = served.loss, alone.loss
        _check_measured(metrics)

        counts = TestCounts(
            num_test=len(test),
            majority=int((test.y == self._data.train.y.mode().values).sum()),
            local=int(alone.right.sum()),
            global_=whole,
            personal=int(served.right.sum()),
            pairs=_pairs(alone.right, served.right),
        )
        state.save_counts(counts, round_number=plan.round)
        return FinishReply(**_stamp(plan, began), round=plan.round, test=counts)


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


def _part(state: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}


def _joined(parts: Mapping[str, Weights]) -> dict[str, Array]:
    return {prefix + name: array for prefix, weights in parts.items() for name, array in weights.items()}


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelError("device is 'cuda', but torch finds no GPU on this machine; set device to 'auto' or 'cpu'")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def _moved(data: SiteData, device: torch.device) -> SiteData:
    if device.type == "cpu":
        return data

    def move(part: Examples) -> Examples:
        return Examples(part.x.to(device), part.y.to(device))

    return SiteData(train=move(data.train), validation=move(data.validation), test=move(data.test), card=data.card)
