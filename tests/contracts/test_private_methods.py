"""Methods that may be combined with privacy for patients: with a clip of nothing, nothing of the data gets out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeStudy, write_site, write_table
from private_training import repeated
from pydantic import TypeAdapter
from torch import nn

from consilium.client.methods import METHODS, Budget, Memory, Method, Outcome, private_steps
from consilium.client.methods.fedavg import FedAvg
from consilium.client.methods.fedrep import FedRep
from consilium.client.methods.local import Local
from consilium.client.models import Model, divide, get_weights, set_weights
from consilium.client.site.kept import Kept
from consilium.client.site.learner import Learner
from consilium.client.site.round import play_round
from consilium.client.site.site import Site
from consilium.client.training.loop import train
from consilium.client.training.private import private_gradients
from consilium.client.training.work import LocalWork
from consilium.common.codecs import Identity
from consilium.common.errors import ConfigError, ModelError
from consilium.common.protocol.plans import RoundPlan, study_digest
from consilium.common.study.load import load_site
from consilium.common.study.methods import MethodConfig
from consilium.common.study.study import StudyConfig
from consilium.common.weights.arithmetic import add_scaled
from consilium.common.weights.arrays import Array
from consilium.testing.method_cases import study_values

CONFIGS = {kind: TypeAdapter(MethodConfig).validate_python({"kind": kind}) for kind in METHODS}
PRIVATE = sorted(kind for kind, config in CONFIGS.items() if config.not_private is None)
REFUSED = sorted(set(METHODS) - set(PRIVATE))
FREE: Mapping[str, tuple[str, ...]] = {
    "ditto": ("method/v/",),
    "apfl": ("method/v/", "method/alpha"),
    "local": ("personal/",),
}
"""What a method keeps that was trained without noise: it never leaves, and what leaves does not depend on it."""
NOTHING = 1e-12
TASK = {
    "kind": "table",
    "classes": ["no", "yes"],
    "label": "ill",
    "columns": {"a": {"kind": "number"}, "b": {"kind": "number"}},
    "scale": {"a": {"mean": 0.0, "std": 1.0}, "b": {"mean": 0.0, "std": 1.0}},
}


def private_study(make_study: MakeStudy, kind: str, *, clip: float = NOTHING, **changes: Any) -> StudyConfig:
    """Return a study of a method whose patients are promised privacy."""
    values = study_values(kind, "freeze")
    assert values is not None
    values["model"] |= {"name": "mlp", "hidden": [5]}
    if kind == "fedrep":
        values["method"] |= {"head_epochs": 2}
    promise = {"examples": {"noise": 1.0, "clip": clip}}
    return make_study(sites=["berlin"], task=TASK, privacy=promise, **(values | changes))


def learner_of(folder: Path, study: StudyConfig, *, seed: int) -> Learner:
    """Return what a site learns with; another seed is another site's rows, of which as many are declared."""
    path = write_site(folder / str(seed), "berlin", declared_examples=60)
    write_table(path.parent / "data.csv", rows=60, seed=seed)
    return Site(load_site(path), study).learner


def rounds_of(
    learner: Learner, *, kept: Kept | None = None, numbers: tuple[int, ...] = (1, 2, 3)
) -> list[dict[str, Array]]:
    """Return what leaves, and what stays for the next round; from round to round all weights are moved a little."""
    kept, found = kept or Kept(), []
    for number in numbers:
        weights = add_scaled(
            learner.shared, {name: np.full(a.shape, 0.01 * number) for name, a in learner.shared.items()}
        )
        past: dict[str, Any] = {"accepted": number - 1 or None, "asked": number}
        plan = RoundPlan(study=study_digest(learner.study), run="run", site="berlin", round=number, **past)
        result = play_round(learner, plan, Identity().encode(weights), kept)
        kept, sent = result.kept, Identity().decode(result.payload)
        stays = {
            name: array for name, array in kept.to_arrays().items() if name.split("/")[0] in ("personal", "method")
        }
        found.append({f"sent/{name}": array for name, array in sent.items()} | stays)
    return found


def differing(one: list[dict[str, Array]], other: list[dict[str, Array]]) -> set[str]:
    """Return what differs between two sites in any round by more than noise that is next to nothing."""
    return {
        name
        for a, b in zip(one, other, strict=True)
        for name in a.keys() | b.keys()
        if name not in a or name not in b or float(np.abs(a[name].astype(float) - b[name].astype(float)).max()) > 1e-9
    }


def of_data(learners: tuple[Learner, Learner], method: Method | None = None) -> set[str]:
    """Return the arrays in which two sites differ that have nothing different but their rows."""
    one, other = learners
    if method is not None:
        names = divide(one.model, method)
        one, other = (replace(learner, method=method, names=names) for learner in learners)
    return differing(rounds_of(one), rounds_of(other))


@pytest.fixture
def two(tmp_path: Path, make_study: MakeStudy, request: pytest.FixtureRequest) -> tuple[Learner, Learner]:
    """Return two sites with other rows in the same private study, of the method that the test names."""
    kind = request.param if hasattr(request, "param") else "fedavg"
    study = private_study(make_study, kind)
    return learner_of(tmp_path, study, seed=1), learner_of(tmp_path, study, seed=2)


def test_every_method_says_whether_it_can_be_private() -> None:
    """Those that can, and those that cannot, each with a reason; what is neither is refused by default."""
    assert REFUSED == ["fedala", "fedbn", "feddbe", "fedrod", "fenda", "moon", "per_fedavg", "pfedme"]
    assert all("not_private" not in (CONFIGS[kind].not_private or "not_private") for kind in REFUSED)
    assert all("not_private" in type(config).__dict__ for config in CONFIGS.values())


@pytest.mark.parametrize("two", PRIVATE, indirect=True, ids=PRIVATE)
def test_nothing_of_the_data_gets_out_under_a_clip_of_nothing(two: tuple[Learner, Learner]) -> None:
    """Two sites with other rows send the same, and keep the same of what feeds back, but for noise of 1e-12."""
    free = FREE.get(two[0].study.method.kind, ())
    assert set() == {name for name in of_data(two) if not name.startswith(free or ("none",))}


@pytest.mark.parametrize("two", sorted(FREE), indirect=True, ids=sorted(FREE))
def test_what_is_trained_without_noise_does_not_feed_back(two: tuple[Learner, Learner]) -> None:
    """It does depend on the rows, and the next update is the same to the last bit whatever it holds."""
    learner = two[0]
    free = FREE[learner.study.method.kind]
    assert any(name.startswith(free) for name in of_data(two))
    assert learner.noise is not None
    if not learner.names.shared:
        return
    kept = _after(learner)
    arrays = kept.to_arrays()
    held = {name: array for name, array in arrays.items() if name.startswith(free)}
    arrays |= add_scaled(held, {name: np.full(array.shape, 0.25) for name, array in held.items()})
    noise = replace(learner.noise, clip=1.0)
    found = [
        rounds_of(replace(learner, noise=replace(noise, entropy=repeated(3))), kept=one, numbers=(2,))[0]
        for one in (kept, Kept.from_arrays(arrays))
    ]
    sent = [{name: array for name, array in one.items() if name.startswith("sent/")} for one in found]
    assert any(np.abs(array).max() > 1e-3 for array in sent[0].values())
    np.testing.assert_equal(sent[0], sent[1])


def _after(learner: Learner) -> Kept:
    """Return what a site keeps after its first round."""
    plan = RoundPlan(study=study_digest(learner.study), run="run", site="berlin", round=1, asked=1)
    return play_round(learner, plan, Identity().encode(learner.shared), Kept()).kept


# --- the law finds leaks ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Leaking:
    """FedPer with a mistake: what is named is trained without noise."""

    leak: str

    def shared(self, model: Model) -> frozenset[str]:
        """Return every name outside the head."""
        return frozenset(model.names) - model.head

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train, and make the mistake."""
        if self.leak == "head":
            train(model, work.free, names=model.head)
        loss = train(model, work.free if self.leak == "all" else work)
        if self.leak == "memory":
            before = get_weights(model.module)
            train(model, work.free)
            memory = {"v": get_weights(model.module)["head.bias"]}
            set_weights(model.module, before)
        if self.leak == "start":
            model.module.get_parameter("backbone.layer1.0.bias").data.add_(work.examples.x.mean())
        return Outcome(memory, loss)

    def budget(self, work: LocalWork) -> Budget:
        """Return the round's work."""
        return Budget(work)

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Serve the model as it is."""
        return model.module


@pytest.mark.parametrize(
    ("leak", "where"),
    [("none", None), ("all", "sent/"), ("head", "personal/"), ("memory", "method/v"), ("start", "sent/")],
)
def test_law_finds_training_without_noise(leak: str, where: str | None, two: tuple[Learner, Learner]) -> None:
    """In what is sent, in a personal part that feeds back, and in memory; of a method without a mistake nothing."""
    found = of_data(two, _Leaking(leak))
    assert (where is None) == (not found)
    assert where is None or any(name.startswith(where) for name in found)


# --- rules and counts ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", REFUSED)
def test_study_of_a_method_that_cannot_be_private_is_refused(kind: str, make_study: MakeStudy) -> None:
    """With the method's reason, and what to choose."""
    values, why = study_values(kind, "local" if kind == "fedbn" else "freeze"), CONFIGS[kind].not_private
    assert values is not None and why is not None
    with pytest.raises(ConfigError, match=f"method '{kind}' {why}, so it cannot be combined with privacy.examples"):
        make_study(sites=["berlin"], task=TASK, privacy={"examples": {"epsilon": 3.0}}, **values)


@pytest.mark.parametrize("two", PRIVATE, indirect=True, ids=PRIVATE)
def test_round_takes_as_many_private_steps_as_it_is_charged_for(
    two: tuple[Learner, Learner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted where they are taken; `local` shares nothing, and takes none."""
    taken = list[float | None]()

    def counted(model: Model, parameters: Mapping[str, nn.Parameter], work: LocalWork) -> Iterator[Any]:
        for loss, gradients in private_gradients(model, parameters, work):
            taken.append(loss)
            yield loss, gradients

    monkeypatch.setattr("consilium.client.training.loop.private_gradients", counted)
    rounds_of(two[0], numbers=(1,))
    assert private_steps(two[0].method, two[0].work(1)) == len(taken)
    assert (0 == len(taken)) == (two[0].study.method.kind == "local")


def test_fedrep_counts_the_steps_of_head_and_backbone(two: tuple[Learner, Learner]) -> None:
    """Three passes of the head and one of everything else: four times FedAvg's steps."""
    work = two[0].work(1)
    method = FedRep(head_epochs=3)
    assert 4 * private_steps(FedAvg(), work) == private_steps(method, work)
    assert method.budget(work).per_round.num_steps == private_steps(method, work)
    assert 0 == private_steps(Local(), work)


def test_model_with_batch_norm_is_refused_at_the_site(tmp_path: Path, make_study: MakeStudy) -> None:
    """Before any round; frozen, it is taken."""
    with pytest.raises(ModelError, match="is BatchNorm, which makes every row's answer depend on the other rows"):
        learner_of(tmp_path, private_study(make_study, "fedavg", model={"name": "mlp_bn"}), seed=1)
    learner_of(tmp_path, private_study(make_study, "fedavg", model={"name": "mlp_bn", "batch_norm": "freeze"}), seed=1)
