"""Ways around the promise of a private study that were tried, and are closed."""

import numpy as np
import pytest
import torch
from conftest import MakeSites, MakeStudy
from private_sites import TASK, alone, asked, begun, ledger_of, private, weights_of

from consilium.client.site.site import Site
from consilium.client.training.layered_rows import LayerRows
from consilium.common.errors import ProtocolError, UpdateRejected
from consilium.common.protocol.plans import HandshakePlan
from consilium.common.study.load import load_site

SGD = {"batch_size": 8, "learning_rate": 1.0, "momentum": 0.0}


def test_failed_round_is_charged_again_when_it_is_drawn_again(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """The server is told that training was not finite, which hangs on the noise: each further draw costs."""
    path, _ = alone(make_sites, make_study)
    study = private(make_study, sites=["berlin"], training={**SGD, "steps": 12, "weight_decay": 2000.0})
    site = Site(load_site(path), study)
    begun(site, study)
    charged = []
    for _ in range(3):
        with pytest.raises(UpdateRejected):
            site.answer(asked(study), weights_of(site))
        charged.append(len(ledger_of(path)))
    assert [1, 2, 3] == charged


def test_number_of_rows_is_not_compared_without_noise(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Of 120 rows and 200 that are declared, `min_examples` 121 sees only the 200: else it would count the rows."""
    path, _ = alone(make_sites, make_study, declared_examples=200)
    for least in (120, 121):
        assert Site(load_site(path), private(make_study, sites=["berlin"], min_examples=least)).facts.card


def test_numbers_are_charged_before_a_round_tells_them(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """A round whose run's handshake was refused after the study was written down charges what its reply announces."""
    path, study = alone(make_sites, make_study, {"epsilon": 3.0}, declared_examples=None)
    site = Site(load_site(path), study)
    site._folder(HandshakePlan(run="run", site="berlin", study=study)).save_study(study)
    site.answer(asked(study), weights_of(site))
    assert "number of patients" in [one.what for one in ledger_of(path)]


def test_memory_of_one_method_is_not_sent_by_another(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Ditto's own model has no noise, and mr_mtl would send it under the same run's name: the run keeps its study."""
    path, _ = alone(make_sites, make_study)
    training = {**SGD, "steps": 3}
    one, other = (
        private(make_study, {"noise": 500.0}, sites=["berlin"], training=training, method={"kind": kind, "lam": 0.0})
        for kind in ("ditto", "mr_mtl")
    )
    site = Site(load_site(path), one)
    begun(site, one)
    site.answer(asked(one), weights_of(site))
    with pytest.raises(ProtocolError, match="run 'run' has trained another study"):
        begun(Site(load_site(path), other), other)


@pytest.mark.parametrize("more", ["", "500.0,0.0,yes\n"])
def test_row_far_from_the_scale_is_no_reason_to_refuse(make_sites: MakeSites, make_study: MakeStudy, more: str) -> None:
    """A standard deviation of 1e-36 would ask whether a value is above 340: with and without one the site answers."""
    path, _ = alone(make_sites, make_study)
    scale = {"a": {"mean": 0.0, "std": 1e-36}, "b": {"mean": 0.0, "std": 1.0}}
    file = path.parent / "data.csv"
    file.write_text(file.read_text() + more)
    study = private(make_study, sites=["berlin"], task={**TASK, "scale": scale})
    site = Site(load_site(path), study)
    begun(site, study)
    assert torch.isfinite(site.learner.data.train.x).all()


@pytest.mark.parametrize("more", [[], ["12.345678,9.8765432,yes"]])
def test_row_of_the_common_test_set_is_no_reason_to_refuse(
    make_sites: MakeSites, make_study: MakeStudy, more: list[str]
) -> None:
    """The coordinator puts one person's row into it: a site that has that person answers as one that has not."""
    path, _ = alone(make_sites, make_study)
    file, common = path.parent / "data.csv", path.parent / "common.csv"
    common.write_text("a,b,ill\n12.345678,9.8765432,yes\n1.5,2.5,no\n0.25,0.75,yes\n")
    file.write_text("\n".join([*file.read_text().splitlines(), *more]) + "\n")
    config = load_site(path)
    config = config.model_copy(update={"data": config.data.model_copy(update={"test": common})})
    study = private(make_study, sites=["berlin"], task={**TASK, "test": "common.csv"})
    assert begun(Site(config, study), study).card.num_test == 3


def test_tiny_errors_do_not_hide_a_long_gradient() -> None:
    """An error of 1e-30 on an input of 1e30 is a gradient of length 1; in float32 the error's square is 0."""
    rows = LayerRows(torch.tensor([[1e-30]]), torch.tensor([[1e30]]), weight=True, bias=False)
    assert np.isclose(1.0, rows.squares().item())
