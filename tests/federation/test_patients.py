"""Copies, patients with several rows, rows that are named for the test, and one test set for all sites."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeStudy, write_site
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import SHARED
from PIL import Image
from pydantic import ValidationError
from site_data import load_data

from consilium.client.data import Examples, SiteData, UnscaledData, read_data
from consilium.client.data.split import split_rows
from consilium.client.operations.doctor.data import check_data
from consilium.common.data.groups import copies_of_rows, groups_of, joined
from consilium.common.errors import ConfigError, ConsiliumError, DataError, HandshakeMismatch
from consilium.common.protocol.cards import DataCard
from consilium.common.study.load import load_site
from consilium.common.study.patterns import file_pattern
from consilium.common.study.site import ArraysData, DataConfig, ImageFolderData, TableData
from consilium.common.study.task import ImageTask, NumberColumn, TableTask
from consilium.common.study.training import SplitConfig
from consilium.running.in_process import run_in_process

PUBLIC = SHARED / "data" / "public"
TASK = TableTask(classes=("no", "yes"), label="ill", columns={"a": NumberColumn(), "b": NumberColumn()})
PICTURES = ImageTask(classes=("no", "yes"), size=4, channels=1)

needs_public = pytest.mark.skipif(not PUBLIC.is_dir(), reason="the public tables are not part of the repository")


def read(config: DataConfig, task: Any = TASK, **split: Any) -> UnscaledData:
    """Return a site's data, not scaled."""
    return read_data(config, task, SplitConfig(**split), site="lyon", min_examples=2)


def load(config: DataConfig, task: Any = TASK, **split: Any) -> SiteData:
    """Return a site's data."""
    return load_data(config, task, SplitConfig(**split), site="lyon", min_examples=2)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write a file and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows(count: int, *, seed: int = 0, **more: Any) -> list[dict[str, Any]]:
    """Return rows that all differ; `more` are cells, or functions of the row's number."""
    chance = np.random.default_rng(seed)
    made = []
    for number in range(count):
        row = {"a": chance.normal(), "b": chance.normal(), "ill": ("no", "yes")[int(chance.integers(2))]}
        made.append(row | {name: cell(number) if callable(cell) else cell for name, cell in more.items()})
    return made


def parts_of(data: UnscaledData) -> tuple[list[int], list[int], list[int]]:
    """Return the rows of training, validation and test."""
    return tuple(sorted(part.tolist()) for part in (data.parts.train, data.parts.validation, data.parts.test))  # type: ignore[return-value]  # three parts


def on_one_side(data: UnscaledData, names: list[Any]) -> bool:
    """Return whether no name is in two parts."""
    train, validation, test = (({names[row] for row in part}) for part in parts_of(data))
    return not (train & test or train & validation or validation & test)


# --- copies ----------------------------------------------------------------------------------------


@needs_public
def test_heart_table_of_the_tutorials_has_302_patients() -> None:
    """723 of its 1,025 rows are copies; the lines of the file itself are on one side, 0.2 of the rows for the test."""
    columns = ("age", "sex", "cp", "trestbps", "chol", "thalach", "oldpeak")
    task = TableTask(classes=("0", "1"), label="target", columns={name: NumberColumn() for name in columns})
    data = read(TableData(path=PUBLIC / "heart.csv"), task)
    lines = (PUBLIC / "heart.csv").read_text().splitlines()[1:]
    assert (723, 302, 0) == (data.card.num_copies, data.card.num_groups, data.card.num_alike)
    assert 302 == len(set(lines)) and on_one_side(data, lines)
    assert 205 == pytest.approx(data.card.num_test, abs=4)
    assert not on_one_side(read(TableData(path=PUBLIC / "heart.csv"), task, copies="ignore"), lines)


@needs_public
@pytest.mark.parametrize(("name", "copies"), [("hcvdat0", 0), ("dataR2", 0), ("indian_liver_patient", 13)])
def test_copies_of_real_tables_are_their_equal_lines(name: str, copies: int) -> None:
    """Lines of a file that are there twice, and no more."""
    lines = (PUBLIC / f"{name}.csv").read_text().splitlines()
    assert copies == len(lines) - len(set(lines))
    header = lines[0].split(",")
    task = TableTask(
        classes=tuple(sorted({line.split(",")[-1] for line in lines[1:]})),
        label=header[-1],
        columns={header[0]: NumberColumn()},
    )
    assert copies == read(TableData(path=PUBLIC / f"{name}.csv"), task).card.num_copies


def test_copy_of_a_file_is_found_also_where_rows_could_be_equal_by_chance(tmp_path: Path) -> None:
    """60 rows of few values: alone nothing is a copy; beside a file of the same rows, in another order, 60 are."""
    chance = np.random.default_rng(1)
    plain = [
        {"a": int(chance.integers(40, 90)), "b": int(chance.integers(2)), "ill": ("no", "yes")[i % 2]}
        for i in range(60)
    ]
    write(tmp_path / "one" / "2020.csv", plain)
    alone = read(TableData(path=tmp_path / "one")).card
    assert 0 == alone.num_copies and alone.num_alike > 0 and alone.num_groups is None
    write(tmp_path / "two" / "2020.csv", plain)
    write(tmp_path / "two" / "2020 - Copy.csv", [plain[i] for i in chance.permutation(60)])
    both = read(TableData(path=tmp_path / "two"))
    assert (60, 60) == (both.card.num_copies, both.card.num_groups)
    assert not set(parts_of(both)[0]) & set(parts_of(both)[2])
    values = [tuple(row) for row in torch.column_stack([both.raw.x, both.raw.y]).tolist()]
    assert both.raw.groups is not None
    for group in range(60):
        assert 1 == len({values[row] for row in np.flatnonzero(both.raw.groups == group)})


def test_rows_that_chance_makes_equal_are_told_and_not_joined(tmp_path: Path) -> None:
    """Of 400 rows of 2 x 9 values nobody knows which are copies: a note names `split.group`; it is silent with it."""
    made = [{"a": i % 3, "b": i % 3, "ill": ("no", "yes")[i % 2], "who": i} for i in range(400)]
    data = load(TableData(path=write(tmp_path / "t.csv", [{**row, "who": "x"} for row in made])))
    assert (0, 400, None) == (data.card.num_copies, data.card.num_alike, data.card.num_groups)
    assert data.train.groups is None and "split.group" in data.notes[0] and "400 of 400" in data.notes[0]
    named = load(TableData(path=write(tmp_path / "u.csv", made)), group="who")
    assert () == named.notes and named.train.groups is None and 0 == named.card.num_alike


def test_a_column_that_another_decides_makes_no_row_rarer() -> None:
    """100 people of 60 ages: with the year of birth as a second column they are as likely alike as without."""
    chance = np.random.default_rng(2)
    age = chance.integers(20, 80, 100)
    other = chance.integers(0, 2, (100, 2))
    codes = np.column_stack([age, 100 - age, other]).astype(np.int32)
    found = copies_of_rows(codes)
    twice = [row for row, count in Counter(map(tuple, codes.tolist())).items() if count > 1]
    assert 0 == found.num_copies and len(twice) > 3
    assert found.num_alike == sum(tuple(row) in set(twice) for row in codes.tolist())


def test_chance_makes_few_copies() -> None:
    """In random tables that have half a pair of equal rows by chance, one or three, nearly none is called a copy."""
    for rows_of, columns, values in ((300, 5, 10), (450, 5, 10), (100, 2, 40)):
        found = equal = 0
        for seed in range(40):
            codes = np.random.default_rng(seed).integers(0, values, (rows_of, columns)).astype(np.int32)
            equal += rows_of - len({tuple(row) for row in codes.tolist()})
            found += copies_of_rows(codes).num_copies
        assert equal >= 10 and found <= 2


def test_row_numbers_and_order_of_columns_make_no_difference(tmp_path: Path) -> None:
    """A second export with other row numbers, its columns in another order and 1 written 1.0, is a copy."""
    made = [row | {"c": i} for i, row in enumerate(rows(30))]
    write(tmp_path / "d" / "1.csv", [{"": i, **row} for i, row in enumerate(made)])
    write(
        tmp_path / "d" / "2.csv",
        [{"ill": r["ill"], "": i + 7, "c": f"{r['c']}.0", "b": r["b"], "a": r["a"]} for i, r in enumerate(made)],
    )
    assert (30, 30) == ((card := read(TableData(path=tmp_path / "d")).card).num_copies, card.num_groups)


def test_other_columns_of_a_file_tell_patients_apart(tmp_path: Path) -> None:
    """Rows that are equal in the study's columns only are no copies."""
    made = [rows(1)[0] | {"visit": f"2020-{i}"} for i in range(30)]
    assert (0, None) == (
        (card := read(TableData(path=write(tmp_path / "t.csv", made))).card).num_copies,
        card.num_groups,
    )


def test_whole_record_counts_in_parquet_too(tmp_path: Path) -> None:
    """Also columns that the study does not use; those of an unknown type are left out as ever."""
    pa = pytest.importorskip("pyarrow", reason="needs the extra 'parquet'")
    import pyarrow.parquet as pq

    made = rows(20)
    table = pa.Table.from_pylist([*made, *made])
    table = table.append_column("when", pa.array(list(range(40)), pa.timestamp("s")))
    pq.write_table(table, tmp_path / "same.parquet")
    pq.write_table(table.append_column("visit", pa.array(list(range(40)))), tmp_path / "differ.parquet")
    assert 20 == read(TableData(path=tmp_path / "same.parquet")).card.num_copies
    assert 0 == read(TableData(path=tmp_path / "differ.parquet")).card.num_copies


def pictures(count: int, *, seed: int = 0) -> np.ndarray:
    """Return random pictures."""
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 4), dtype=np.uint8)


def save(folder: Path, names: list[str], x: np.ndarray) -> Path:
    """Save pictures under names."""
    for name, picture in zip(names, x, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / name)
    return folder


def test_pictures_with_the_same_pixels_are_one_patient(tmp_path: Path) -> None:
    """Whatever the files are called and of whatever kind, in folders as in arrays, also in two classes."""
    x = pictures(30)
    names = [f"{('no', 'yes')[i % 2]}/{i:02}.png" for i in range(30)]
    folder = save(tmp_path / "d", [*names, "no/copy.bmp", "yes/other.png"], np.concatenate([x, x[[4, 4]]]))
    found = read(ImageFolderData(path=folder), PICTURES)
    assert (2, 30) == (found.card.num_copies, found.card.num_groups)
    flat = [row.numpy().tobytes() for row in found.raw.x]
    assert on_one_side(found, flat)
    np.savez(tmp_path / "a.npz", x=np.concatenate([x, x[[4, 4]]]), y=np.arange(32) % 2)
    again = read(ArraysData(path=tmp_path / "a.npz"), PICTURES)
    assert (2, 30) == (again.card.num_copies, again.card.num_groups)


# --- patients --------------------------------------------------------------------------------------


@needs_public
def test_patients_of_a_real_table_stay_together() -> None:
    """mslearn-diabetes: PatientID repeats; each is on one side, and the parts have the wanted size."""
    task = TableTask(classes=("0", "1"), label="Diabetic", columns={"Age": NumberColumn(), "BMI": NumberColumn()})
    data = read(TableData(path=PUBLIC / "mslearn-diabetes.csv"), task, group="PatientID")
    names = [line.split(",")[0] for line in (PUBLIC / "mslearn-diabetes.csv").read_text().splitlines()[1:]]
    assert len(set(names)) == data.card.num_groups and len(set(names)) < 15_000
    assert on_one_side(data, names)
    assert [3000, 1800] == [pytest.approx(count, abs=2) for count in (data.card.num_test, data.card.num_validation)]
    assert not on_one_side(read(TableData(path=PUBLIC / "mslearn-diabetes.csv"), task), names)


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=40),
    test=st.floats(0.05, 0.6),
    seed=st.integers(0, 2**31),
)
def test_patients_are_whole_and_parts_as_large_as_they_allow(sizes: list[int], test: float, seed: int) -> None:
    """All rows once, a patient in one part; what is held out is its share, give or take the largest patient."""
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    labels = (groups % 3 == 0).astype(np.int64)
    found = split_rows(labels, SplitConfig(test=test, validation=0.2, seed=seed), groups=groups)
    parts = (found.train, found.validation, found.test)
    assert list(range(len(labels))) == sorted(np.concatenate(parts).tolist())
    assert len(sizes) == sum(len(np.unique(groups[part])) for part in parts)
    assert len(found.train) and len(found.test)
    assert abs(len(found.test) - test * len(labels)) <= max(max(sizes), 1)


def test_patients_are_stratified_by_their_most_frequent_label() -> None:
    """40 of 160 patients are ill, of two rows each: a quarter of those for the test."""
    groups = np.repeat(np.arange(160), 2)
    labels = (groups % 4 == 0).astype(np.int64)
    labels[1::2][:10] = 1 - labels[1::2][:10]  # a second row of another label: the smaller one is theirs
    found = split_rows(labels, SplitConfig(test=0.25, validation=0.2), groups=groups)
    ill = groups % 4 == 0
    ill[:20] = (labels[0:20:2] & labels[1:20:2]).repeat(2) > 0
    assert [80, 48] == [len(part) for part in (found.test, found.validation)]
    assert int(ill[found.test].sum()) == pytest.approx(0.25 * int(ill.sum()), abs=2)


def test_numbers_are_not_stratified_but_kept_together() -> None:
    """A label that is a number has no classes; patients stay whole all the same."""
    groups = np.repeat(np.arange(30), 3)
    found = split_rows(np.arange(90, dtype=np.float32), SplitConfig(), groups=groups)
    assert not set(groups[found.train]) & set(groups[found.test]) and 18 == len(found.test)


def test_patients_of_one_row_are_split_as_rows() -> None:
    """Bit for bit, whatever their numbers are."""
    labels = np.random.default_rng(0).integers(0, 2, 101)
    one, other = split_rows(labels, SplitConfig()), split_rows(labels, SplitConfig(), groups=np.arange(101)[::-1] * 3)
    for part in ("train", "validation", "test"):
        assert getattr(one, part).tolist() == getattr(other, part).tolist()


def test_links_join_what_is_joined_through_others() -> None:
    """Row 0 copies 3, 3 is of one patient with 5, 5 copies 1: one group; 2 and 4 are alone."""
    assert [0, 0, 2, 0, 4, 0] == joined(6, [np.array([3, 5, 2, 3, 4, 5]), np.array([0, 1, 2, 3, 4, 3])]).tolist()
    assert [0, 0, 1] == groups_of(None, ["x", "x", "y"], count=3).tolist()  # type: ignore[union-attr] # not all differ
    assert groups_of(None, ["x", "z", "y"], count=3) is None


def test_examples_of_every_part_know_their_patients(tmp_path: Path) -> None:
    """Training, validation and test rows carry the number of their patient, for intervals and cross-validation."""
    data = load(TableData(path=write(tmp_path / "t.csv", rows(90, who=lambda i: i // 3))), group="who")
    for part in (data.train, data.validation, data.test):
        assert part.groups is not None and {3} == set(Counter(part.groups.tolist()).values())
    with pytest.raises(ValueError, match=r"groups have shape \(2,\), expected \(3,\)"):
        Examples(torch.zeros(3, 1), torch.zeros(3), groups=torch.zeros(2, dtype=torch.int64))


def test_patients_of_pictures_are_folders_or_part_of_the_name(tmp_path: Path) -> None:
    """And in arrays an array; the same rows are grouped the same way."""
    x = pictures(40)
    inside = [f"{('no', 'yes')[i % 2]}/P{i // 4}/{i:02}.png" for i in range(40)]
    flat = [f"{('no', 'yes')[i % 2]}/P{i // 4}_{i:02}.png" for i in range(40)]
    one = read(ImageFolderData(path=save(tmp_path / "f", inside, x)), PICTURES, group="folder")
    two = read(ImageFolderData(path=save(tmp_path / "n", flat, x)), PICTURES, group="^(P[0-9]+)_")
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(40) % 2, who=np.array([f"P{i // 4}" for i in range(40)]))
    three = read(ArraysData(path=tmp_path / "a.npz"), PICTURES, group="who")
    for found in (one, two, three):
        assert (10, 0) == (found.card.num_groups, found.card.num_copies)
        assert 8 == found.card.num_test and found.raw.groups is not None
        assert len(np.unique(found.raw.groups[found.parts.test])) == 2


@pytest.mark.parametrize(
    ("group", "made", "sentence"),
    [
        ("folder", ["no/1.png"], "image '1.png' lies in class 'no' itself, expected in a folder of its patient"),
        ("^(P[0-9]+)_", ["no/x1.png"], "image 'x1.png' has a name that does not fit, as split.group = '^(P"),
        ("patient", ["no/1.png"], "split.group is 'patient', expected for a folder of images 'folder' or a pattern"),
        ("folder", ["no/p/1.png", "yes/p/2.png"], "2 examples are of one patient by split.group = 'folder', expected"),
    ],
)
def test_picture_of_nobody_is_a_sentence(tmp_path: Path, group: str, made: list[str], sentence: str) -> None:
    """Not a patient of its own: somebody thought that all are told apart."""
    with pytest.raises(ConsiliumError) as caught:
        read(ImageFolderData(path=save(tmp_path, made, pictures(len(made)))), PICTURES, group=group)
    assert sentence in str(caught.value) and "site 'lyon'" in str(caught.value)


def test_patient_with_all_rows_is_a_sentence(tmp_path: Path) -> None:
    """A group that spans all rows, or all but two, leaves nothing to test on."""
    one = r"all its 40 examples are of one patient by split.group = 'who', expected several"
    two = r"its 40 examples of 2 patients.* leave . for test, expected at least 2"
    for who, sentence in ((lambda i: "x", one), (lambda i: min(i, 1), two)):
        file = write(tmp_path / "t.csv", rows(40, who=who))
        with pytest.raises(DataError, match=sentence):
            read(TableData(path=file), group="who")
    three = write(tmp_path / "t.csv", rows(40, who=lambda i: i % 3))
    with pytest.raises(DataError, match=r"3 patients .* leave 1 for test, expected at least 2"):
        read(TableData(path=three), group="who")
    with pytest.raises(DataError, match=r"leave 1 for test, expected at least 2"):
        read(TableData(path=write(tmp_path / "u.csv", rows(4))))
    with pytest.raises(DataError, match=r"leave 0 for validation, expected at least 1: more patients or another"):
        read(TableData(path=write(tmp_path / "u.csv", rows(3))), test=0.6)


def test_row_without_a_patient_is_bad(tmp_path: Path) -> None:
    """It is named, and counts among those that may be skipped."""
    file = write(tmp_path / "t.csv", rows(40, who=lambda i: "" if i == 7 else i // 2))
    with pytest.raises(DataError, match=r"line 9, column 'who' \(split\.group\): expected whose row it is"):
        read(TableData(path=file), group="who")
    assert 1 == read(TableData(path=file, max_skipped=1), group="who").card.num_skipped
    with pytest.raises(DataError, match=r"has no column 'whose' \(split.group\)"):
        read(TableData(path=file), group="whose")


@pytest.mark.parametrize(
    ("text", "name", "patient"),
    [
        ("^(P[0-9]+)_", "P12_3.png", "P12"),
        (r"(\d{4})-\w+", "scan 2031-left.png", "2031"),
        ("^(.+)_[LR]", "a_b_L.png", "a_b"),
        (r"^([^_]+)", "x_1", None),
    ],
)
def test_pattern_of_names_is_a_plain_regular_expression(text: str, name: str, patient: str | None) -> None:
    """Literals, classes and single repeats."""
    pattern = file_pattern(text)
    found = pattern.search(name) if pattern is not None else None
    assert found is not None and (patient or "x") == found[1]


@pytest.mark.parametrize(
    "text",
    [
        *("(a+)+", "(a|b)", "((a))", "no brackets", "(a)(b)", "(.*.*.*.*.*)", "(a", "(?:a)", "(a*)*$", "(x{1000})"),
        *(r"\w?" * 40 + "(-)", r"\w{0,1}" * 40 + "(-)"),
    ],
)
def test_pattern_that_could_run_for_years_is_none(text: str) -> None:
    """Or that has no patient in it."""
    assert file_pattern(text) is None


# --- rows of one's own -----------------------------------------------------------------------------

WORDS = ("train", "Training", "val", "validation", "dev", "test", "TEST")


def word(number: int) -> str:
    """Return a word for a part."""
    return WORDS[number % 7]


EXPECTED = [
    [i for i in range(70) if i % 7 in (0, 1)],
    [i for i in range(70) if i % 7 in (2, 3, 4)],
    [i for i in range(70) if i % 7 in (5, 6)],
]


def test_column_says_what_a_row_is_for(tmp_path: Path) -> None:
    """In the usual words, in any case; nothing is drawn."""
    file = write(tmp_path / "t.csv", rows(70, set=word))
    assert EXPECTED == list(parts_of(read(TableData(path=file), parts="set")))
    assert EXPECTED == list(parts_of(read(TableData(path=file), parts="set", seed=5, test=0.5)))


def test_file_of_indices_says_what_a_row_is_for(tmp_path: Path) -> None:
    """It lies beside the table or among the tables of a folder, its rows in any order, counted over all files."""
    made = rows(70)
    index = [{"part": word(i), "row": i} for i in range(70)]
    write(tmp_path / "d" / "1.csv", made[:30])
    write(tmp_path / "d" / "2.csv", made[30:])
    write(tmp_path / "d" / "split.csv", index[::-1])
    assert EXPECTED == list(parts_of(read(TableData(path=tmp_path / "d"), parts="split.csv")))
    write(tmp_path / "e" / "all.csv", made)
    write(tmp_path / "e" / "split.csv", index)
    assert EXPECTED == list(parts_of(read(TableData(path=tmp_path / "e" / "all.csv"), parts="split.csv")))


def test_indices_count_rows_that_are_not_used(tmp_path: Path) -> None:
    """Row 3 has no label and is dropped; the rows after it keep their numbers."""
    made = rows(70)
    made[3]["ill"] = ""
    write(tmp_path / "d" / "1.csv", made)
    write(tmp_path / "d" / "split.csv", [{"row": i, "part": word(i)} for i in range(70) if i != 3])
    task = TASK.model_copy(update={"missing": "drop_row"})
    data = read(TableData(path=tmp_path / "d"), task, parts="split.csv")
    expected = [[i - (i > 3) for i in part if i != 3] for part in EXPECTED]
    assert expected == list(parts_of(data))


def test_folders_and_arrays_say_what_a_picture_is_for(tmp_path: Path) -> None:
    """`train/<class>/...` and so on, an array of words, of booleans, or a file of paths."""
    x, y = pictures(70), np.arange(70) % 2
    names = [f"{('no', 'yes')[i % 2]}/{i:02}.png" for i in range(70)]
    save(tmp_path / "f", [f"{word(i)}/{name}" for i, name in enumerate(names)], x)
    save(tmp_path / "g", names, x)
    write(tmp_path / "g" / "split.csv", [{"file": name, "part": word(i)} for i, name in enumerate(names)])
    words = np.array([word(i) for i in range(70)])
    np.savez(tmp_path / "a.npz", x=x, y=y, part=words, is_test=np.arange(70) % 7 > 4)
    write(tmp_path / "split.csv", [{"row": i, "part": word(i)} for i in range(70)])
    ordered = np.argsort(y, kind="stable")  # folders are read class by class
    place = np.argsort(ordered)
    in_folders = [sorted(place[part].tolist()) for part in EXPECTED]
    assert in_folders == list(parts_of(read(ImageFolderData(path=tmp_path / "f"), PICTURES, parts="folder")))
    assert in_folders == list(parts_of(read(ImageFolderData(path=tmp_path / "g"), PICTURES, parts="split.csv")))
    for name in ("part", "split.csv"):
        assert EXPECTED == list(parts_of(read(ArraysData(path=tmp_path / "a.npz"), PICTURES, parts=name)))
    drawn = read(ArraysData(path=tmp_path / "a.npz"), PICTURES, parts="is_test", validation=0.3)
    assert EXPECTED[2] == parts_of(drawn)[2] and 15 == drawn.card.num_validation


def index(*lines: tuple[Any, str]) -> list[dict[str, Any]]:
    """Return the rows of an index file."""
    return [{"row": row, "part": part} for row, part in lines]


GOOD = [(i, "test" if i < 10 else "train") for i in range(40)]


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (index(*GOOD[:39]), "file 'split.csv' (split.parts) misses 1 of 40 examples, first row '39': give each a part"),
        (index(*GOOD, (40, "train")), "line 42: there is no such row, expected one of 0..39"),
        (index(*GOOD, (-1, "train")), "there is no such row"),
        (index(*GOOD, (3, "train")), "row '3' is there a second time, expected each once"),
        (index(*GOOD[:39], (39, "holdout")), "line 41: the part is none of train, validation or test"),
        (index(*[(i, "train") for i in range(40)]), "names no example for test, expected some"),
        (index(*[(i, "test") for i in range(40)]), "names no example for training, expected some"),
        (index((0, "test"), *[(i, "train") for i in range(1, 40)]), "leave 1 for test, expected at least 2"),
        ([{"id": 1, "part": "test"}], "(split.parts) has 2 other columns, expected two: 'row' and 'part'"),
    ],
)
def test_unusable_file_of_indices_is_a_sentence(tmp_path: Path, made: list[dict[str, Any]], sentence: str) -> None:
    """Which names the row, before anything is trained."""
    write(tmp_path / "split.csv", made)
    with pytest.raises(DataError) as caught:
        read(TableData(path=write(tmp_path / "t.csv", rows(40))), parts="split.csv")
    assert sentence in str(caught.value) and "site 'lyon'" in str(caught.value)


def test_unusable_parts_of_other_kinds_are_sentences(tmp_path: Path) -> None:
    """A word of a column, a folder's name, an array's type; a file that is not there; a setting for another kind."""
    wanted = r"column 'set' \(split\.parts\): expected train, validation or test, .*first line 2"
    with pytest.raises(DataError, match=wanted):
        read(TableData(path=write(tmp_path / "t.csv", rows(40, set="holdout"))), parts="set")
    with pytest.raises(DataError, match=r"file 'none\.csv' cannot be read"):
        read(TableData(path=tmp_path / "t.csv"), parts="none.csv")
    folder = ImageFolderData(path=save(tmp_path / "f", ["holdout/no/1.png", "train/no/2.png"], pictures(2)))
    with pytest.raises(DataError, match="folder 'holdout' is none of train, validation or test"):
        read(folder, PICTURES, parts="folder")
    with pytest.raises(
        ConfigError, match=r"split\.parts is 'set', expected for a folder of images 'folder' or a \.csv"
    ):
        read(folder, PICTURES, parts="set")
    np.savez(tmp_path / "a.npz", x=pictures(4), y=np.arange(4) % 2, n=np.arange(4), w=np.array(["train", "x"] * 2))
    for name, sentence in (("n", "expected 4 words or booleans"), ("w", "example 1: the word is none of")):
        with pytest.raises(DataError, match=sentence):
            read(ArraysData(path=tmp_path / "a.npz"), PICTURES, parts=name)
    with pytest.raises(DataError, match=r"array 'x' \(split\.group\) has type uint8 and shape \(4, 4, 4\), expected 4"):
        read(ArraysData(path=tmp_path / "a.npz"), PICTURES, group="x")


@pytest.mark.parametrize("parts", ["../split.csv", "/etc/split.csv", "a/b.CSV", ".split.csv"])
def test_file_of_indices_lies_in_the_data_folder(parts: str) -> None:
    """A study cannot have a site read another file; a column may have any name."""
    with pytest.raises(ValidationError, match=r"must be the name of a file or folder without a path"):
        SplitConfig(parts=parts)
    assert "a/b" == SplitConfig(parts="a/b").parts


def test_first_line_of_another_file_is_not_told(tmp_path: Path) -> None:
    """A table without a header has a patient in its first line, and the sentence may reach the server."""
    (tmp_path / "split.csv").write_text("Meyer,1956-02-11\nKunz,1971-08-30\n")
    with pytest.raises(DataError, match="has 2 other columns") as caught:
        read(TableData(path=write(tmp_path / "t.csv", rows(40))), parts="split.csv")
    assert "Meyer" not in str(caught.value)


def test_patient_in_two_named_parts_is_a_sentence(tmp_path: Path) -> None:
    """Copies too, although their parts differ; `copies = "ignore"` lets copies be."""
    made = rows(40, set=lambda i: "test" if i < 10 else "train", who=lambda i: i // 4)
    file = write(tmp_path / "t.csv", made)
    with pytest.raises(DataError, match="has 1 patients in more than one part"):
        read(TableData(path=file), parts="set", group="who")
    copied = write(tmp_path / "u.csv", [*made, {**made[3], "set": "train"}])
    with pytest.raises(DataError, match="has 1 patients in more than one part"):
        read(TableData(path=copied), parts="set")
    assert 1 == (card := read(TableData(path=copied), parts="set", copies="ignore").card).num_copies
    assert (None, 10) == (card.num_groups, card.num_test)


# --- one test set for all --------------------------------------------------------------------------


def test_common_test_set_is_the_test_of_a_table(tmp_path: Path) -> None:
    """All own rows are for training and validation; test rows are scaled by the training rows, in the file's order."""
    own, common = rows(40), rows(12, seed=9)
    write(tmp_path / "d" / "own.csv", own)
    write(tmp_path / "d" / "common.csv", common)
    task = TASK.model_copy(update={"test": "common.csv", "scale": "site"})
    data = load(TableData(path=tmp_path / "d"), task)
    assert (34, 6, 12, 52) == (
        data.card.num_train,
        data.card.num_validation,
        data.card.num_test,
        data.card.num_examples,
    )
    train = read(TableData(path=tmp_path / "d"), task).parts.train
    a = np.array([[row["a"], row["b"]] for row in own])[train]
    expected = (np.array([[row["a"], row["b"]] for row in common]) - a.mean(axis=0)) / a.std(axis=0)
    assert np.allclose(expected, data.test.x.numpy(), atol=1e-5)
    assert [("no", "yes").index(row["ill"]) for row in common] == data.test.y.tolist()
    elsewhere = TableData(path=tmp_path / "d" / "own.csv", test=write(tmp_path / "x" / "any.csv", common))
    assert data.card.test_digest == load(elsewhere, task).card.test_digest != ""


def test_own_data_are_no_common_test_set(tmp_path: Path) -> None:
    """Its digest is told, and of few rows of few values it says which they are; nor could anything be tested on it."""
    file = write(tmp_path / "own.csv", rows(40))
    for config in (TableData(path=file), TableData(path=file, test=tmp_path / "x" / ".." / "own.csv")):
        with pytest.raises(DataError, match="is the site's own data"):
            load(config, TASK.model_copy(update={"test": "own.csv"}), copies="ignore")
    (tmp_path / "link.csv").symlink_to(file)
    with pytest.raises(DataError, match="is the site's own data"):
        load(TableData(path=file), TASK.model_copy(update={"test": "link.csv"}), copies="ignore")


def test_patients_of_the_common_test_set_are_others_than_the_own(tmp_path: Path) -> None:
    """Each file has its patients; number 3 here is not number 3 there, and the card counts the own ones."""
    write(tmp_path / "d" / "own.csv", rows(40, who=lambda i: i // 2))
    write(tmp_path / "d" / "t.csv", rows(12, seed=9, who=lambda i: i // 3))
    data = load(TableData(path=tmp_path / "d"), TASK.model_copy(update={"test": "t.csv"}), group="who")
    own, test = (torch.cat([data.train.groups, data.validation.groups]), data.test.groups)  # type: ignore[list-item] # told
    assert test is not None and not set(own.tolist()) & set(test.tolist())
    assert ([3] * 4, 20) == (list(Counter(test.tolist()).values()), data.card.num_groups)


def test_class_counts_are_of_own_rows(tmp_path: Path) -> None:
    """A weighting by classes must not count the common test set at every site."""
    write(tmp_path / "d" / "own.csv", [row | {"ill": ("no", "yes")[i % 4 == 0]} for i, row in enumerate(rows(40))])
    write(tmp_path / "d" / "t.csv", [row | {"ill": "yes"} for row in rows(12, seed=9)])
    task = TASK.model_copy(update={"test": "t.csv"})
    card = read_data(
        TableData(path=tmp_path / "d"), task, SplitConfig(), site="a", min_examples=2, share_class_counts=True
    ).card
    assert {"no": 30, "yes": 10} == card.class_counts


def test_common_test_set_of_pictures_is_the_same_in_folders_and_arrays(tmp_path: Path) -> None:
    """The same digest; the folder of the test set is no class."""
    x, common = pictures(40), pictures(10, seed=1)
    names = [f"{('no', 'yes')[i % 2]}/{i:02}.png" for i in range(40)]
    save(tmp_path / "f", names, x)
    save(tmp_path / "f" / "official", [f"{('no', 'yes')[i // 5]}/{i}.png" for i in range(10)], common)
    (tmp_path / "a").mkdir()
    np.savez(tmp_path / "a" / "own.npz", x=x, y=np.arange(40) % 2)
    np.savez(tmp_path / "a" / "official", x=common, y=np.arange(10) // 5)
    (tmp_path / "a" / "official.npz").rename(tmp_path / "official.npz")
    task = PICTURES.model_copy(update={"test": "official"})
    one = read(ImageFolderData(path=tmp_path / "f"), task).card
    two = read(ArraysData(path=tmp_path / "a", test=tmp_path / "official.npz"), task).card
    assert 10 == one.num_test == two.num_test and one.test_digest == two.test_digest
    inside = PICTURES.model_copy(update={"test": "test.npz"})
    (tmp_path / "official.npz").rename(tmp_path / "a" / "test.npz")
    assert one.test_digest == read(ArraysData(path=tmp_path / "a"), inside).card.test_digest


def test_own_row_in_the_common_test_set_is_a_sentence(tmp_path: Path) -> None:
    """Tables and pictures; not where equal rows are chance, and not with `copies = "ignore"`, where a note says it."""
    own, common = rows(40), rows(12, seed=9)
    write(tmp_path / "d" / "own.csv", [*own, *common[:3]])
    write(tmp_path / "d" / "t.csv", common)
    task = TASK.model_copy(update={"test": "t.csv"})
    with pytest.raises(DataError, match="3 of 43 examples are also in the study's common test set, which must overlap"):
        read(TableData(path=tmp_path / "d"), task)
    assert "3 of 43 examples are also" in load(TableData(path=tmp_path / "d"), task, copies="ignore").notes[0]
    few = [{"a": i % 2, "b": i % 3, "ill": ("no", "yes")[i % 2]} for i in range(40)]
    write(tmp_path / "e" / "own.csv", few)
    write(tmp_path / "e" / "t.csv", few[:12])
    assert 12 == read(TableData(path=tmp_path / "e"), task).card.num_test
    np.savez(tmp_path / "p.npz", x=pictures(40), y=np.arange(40) % 2)
    np.savez(tmp_path / "q.npz", x=pictures(40)[[5, 6]], y=np.arange(2))
    held = ArraysData(path=tmp_path / "p.npz", test=tmp_path / "q.npz")
    with pytest.raises(DataError, match="2 of 40 examples are also in the study's common test set"):
        read(held, PICTURES.model_copy(update={"test": "x"}))


def test_unusable_common_test_set_is_a_sentence(tmp_path: Path) -> None:
    """It is missing, has a bad row although some may be skipped, or own rows are named for the test as well."""
    write(tmp_path / "d" / "own.csv", rows(40, set=lambda i: "test" if i < 4 else "train"))
    task = TASK.model_copy(update={"test": "t.csv"})
    with pytest.raises(DataError, match=r"does not exist.*\(the study's common test set, task\.test = 't\.csv'\)"):
        read(TableData(path=tmp_path / "d"), task)
    write(tmp_path / "d" / "t.csv", [*rows(4, seed=3), {"a": "x", "b": 1, "ill": "no"}])
    with pytest.raises(DataError, match=r"expected a number, got text .*common test set"):
        read(TableData(path=tmp_path / "d", max_skipped=5), task)
    write(tmp_path / "d" / "t.csv", rows(4, seed=3))
    with pytest.raises(DataError, match="names 4 examples for test, but the study has a common test set"):
        read(TableData(path=tmp_path / "d"), task, parts="set")
    write(tmp_path / "d" / "t.csv", rows(1, seed=3))
    with pytest.raises(DataError, match="leave 1 for test, expected at least 2"):
        read(TableData(path=tmp_path / "d"), task)


def test_name_of_the_common_test_set_leads_out_of_no_folder() -> None:
    """A study that comes from elsewhere reads no other file of a hospital."""
    for name in ("../x.csv", "/etc/passwd", "a/b", ".hidden", "a\\b", ""):
        with pytest.raises(ValidationError):
            ImageTask(classes=("a", "b"), test=name)


def sites_with(tmp_path: Path, tests: list[list[dict[str, Any]]]) -> dict[str, Path]:
    """Write three sites with test rows of their own."""
    found = {}
    for number, (name, test) in enumerate(zip(("berlin", "lyon", "porto"), tests, strict=True)):
        write(tmp_path / name / "data" / "own.csv", rows(40, seed=number))
        write(tmp_path / name / "data" / "t.csv", test)
        found[name] = write_site(tmp_path / name, name, kind="table", data=str(tmp_path / name / "data"))
    return found


def test_run_measures_all_sites_on_the_common_test_set(tmp_path: Path, make_study: MakeStudy) -> None:
    """The same rows everywhere; with one row of another number at one site nothing starts, and the table says why."""
    common = rows(12, seed=9)
    task = make_study().task.model_copy(update={"test": "t.csv"})
    study = make_study(task=task.model_dump(exclude_none=True), rounds=1)
    run_in_process(study, sites_with(tmp_path / "a", [common] * 3), tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert {12} == {of["num_test"] for of in result["sites"].values()}
    other = [*common[:5], common[5] | {"a": 0.5}, *common[6:]]
    with pytest.raises(HandshakeMismatch, match=r"common test set: berlin has 12 rows \w+, lyon has 12 rows"):
        run_in_process(study, sites_with(tmp_path / "b", [common, other, common]), tmp_path / "run2")


def test_run_and_site_check_say_how_many_copies_there_are(tmp_path: Path, make_study: MakeStudy) -> None:
    """A sentence in the result's warnings, the counts beside the site's others, and a WARN at the site."""
    sites = {}
    for number, name in enumerate(("berlin", "lyon", "porto")):
        made = rows(60, seed=number)
        write(tmp_path / name / "data" / "own.csv", [*made, *made[:10]] if name == "lyon" else made)
        sites[name] = write_site(tmp_path / name, name, kind="table", data=str(tmp_path / name / "data"))
    study = make_study(rounds=1)
    run_in_process(study, sites, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [w for w in result["warnings"] if "exact copies" in w] == [
        "site 'lyon': 10 of 70 examples are exact copies of others; ask the site why they are there twice"
    ]
    apart = study.model_copy(update={"split": SplitConfig(copies="ignore")})
    run_in_process(apart, sites, tmp_path / "apart")
    (said,) = json.loads((tmp_path / "apart" / "result.json").read_text())["warnings"]
    assert said.endswith(
        "others; split.copies = 'ignore' lets them lie in training and test alike, and scores are too good by that"
    )
    finding = check_data(load_site(sites["lyon"]), study)
    assert "WARN" == finding.status and "70 examples of 60 patients" in finding.message
    assert "10 of 70 examples are exact copies of others" in finding.message
    assert "PASS" == check_data(load_site(sites["porto"]), study).status


def test_card_with_more_patients_than_examples_is_refused() -> None:
    """A site that tells so is wrong or lies."""
    good: dict[str, Any] = {"num_examples": 9, "num_train": 5, "num_validation": 2, "num_test": 2, "num_skipped": 0}
    good |= {"classes": ("a",), "schema_digest": "ab"}
    DataCard.model_validate(good | {"num_groups": 9, "num_copies": 3, "num_alike": 0})
    for changes in ({"num_groups": 10}, {"num_copies": 10}, {"num_alike": 10}, {"num_groups": -1}):
        with pytest.raises(ValidationError):
            DataCard.model_validate(good | changes)
    with pytest.raises(ValidationError, match="more copies or patients than the 7 examples"):
        DataCard.model_validate(good | {"num_groups": 8, "test_digest": "ab"})
