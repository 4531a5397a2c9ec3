"""New inputs against those of training: what is kept, what is found, and that nothing is where nothing differs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import fisher_exact, ks_2samp

from consilium.client.data import RawData, UnscaledData
from consilium.client.data.base import Inputs
from consilium.client.data.cells import features_of
from consilium.client.data.inputs import pictures_inputs
from consilium.client.data.split import Split
from consilium.client.served.drift import ALPHA, LEAST_PSI, drift
from consilium.client.served.summary import Numbers, Shares, TrainingSummary, read_summary, summary_of
from consilium.common.data.groups import Copies
from consilium.common.errors import ModelError
from consilium.common.protocol.cards import DataCard
from consilium.common.study.task import (
    CategoryColumn,
    FeaturesTask,
    ImageTask,
    NumberColumn,
    Regression,
    TableTask,
    Task,
)

TABLE = TableTask(
    classes=("no", "yes"),
    label="ill",
    columns={
        "age": NumberColumn(),
        "dose": NumberColumn(),
        "smoker": NumberColumn(),
        "visits": NumberColumn(),
        "sex": CategoryColumn(values=("f", "m")),
        "kind": CategoryColumn(values=("a", "b", "c", "d", "rare")),
    },
    missing="impute",
)
Floats = Any


def patients(count: int, chance: np.random.Generator) -> tuple[Floats, Floats]:
    """Rows of new patients as they are read, and their labels: a number of each shape, and categories."""
    age, dose = chance.normal(54, 10, count), chance.lognormal(1, 1, count)
    dose[chance.random(count) < 0.1] = np.nan
    smoker, visits = chance.random(count) < 0.3, chance.poisson(2, count)
    sex, kind = chance.integers(0, 2, count), chance.choice(5, count, p=[0.5, 0.3, 0.1, 0.09, 0.01])
    columns = [age, dose, smoker, visits, sex, *(kind == place for place in range(1, 5))]
    return np.stack(columns, axis=1).astype(np.float64), (chance.random(count) < 0.4).astype(np.int64)


def of_training(x: Any, y: Any, task: Task = TABLE, groups: Any = None) -> TrainingSummary:
    """Return the summary of training rows."""
    rows, none = np.arange(len(x)), np.arange(0)
    features = features_of(task) if isinstance(task, TableTask) else ()
    raw = RawData(torch.as_tensor(x), torch.as_tensor(y), 0, Copies(rows), features=features, groups=groups)
    card = DataCard.model_construct()
    return summary_of(UnscaledData("rom", task, raw, Split(rows, none, none), card))


def asked(x: Any, y: Any = None, task: Task = TABLE, groups: Any = None) -> Inputs:
    """Return inputs with these rows."""
    return Inputs(
        x=torch.as_tensor(x),
        names=tuple(map(str, range(len(x)))),
        y=None if y is None else torch.as_tensor(y),
        groups=None if groups is None else torch.as_tensor(groups),
        features=features_of(task) if isinstance(task, TableTask) else (),
    )


def generator(*seed: int) -> np.random.Generator:
    """Return a generator of its own."""
    return np.random.default_rng(seed)


# --- what is kept ----------------------------------------------------------------------------------------


def test_summary_holds_rounded_deciles_and_counts() -> None:
    """Points lie where NumPy's quantiles lie, to a hundredth of the spread, and the counts at them are exact."""
    x, y = patients(1000, generator(0))
    summary = of_training(x, y)
    age, dose = summary.numbers[:2]
    assert (age.name, age.known, age.missing) == ("column 'age'", 1000, 0)
    expected = np.quantile(x[:, 0], [0.01, *np.arange(1, 10) / 10, 0.99], method="inverted_cdf")
    np.testing.assert_allclose(age.points, expected, atol=0.05001)
    assert [round(point, 1) for point in age.points] == list(age.points)
    np.testing.assert_array_equal(age.below, [(x[:, 0] < point).sum() for point in age.points])
    assert dose.missing == np.isnan(x[:, 1]).sum() == 1000 - dose.known
    visits = summary.numbers[3]
    np.testing.assert_array_equal(visits.below, [(x[:, 3] < point).sum() for point in visits.points])
    np.testing.assert_array_equal(visits.up_to, [(x[:, 3] <= point).sum() for point in visits.points])
    assert summary.shares[0].counts == {"f": (x[:, 4] == 0).sum(), "m": (x[:, 4] == 1).sum()}
    assert summary.shares[1].counts["rare"] == x[:, 8].sum()
    assert isinstance(summary.label, Shares)
    assert summary.label.counts == {"no": (y == 0).sum(), "yes": (y == 1).sum()}


@pytest.mark.parametrize(("count", "num_points"), [(49, 0), (50, 9), (499, 9), (500, 11)])
def test_no_point_is_a_single_patients_extreme_value(count: int, num_points: int) -> None:
    """On either side of each point are four values more: with few patients there are no outer points, or none."""
    x, y = patients(count, generator(1))
    age = of_training(x, y).numbers[0]
    assert len(age.points) == num_points
    values = np.sort(x[:, 0])
    assert all(values[4] - 0.1 <= point <= values[-5] + 0.1 for point in age.points)


def test_every_patient_counts_once() -> None:
    """A patient with ten rows counts as one with a single row does."""
    x, y = patients(100, generator(2))
    groups = np.repeat(np.arange(100), np.where(np.arange(100) % 2, 10, 1))
    once, often = of_training(x, y), of_training(x[groups], y[groups], groups=groups)
    assert (often.num, often.patients) == (550, 100)
    assert often.numbers == once.numbers
    assert (often.shares, often.label) == (once.shares, once.label)


def test_summary_comes_back_from_its_file(tmp_path: Path) -> None:
    """The file gives the same summary; a damaged one is a sentence, and without one there is none."""
    summary = of_training(*patients(80, generator(3)))
    assert read_summary(tmp_path) is None
    file = tmp_path / "training-summary.json"
    file.write_bytes(summary.to_bytes())
    assert read_summary(tmp_path) == summary
    content = json.loads(summary.to_bytes())
    content["numbers"][0]["below"] = [1.0]
    for damaged, sentence in (
        ("{", "no JSON"),
        ("[]", "training-summary.json"),
        (json.dumps(content), "for each point"),
    ):
        file.write_text(damaged)
        with pytest.raises(ModelError, match=sentence):
            read_summary(tmp_path)


# --- what is found ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("trained", "new", "seed"), [(100, 40, 4)])
def test_without_a_difference_hardly_anything_is_found(
    trained: int, new: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 400 data sets like those of training at most 5 % have a finding, however small a difference may be found."""
    monkeypatch.setattr("consilium.client.served.drift.LEAST_PSI", 0.0)
    wrong = 0
    for repeat in range(400):
        chance = generator(seed, repeat)
        summary = of_training(*patients(trained, chance))
        wrong += bool(drift(summary, asked(*patients(new, chance))).findings)
    assert wrong <= 0.05 * 400


def test_an_older_population_is_found_and_said() -> None:
    """A column that is off is found alone, with both medians, the adjusted p and the stability index."""
    summary = of_training(*patients(300, generator(6)))
    x, y = patients(200, generator(7))
    x[:, 0] += 17
    found = drift(summary, asked(x, y))
    (finding,) = found.findings
    median = np.quantile(x[:, 0], 0.5, method="inverted_cdf")
    before = summary.numbers[0].points[4]
    assert finding.column == "column 'age'"
    assert finding.sentence == (
        f"column 'age': the median is {median:.4g}, in training {before:.4g} (p < 0.001, PSI {finding.psi:.2f})"
    )
    assert finding.p < 1e-9
    assert finding.psi > 1
    assert found.num_tested == 8  # six columns, the missing doses and the label


def test_wider_numbers_are_said_by_their_reach() -> None:
    """Where the median stays and the spread grows, the sentence names where most values lie."""
    summary = of_training(*patients(1000, generator(8)))
    x, _ = patients(400, generator(9))
    x[:, 0] = 54 + (x[:, 0] - 54) * 3
    (finding,) = drift(summary, asked(x)).findings
    assert finding.sentence.startswith("column 'age': the middle 80 % lie between ")
    assert (
        f"in training between {summary.numbers[0].points[1]:.4g} and {summary.numbers[0].points[9]:.4g}"
        in finding.sentence
    )


def test_shares_missing_values_and_labels_are_compared() -> None:
    """A rare category that becomes frequent, missing values, 0 and 1, and another share of ill patients are said."""
    x, y = patients(200, generator(10))
    summary = of_training(x, y)
    x, y = patients(100, generator(11))
    x[:30, 5:] = [0, 0, 0, 1]
    x[50:, 1] = np.nan
    x[:60, 2] = 1
    y[:] = 1
    sentences = {one.sentence.partition(" (p ")[0]: one for one in drift(summary, asked(x, y)).findings}
    rare = summary.shares[1].counts["rare"] / 200
    smokers = (summary.numbers[2].known - summary.numbers[2].below[-1]) / 200
    assert set(sentences) == {
        f"column 'kind': 'rare' in {x[:, 8].mean():.0%}, in training in {rare:.0%}",
        f"column 'dose': the value is missing in {np.isnan(x[:, 1]).mean():.0%}, in training in "
        f"{summary.numbers[1].missing / 200:.0%}",
        f"column 'smoker': at most 0 in {1 - x[:, 2].mean():.0%}, in training in {1 - smokers:.0%}",
        f"label 'ill': 'no' in 0%, in training in {summary.label.counts['no'] / 200:.0%}",  # type: ignore[union-attr] # of classes
    }
    assert drift(summary, asked(x)).num_tested == drift(summary, asked(x, y)).num_tested - 1


def test_values_of_the_tests_are_those_of_scipy() -> None:
    """Of one column alone: p bounds that of all its values, and is Fisher's for two values; PSI by its formula."""
    task = TableTask(classes=("a", "b"), label="y", columns={"n": NumberColumn()})
    x, new = generator(12).normal(0, 1, (2000, 1)), generator(13).normal(0.25, 1, (500, 1))
    (finding,) = drift(of_training(x, np.zeros(2000, dtype=np.int64), task), asked(new, task=task)).findings
    exact = ks_2samp(x[:, 0], new[:, 0], method="asymp").pvalue
    assert exact <= finding.p <= exact**0.6
    bins = [-np.inf, *of_training(x, np.zeros(2000, dtype=np.int64), task).numbers[0].points, np.inf]
    q, p = (np.histogram(values, bins)[0] + 0.5 for values in (x, new))
    q, p = q / q.sum(), p / p.sum()
    assert finding.psi == pytest.approx(((p - q) * np.log(p / q)).sum(), rel=1e-6)

    flags, now = np.repeat([[0.0], [1.0]], [80, 20], axis=0), np.repeat([[0.0], [1.0]], [20, 20], axis=0)
    (finding,) = drift(of_training(flags, np.zeros(100, dtype=np.int64), task), asked(now, task=task)).findings
    assert finding.p == pytest.approx(fisher_exact([[80, 20], [20, 20]]).pvalue)


def test_rows_of_one_patient_count_once() -> None:
    """Ten equal rows of each patient look like much more than they are; told whose they are, they are one each."""
    too_many = 0
    for repeat in range(20):
        chance = generator(14, repeat)
        summary = of_training(*patients(100, chance))
        x, _ = patients(30, chance)
        owners = np.repeat(np.arange(30), 10)
        once, told, not_told = (
            [one.column for one in drift(summary, inputs).findings]
            for inputs in (asked(x), asked(x[owners], groups=owners), asked(x[owners]))
        )
        assert told == once
        too_many += len(not_told) > len(once)
    assert too_many >= 10


def test_a_difference_that_only_many_rows_show_is_none() -> None:
    """With very many rows a tenth of a standard deviation is certain, and yet too small to be said."""
    task = TableTask(classes=("a", "b"), label="y", columns={"n": NumberColumn()})
    x, new = generator(15).normal(0, 1, (100_000, 1)), generator(16).normal(0.1, 1, (100_000, 1))
    summary = of_training(x, np.zeros(100_000, dtype=np.int64), task)
    assert ks_2samp(x[:, 0], new[:, 0]).pvalue < ALPHA
    assert not drift(summary, asked(new, task=task)).findings
    (finding,) = drift(summary, asked(new * 1.0 + 0.2, task=task)).findings
    assert LEAST_PSI <= finding.psi < 0.2


def test_too_few_rows_say_nothing() -> None:
    """With 19 new patients, or too few in training, there is a sentence in place of findings."""
    summary = of_training(*patients(60, generator(17)))
    x, _ = patients(19, generator(18))
    assert drift(summary, asked(x)).unsaid == "19 rows are too few to be compared with training, expected 20"
    owners = np.arange(38) // 2
    assert drift(summary, asked(np.concatenate([x, x]), groups=owners)).unsaid.startswith("19 patients are too few")
    few = of_training(*patients(10, generator(19)))
    found = drift(few, asked(patients(50, generator(20))[0]))
    assert (found.num_tested, found.unsaid) == (
        0,
        "the model was trained on 10 patients, too few to compare others with",
    )


def test_darker_pictures_are_found() -> None:
    """Pictures are compared by brightness and contrast in each channel, black 0, white 1, however they are scaled."""
    task = ImageTask(classes=("a", "b"), size=8, channels=3, mean=(0.5, 0.2, 0.1), std=(2.0,), pixel_max=3.0)
    pixels = generator(21).integers(50, 200, (120, 8, 8, 3)).astype(np.uint8)
    inputs = pictures_inputs(pixels, task)
    summary = of_training(inputs.x.numpy(), np.zeros(120, dtype=np.int64), task)
    red = summary.numbers[0]
    assert [one.name for one in summary.numbers[:2]] == [
        "pictures' brightness in red",
        "pictures' contrast in red",
    ]
    middle = np.quantile(pixels[..., 0].mean(axis=(1, 2)) / 255, 0.5, method="inverted_cdf")
    assert red.points[4] == pytest.approx(middle, abs=0.01)
    same = pictures_inputs(generator(22).integers(50, 200, (60, 8, 8, 3)).astype(np.uint8), task)
    assert not drift(summary, same).findings
    pixels[..., 1] //= 2
    found = drift(summary, pictures_inputs(pixels, task)).findings
    assert {one.column for one in found} == {"pictures' brightness in green", "pictures' contrast in green"}
    assert any(one.sentence.startswith("pictures' brightness in green: the median is 0.24") for one in found)


def test_arrays_and_labels_that_are_numbers_are_compared() -> None:
    """Arrays of any shape are compared by their mean and spread, labels in their own units."""
    task = FeaturesTask(shape=(4, 2), regression=Regression(center=70, scale=10, tolerance=5))
    chance = generator(23)
    x, y = chance.normal(0, 1, (200, 4, 2)).astype(np.float32), chance.normal(0, 1, 200).astype(np.float32)
    summary = of_training(x, y, task)
    assert isinstance(summary.label, Numbers)
    assert 68 < summary.label.points[4] < 72
    found = drift(summary, asked(x * 3, y + 2, task)).findings
    assert [one.sentence.partition(":")[0] for one in found] == [
        "the standard deviation of an example's numbers",
        "the label",
        "the mean of an example's numbers",
    ]
    assert not drift(summary, replace(asked(x, y, task), features=())).findings
