"""Methods that train otherwise than the study says so, and take the same effective step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparing import SETTINGS, SIZES, console, options, write_sites
from conftest import MakeStudy
from PIL import Image

from consilium.common.study.study import StudyConfig
from consilium.comparison.compare import compare
from consilium.comparison.plan import budget_of
from consilium.comparison.rows import LOCAL, OWN
from consilium.comparison.studies import make_variants
from consilium.comparison.variants import Spec, Variant, vary

pytestmark = pytest.mark.usefixtures("few_trees")


@pytest.fixture
def study(make_study: MakeStudy) -> StudyConfig:
    """Return a quick study of them."""
    training = {"epochs": 1, "learning_rate": 0.05, "momentum": 0.9}
    return make_study(**SETTINGS | {"training": training})


def variant(study: StudyConfig, kind: str, **settings: Any) -> Variant:
    """Return the study of one method."""
    (found,) = vary(study, methods=[Spec(kind)], **settings)
    assert isinstance(found, Variant)
    return found


@pytest.mark.parametrize("kind", ["scaffold", "apfl", "pfedme", "per_fedavg"])
def test_plain_sgd_takes_the_step_that_momentum_takes(kind: str, study: StudyConfig) -> None:
    """Under a constant gradient torch's SGD with momentum moves, in the long run, as plain SGD at the matched rate."""
    found = variant(study, kind)
    training = found.study.training
    assert (training.optimiser, training.momentum) == ("sgd", 0.0)
    assert training.learning_rate == pytest.approx(0.5)
    assert found.note == "plain SGD, step matched: 0.05 with momentum 0.9 -> 0.5"
    moved = []
    for settings in (study.training, training):
        weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.SGD([weight], lr=settings.learning_rate, momentum=settings.momentum)
        for _ in range(3000):
            weight.grad = torch.ones_like(weight)
            optimiser.step()
        moved.append(weight.item())
    assert moved[1] == pytest.approx(moved[0], rel=0.01)


def test_rate_is_kept_where_that_is_asked_for_and_said(study: StudyConfig, tmp_path: Path) -> None:
    """From the command line's option to the variant; other methods have neither note nor other training."""
    kept = variant(study, "apfl", keep_rate=True)
    assert kept.study.training.learning_rate == 0.05
    assert kept.note == "plain SGD, without momentum 0.9, rate kept: 0.05"
    asked = options(tmp_path, study, tmp_path, methods="apfl,fedper", keep_rate=True)
    notes = {one.label: (one.note, one.study.training.learning_rate) for one in make_variants(study, asked)[0]}
    assert notes["apfl"] == (kept.note, 0.05)
    assert notes["fedper"] == ("", 0.05)


def test_each_rate_that_is_tried_is_matched(study: StudyConfig) -> None:
    """The grid of rates is as wide for methods of plain SGD as for the others."""
    found = [one for one in vary(study, methods=[Spec("apfl")], learning_rates=[0.01, 0.1]) if isinstance(one, Variant)]
    assert [one.study.training.learning_rate for one in found] == pytest.approx([0.1, 1.0])
    assert [one.label for one in found] == ["apfl + lr 0.01", "apfl + lr 0.1"]


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"momentum": 0.0}, ""),
        ({"momentum": 0.0, "weight_decay": 0.01}, "plain SGD, without weight decay 0.01"),
        ({"optimiser": "adam"}, "plain SGD, the rate 0.05 was for Adam: try --learning-rates"),
    ],
)
def test_what_else_a_method_changes_is_said(change: dict[str, Any], note: str, study: StudyConfig) -> None:
    """No momentum, no other rate; weight decay goes; Adam's rate says nothing of SGD's."""
    found = variant(study.model_copy(update={"training": study.training.model_copy(update=change)}), "apfl")
    assert found.note == note
    assert found.study.training.learning_rate == 0.05


def test_note_is_in_the_table_and_on_the_page(study: StudyConfig, tmp_path: Path) -> None:
    """Beside the method's name; the number of candidates beside what was chosen."""
    folder = write_sites(tmp_path / "f")
    report = compare(options(folder, study, tmp_path / "out", methods="apfl"), console())
    line, own = report.line("apfl"), report.line(OWN)
    assert line is not None and own is not None
    assert line.row.note == "plain SGD, step matched: 0.05 with momentum 0.9 -> 0.5"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "step matched: 0.05 with momentum 0.9 -&gt; 0.5" in page
    assert own.row.among == 3 + 4  # who joins; local-only, with fine-tuning's and APFL's budget, and the usual tools


def test_study_with_adam_is_fine_tuned_by_plain_sgd_joined_and_alone(make_study: MakeStudy, tmp_path: Path) -> None:
    """28 x 28 images, Adam at 0.001: Adam at fine-tuning's 0.01 would spoil what was learned; it does not."""
    generator = np.random.default_rng(0)
    shapes = generator.normal(size=(2, 28, 28))
    for site in SIZES:
        for number, name in enumerate(("cat", "dog")):
            folder = tmp_path / "f" / site / "data" / name
            folder.mkdir(parents=True)
            for image in range(30):
                pixels = 128 + 25 * shapes[number] + 40 * generator.normal(size=(28, 28))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{image}.png")
    study = make_study(
        sites=list(SIZES),
        rounds=4,
        task={"kind": "images", "classes": ["cat", "dog"], "size": 28, "channels": 1},
        model={"name": "small_cnn"},
        training={"epochs": 2, "batch_size": 8, "optimiser": "adam", "learning_rate": 0.001},
        split={"test": 0.4, "validation": 0.2},
    )
    tuned = study.model_copy(update={"method": variant(study, "fine_tune").study.method})
    serving = budget_of(tuned)[1]
    assert isinstance(serving, tuple)
    assert ("sgd", 0.01) == serving[2:4]
    report = compare(options(tmp_path / "f", study, tmp_path / "out", methods="fine_tune"), console())
    line, fedavg, local = (report.line(name) for name in ("FedAvg + fine-tuning", "FedAvg", LOCAL))
    assert line is not None and fedavg is not None and local is not None
    worst = [one.numbers.over["worst site"] for one in (line, fedavg)]
    assert worst[0] is not None and worst[1] is not None
    assert worst[0].value >= worst[1].value - 0.1
    assert "hurts" not in {kind for kind, _ in report.headlines.values()}
