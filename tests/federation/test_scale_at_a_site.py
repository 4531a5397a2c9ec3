"""What a site tells of its columns, how it scales, and which scales it refuses."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeSites, MakeStudy, settled_scale, write_site
from federations import run
from PIL import Image
from scales import COLUMNS, STANDARD, TABLE, Rows, study_of, unscaled, write_rows

from consilium.client.data.base import Feature
from consilium.client.data.scale import _of_columns
from consilium.client.site.site import Site
from consilium.common.errors import ConfigError, DataError, ProtocolError
from consilium.common.protocol.parse import parse_plan
from consilium.common.protocol.plans import HandshakePlan, RoundPlan, ScalePlan, study_digest
from consilium.common.study.load import load_site, load_study, study_text
from consilium.common.study.scale import Scale, combine, joined
from consilium.common.study.study import StudyConfig

# --- what a site tells and does --------------------------------------------------------------------


def mixed_study(make_study: MakeStudy, **task: Any) -> StudyConfig:
    """Return a study of numbers and a category."""
    columns = {"age": {"kind": "number"}, "sex": {"kind": "category", "values": ["f", "m", "x"]}, **COLUMNS}
    return make_study(task=TABLE | {"columns": columns, "missing": "impute", **task}, sites=["berlin"])


def mixed_rows(count: int, *, known: int) -> Rows:
    """Rows of age, sex, a, b, ill, in which `b` is known in the first `known` only."""
    return [(20 + n, "fmx"[n % 3], n * n, n / 2 if n < known else None, ("no", "yes")[n % 2]) for n in range(count)]


def mixed_site(tmp_path: Path, rows: Rows) -> Path:
    """Write a site with such a table."""
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
    assert len(values) * told == count
    assert pytest.approx(math.fsum(values) * told) == total
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


# --- a site by itself ------------------------------------------------------------------------------

WHO: dict[str, Any] = {"run": "run", "site": "berlin"}


def plan_for(study: StudyConfig, scale: Scale | None) -> ScalePlan:
    """Return the plan that gives a site its scale."""
    return ScalePlan(study=study_digest(study.seen_by("berlin")), scale=scale, **WHO)


def round_for(study: StudyConfig) -> RoundPlan:
    """Return the plan of round 1."""
    return RoundPlan(study=study_digest(study.seen_by("berlin")), round=1, asked=1, **WHO)


def a_site(make_sites: MakeSites, study: StudyConfig) -> Site:
    """Return a site that has no scale yet."""
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
    before, names = site.learner.data.train.x.clone(), site.learner.model.names
    assert {"head.weight", "head.bias"} == set(names)  # the frozen layer is cut off: what is there are its features
    bad = plan_for(study, Scale(mean=(0.0, 0.0), std=(1e-300, 1.0))).model_copy(update={"run": "bad"})
    with pytest.raises(DataError, match="too far from the training rows"):
        site.answer(bad, None)
    site._learner_for(round_for(study))
    assert torch.equal(before, site.learner.data.train.x)
    assert names == site.learner.model.names


def test_run_that_has_trained_takes_no_other_scale(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """What a site kept of earlier rounds belongs to the inputs that it was trained on."""
    study, sites = study_of(make_study), make_sites()
    run(study, sites, tmp_path / "run")
    site = Site(load_site(sites["berlin"]), study.seen_by("berlin"))
    with pytest.raises(ProtocolError, match="run 'run' has trained with another scale of its inputs"):
        site.answer(plan_for(study, TWO), None)
    site._learner_for(round_for(study))
    assert settled_scale(tmp_path / "run") == site.learner.scale


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
    first = site.learner.data.train.x.clone()
    site.answer(plan_for(study, other).model_copy(update={"run": "second"}), None)
    again = first * torch.tensor([1.0, 2.0]) + torch.tensor([0.0, 1.0])
    torch.testing.assert_close((again - 5) / 3, site.learner.data.train.x)
    site.answer(plan_for(study, TWO), None)
    assert torch.equal(first, site.learner.data.train.x)


def test_moments_leave_a_site_only_where_the_study_has_use_for_them(
    make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Told by default, not with share_scale = false, and not in a study with fixed or own scales."""
    fixed = {"a": {"mean": 0.0, "std": 1.0}, "b": {"mean": 0.0, "std": 1.0}}
    expected = {None: True, "federation": True, "site": False}
    for scale, told in expected.items():
        assert told == (a_site(make_sites, study_of(make_study, scale))._facts.card.moments is not None)
    assert a_site(make_sites, study_of(make_study, fixed))._facts.card.moments is None
    silent = make_sites({"berlin": 40}, share_scale=False, under="silent")["berlin"]
    assert Site(load_site(silent), study_of(make_study).seen_by("berlin"))._facts.card.moments is None


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
