"""By what inputs of a whole federation are scaled: one scale of all sites, fixed numbers, or each site's own."""

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeSites, MakeStudy, write_site
from federations import run
from flwr.app import Message
from paths import SHARED
from safetensors.numpy import load_file
from scales import STANDARD, moments_of, study_of, two, unscaled, write_rows
from scripted import SITES, ScriptedExchange, completed
from scripted import make_study as make_study_of_rounds
from sklearn.linear_model import LogisticRegression

from consilium.adaptation.adapt import adapt_site
from consilium.client.app import _warm
from consilium.client.flower.message import plan_of
from consilium.client.operations.doctor.data import check_scale
from consilium.common.errors import ConfigError, ModelError, StateError
from consilium.common.host.twice import write_twice
from consilium.common.model import Preprocessing, read_arrays, read_record, write_model
from consilium.common.protocol.plans import RoundPlan, ScalePlan
from consilium.common.study.load import load_site, load_study, study_text
from consilium.common.study.scale import Moments, Scale, combine, distances, joined
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import NumberColumn, TableTask
from consilium.comparison.pooled import run_pooled
from consilium.data.options import SplitOptions
from consilium.data.split import split_pool
from consilium.running.in_process import Answering

KIDNEY = SHARED / "data" / "public" / "kidney_disease.csv"


def training_rows(paths: Mapping[str, Path], study: StudyConfig) -> Any:
    """Return the training rows `(N, F)` of all sites as they stand in their files."""
    parts = [unscaled(path, study) for path in paths.values()]
    return np.concatenate([part.raw.x.numpy()[part.parts.train] for part in parts])


# --- whole federations -----------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [None, "federation"])
def test_federation_has_the_scale_of_all_its_training_rows(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, scale: str | None
) -> None:
    """NumPy over the sites' own rows in one place: in the result, the weights file and every served model."""
    sites, study = make_sites(), study_of(make_study, scale)
    rows = training_rows(sites, study)
    result = run(study, sites, tmp_path / "run")
    assert "federation" == result["scale"]["by"]
    for place, name in enumerate("ab"):
        found = result["scale"]["columns"][name]
        assert (found["mean"], found["std"]) == pytest.approx((rows[:, place].mean(), rows[:, place].std()))
    told = {name: [one[name] for one in result["scale"]["columns"].values()] for name in ("mean", "std")}
    record = read_record(tmp_path / "run" / "model").preprocessing
    assert told == {"mean": list(record.mean or ()), "std": list(record.std or ())}
    for path in sites.values():
        record = read_record(path.parent / "state" / "quick" / "run" / "models" / "personal").preprocessing
        assert told == {"mean": list(record.mean or ()), "std": list(record.std or ())}
    assert all("moments" not in facts for facts in result["sites"].values())


def test_federation_by_its_own_scale_equals_one_by_the_same_fixed_numbers(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Who takes the numbers from a result and writes them into the study gets the same weights, bit for bit."""
    first = run(study_of(make_study), make_sites(under="one"), tmp_path / "one" / "run")
    run(study_of(make_study, first["scale"]["columns"]), make_sites(under="two"), tmp_path / "two" / "run")
    one, two = (load_file(tmp_path / name / "run" / "model/weights.safetensors") for name in ("one", "two"))
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_site_that_keeps_its_sums_leaves_each_with_its_own_scale(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """By default the run goes on as with "site", bit for bit, and says so; "federation" is refused in a sentence."""
    sites = make_sites(share_class_counts=True)
    sites["lyon"].write_text("share_scale = false\n" + sites["lyon"].read_text())
    result = run(study_of(make_study), sites, tmp_path / "run")
    assert {"by": "site"} == result["scale"]
    assert result["warnings"][0] == (
        "there is no scale for all sites, so each scales its inputs by its own training rows: site 'lyon' did not "
        "share the sums of its columns (share_scale = true in its site.toml)"
    )
    run(study_of(make_study, "site"), make_sites(under="own"), tmp_path / "own" / "run")
    one, two = (load_file(tmp_path / name / "model/weights.safetensors") for name in ("run", "own/run"))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    with pytest.raises(ConfigError, match=r"site 'lyon' does not share the sums of its columns.*share_scale = true"):
        run(study_of(make_study, "federation"), sites, tmp_path / "refused")


def test_column_that_no_site_may_tell_of_leaves_no_scale(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Every site has too few training rows to tell: own scales by default, an error where one was asked for."""
    sites = make_sites({"berlin": 14, "lyon": 13})
    settings = {"sites": ["berlin", "lyon"], "min_examples": 10, "split": {"test": 0.3, "validation": 0.2}}
    result = run(study_of(make_study, **settings), sites, tmp_path / "run")
    assert "no site has 10 training rows in which 'a' is known" in result["warnings"][0]
    with pytest.raises(ConfigError, match=r"no site has 10 training rows in which 'a' is known, .*; mend that"):
        run(study_of(make_study, "federation", **settings), sites, tmp_path / "refused")


def telling(moments: Moments) -> Any:
    """Return what makes a scripted site tell these sums."""

    def alter(answer: Any) -> Any:
        card = answer.reply.card.model_copy(update={"moments": moments})
        return replace(answer, reply=answer.reply.model_copy(update={"card": card}))

    return alter


def test_late_joiner_scales_as_the_others_do(tmp_path: Path) -> None:
    """A site that comes in round 2 is told the scale that was settled without it, though it would change the mean."""
    task = TableTask(classes=("no", "yes"), label="ill", columns={"a": NumberColumn()})

    first, second, late = SITES
    exchange = ScriptedExchange(online=frozenset({first, second}))
    values = {first: [1.0, 3.0], second: [5.0], late: [900.0]}
    script: dict[tuple[str, int, str], Any] = {
        ("handshake", 0, site): telling(moments_of(of)) for site, of in values.items()
    }

    def arrive(answer: Any) -> Any:
        exchange.online = frozenset(SITES)
        return answer

    exchange.script = {**script, ("round", 1, first): arrive}
    study = make_study_of_rounds(tmp_path, exchange, task=task, min_sites=2, quorum=2)
    result = completed(study)
    told = {plan.site: plan.scale for plan in exchange.asked if isinstance(plan, ScalePlan) and plan.scale is not None}
    assert set(SITES) == set(told)
    for scale in told.values():
        assert 3.0 == scale.mean[0]
    assert pytest.approx(math.sqrt(8 / 3)) == scale.std[0]
    assert {"mean": told[late].mean[0], "std": told[late].std[0]} == result["scale"]["columns"]["a"]
    assert sorted(SITES) == result["rounds"][1]["accepted"]


def test_restarted_sites_scale_as_before(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """A site that forgets everything at every message has the weights of one that remembers, by its state folder."""
    study, sites = study_of(make_study), make_sites(under="two")
    run(study, make_sites(under="one"), tmp_path / "one" / "run")

    def forgetful(site: str, message: Message, answering: Answering) -> Message | None:
        _warm.clear()
        return answering(message)

    run(study, sites, tmp_path / "two" / "run", deliver=forgetful)
    one, two = (load_file(tmp_path / name / "run" / "model/weights.safetensors") for name in ("one", "two"))
    assert all(np.array_equal(one[name], two[name]) for name in one)


class Stopped(BaseException):
    """The server's process ends here."""


def stopped_in(number: int) -> Any:
    """Return a delivery in which the server stops in a round."""

    def stopping(site: str, message: Message, answering: Answering) -> Message | None:
        plan, _ = plan_of(message)
        if isinstance(plan, RoundPlan) and plan.round == number:
            raise Stopped
        return answering(message)

    return stopping


def test_scale_that_was_settled_is_not_settled_anew(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """A server that stops before round 1 goes on with what it wrote down, whatever the sites tell by then."""
    study, sites, folder = study_of(make_study), make_sites(), tmp_path / "run"
    with pytest.raises(Stopped):
        run(study, sites, folder, deliver=stopped_in(1))
    kept = json.loads((folder / "scale.json").read_text())
    kept["scale"]["mean"] = [4.0, 5.0]  # as if other sites had been there at first
    write_twice(folder / "scale.json", json.dumps(kept).encode())
    columns = run(study, sites, folder)["scale"]["columns"]
    assert [4.0, 5.0] == [column["mean"] for column in columns.values()]


def test_resumed_run_keeps_its_scale(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """What was settled at the start holds after a restart, and without the file no run goes on."""
    study, sites, folder = study_of(make_study), make_sites(), tmp_path / "run"
    with pytest.raises(Stopped):
        run(study, sites, folder, deliver=stopped_in(2))
    kept = (folder / "scale.json").read_bytes()
    (folder / "scale.json.copy").unlink()
    (folder / "scale.json").unlink()
    with pytest.raises(StateError, match=r"scale\.json' is gone, by which this run scales its inputs"):
        run(study, sites, folder)
    (folder / "scale.json").write_bytes(kept)
    told: list[ScalePlan] = []

    def listening(site: str, message: Message, answering: Answering) -> Message | None:
        plan, _ = plan_of(message)
        told.extend([plan] if isinstance(plan, ScalePlan) else [])
        return answering(message)

    run(study, sites, folder, deliver=listening)
    assert 3 == len(told)
    assert {json.loads(kept)["scale"]["mean"][0]} == {plan.scale.mean[0] for plan in told if plan.scale is not None}


# --- a site that spoils the scale of all -----------------------------------------------------------


def usual(low: float) -> list[float]:
    """Return 20 numbers, half of them `low` and half of them 2 above: mean low + 1, std 1."""
    return [low, low + 2] * 10


@pytest.mark.parametrize(
    ("sites", "expected"),
    [
        ([usual(0), usual(0), usual(0)], [1.0, 1.0, 1.0]),
        ([usual(0), usual(0), usual(30)], [1.0, 1.0, math.sqrt(1 + 30**2)]),
        ([usual(0), usual(0), [-49.0, 51.0] * 10], [1.0, 1.0, 50.0]),
        ([usual(0), usual(0), usual(0), usual(1e6), usual(-1e6)], [1.0, 1.0, 1.0, 1e6, 1e6]),
        ([usual(0), [-49.0, 51.0] * 10], [1 / 50, 50.0]),
        ([usual(0), usual(10)], [math.sqrt(101), math.sqrt(101)]),
        ([[5.0] * 10, [5.0] * 10, usual(9)], [0.0, 0.0, 0.0]),
        ([usual(3)], [1.0]),
        ([], []),
    ],
)
def test_distance_of_a_site_is_in_units_of_the_others(sites: list[list[float]], expected: list[float]) -> None:
    """Root mean squares from the median of the means, by hand; a minority moves neither, and a constant has no unit."""
    told = [moments_of(site) for site in sites]
    found = distances([(one.counts[0], one.sums[0], one.squares[0]) for one in told])
    assert expected == pytest.approx(found, rel=1e-6)


def test_site_that_would_spoil_the_scale_of_all_is_named(tmp_path: Path) -> None:
    """More than 20 times as far off as usual is a warning with the worst column; 20 is none, nor is an untold column.

    Here `a` of the third site spreads more and more, and from 20.1 on its `b` is in another unit.
    """
    task = TableTask(classes=("no", "yes"), label="ill", columns={"a": NumberColumn(), "b": NumberColumn()})
    told = "site 'paris': its values of 'b' (and 1 more) lie 999 times as far from what is usual as other sites'"
    for spread, expected in ((20.0, []), (20.1, [told])):
        last = two([1 - spread, 1 + spread] * 10, [] if spread == 20 else usual(999))
        sums = {SITES[0]: two(usual(0), usual(0)), SITES[1]: two(usual(0), usual(0)), SITES[2]: last}
        exchange = ScriptedExchange({("handshake", 0, site): telling(of) for site, of in sums.items()})
        result = completed(make_study_of_rounds(tmp_path / str(spread), exchange, task=task))
        assert expected == [warning.partition(": by one scale")[0] for warning in result["warnings"]]


def test_late_site_that_is_far_off_is_named_when_it_joins(tmp_path: Path) -> None:
    """It cannot spoil the scale any more, but the numbers that its own model is given are none that others know."""
    task = TableTask(classes=("no", "yes"), label="ill", columns={"a": NumberColumn()})
    exchange = ScriptedExchange(online=frozenset(SITES[:2]))

    def arrive(answer: Any) -> Any:
        exchange.online = frozenset(SITES)
        return answer

    sums = {SITES[0]: usual(0), SITES[1]: usual(0), SITES[2]: usual(500)}
    exchange.script = {("handshake", 0, site): telling(moments_of(of)) for site, of in sums.items()}
    exchange.script |= {("round", 1, SITES[0]): arrive}
    result = completed(make_study_of_rounds(tmp_path, exchange, task=task, min_sites=2, quorum=2))
    (warning,) = result["warnings"]
    assert warning.startswith("site 'paris': its values of 'a' lie 500 times as far from what is usual")


# --- where it matters ------------------------------------------------------------------------------


def shifted_sites(tmp_path: Path, *, rows: int = 150) -> dict[str, Path]:
    """Write three sites with 10, 50 and 90 % sick, in whom `a` is larger by what no noise hides; `b` is noise."""
    paths = {}
    for number, (name, sick) in enumerate({"berlin": 0.1, "lyon": 0.5, "porto": 0.9}.items()):
        generator = np.random.default_rng(number)
        ill = np.arange(rows) < sick * rows
        a = 100 + 30 * ill + generator.normal(scale=5, size=rows)
        b = generator.normal(scale=5, size=rows)
        paths[name] = write_site(tmp_path / name, name, share_class_counts=True)
        table = [(x, y, "yes" if label else "no") for x, y, label in zip(a, b, ill, strict=True)]
        write_rows(paths[name].parent / "data.csv", "a,b,ill", table)
    return paths


def right_of(result: Any) -> float:
    """Return the global model's accuracy, the mean over the sites."""
    counts = [facts["test"] for facts in result["sites"].values()]
    return float(np.mean([count["global_"] / count["num_test"] for count in counts]))


def logistic(data: list[Any]) -> float:
    """Return the accuracy, mean over the sites, of scikit-learn's logistic regression on all their scaled rows."""
    x, y = (np.concatenate([getattr(one.train, part).numpy() for one in data]) for part in "xy")
    model = LogisticRegression(max_iter=5000).fit(x, y)
    return float(np.mean([model.score(one.test.x.numpy(), one.test.y.numpy()) for one in data]))


def test_one_scale_keeps_what_own_scales_take_out(tmp_path: Path, make_study: MakeStudy) -> None:
    """Where a disease is rare at one site and usual at another: FedAvg by one scale is near the best model there is.

    The oracle is scikit-learn on the same rows, scaled by NumPy's numbers: about 1.0 by one scale, far less by each
    site's own, because a site's mean then says how frequent the disease is there and nothing of a patient.
    """
    sites = shifted_sites(tmp_path)
    settings = {"model": {"name": "linear"}, "rounds": 10, "training": {"epochs": 2, "learning_rate": 0.3}}
    one, own = (study_of(make_study, scale, **settings) for scale in ("federation", "site"))
    rows = training_rows(sites, one)
    scale = Scale(mean=tuple(rows.mean(axis=0)), std=tuple(rows.std(axis=0)))
    by_one = logistic([unscaled(path, one).scaled(scale) for path in sites.values()])
    by_own = logistic([unscaled(path, own).scaled(None) for path in sites.values()])
    assert by_one > 0.97 > 0.9 > by_own
    found, found_own = run(one, sites, tmp_path / "one"), run(own, sites, tmp_path / "own")
    assert by_one - 0.03 < right_of(found)
    assert by_own + 0.05 > right_of(found_own)
    (sentence,) = [text for text in found_own["warnings"] if "centred" in text]
    assert sentence.startswith("'no' is 10% of the examples at site 'porto' and 90% at site 'berlin': with task.scale")
    assert not [text for text in found["warnings"] if "centred" in text]


@pytest.mark.skipif(not KIDNEY.is_file(), reason="the file of chronic kidney disease is not on this machine")
def test_chronic_kidney_disease_needs_one_scale(tmp_path: Path) -> None:
    """400 patients over three sites by Dirichlet: logistic regression 1.000 by one scale, .585 by each site's own.

    FedAvg of the same linear model follows the oracle on both sides.
    """
    with KIDNEY.open(newline="") as file:
        rows = [row[1:] for row in csv.reader(file)]  # without the number of the row
    pool = tmp_path / "kidney_disease.csv"
    with pool.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    split_pool(pool, tmp_path / "sites", SplitOptions(by="dirichlet", sites=3, label="classification", seed=42))
    drawn = load_study(tmp_path / "sites" / "study.toml")
    sites = {
        name: write_site(tmp_path / "sites" / name, name, data="data", kind="table", test_readings=2)
        for name in drawn.sites
    }
    found = {}
    for scale in ("federation", "site"):
        values = json.loads(drawn.model_dump_json())
        values |= {"model": {"name": "linear"}, "rounds": 20}
        values["training"] |= {"learning_rate": 0.1, "epochs": 1, "steps": None}
        values["task"]["scale"] = scale
        study = StudyConfig.model_validate(values)
        data = [unscaled(path, study) for path in sites.values()]
        given_scale = None if scale == "site" else joined([one for one in combine([d.moments() for d in data]) if one])
        scaled = [one.scaled(given_scale) for one in data]
        oracle = logistic(scaled)
        found[scale] = oracle, right_of(run(study, sites, tmp_path / scale))
    assert 1.0 == found["federation"][0]
    assert pytest.approx(0.585, abs=5e-4) == found["site"][0]
    assert found["federation"][1] > 0.97
    assert found["site"][1] < 0.8


@pytest.mark.parametrize("scale", [None, "site"])
def test_pooled_model_has_one_scale_whatever_the_sites_have(
    tmp_path: Path, make_study: MakeStudy, scale: str | None
) -> None:
    """The baseline of all rows in one place is not handicapped by per-site scales, and says what it did."""
    sites = shifted_sites(tmp_path)
    settings = {"model": {"name": "linear"}, "rounds": 10, "training": {"epochs": 2, "learning_rate": 0.3}}
    outcome = run_pooled(study_of(make_study, scale, **settings), sites)
    right = [(one["pooled"].astype(np.float64).ravel() > 0) == one["labels"] for one in outcome.answers.values()]
    assert np.concatenate(right).mean() > 0.95
    assert "all training rows" == outcome.scale


# --- adapt and doctor ------------------------------------------------------------------------------


def test_adapt_takes_the_scale_of_the_federations_model(tmp_path: Path, make_study: MakeStudy) -> None:
    """At a new hospital with nearly all sick the federated model is right from the start, by the federation's numbers.

    From a folder that tells no scale it is not, and a note says that the site's own numbers were taken.
    """
    settings = {"model": {"name": "linear"}, "rounds": 10, "training": {"epochs": 2, "learning_rate": 0.3}}
    study = study_of(make_study, **settings)
    run(study, shifted_sites(tmp_path), tmp_path / "run")
    new = write_site(tmp_path / "wien", "wien")
    table = [(130 + n % 21 - 10 if n % 40 else 100, n % 5, "yes" if n % 40 else "no") for n in range(200)]
    write_rows(new.parent / "data.csv", "a,b,ill", table)
    (new.parent / "study.toml").write_text(study_text(study))
    model = tmp_path / "run" / "model"
    result = adapt_site(new, model=model, steps=0).as_json()
    assert result["num_test"] == result["starts"]["federated"]["right"][0]
    assert [] == result["notes"]
    record, bare = read_record(model), tmp_path / "bare"
    without = record.model_copy(update={"preprocessing": Preprocessing(known=False)})
    write_model(bare, without, read_arrays(model))
    other = adapt_site(new, model=bare, steps=0).as_json()
    assert other["starts"]["federated"]["right"][0] < other["num_test"]
    assert ["the inputs are scaled by this site's own training rows: the folder names no scale of all sites"] == (
        other["notes"]
    )
    wrong = record.model_copy(update={"preprocessing": Preprocessing(mean=(0.0,), std=(1.0,))})
    write_model(bare, wrong, read_arrays(model))
    with pytest.raises(ModelError, match="preprocessing is of 1 features, the task has 2"):
        adapt_site(new, model=bare, steps=0)


@pytest.mark.parametrize(
    ("scale", "share", "status", "said"),
    [
        (None, True, "PASS", "leaves this site, once a run: count, sum and sum of squares of 2 number columns"),
        (None, False, "WARN", "this site keeps to itself"),
        ("federation", False, "FAIL", "task.scale = 'federation' needs"),
        ("site", True, "WARN", "by this site's own training rows"),
        ({"a": STANDARD, "b": STANDARD}, True, "PASS", "by fixed numbers of the study"),
    ],
)
def test_site_check_says_by_what_inputs_are_scaled_and_what_leaves_for_it(
    make_sites: MakeSites, make_study: MakeStudy, scale: Any, share: bool, status: str, said: str
) -> None:
    """Before the first run: what leaves, what is refused, and what per-site scales can cost."""
    config = load_site(make_sites({"berlin": 40}, share_scale=share)["berlin"])
    found = check_scale(config, study_of(make_study, scale))
    assert (status, True) == (found.status, said in found.message), found
    assert (ConfigError if status == "FAIL" else None) is found.error
