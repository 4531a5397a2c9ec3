"""Codecs in a federation: both directions, restarts, sites that miss rounds, and what is told of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeSites, MakeStudy
from flwr.app import Error, Message
from safetensors.numpy import load_file

from consilium.client.app import _warm
from consilium.client.flower.message import plan_of
from consilium.client.site.kept import Kept
from consilium.common.codecs import CODECS, build_chain
from consilium.common.errors import ConfigError
from consilium.common.protocol.plans import RoundPlan, study_digest
from consilium.common.study.study import StudyConfig
from consilium.running.in_process import Answering, run_in_process
from consilium.server.study.checkpoint import load_checkpoint

SMALL = [{"kind": "int8"}, {"kind": "zstd"}]
TOPK = [{"kind": "top_k", "fraction": 0.3}, {"kind": "zstd"}]
EXACT = [{"kind": "integer_delta"}, {"kind": "zstd"}]


def result_of(folder: Path) -> dict[str, Any]:
    """Return a run's result."""
    found: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return found


def weights_of(folder: Path) -> dict[str, Any]:
    """Return a run's final weights."""
    return load_file(folder / "model/weights.safetensors")


def run(study: StudyConfig, sites: dict[str, Path], folder: Path, **options: Any) -> dict[str, Any]:
    """Run a federation and return its result."""
    run_in_process(study, sites, folder, **options)
    return result_of(folder)


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize("link", ["uplink", "downlink"])
def test_codec_runs_in_a_federation(
    kind: str, link: str, tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Every stage alone, up and down: training goes on, and what was lost is told."""
    study = make_study(**{link: [{"kind": kind}]}, rounds=4)
    rounds = run(study, make_sites(), tmp_path / "run")["rounds"]
    losses = [np.mean([site["metrics"]["global.loss"] for site in each["sites"].values()]) for each in rounds]
    assert losses[-1] < losses[0]
    lossless = build_chain(getattr(study, link)).lossless or kind == "low_rank"  # these matrices gain nothing by it
    for each in rounds[1:]:
        told = [site["metrics"].get("uplink.nmse") for site in each["sites"].values()]
        lost = told if link == "uplink" else [each["downlink_nmse"]]
        assert all((value == 0) if lossless else (0 < value < 1) for value in lost), lost
        assert (link == "uplink") == (told[0] is not None)


@pytest.mark.parametrize("links", [{"uplink": EXACT}, {"downlink": EXACT}, {"uplink": EXACT, "downlink": EXACT}])
def test_lossless_codecs_change_no_bit(
    links: dict[str, Any], tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """The global weights are those of a run without codecs, bit for bit."""
    run(make_study(), make_sites(under="plain"), tmp_path / "plain")
    run(make_study(**links), make_sites(under="coded"), tmp_path / "coded")
    assert (tmp_path / "plain/model/weights.safetensors").read_bytes() == (
        tmp_path / "coded/model/weights.safetensors"
    ).read_bytes()


def test_codecs_up_and_down_end_near_the_run_without_them(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """int8 both ways: the weights differ by little, relative to how far training went."""
    plain, coded = tmp_path / "plain", tmp_path / "coded"
    run(make_study(rounds=6), make_sites(under="plain"), plain)
    run(make_study(rounds=6, uplink=SMALL, downlink=SMALL), make_sites(under="coded"), coded)
    apart = np.sqrt(sum(float(np.sum((weights_of(plain)[n] - weights_of(coded)[n]) ** 2)) for n in weights_of(plain)))
    norm = np.sqrt(sum(float(np.sum(array**2)) for array in weights_of(plain).values()))
    assert 0 < apart < 0.02 * norm


@pytest.mark.parametrize("links", [{"uplink": TOPK}, {"downlink": SMALL}, {"uplink": TOPK, "downlink": SMALL}])
def test_restart_of_server_and_sites_equals_no_restart(
    links: dict[str, Any], tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Residuals, held weights and the codec's memory are on disk: stopped in round 3, continued, equal bits."""
    study = make_study(rounds=5, **links)
    run(study, make_sites(under="one"), tmp_path / "one" / "run")
    sites = make_sites(under="two")

    def stopping(site: str, message: Message, answering: Answering) -> Message | None:
        plan = plan_of(message)[0]
        if isinstance(plan, RoundPlan) and plan.round == 3 and site == "porto":
            raise KeyboardInterrupt
        return answering(message)

    with pytest.raises(KeyboardInterrupt):
        run(study, sites, tmp_path / "two" / "run", deliver=stopping)
    _warm.clear()
    run(study, sites, tmp_path / "two" / "run")
    one, two = (tmp_path / name / "run" / "model/weights.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_site_that_missed_a_round_gets_the_weights_in_full(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Porto fails in round 2; in round 3 it gets what the others hold, in full, and from then on differences again."""
    study = make_study(rounds=5, quorum=2, downlink=SMALL)
    bases: dict[tuple[int, str], int | None] = {}

    def deliver(site: str, message: Message, answering: Answering) -> Message | None:
        plan = plan_of(message)[0]
        if isinstance(plan, RoundPlan):
            bases[plan.round, site] = plan.base
            if (plan.round, site) == (2, "porto"):
                return Message(Error(code=0, reason="lost"), reply_to=message)
        return answering(message)

    run(study, make_sites(), tmp_path / "run", deliver=deliver)
    assert [None, 1, 2, 3, 4] == [bases[number, "berlin"] for number in range(1, 6)]
    assert [None, 1, None, 3, 4] == [bases[number, "porto"] for number in range(1, 6)]


def test_site_that_lost_its_state_is_told_in_full_after_one_round(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Without the weights that the difference is from, a site cannot take part in that round, and does in the next."""
    study, sites = make_study(rounds=4, quorum=2, downlink=SMALL), make_sites(on_lost_state="start_anew")

    def deliver(site: str, message: Message, answering: Answering) -> Message | None:
        plan = plan_of(message)[0]
        if isinstance(plan, RoundPlan) and (plan.round, site) == (2, "porto"):
            for file in (sites["porto"].parent / "state").rglob("*"):
                if file.is_file():
                    file.unlink()
        return answering(message)

    rounds = run(study, sites, tmp_path / "run", deliver=deliver)["rounds"]
    assert [{}, {"porto": "failure"}, {}, {}] == [each["rejected"] for each in rounds]


def test_all_sites_of_a_round_train_from_the_same_weights(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """What the sites keep as held is what the checkpoint holds, at every site, to the last bit."""
    sites = make_sites()
    study = make_study(rounds=3, downlink=[{"kind": "int4"}])
    run(study, sites, tmp_path / "run")
    state = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors", study_digest=study_digest(study))
    assert frozenset(sites) == state.holders
    for path in sites.values():
        arrays = load_file(path.parent / "state" / "quick" / "run" / "round-000003.safetensors")
        held = Kept.from_arrays(arrays).held
        assert held is not None and 3 == held.round
        np.testing.assert_equal(dict(state.held), dict(held.weights))
    assert any(not np.array_equal(array, state.weights[name]) for name, array in state.held.items())


def test_codecs_save_bytes(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """int4 up and down of a model with 4,000 weights: less than a fifth of the bytes from the second round on."""
    model = {"name": "mlp", "hidden": [60, 60]}
    links = {"uplink": [{"kind": "int4"}], "downlink": [{"kind": "int4"}]}
    plain = run(make_study(model=model), make_sites(under="plain"), tmp_path / "plain")["rounds"][2]
    coded = run(make_study(model=model, **links), make_sites(under="coded"), tmp_path / "coded")["rounds"][2]
    for direction in ("bytes_up", "bytes_down"):
        assert 0 < coded[direction] < plain[direction] / 3


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"uplink": [{"kind": "zstd"}, {"kind": "int8"}]}, "uplink: what acts on bytes must be the last of a chain"),
        ({"downlink": [{"kind": "int8"}, {"kind": "int8"}]}, "downlink: a stage may occur once in a chain"),
        ({"uplink": [{"kind": "integer_delta"}, {"kind": "top_k"}]}, "uplink: what writes codes must be the last"),
        ({"uplink": [{"kind": "zip"}]}, "uplink.0: there is no kind 'zip'"),
        (
            {"downlink": SMALL, "weighting": {"factors": [{"kind": "auto"}]}},
            "send arrays along with the weights, which a downlink codec does not",
        ),
        ({"uplink": SMALL, "weighting": {"factors": [{"kind": "fedce"}]}}, "lossless links only"),
    ],
)
def test_links_that_cannot_be_are_refused(settings: dict[str, Any], sentence: str, make_study: MakeStudy) -> None:
    """When the study is read, with a sentence."""
    with pytest.raises(ConfigError) as caught:
        make_study(**settings)
    assert sentence in str(caught.value)
