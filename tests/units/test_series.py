"""Series: what is read of arrays and tables, how they are cut and scaled, and what is refused in which words."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import series_files
import torch

from consilium.client.data import read_data
from consilium.client.data.inputs import pictures_inputs, read_inputs
from consilium.client.data.preparation import Preparation
from consilium.common.errors import ConfigError, DataError
from consilium.common.model.record import Preprocessing
from consilium.common.study.load import load_study, parse_study
from consilium.common.study.series_task import SeriesTask
from consilium.common.study.site import ArraysData, SeriesData
from consilium.common.study.task import FeaturesTask, ImageTask, Regression
from consilium.common.study.training import SplitConfig
from consilium.data.options import SplitOptions
from consilium.data.split import split_pool

N, T = 30, 7
RNG = np.random.default_rng(4)
X = RNG.normal(size=(N, T, 2)) * [1, 50] + [0, 7]
Y = np.arange(N) % 2
TASK = SeriesTask(channels=("ecg", "bp"), length=T, classes=("a", "b"))
NUMBER = Regression(center=1, scale=2, tolerance=0.5)
AHEAD = SeriesTask(channels=("ecg",), length=3, next_step=2, regression=NUMBER)


def read(path: Path, task: Any = TASK, *, max_skipped: int = 0, split: SplitConfig | None = None) -> Any:
    """Return what is read of a file or folder."""
    config = SeriesData(path=path, max_skipped=max_skipped)
    return read_data(config, task, split or SplitConfig(), site="berlin", min_examples=2)


def npz(folder: Path, **arrays: Any) -> Path:
    """Write the arrays."""
    np.savez(folder / "data.npz", **({"x": X, "y": Y} | arrays))
    return folder / "data.npz"


def table(folder: Path, *rows: str, header: str = "series,time,ecg,bp,label") -> Path:
    """Write a table."""
    (folder / "rows.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "rows.csv"


def lines(names: str, *, steps: int = T, label: str = "a", first: str = "1") -> list[str]:
    """Return rows of series that differ from one another in `bp` alone."""
    return [f"{name},{step},{first},{ord(name)},{label}" for name in names for step in range(steps)]


def test_a_table_and_an_array_of_the_same_series_give_the_same_tensors(tmp_path: Path) -> None:
    """Rows in any order are ordered by time; labels and every bit of the values are those of the array."""
    labels = [TASK.classes[one] for one in Y]
    path = series_files.write_long(tmp_path / "rows.csv", list(X), labels, channels=TASK.channels)
    one, other = read(npz(tmp_path)), read(path)
    assert torch.equal(torch.tensor(X), one.raw.x)
    assert torch.equal(one.raw.x, other.raw.x)
    assert torch.equal(one.raw.y, other.raw.y)
    assert Y.tolist() == one.raw.y.tolist()
    assert one.digest == other.digest == read(path).digest
    scaled = read(path, TASK.model_copy(update={"scale": "site"})).scaled(None)
    assert (T, 2) == scaled.input_shape and torch.float32 == scaled.train.x.dtype


def test_short_and_unequal_series_are_zeros_before_their_first_step_after_scaling(tmp_path: Path) -> None:
    """NaN at an array's end and fewer rows of a table are the same; the scale is of the steps that are there."""
    task = TASK.model_copy(update={"short": "pad", "scale": "site"})
    x = X.copy()
    x[4, 5:] = np.nan
    known = [values[~np.isnan(values[:, 0])] for values in x]
    labels = [TASK.classes[one] for one in Y]
    path = series_files.write_long(tmp_path / "rows.csv", known, labels, channels=TASK.channels)
    for found in (read(npz(tmp_path, x=x), task), read(path, task)):
        assert torch.isnan(found.raw.x[4, :2]).all() and torch.equal(found.raw.x[4, 2:], torch.tensor(X[4, :5]))
        data = found.scaled(None)
        assert not any(torch.isnan(part.x).any() for part in (data.train, data.validation, data.test))
        used = x[found.parts.train]
        mean = np.nanmean(used, axis=1).mean(axis=0)
        std = np.sqrt(np.nanmean(used**2, axis=1).mean(axis=0) - mean**2)
        assert data.scale is not None
        np.testing.assert_allclose(data.scale.mean, mean)
        np.testing.assert_allclose(data.scale.std, std)
        all_rows = data.preparation.applied(found.raw.x)
        assert 0 == all_rows[4, :2].abs().max()
        np.testing.assert_allclose(all_rows[4, 2:], (X[4, :5] - mean) / std)
        again = Preparation.of_record(Preprocessing.of_scale(task, data.scale), channels=False)
        assert torch.equal(all_rows, again.applied(found.raw.x))
    with pytest.raises(DataError, match=r"series 4: it has 5 steps, expected at least 7 \(task.short = 'pad'"):
        read(npz(tmp_path, x=x))


def test_unscaled_short_series_are_filled_with_zeros(tmp_path: Path) -> None:
    """Without a scale too; and a federation's model without a site's data knows it."""
    task = TASK.model_copy(update={"short": "pad", "length": T + 2})
    found = read(npz(tmp_path), task)
    every = found.scaled(None).preparation.applied(found.raw.x)
    assert 0 == every[:, :2].abs().max() and torch.equal(torch.tensor(X), every[:, 2:])
    assert (0.0, 0.0) == Preprocessing.of_scale(task, None).fill


def test_long_series_are_cut_as_the_study_says(tmp_path: Path) -> None:
    """The first or the last steps; refused unless the study says which."""
    path = npz(tmp_path)
    for long, part in (("first", X[:, :4]), ("last", X[:, 3:])):
        assert torch.equal(torch.tensor(part), read(path, TASK.model_copy(update={"length": 4, "long": long})).raw.x)
    with pytest.raises(DataError, match=r"series 0: it has 7 steps, expected 4 as task\.length says"):
        read(path, TASK.model_copy(update={"length": 4}))


@pytest.mark.parametrize("step", [None, 1, 2])
def test_windows_and_the_value_that_follows_them(step: int | None, tmp_path: Path) -> None:
    """Each window of 3 steps has the value 2 steps after its last one; by hand from the array."""
    x = RNG.normal(size=(15, 11))
    task = AHEAD.model_copy(update={"step": step})
    found = read(npz(tmp_path, x=x), task)
    starts = range(0, 11 - 4, step or 5)
    windows = [x[row, start : start + 3] for row in range(15) for start in starts]
    targets = [(x[row, start + 4] - 1) / 2 for row in range(15) for start in starts]
    assert torch.equal(torch.tensor(np.stack(windows))[:, :, None], found.raw.x)
    assert torch.equal(torch.tensor(targets, dtype=torch.float32), found.raw.y)
    assert "share within 0.5 of the true 'ecg' 2 steps on" == task.score


def test_windows_of_one_series_and_of_its_copies_are_on_one_side(tmp_path: Path) -> None:
    """No series, and no copy of it, has windows in two parts, in every way of drawing parts."""
    x = RNG.normal(size=(12, 20))
    x[7] = x[2]
    task = AHEAD.model_copy(update={"step": 1})
    per = 20 - 4
    for draw in ("counts", "each"):
        found = read(npz(tmp_path, x=x), task, split=SplitConfig(draw=draw, test=0.3, validation=0.2))
        part = np.empty(12 * per, dtype=int)
        for number, rows in enumerate((found.parts.train, found.parts.validation, found.parts.test)):
            part[rows] = number
        by_series = part.reshape(12, per)
        assert (by_series == by_series[:, :1]).all() and len(np.unique(by_series)) == 3
        assert draw == "each" or by_series[7, 0] == by_series[2, 0]
    assert per == found.card.num_copies


def test_patients_and_parts_of_series(tmp_path: Path) -> None:
    """By an array and by a column alike; one patient's series stay together, and named parts are those."""
    who = np.array([f"p{row // 3}" for row in range(N)])
    part = np.where(np.arange(N) >= N - 6, "test", "train")
    by_array = read(npz(tmp_path, who=who, part=part), split=SplitConfig(group="who", parts="part"))
    rows = [
        f"{row},{step},{','.join(map(repr, X[row, step].tolist()))},{TASK.classes[Y[row]]},{who[row]},{part[row]}"
        for row in range(N)
        for step in range(T)
    ]
    path = table(tmp_path, *rows, header="series,time,ecg,bp,label,who,part")
    by_column = read(path, split=SplitConfig(group="who", parts="part"))
    for found in (by_array, by_column):
        assert list(range(N - 6, N)) == found.parts.test.tolist()
        assert N // 3 == found.card.num_groups
    assert by_array.digest == by_column.digest


def test_parts_of_series_come_from_a_file_beside_them(tmp_path: Path) -> None:
    """The file with the parts is no table of series, and neither is Excel's mark of an open workbook."""
    table(tmp_path, *lines("stuvwxyz"))
    (tmp_path / "~$open.xlsx").write_text("of an open workbook")
    words = ["test" if place > 5 else "train" for place in range(8)]
    (tmp_path / "which.csv").write_text("row,part\n" + "".join(f"{place},{word}\n" for place, word in enumerate(words)))
    found = read(tmp_path, split=SplitConfig(parts="which.csv", validation=0))
    assert ([6, 7], list(range(6))) == (found.parts.test.tolist(), found.parts.train.tolist())


def test_times_are_numbers_or_dates(tmp_path: Path) -> None:
    """Whole numbers are compared exactly beyond 2^53, dates with and without a time zone as what they are."""
    big = 2**60
    rows = [f"a,{big + 1},2,1,a", f"a,{big},1,1,a"]
    rows += ["b,2024-01-01T01:00,2,2,b", "b,2024-01-01T00:30:00Z,1,2,b", "c,2.5,2,3,b", "c,-1e1,1,3,b"]
    found = read(
        table(tmp_path, *rows), TASK.model_copy(update={"length": 2}), split=SplitConfig(test=0.6, validation=0)
    )
    assert [[1, 2]] * 3 == found.raw.x[:, :, 0].tolist()


WRONG = [
    (["a,0,1,2,a", "a,0,1,2,a", "a,1,1,2,a", "a,1,1,2,a"], "'time': 2 of its 4 times stand there before"),
    (["a,0,1,2,a", "a,one,1,2,a"], "'time': 1 of its 2 times are neither numbers nor dates"),
    (["a,0,1,2,a", "a,1,,2,a", "a,2,inf,2,a"], "'ecg': 2 of its 3 values are missing or no finite numbers"),
    (["a,0,1,2,a", "a,1,1,2,b"], "'label' has 2 different values in its rows, expected one"),
    (["a,0,1,2,c"], r"'label': expected one of \['a', 'b'\], got something else"),
    (["a,0,1,2,a"], "it has 1 steps, expected at least 7"),
]


@pytest.mark.parametrize(("rows", "sentence"), WRONG)
def test_a_series_that_cannot_be_used_is_named_without_its_values(
    rows: list[str], sentence: str, tmp_path: Path
) -> None:
    """Where it begins and what is wrong, with counts; with `max_skipped` it is left out and counted."""
    path = table(tmp_path, *lines("xyzuvw"), *lines("kl", label="b"), *rows)
    with pytest.raises(DataError, match=rf"the series that begins in file 'rows\.csv', line 58: .*{sentence}"):
        read(path)
    found = read(path, max_skipped=1)
    assert (8, 1) == (len(found.raw.y), found.card.num_skipped)


def test_missing_steps_are_found_where_the_study_says_how_far_apart_times_are(tmp_path: Path) -> None:
    """An interval of 1, and a series without its third step."""
    rows = [*lines("xyzw"), *lines("kl", label="b")]
    task = TASK.model_copy(update={"interval": 1.0, "short": "pad"})
    assert 6 == len(read(table(tmp_path, *rows), task).raw.y)
    with pytest.raises(DataError, match=r"'time': 1 of its 6 times are not followed by one 1 later, as task.interval"):
        read(table(tmp_path, *[row for row in rows if not row.startswith("z,2")]), task)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": X[:, :, :1]}, r"shape \(30, 7, 1\), expected \(N, T, 2\): N series of T steps of the 2 channels"),
        ({"x": X.astype(str)}, "array 'x' has type <U32, expected numbers"),
        ({"y": Y * 1.0}, "array 'y' has type float64, expected integer class numbers"),
        ({"y": Y[1:]}, r"array 'y' has shape \(29,\), expected \(30,\)"),
        ({"y": Y + 1}, r"series 1: its label in 'y' is not one of 0\.\.1"),
        ({"classes": np.array(["b", "a"])}, "array 'classes' differs from the study's classes"),
        ({"x": np.where(X == X[3, 2, 1], np.inf, X)}, "series 3: a number in 'x' is not finite, or too large"),
        ({"x": np.where(X == X[3, 2, 1], np.nan, X)}, "series 3: .* only steps at its end may be left out as NaN"),
    ],
)
def test_arrays_that_are_no_such_series_are_refused(arrays: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    """Shape, type, labels and numbers."""
    with pytest.raises(DataError, match=sentence):
        read(npz(tmp_path, **arrays))


def test_what_is_no_table_of_series_is_refused(tmp_path: Path) -> None:
    """A missing column, an empty name, a row of another length, an empty folder, one series for windows."""
    with pytest.raises(DataError, match="has no column 'bp'; its columns are 'series', 'time', 'ecg', 'label'"):
        read(table(tmp_path, header="series,time,ecg,label"))
    with pytest.raises(DataError, match="line 2: column 'series' is empty"):
        read(table(tmp_path, ",0,1,2,a"))
    with pytest.raises(DataError, match="line 3: expected 5 fields as in the header, got 4"):
        read(table(tmp_path, "a,0,1,2,a", "a,1,1,2"))
    with pytest.raises(DataError, match="windows are all of one series, and those of one series are not divided"):
        read(table(tmp_path, *lines("a", steps=60)), AHEAD)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has neither an \.npz file nor a table"):
        read(tmp_path / "empty")


def test_series_are_never_taken_for_pictures_and_the_reverse(tmp_path: Path) -> None:
    """An array (N, T, C) of a study of images, and settings of another kind, are refused."""
    path, images = npz(tmp_path), ImageTask(classes=("a", "b"), size=8)
    with pytest.raises(DataError, match="may be a series"):
        read_data(ArraysData(path=path), images, SplitConfig(), site="berlin", min_examples=2)
    with pytest.raises(ConfigError, match=r"data\.kind is 'series', expected 'images' or 'arrays'"):
        read(path, images)
    with pytest.raises(ConfigError, match=r"data\.kind is 'arrays', expected 'series'"):
        read_data(ArraysData(path=path), TASK, SplitConfig(), site="berlin", min_examples=2)


def test_inputs_are_those_of_training(tmp_path: Path) -> None:
    """Labelled and not, from a file, a table and an array; what follows the end of a series; what cannot be read."""
    path = npz(tmp_path, who=np.array([f"p{row // 3}" for row in range(N)]))
    raw = read(path).raw
    found = read_inputs(path, TASK, labelled=True, keep=("who",), group="who")
    assert torch.equal(raw.x, found.x) and found.y is not None and torch.equal(raw.y, found.y)
    assert found.groups is not None and [0, 0, 0, 1] == found.groups[:4].tolist() and "p1" == found.kept["who"][3]
    assert torch.equal(raw.x, pictures_inputs(X, TASK).x)
    labels = [TASK.classes[one] for one in Y]
    long = series_files.write_long(tmp_path / "new" / "rows.csv", list(X), labels, channels=TASK.channels)
    asked = read_inputs(long, TASK, labelled=False)
    assert torch.equal(raw.x, asked.x) and ("s0", "s1") == asked.names[:2] and asked.y is None
    x = RNG.normal(size=(3, 6))
    x[1, 2:] = np.nan
    ends = pictures_inputs(x, AHEAD)
    assert np.array_equal(x[[0, 2], 3:, None], ends.x) and ("0", "2") == ends.names
    assert ("1", "series 1: it has 2 steps, expected at least 3") == (ends.unread[0].name, ends.unread[0].reason)
    npz(tmp_path, x=x[[0, 2]])
    assert (4,) == read_inputs(path, AHEAD.model_copy(update={"step": 1}), labelled=True).y.shape  # type: ignore[union-attr]  # labels were asked for


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"step": 2}, "step is for 'next_step'"),
        ({"channels": ["a", "a"]}, "channels, series, time and label"),
        ({"channels": ["time"]}, "channels, series, time and label"),
        ({"next_step": 1}, "next_step learns a value, which is a number: give 'regression'"),
        (
            {"next_step": 1, "classes": [], "regression": {"tolerance": 1}, "next_channel": "x"},
            "is none of the channels",
        ),
        (
            {"next_step": 1, "classes": [], "regression": {"tolerance": 1}, "short": "pad"},
            "leave 'short' and 'long' out",
        ),
    ],
)
def test_tasks_that_mean_nothing_are_refused(changes: dict[str, Any], sentence: str) -> None:
    """Each with its sentence."""
    with pytest.raises(ValueError, match=sentence):
        SeriesTask.model_validate({"channels": ["a"], "length": 3, "classes": ["no", "yes"], **changes})


@pytest.mark.parametrize(
    ("model", "task", "sentence"),
    [
        ("gru", FeaturesTask(classes=("a", "b"), shape=(3,)), "model 'gru' reads series, but task.kind is 'features'"),
        (
            "monai/resnet10",
            TASK,
            "model 'monai/resnet10' reads no series: choose 'cnn1d', 'gru', or a model of your own",
        ),
        ("cnn1d", ImageTask(classes=("a", "b")), "model 'cnn1d' reads series, but task.kind is 'images'"),
    ],
)
def test_models_of_series_are_for_series(model: str, task: Any, sentence: str) -> None:
    """The study is refused where it is read."""
    values = {"name": "x", "sites": ["berlin"], "task": task.model_dump(), "model": {"name": model}}
    with pytest.raises(ConfigError, match=sentence):
        parse_study(values, source="study.toml")


def test_a_pool_of_series_is_divided_among_sites(tmp_path: Path) -> None:
    """`data split --series`: the study is of series, and a site's folder is read by it; without it they are refused."""
    x = X.copy()
    x[4, 5:] = np.nan
    path = npz(tmp_path, x=x)
    with pytest.raises(DataError, match="may be a series"):
        split_pool(path, tmp_path / "none", SplitOptions(by="iid", sites=2, min_examples=5))
    split_pool(path, tmp_path / "fed", SplitOptions(by="iid", sites=2, min_examples=5, series=True))
    study = load_study(tmp_path / "fed" / "study.toml")
    assert isinstance(study.task, SeriesTask)
    assert (("x1", "x2"), T, "pad", "cnn1d") == (
        study.task.channels,
        study.task.length,
        study.task.short,
        study.model.name,
    )
    sizes = [len(read(tmp_path / "fed" / site / "data", study.task).raw.y) for site in study.sites]
    assert [N // 2] * 2 == sizes
