"""The studies of the demo: a private one is among those that its report compares."""

from dataclasses import replace
from pathlib import Path

import pytest

from consilium.common.study.study import StudyConfig
from consilium.data.federation import Federation
from consilium.demo.options import DemoOptions
from consilium.demo.scenario import EPSILON, make_federation, make_studies


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Return the hospitals of the digits."""
    return make_federation(DemoOptions(), tmp_path_factory.mktemp("hospitals"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file in the place of pretrained weights; nobody reads it before a run."""
    path = tmp_path_factory.mktemp("weights") / "some.safetensors"
    path.write_bytes(b"weights")
    return path


def private_of(options: DemoOptions, federation: Federation, weights: Path | None) -> list[StudyConfig]:
    """Return the private studies of a demo, whose labels name their budget."""
    others = make_studies(options, federation, weights).others
    return [study for label, study in others.items() if f"epsilon {EPSILON:g}" in label]


def test_demo_compares_a_private_study(federation: Federation, weights: Path) -> None:
    """It promises each patient its budget, and trains the head alone on a network that stays as it is."""
    (study,) = private_of(DemoOptions(), federation, weights)
    assert study.privacy.examples is not None and EPSILON == study.privacy.examples.epsilon
    assert ("head", "freeze", "demo-digits-private") == (study.model.trainable, study.model.batch_norm, study.name)


def test_private_study_can_be_run_whatever_the_demo_is_asked_for(federation: Federation, weights: Path) -> None:
    """A method and a weighting that cannot be private are the main study's alone."""
    asked = replace(DemoOptions(), method="moon", weighting="size,loss")
    (study,) = private_of(asked, federation, weights)
    assert ("fedavg", None) == (study.method.kind, study.weighting)


def test_nothing_is_private_without_pretrained_weights_or_comparisons(federation: Federation, weights: Path) -> None:
    """A head on random features learns nothing under noise."""
    assert [] == private_of(DemoOptions(), federation, None)
    assert [] == private_of(replace(DemoOptions(), compare=False), federation, weights)
