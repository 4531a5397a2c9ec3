"""By what inputs are scaled: one scale of all sites, fixed numbers, or each site's own; told, settled and kept."""

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeSites, MakeStudy, settled_scale, write_site
from deployed import doses_study, running_server, start_site, write, write_patients
from deployed import run as run_command
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as st
from paths import SHARED
from PIL import Image
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression
from test_rounds import CARD, SITES, ScriptedExchange
from test_rounds import make_study as make_study_of_rounds

from client.app import _warm
from client.data import UnscaledData, read_data
from client.data.base import Feature
from client.data.scale import _of_columns
from client.flower.message import plan_of
from client.operations import doctor
from client.operations.site_folder import SiteFolder, accept_bundle, init_site
from client.site.site import Site
from common.data.scale import LARGEST_VALUE, Moments, Scale, combine, distances, joined
from common.errors import ConfigError, DataError, ModelError, ProtocolError, StateError
from common.protocol import DataCard, HandshakePlan, RoundPlan, ScalePlan, parse_plan, study_digest
from common.study.load import load_site, load_study
from common.study.study import StudyConfig
from common.study.task import NumberColumn, TableTask
from consilium.adaptation.adapt import adapt_site
from consilium.comparison.pooled import run_pooled
from consilium.data.federation import SplitOptions, split_pool
from consilium.running.in_process import Answering, run_in_process
from consilium.toml import study_text
from server.operations.bundles import make_bundle
from server.study.run import run_study
from server.wire.submission import Control

TABLE = {"kind": "table", "classes": ["no", "yes"], "label": "ill"}
COLUMNS = {"a": {"kind": "number"}, "b": {"kind": "number"}}
KIDNEY = SHARED / "data" / "public" / "kidney_disease.csv"
STANDARD = {"mean": 0.0, "std": 1.0}
Rows = list[tuple[Any, ...]]


def study_of(make_study: MakeStudy, scale: Any = None, **changes: Any) -> StudyConfig:
    task = TABLE | {"columns": COLUMNS} | ({} if scale is None else {"scale": scale})
    return make_study(**{"task": task, **changes})


def unscaled(path: Path, study: StudyConfig) -> UnscaledData:
    config = load_site(path)
    return read_data(config.data, study.task, study.split, site=config.name, min_examples=2)


def training_rows(paths: Mapping[str, Path], study: StudyConfig) -> Any:
    """Return the training rows `(N, F)` of all sites as they stand in their files."""
    parts = [unscaled(path, study) for path in paths.values()]
    return np.concatenate([part.raw.x.numpy()[part.parts.train] for part in parts])


def run(study: StudyConfig, sites: Mapping[str, Path], folder: Path, **options: Any) -> Any:
    run_in_process(study, sites, folder, **options)
    return json.loads((folder / "result.json").read_text())


def write_rows(path: Path, header: str, rows: Rows) -> Path:
    lines = [header, *(",".join("" if cell is None else str(cell) for cell in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# --- the numbers -----------------------------------------------------------------------------------

COLUMN = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30)


def moments_of(values: list[float]) -> Moments:
    return Moments(
        counts=(len(values),), sums=(math.fsum(values),), squares=(math.fsum(value * value for value in values),)
    )


@given(st.lists(COLUMN, min_size=1, max_size=5))
def test_combined_sums_are_mean_and_deviation_of_all_rows(sites: list[list[float]]) -> None:
    """NumPy's mean and population std over the rows in one place, however they are divided, in whatever order."""
    values = np.concatenate([np.asarray(site) for site in sites])
    (found,) = combine([moments_of(site) for site in sites])
    assert found is not None
    assert found.mean == pytest.approx(values.mean(), rel=1e-9, abs=1e-9)
    if values.std() > 1e-5 * abs(values).max():
        assert found.std == pytest.approx(values.std(), rel=1e-4)
    assert [found] == combine([moments_of(site) for site in reversed(sites)])


def test_combined_scale_of_plain_numbers() -> None:
    """1, 2, 3 at one site and 6 at another: mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5."""
    (found,) = combine([moments_of([1.0, 2.0, 3.0]), moments_of([6.0])])
    assert found is not None
    assert (3.0, pytest.approx(math.sqrt(3.5))) == (found.mean, found.std)


def test_constant_column_is_divided_by_one_and_an_unknown_one_has_no_scale() -> None:
    """0.1 three times sums to no exact number; a column that no site knows is not given a default."""
    assert [1.0] == [one.std for one in combine([moments_of([0.1] * 3), moments_of([0.1] * 7)]) if one is not None]
    nothing = Moments(counts=(0,), sums=(0.0,), squares=(0.0,))
    assert [None] == combine([nothing, nothing])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sums": (1.0, 2.0)}, "of as many columns"),
        ({"squares": (0.1,)}, "too small for the sum of 10 values"),
        ({"squares": (-1.0,)}, "greater than or equal to 0"),
        ({"counts": (-1,)}, "greater than or equal to 0"),
        ({"counts": (0,)}, "larger than 0 values can give"),
        ({"sums": (math.inf,)}, "finite"),
        ({"squares": (11 * LARGEST_VALUE**2,)}, "larger than 10 values can give"),
    ],
)
def test_sums_that_no_rows_can_have_are_refused(changes: dict[str, Any], said: str) -> None:
    """As many of each, finite, a sum of squares that fits the sum (Cauchy), and nothing of no values."""
    with pytest.raises(ValidationError, match=said):
        Moments(**{"counts": (10,), "sums": (5.0,), "squares": (4.0,), **changes})


def test_sums_of_more_values_than_training_examples_are_refused() -> None:
    """A card says how many training examples there are."""
    told = Moments(counts=(CARD.num_train + 1,), sums=(0.0,), squares=(1.0,))
    with pytest.raises(ValidationError, match=f"moments are of {CARD.num_train + 1} values, of {CARD.num_train}"):
        DataCard(**CARD.model_dump() | {"moments": told})


# --- what a site tells and does --------------------------------------------------------------------


def mixed_study(make_study: MakeStudy, **task: Any) -> StudyConfig:
    columns = {"age": {"kind": "number"}, "sex": {"kind": "category", "values": ["f", "m", "x"]}, **COLUMNS}
    return make_study(task=TABLE | {"columns": columns, "missing": "impute", **task}, sites=["berlin"])


def mixed_rows(count: int, *, known: int) -> Rows:
    """Rows of age, sex, a, b, ill, in which `b` is known in the first `known` only."""
    return [(20 + n, "fmx"[n % 3], n * n, n / 2 if n < known else None, ("no", "yes")[n % 2]) for n in range(count)]


def mixed_site(tmp_path: Path, rows: Rows) -> Path:
    path = write_site(tmp_path / "berlin", "berlin")
    write_rows(path.parent / "data.csv", "age,sex,a,b,ill", rows)
    return path


def test_site_tells_sums_of_known_numbers_in_its_training_rows(tmp_path: Path, make_study: MakeStudy) -> None:
    """Column by column as plain sums; a category tells nothing, a missing cell counts nothing."""
    study = mixed_study(make_study)
    path = mixed_site(tmp_path, rows := mixed_rows(60, known=40))
    data = unscaled(path, study)
    train = [rows[row] for row in data.parts.train.tolist()]
    told = data.moments()
    for place, column in enumerate((0, 2, 3)):
        values = [row[column] for row in train if row[column] is not None]
        assert (len(values), sum(values)) == (told.counts[place], told.sums[place])
        assert sum(value * value for value in values) == told.squares[place]
    assert 3 == len(told.counts)


def test_column_of_fewer_than_ten_known_values_tells_nothing(tmp_path: Path, make_study: MakeStudy) -> None:
    """A sum over nine patients is near to telling of one; so are those of a site with few training rows."""
    study = mixed_study(make_study)
    data = unscaled(mixed_site(tmp_path, mixed_rows(60, known=9)), study)
    assert (0, 0.0, 0.0) == (data.moments().counts[2], data.moments().sums[2], data.moments().squares[2])
    assert data.moments().counts[0] == len(data.parts.train)
    few = unscaled(mixed_site(tmp_path / "few", mixed_rows(13, known=13)), study)
    assert len(few.parts.train) < 10
    assert (0, 0, 0) == few.moments().counts


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([0.0] * 29 + [37.2], False),
        ([0.0] * 28 + [37.2, 36.9], False),
        ([0.0] * 27 + [37.2, 36.9, 40.1], True),
        ([36.6] * 29 + [0.0], False),
        ([0.0] * 29 + [1.0], True),
        ([36.6] * 30, True),
    ],
)
def test_sums_that_give_single_values_away_are_not_told(values: list[float], told: bool) -> None:
    """One or two values beside equal ones are what two sums determine; of 0 and 1 a sum is only how many are 1."""
    rows = torch.tensor(values, dtype=torch.float64)[:, None]
    ((count, total, _),) = _of_columns(rows, [Feature("a", 0, 1, False)], leaving=True)
    assert (len(values) * told, pytest.approx(math.fsum(values) * told)) == (count, total)
    ((count, _, _),) = _of_columns(rows, [Feature("a", 0, 1, False)], leaving=False)
    assert len(values) == count


def test_given_scale_moves_numbers_and_leaves_categories(tmp_path: Path, make_study: MakeStudy) -> None:
    """`(x - mean) / std` per number column, one-hot stays 0 or 1, and b, known nowhere in training, takes the mean."""
    study = mixed_study(make_study)
    rows = mixed_rows(60, known=0)
    data = unscaled(mixed_site(tmp_path, rows), study)
    found = data.scaled(Scale(mean=(40.0, 100.0, 7.0), std=(10.0, 50.0, 2.0)))
    for row, x in zip(data.parts.train.tolist(), found.train.x, strict=True):
        age, sex, a, _, _ = rows[row]
        assert [(age - 40) / 10, sex == "m", sex == "x", (a - 100) / 50, 0.0] == pytest.approx(x.tolist())
    with pytest.raises(DataError, match=r"column 'b' has no value in any of the \d+ training rows"):
        data.scaled(None)


def test_own_scale_is_that_of_all_features_of_the_training_rows(tmp_path: Path, make_study: MakeStudy) -> None:
    """With "site" every feature, one-hot too, has mean 0 and std 1 over the site's training rows, as in FLamby."""
    study = mixed_study(make_study, scale="site")
    found = unscaled(mixed_site(tmp_path, mixed_rows(60, known=60)), study).scaled(None)
    assert found.train.x.mean(dim=0).tolist() == pytest.approx([0.0] * 5, abs=1e-6)
    assert found.train.x.std(dim=0, correction=0).tolist() == pytest.approx([1.0] * 5, abs=1e-6)


# --- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        ("global", "must be 'federation', 'site', or mean and std for every number column, got 'global'"),
        ({"a": {"mean": 0.0, "std": 1.0}}, "column 'b' has no scale, expected one"),
        ({"a": STANDARD, "b": STANDARD, "c": STANDARD}, "column 'c' has a scale, but is no number column"),
        ({"a": STANDARD, "b": {"mean": 0.0, "std": 0.0}}, r"^task.table.scale.columns.b.std: must be greater than 0"),
        (
            {"a": STANDARD, "b": {"mean": math.nan, "std": 1.0}},
            r"^\S+b.mean: must be a finite number, got nan \(\S+\)$",
        ),
        (3, "must be 'federation', 'site', or mean and std for every number column, got 3"),
    ],
)
def test_scale_of_a_table_that_cannot_be_is_refused(make_study: MakeStudy, scale: Any, said: str) -> None:
    """Another word, columns without numbers or numbers without columns, and a division by 0."""
    with pytest.raises(ConfigError, match=said):
        study_of(make_study, scale)


def test_images_have_either_a_scale_or_mean_and_std(make_study: MakeStudy) -> None:
    """Both would scale twice."""
    images = {"kind": "images", "classes": ["no", "yes"], "scale": "federation"}
    assert make_study(task=images).task.agrees_on_scale
    with pytest.raises(ConfigError, match="takes mean and std from the images: remove 'mean' and 'std'"):
        make_study(task=images | {"mean": [0.5]})


def test_fixed_scale_survives_the_study_file_and_the_wire(tmp_path: Path, make_study: MakeStudy) -> None:
    """A study with numbers per column is the same after TOML and after JSON."""
    fixed = {"a": {"mean": 0.25, "std": 2.0}, "b": {"mean": -1.0, "std": 0.5}}
    study = study_of(make_study, fixed)
    path = tmp_path / "study.toml"
    path.write_text(study_text(study))
    assert study == load_study(path) == StudyConfig.model_validate_json(study.model_dump_json())
    assert Scale(mean=(0.25, -1.0), std=(2.0, 0.5)) == study.task.fixed_scale


def test_table_of_categories_alone_has_nothing_to_settle(make_study: MakeStudy) -> None:
    """Categories stay 0 or 1, so that no site has to tell anything."""
    columns = {"sex": {"kind": "category", "values": ["f", "m"]}}
    task = make_study(task=TABLE | {"columns": columns}).task
    assert (False, Scale(mean=(), std=())) == (task.agrees_on_scale, task.fixed_scale)


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
    with safe_open(tmp_path / "run" / "global.safetensors", framework="numpy") as file:
        assert told == json.loads(file.metadata()["consilium"])["scale"]
    for path in sites.values():
        served = path.parent / "state" / "quick" / "run" / "personal.safetensors"
        with safe_open(served, framework="numpy") as file:
            assert told == json.loads(file.metadata()["scale"])
    assert all("moments" not in facts for facts in result["sites"].values())


def test_federation_by_its_own_scale_equals_one_by_the_same_fixed_numbers(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Who takes the numbers from a result and writes them into the study gets the same weights, bit for bit."""
    first = run(study_of(make_study), make_sites(under="one"), tmp_path / "one" / "run")
    run(study_of(make_study, first["scale"]["columns"]), make_sites(under="two"), tmp_path / "two" / "run")
    one, two = (load_file(tmp_path / name / "run" / "global.safetensors") for name in ("one", "two"))
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
        "tell the sums of its columns (share_scale = true in its site.toml)"
    )
    run(study_of(make_study, "site"), make_sites(under="own"), tmp_path / "own" / "run")
    one, two = (load_file(tmp_path / name / "global.safetensors") for name in ("run", "own/run"))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    with pytest.raises(ConfigError, match=r"site 'lyon' does not tell the sums of its columns.*share_scale = true"):
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
    result = run_study(study, transport={})
    told = {plan.site: plan.scale for plan in exchange.asked if isinstance(plan, ScalePlan) and plan.scale is not None}
    assert set(SITES) == set(told)
    for scale in told.values():
        assert (3.0, pytest.approx(math.sqrt(8 / 3))) == (scale.mean[0], scale.std[0])
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
    one, two = (load_file(tmp_path / name / "run" / "global.safetensors") for name in ("one", "two"))
    assert all(np.array_equal(one[name], two[name]) for name in one)


class Stopped(BaseException):
    """The server's process ends here."""


def stopped_in(number: int) -> Any:
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
    (folder / "scale.json").write_text(json.dumps(kept))
    columns = run(study, sites, folder)["scale"]["columns"]
    assert [4.0, 5.0] == [column["mean"] for column in columns.values()]


def test_resumed_run_keeps_its_scale(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """What was settled at the start holds after a restart, and without the file no run goes on."""
    study, sites, folder = study_of(make_study), make_sites(), tmp_path / "run"
    with pytest.raises(Stopped):
        run(study, sites, folder, deliver=stopped_in(2))
    kept = (folder / "scale.json").read_bytes()
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


# --- a site that spoils the scale of all ---


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


def two(a: list[float], b: list[float]) -> Moments:
    """Return the sums of two columns; nothing of one without values."""
    told = [moments_of(of) if of else Moments(counts=(0,), sums=(0.0,), squares=(0.0,)) for of in (a, b)]
    return Moments(
        counts=tuple(one.counts[0] for one in told),
        sums=tuple(one.sums[0] for one in told),
        squares=tuple(one.squares[0] for one in told),
    )


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
        result = run_study(make_study_of_rounds(tmp_path / str(spread), exchange, task=task), transport={})
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
    result = run_study(make_study_of_rounds(tmp_path, exchange, task=task, min_sites=2, quorum=2), transport={})
    (warning,) = result["warnings"]
    assert warning.startswith("site 'paris': its values of 'a' lie 500 times as far from what is usual")


# --- a site by itself ------------------------------------------------------------------------------

WHO = {"run": "run", "site": "berlin"}


def plan_for(study: StudyConfig, scale: Scale | None) -> ScalePlan:
    return ScalePlan(study=study_digest(study.seen_by("berlin")), scale=scale, **WHO)


def a_site(make_sites: MakeSites, study: StudyConfig) -> Site:
    return Site(load_site(make_sites({"berlin": 40})["berlin"]), study.seen_by("berlin"))


TWO = Scale(mean=(0.0, 1.0), std=(1.0, 2.0))


@pytest.mark.parametrize(
    ("settings", "scale", "said"),
    [
        ("federation", None, "sent no scale, but the study says task.scale = 'federation'"),
        ("federation", Scale(mean=(0.0,), std=(1.0,)), "sent a scale of 1 columns, expected one of 2"),
        ("site", TWO, "sent a scale, but this study leaves none to the handshake"),
    ],
)
def test_scale_that_is_not_the_studys_is_refused(
    make_sites: MakeSites, make_study: MakeStudy, settings: str, scale: Scale | None, said: str
) -> None:
    """None where one is needed, of other columns, or in a study that has its own."""
    study = study_of(make_study, settings)
    with pytest.raises(ProtocolError, match=f"site 'berlin': the server {said}"):
        a_site(make_sites, study).answer(plan_for(study, scale), None)


def test_scale_that_leaves_no_finite_number_is_refused(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """A deviation of 1e-300 would turn the inputs into infinity; the run that went on before goes on as before."""
    study = study_of(make_study, model={"name": "mlp", "hidden": [6], "trainable": "head"})
    site = a_site(make_sites, study)
    site.answer(plan_for(study, TWO), None)
    before, names = site._data.train.x.clone(), site._model.names
    assert {"head.weight", "head.bias"} == set(names)  # the frozen layer is cut off: what is there are its features
    bad = plan_for(study, Scale(mean=(0.0, 0.0), std=(1e-300, 1.0))).model_copy(update={"run": "bad"})
    with pytest.raises(DataError, match="too far from the training rows"):
        site.answer(bad, None)
    site._be_scaled(plan_for(study, None))
    assert torch.equal(before, site._data.train.x)
    assert names == site._model.names


def test_run_that_has_trained_takes_no_other_scale(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """What a site kept of earlier rounds belongs to the inputs that it was trained on."""
    study, sites = study_of(make_study), make_sites()
    run(study, sites, tmp_path / "run")
    site = Site(load_site(sites["berlin"]), study.seen_by("berlin"))
    with pytest.raises(ProtocolError, match="run 'run' has trained with another scale of its inputs"):
        site.answer(plan_for(study, TWO), None)
    site._be_scaled(plan_for(study, None))
    assert settled_scale(tmp_path / "run") == site._scale


def test_round_before_the_scale_is_refused(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """A site does not guess by what its inputs are scaled."""
    study = study_of(make_study)
    site = a_site(make_sites, study)
    site.answer(HandshakePlan(study=study.seen_by("berlin"), **WHO), None)
    plan = parse_plan(json.dumps({"kind": "round", "round": 1, "asked": 1, "study": "0" * 64, **WHO}))
    with pytest.raises(ProtocolError, match="no scale of the inputs was agreed on in run 'run'"):
        site.answer(plan, b"")


def test_round_that_the_study_does_not_have_is_refused(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """A server that says it asked a thousand million times would have the site train alone for ever."""
    study = study_of(make_study)
    site = a_site(make_sites, study)
    site.answer(plan_for(study, TWO), None)
    for kind in ("round", "finish"):
        plan = {"kind": kind, "round": 10**9, "asked": 10**9, "study": "0" * 64, **WHO}
        with pytest.raises(ProtocolError, match="asks for round 1000000000, but the study has 3"):
            site.answer(parse_plan(json.dumps(plan)), None)
        for wrong in ({"asked": 5}, {"asked": -1}, {"accepted": 4}, {"protocol": 3}):
            with pytest.raises(ProtocolError):
                parse_plan(json.dumps({**plan, "round": 3, "asked": 3, **wrong}))


def test_two_runs_of_one_site_have_each_its_scale(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """A site that stays in memory scales anew for another run, from its files, and back again."""
    study = study_of(make_study)
    site, other = a_site(make_sites, study), Scale(mean=(5.0, 5.0), std=(3.0, 3.0))
    site.answer(plan_for(study, TWO), None)
    first = site._data.train.x.clone()
    site.answer(plan_for(study, other).model_copy(update={"run": "second"}), None)
    again = first * torch.tensor([1.0, 2.0]) + torch.tensor([0.0, 1.0])
    torch.testing.assert_close((again - 5) / 3, site._data.train.x)
    site.answer(plan_for(study, TWO), None)
    assert torch.equal(first, site._data.train.x)


def test_moments_leave_a_site_only_where_the_study_has_use_for_them(
    make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Told by default, not with share_scale = false, and not in a study with fixed or own scales."""
    fixed = {"a": {"mean": 0.0, "std": 1.0}, "b": {"mean": 0.0, "std": 1.0}}
    expected = {None: True, "federation": True, "site": False}
    for scale, told in expected.items():
        assert told == (a_site(make_sites, study_of(make_study, scale))._card.moments is not None)
    assert a_site(make_sites, study_of(make_study, fixed))._card.moments is None
    silent = make_sites({"berlin": 40}, share_scale=False, under="silent")["berlin"]
    assert Site(load_site(silent), study_of(make_study).seen_by("berlin"))._card.moments is None


# --- images ----------------------------------------------------------------------------------------


def image_site(folder: Path, name: str, *, shade: int, count: int = 24) -> tuple[Path, dict[str, Any]]:
    """Write a site of noisy pictures around a shade; return its settings and its pixels in 0..1 by file name."""
    path, generator, pixels = (
        write_site(folder / name, name, kind="images", data="pictures"),
        np.random.default_rng(shade),
        {},
    )
    for number in range(count):
        kind = ("no", "yes")[number % 2]
        values = generator.integers(0, shade, size=(4, 4, 3), dtype=np.uint8)
        values[..., 2] //= 2
        (path.parent / "pictures" / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path.parent / "pictures" / kind / f"{number:02d}.png")
        pixels[f"{kind}/{number:02d}"] = values.transpose(2, 0, 1) / 255
    return path, pixels


@pytest.mark.parametrize("scale", ["federation", "site"])
def test_images_are_scaled_per_channel(tmp_path: Path, make_study: MakeStudy, scale: str) -> None:
    """Mean and std of every pixel of the training images, of all sites or of one, by NumPy."""
    task = {"kind": "images", "classes": ["no", "yes"], "size": 4, "scale": scale}
    study = make_study(task=task, sites=["berlin", "lyon"], model={"name": "linear"}, rounds=1)
    sites, images = {}, {}
    for name, shade in (("berlin", 60), ("lyon", 250)):
        sites[name], pixels = image_site(tmp_path, name, shade=shade)
        ordered = np.stack([pixels[key] for key in sorted(pixels)])  # no/.. before yes/.., as a folder is read
        images[name] = ordered[unscaled(sites[name], study).parts.train]
    result = run(study, sites, tmp_path / "run")
    whole = np.concatenate(list(images.values()))
    if scale == "federation":
        found = result["scale"]["columns"]
        assert ["red", "green", "blue"] == list(found)
        np.testing.assert_allclose([one["mean"] for one in found.values()], whole.mean(axis=(0, 2, 3)), rtol=1e-6)
        np.testing.assert_allclose([one["std"] for one in found.values()], whole.std(axis=(0, 2, 3)), rtol=1e-6)
    for name, path in sites.items():
        chosen = images[name] if scale == "site" else whole
        mean, std = chosen.mean(axis=(0, 2, 3), keepdims=True), chosen.std(axis=(0, 2, 3), keepdims=True)
        given_scale = (
            None
            if scale == "site"
            else joined(
                [
                    one
                    for one in combine([unscaled(each, study).moments() for each in sites.values()])
                    if one is not None
                ]
            )
        )
        seen = unscaled(path, study).scaled(given_scale).train.x.numpy()
        np.testing.assert_allclose(seen, (images[name] - mean) / std, rtol=1e-4, atol=1e-5)
    assert scale == result["scale"]["by"]


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
    assert (1.0, pytest.approx(0.585, abs=5e-4)) == (found["federation"][0], found["site"][0])
    assert found["federation"][1] > 0.97
    assert found["site"][1] < 0.8


@pytest.mark.parametrize("scale", [None, "site"])
def test_pooled_model_has_one_scale_whatever_the_sites_have(
    tmp_path: Path, make_study: MakeStudy, scale: str | None
) -> None:
    """The baseline of all rows in one place is not handicapped by per-site scales, and says what it did."""
    sites = shifted_sites(tmp_path)
    settings = {"model": {"name": "linear"}, "rounds": 10, "training": {"epochs": 2, "learning_rate": 0.3}}
    found, scores = run_pooled(study_of(make_study, scale, **settings), sites)
    right = [(one["pooled"].ravel() > 0) == one["labels"] for one in scores.values()]
    assert np.concatenate(right).mean() > 0.95
    assert {"by": "all training rows"} == found["scale"]


# --- adapt and doctor ------------------------------------------------------------------------------


def test_adapt_takes_the_scale_of_the_weights_file(tmp_path: Path, make_study: MakeStudy) -> None:
    """At a new hospital with nearly all sick the federated model is right from the start, by the federation's numbers.

    From a file that tells no scale it is not, and a note says that the site's own numbers were taken.
    """
    settings = {"model": {"name": "linear"}, "rounds": 10, "training": {"epochs": 2, "learning_rate": 0.3}}
    study = study_of(make_study, **settings)
    run(study, shifted_sites(tmp_path), tmp_path / "run")
    new = write_site(tmp_path / "wien", "wien")
    table = [(130 + n % 21 - 10 if n % 40 else 100, n % 5, "yes" if n % 40 else "no") for n in range(200)]
    write_rows(new.parent / "data.csv", "a,b,ill", table)
    (new.parent / "study.toml").write_text(study_text(study))
    weights = tmp_path / "run" / "global.safetensors"
    result = adapt_site(new, weights_file=weights, steps=0)
    assert result["num_test"] == result["starts"]["federated"]["right"][0]
    assert [] == result["notes"]
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(weights), bare)
    other = adapt_site(new, weights_file=bare, steps=0)
    assert other["starts"]["federated"]["right"][0] < other["num_test"]
    assert ["the inputs are scaled by this site's own training rows: the weights file names no scale of all sites"] == (
        other["notes"]
    )
    save_file(load_file(weights), bare, metadata={"consilium": json.dumps({"scale": {"mean": [0], "std": [1]}})})
    with pytest.raises(ModelError, match="its scale is of 1 columns, the study has 2"):
        adapt_site(new, weights_file=bare, steps=0)


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
    found = doctor.check_scale(config, study_of(make_study, scale))
    assert (status, True) == (found.status, said in found.message), found
    assert (ConfigError if status == "FAIL" else None) is found.error


# --- deployed --------------------------------------------------------------------------------------


@pytest.mark.e2e
def test_deployed_sites_scale_as_those_in_one_process(tmp_path: Path) -> None:
    """Server and sites as processes with TLS between them: the scale and the weights of one process, bit for bit."""
    (tmp_path / "study.toml").write_text(doses_study("doses", rounds=2, steps=20, sites='["early", "late"]'))
    settings, processes = {}, []
    with running_server(tmp_path) as server:
        try:
            for name, shift in (("early", 0.0), ("late", 1.5)):
                folder = SiteFolder(tmp_path / name)
                init_site(folder, name=name, server=server.address, kind="table")
                with Control(server.home) as control:
                    certificate = control.approve(folder.path / "site.csr", name=name)
                bundle = make_bundle(server.home, certificate, name=name, address=server.address)
                accept_bundle(folder, write(tmp_path / f"{name}.json", bundle))
                write_patients(folder.path / "data", shift)
                settings[name] = folder.settings
                processes.append(start_site(folder.settings, tmp_path / f"{name}.log"))
            done = run_command("run", "study.toml", "--home", str(server.home.path), "--runs", "runs", cwd=tmp_path)
            assert 0 == done.returncode, done.stdout + done.stderr
        finally:
            for process in processes:
                process.terminate()
                process.wait(timeout=30)
    (deployed,) = (tmp_path / "runs").iterdir()
    result = run(load_study(tmp_path / "study.toml"), settings, tmp_path / "in-process" / "run")
    assert result["scale"] == json.loads((deployed / "result.json").read_text())["scale"]
    one, two = (load_file(path / "global.safetensors") for path in (deployed, tmp_path / "in-process" / "run"))
    assert all(np.array_equal(one[name], two[name]) for name in one)
