"""Several labels of an example: how they are set, read, counted, split and refused."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from label_cases import FINDINGS, findings, findings_study, site_folders
from PIL import Image
from pydantic import ValidationError
from site_data import load_data

from consilium.client.data import READERS, RawData, read_site
from consilium.client.data.inputs import read_inputs
from consilium.client.data.labels_target import LabelsTarget
from consilium.client.methods import build_method
from consilium.client.operations.doctor.columns import check_columns
from consilium.client.operations.doctor.data import check_data
from consilium.client.privacy.policy.leaving import as_it_leaves
from consilium.client.served.drift import drift
from consilium.client.served.summary import TrainingSummary, summary_of
from consilium.client.site.handshake import read_origin
from consilium.common.errors import ConfigError, DataError, ProtocolError
from consilium.common.protocol.cards import DataCard
from consilium.common.protocol.replies import HandshakeReply
from consilium.common.study.load import load_site, load_study, parse_study
from consilium.common.study.policy import PolicyConfig
from consilium.common.study.site import ArraysData, DataConfig, FeaturesData, ImageFolderData, TableData, TextData
from consilium.common.study.task import FeaturesTask, ImageTask, TableTask, Task, TextTask
from consilium.common.study.training import SplitConfig
from consilium.server.study.alike import check_card

TWO = ("edema", "nodule")
TABLE = TableTask.model_validate({"labels": TWO, "columns": {"a": {"kind": "number"}}})
SPLIT = SplitConfig(test=0.4, validation=0.0, copies="ignore")


def data_of(config: DataConfig, task: Task) -> RawData:
    """Return a site's data as they are read."""
    return READERS[config.kind](config, task, SPLIT, site="berlin")


def all_labels(data: RawData) -> list[list[float]]:
    """Return the labels of all rows, sorted, with -1 for one that is not known."""
    return sorted(torch.nan_to_num(data.y, nan=-1.0).tolist())


def table_of(folder: Path, *rows: str, header: str = "a,edema,nodule") -> TableData:
    """Write a table."""
    (folder / "rows.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return TableData(path=folder / "rows.csv", max_skipped=0)


def test_labels_are_read_in_the_words_of_tables(tmp_path: Path) -> None:
    """1 and 0, true and false, yes and no in any case; what means a missing value elsewhere is not known here."""
    rows = ("1,1,0", "2,true,FALSE", "3,Yes,no", "4,1.0,", "5,NA,0", "6,?,1")
    config = table_of(tmp_path, *rows)
    assert [[-1, 0], [-1, 1], [1, -1], [1, 0], [1, 0], [1, 0]] == all_labels(data_of(config, TABLE))
    data = load_data(config, TABLE, SPLIT, site="berlin", min_examples=1, share_class_counts=True)
    assert torch.float32 == data.train.y.dtype and isinstance(data.train.target, LabelsTarget)
    assert {"edema": (4, 0), "nodule": (1, 4)} == data.card.label_counts
    assert () == data.card.classes and None is data.card.class_counts
    assert None is load_data(config, TABLE, SPLIT, site="berlin", min_examples=1).card.label_counts


def test_a_code_may_mean_that_a_label_is_not_known(tmp_path: Path) -> None:
    """As CheXpert's -1 for uncertain does, in the study or at one site."""
    coded = TABLE.with_missing_values({"edema": ("-1",)})
    assert [[-1, 0], [1, 0]] == all_labels(data_of(table_of(tmp_path, "1,-1,0", "2,1,0"), coded))
    words = TABLE.with_missing_values({"nodule": ("no",)})
    assert [[1, -1], [1, 0]] == all_labels(data_of(table_of(tmp_path, "1,1,no", "2,1,0"), words))


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("1,-1,0", r"label column 'edema': expected 1 or 0, .*, got a number that is none .*task.missing_values"),
        ("1,0,maybe", "label column 'nodule': expected 1 or 0, .*, got text that is none of these"),
        ("1,0.5,0", "label column 'edema': expected 1 or 0"),
        ("1,,", "none of its 2 labels is known"),
        ("x,1,0", "column 'a': expected a number, got text"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, row: str, sentence: str) -> None:
    """With the column and what was expected, never with the value; where it may be skipped, the others stay."""
    config = table_of(tmp_path, "2,1,0", "3,0,1", row)
    with pytest.raises(DataError, match=sentence) as error:
        data_of(config, TABLE)
    assert "maybe" not in str(error.value) and "0.5" not in str(error.value)
    assert 1 == data_of(config.model_copy(update={"max_skipped": 1}), TABLE).num_skipped


def test_rows_without_any_label_are_dropped_where_the_study_says_so(tmp_path: Path) -> None:
    """With task.missing = 'drop_row' or 'impute', as rows are whose label is missing."""
    config = table_of(tmp_path, "1,1,0", ",1,0", "3,,", "4,0,")
    values = TABLE.model_dump()
    assert [[0, -1], [1, 0]] == all_labels(data_of(config, TableTask(**values | {"missing": "drop_row"})))
    assert [[0, -1], [1, 0], [1, 0]] == all_labels(data_of(config, TableTask(**values | {"missing": "impute"})))


def test_a_missing_column_of_a_label_is_named(tmp_path: Path) -> None:
    """A site that does not label a finding keeps its column, with nothing in it."""
    with pytest.raises(DataError, match=r"no column 'nodule' \(task.labels\)"):
        data_of(table_of(tmp_path, "1,1", "2,0", header="a,edema"), TABLE)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"labels": ["edema"]}, "labels has one name, 'edema', expected at least two: one label is 'classes'"),
        ({"labels": ["edema", "edema"]}, "labels must differ"),
        ({"labels": ["edema", ""]}, "a name is empty"),
        ({"labels": ["edema", "a"]}, "label 'a' is also a feature column"),
        ({"classes": ["no", "yes"]}, "leave 'classes' and 'regression' out"),
        ({"regression": {"tolerance": 1}}, "leave 'classes' and 'regression' out"),
        ({"label": "nodule"}, "label 'nodule': labels says where the labels are, leave 'label' out"),
        ({"survival": {"time": "t", "event": "e"}, "label": "t"}, "survival and labels both say what the label is"),
        ({"labels": [f"l{number}" for number in range(1001)]}, "1000"),
        ({"labels": ["edema", "\u001b[31m"]}, "control character"),
    ],
)
def test_labels_that_cannot_be_are_refused(changes: dict[str, Any], sentence: str) -> None:
    """One name, a repeated one, one that is a feature too, or another label besides."""
    with pytest.raises(ValidationError, match=sentence.replace("[", r"\[")):
        TableTask.model_validate({"labels": TWO, "columns": {"a": {"kind": "number"}}} | changes)


def test_other_tasks_refuse_what_goes_with_no_labels() -> None:
    """Pictures with classes besides, and what follows in a text."""
    with pytest.raises(ValidationError, match="labels says what the label is: leave 'classes' out"):
        ImageTask(labels=TWO, classes=("a", "b"))
    with pytest.raises(ValidationError, match="leave 'labels' out"):
        TextTask.model_validate({"labels": TWO, "next": "word"})
    with pytest.raises(ValidationError, match="label 'text' is also the column of the texts"):
        TextTask.model_validate({"labels": ["edema", "text"]})


def test_all_other_columns_leave_the_labels_out(tmp_path: Path) -> None:
    """`columns = "all others"` takes every column but the labels."""
    findings(4, seed=0).to_csv(tmp_path / "data.csv", index=False)
    text = f'name = "s"\nsites = ["one"]\n[task]\nkind = "table"\nlabels = {list(FINDINGS)}\n'
    text += 'columns = "all others"\ncolumns_from = "data.csv"\n[model]\nname = "mlp"\n'
    (tmp_path / "study.toml").write_text(text, encoding="utf-8")
    task = load_study(tmp_path / "study.toml").task
    assert isinstance(task, TableTask) and ["a", "b", "c"] == list(task.columns)


FEATURES = FeaturesTask(labels=TWO, shape=(2,))


def arrays_of(folder: Path, y: Any, **more: Any) -> FeaturesData:
    """Write an `.npz` file of as many rows of two features."""
    y = np.asarray(y)
    np.savez(folder / "rows.npz", x=np.arange(2 * len(y)).reshape(-1, 2), y=y, **more)
    return FeaturesData(path=folder / "rows.npz", max_skipped=0)


@pytest.mark.parametrize("kind", [np.int8, np.float32])
def test_labels_of_arrays_are_a_table_of_numbers(tmp_path: Path, kind: type) -> None:
    """1, 0 and -1 of any number type, or booleans where all are known; names say that the order is right."""
    y: np.ndarray[Any, Any] = np.array([[1, 0], [-1, 1], [0, -1]], dtype=kind)
    config = arrays_of(tmp_path, y, labels=np.array(TWO))
    assert [[-1, 1], [0, -1], [1, 0]] == all_labels(data_of(config, FEATURES))
    assert [[0, 1], [1, 0]] == all_labels(data_of(arrays_of(tmp_path, [[True, False], [False, True]]), FEATURES))
    with_nan = np.array([[1, np.nan], [0, 1]])
    assert [[0, 1], [1, -1]] == all_labels(data_of(arrays_of(tmp_path, with_nan), FEATURES))


@pytest.mark.parametrize(
    ("y", "more", "sentence"),
    [
        ([1, 0], {}, r"array 'y' has type int64 and shape \(2,\), expected numbers of shape \(2, 2\)"),
        ([[1, 0, 1], [1, 0, 1]], {}, r"shape \(2, 3\), expected numbers of shape \(2, 2\)"),
        ([["1", "0"], ["1", "0"]], {}, "has type <U1"),
        ([[1, 0], [2, 0]], {}, r"example 1: its labels in 'y' are not each 1, 0 or -1"),
        ([[1.0, 0.5], [1, 0]], {}, "example 0: its labels in 'y' are not each 1, 0 or -1"),
        ([[np.inf, 0], [1, 0]], {}, "example 0: its labels in 'y' are not each 1, 0 or -1"),
        ([[1, 0], [-1, -1]], {}, "example 1: .* or none of them is known"),
        ([[1, 0], [0, 1]], {"labels": np.array(["nodule", "edema"])}, "array 'labels' differs from the study's labels"),
        ([[1, 0], [0, 1]], {"labels": np.array([1, 2])}, "array 'labels' differs from the study's labels"),
    ],
)
def test_arrays_that_are_no_labels_are_refused(tmp_path: Path, y: Any, more: dict[str, Any], sentence: str) -> None:
    """Another shape or type, a number that is none of the three, a row that knows nothing, names in another order."""
    with pytest.raises(DataError, match=sentence):
        data_of(arrays_of(tmp_path, y, **more), FEATURES)


def test_pictures_and_texts_have_several_labels_too(tmp_path: Path) -> None:
    """A folder with a table of files, an `.npz` file of pictures, and a table of texts give the same labels."""
    labels, wanted = [("1", ""), ("0", "1"), ("1", "0")], [[0, 1], [1, -1], [1, 0]]
    pictures = np.random.default_rng(0).integers(0, 255, size=(3, 8, 8, 1)).astype(np.uint8)
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *TWO])
        writer.writerows([[f"{number}.png", *of] for number, of in enumerate(labels)])
    for number, pixels in enumerate(pictures):
        Image.fromarray(pixels[..., 0]).save(tmp_path / f"{number}.png")
    task = ImageTask(labels=TWO, size=8, channels=1)
    in_files = data_of(ImageFolderData(path=tmp_path), task)
    assert wanted == all_labels(in_files)
    y = np.array([[1, -1], [0, 1], [1, 0]])
    np.savez(tmp_path / "pictures.npz", x=pictures, y=y)
    in_arrays = data_of(ArraysData(path=tmp_path / "pictures.npz"), task)
    assert wanted == all_labels(in_arrays)
    torch.testing.assert_close(in_files.x, in_arrays.x)
    rows = [f"word{number} again,{one},{other}" for number, (one, other) in enumerate(labels)]
    (tmp_path / "texts.csv").write_text("\n".join(["text,edema,nodule", *rows]), encoding="utf-8")
    assert wanted == all_labels(data_of(TextData(path=tmp_path / "texts.csv"), TextTask(labels=TWO)))


def test_a_label_cannot_be_called_as_the_column_of_paths() -> None:
    """In a table of pictures, `file` has the path of each."""
    with pytest.raises(ValidationError, match="'file' cannot be the column of a label"):
        ImageTask(labels=("edema", "file"))
    with pytest.raises(ValidationError, match="'file' cannot be the column of a label"):
        ImageTask.model_validate({"survival": {"time": "file", "event": "died"}})


def test_a_picture_that_is_a_link_to_elsewhere_is_named(tmp_path: Path) -> None:
    """A table from elsewhere must not have other files of the hospital read; links inside the folder may be."""
    top = tmp_path / "data"
    top.mkdir()
    for path in (top / "0.png", tmp_path / "other.png"):
        Image.new("L", (8, 8)).save(path)
    (top / "1.png").symlink_to(top / "0.png")
    (top / "labels.csv").write_text("file,edema,nodule\n0.png,1,0\n1.png,0,1\n")
    task = ImageTask(labels=TWO, size=8, channels=1)
    assert 2 == len(data_of(ImageFolderData(path=top), task).x)
    (top / "2.png").symlink_to(tmp_path / "other.png")
    (top / "far").symlink_to(tmp_path)
    for name in ("2.png", "far/other.png"):
        (top / "labels.csv").write_text(f"file,edema,nodule\n0.png,1,0\n{name},0,1\n")
        with pytest.raises(DataError, match=f"file '{name}' is a link that leads out of the folder of the table"):
            data_of(ImageFolderData(path=top), task)


def test_new_rows_are_read_with_and_without_their_labels(tmp_path: Path) -> None:
    """What a finished model is asked about: labels `(N, L)` where they are asked for, none where not."""
    path = table_of(tmp_path, "1,1,", "2,0,1", "3,x,0").path
    found = read_inputs(path, TABLE, labelled=True)
    assert found.y is not None and [[1, -1], [0, 1]] == torch.nan_to_num(found.y, nan=-1).tolist()
    assert ["3"] == [one.name for one in found.unread]
    assert None is read_inputs(path, TABLE, labelled=False).y
    features = arrays_of(tmp_path, [[1, 0], [-1, 1]]).path
    arrays = read_inputs(features, FEATURES, labelled=True)
    assert arrays.y is not None and (2, 2) == arrays.y.shape


def test_the_rarest_finding_is_spread_over_the_parts(tmp_path: Path) -> None:
    """Of 240 rows 24 have it: a test part of a quarter has 6 of them, where chance alone would vary."""
    chance = np.random.default_rng(1)
    rows = [f"{chance.normal():.6f},{int(number % 10 == 0)},{int(number % 2)}" for number in range(240)]
    for seed in range(5):
        split = SPLIT.model_copy(update={"test": 0.25, "seed": seed})
        data = load_data(table_of(tmp_path, *rows), TABLE, split, site="berlin", min_examples=1)
        assert 6 == int((data.test.y[:, 0] == 1).sum())


def card(**more: Any) -> DataCard:
    """Return a card of ten examples."""
    sizes = {"num_examples": 10, "num_train": 6, "num_validation": 2, "num_test": 2, "num_skipped": 0}
    return DataCard(**sizes | {"classes": (), "schema_digest": "abc", "label_counts": {"edema": (4, 6)}} | more)


def reply_with(of: DataCard) -> HandshakeReply:
    """Return a handshake's reply with a card."""
    versions = {"consilium": "1", "flwr": "1", "torch": "1", "torchvision": "1", "python": "3"}
    known = {"run": "r", "site": "berlin", "pid": 1, "seconds": 0.1, "versions": versions, "card": of}
    return HandshakeReply.model_validate(known | {"initial_digest": "a", "shared_digest": "b", "shared_buffers": ()})


def test_counts_that_cannot_be_are_refused() -> None:
    """More examples than there are, or of labels that the study does not have."""
    with pytest.raises(ValidationError, match="a label is known of 40000 examples, of 10 in all"):
        card(label_counts={"edema": (20_000, 20_000)})
    with pytest.raises(ValidationError, match="a label is known of 11 examples, of 10 in all"):
        card(label_counts={"edema": (5, 6)})
    with pytest.raises(ValidationError, match="a label is known of 11 examples, of 10 in all"):
        card(label_counts={"edema": (11, 0)}, label_noise=5.0)
    assert (8, 6) == (card(label_counts={"edema": (8, 6)}, label_noise=5.0).label_counts or {})["edema"]
    for noise in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValidationError):
            card(label_noise=noise)
    with pytest.raises(ValidationError):
        card(label_counts={"edema": (-1, 2)})
    study = findings_study(["berlin"], min_examples=2)
    with pytest.raises(ProtocolError, match="site 'berlin' announces labels that the study does not have: fracture"):
        check_card(study, "berlin", reply_with(card(label_counts={"fracture": (1, 1)})))
    check_card(study, "berlin", reply_with(card()))


def test_small_counts_stay_where_the_policy_keeps_them() -> None:
    """A count below `least_count` takes all counts of labels with it."""
    for counts, kept in (({"edema": (4, 6)}, None), ({"edema": (0, 10)}, {"edema": (0, 10)})):
        reply = as_it_leaves(reply_with(card(label_counts=counts)), PolicyConfig(least_count=5), noised=False)
        assert isinstance(reply, HandshakeReply) and kept == reply.card.label_counts


def test_the_sites_staff_sees_what_is_labelled(tmp_path: Path) -> None:
    """How many rows know each finding, and a warning on one that none does."""
    sites = site_folders(tmp_path, {"berlin": findings(60, seed=0, unknown=("nodule",))})
    config, study = load_site(sites["berlin"]), findings_study(["berlin"])
    told = check_columns(config, study)[0].message
    assert "label nodule: known of 0 of 60 rows" in told and "label edema: known of 60 of 60 rows: " in told
    finding = check_data(config, study)
    assert "no example knows the label nodule" in finding.message
    assert {"effusion", "edema", "nodule"} == (read_site(config, study).card.label_counts or {}).keys()


def test_noised_counts_say_how_much_noise_they_carry(tmp_path: Path) -> None:
    """None is above the number of examples, and the server knows the standard deviation: that of epsilon / 3."""
    sites = site_folders(tmp_path, {"berlin": findings(60, seed=0)}, share_class_counts=True, class_counts_epsilon=0.3)
    config, study = load_site(sites["berlin"]), findings_study(["berlin"])
    told = read_origin(config, study, build_method(study.method), torch.device("cpu")).facts.card
    assert told.label_counts is not None and told.label_noise == pytest.approx(np.sqrt(2) / 0.1, rel=0.01)
    assert 60 >= max(map(max, told.label_counts.values()))
    assert told == DataCard.model_validate_json(told.model_dump_json())


def test_what_has_no_form_for_several_labels_is_refused_in_a_sentence() -> None:
    """Noise on the score, and metrics that nobody defines."""
    scale = {name: {"mean": 0.0, "std": 1.0} for name in "abc"}
    private = {"privacy": {"examples": {"epsilon": 3}}, "task": {"scale": scale}, "split": {"draw": "each"}}
    with pytest.raises(ConfigError, match="the mean AUROC has no form with noise yet"):
        findings_study(["one", "two"], **private)
    with pytest.raises(
        ConfigError, match="'f1' is not defined where the labels are several labels; of these there are"
    ):
        findings_study(["one", "two"], metrics=["f1"])
    stopping = {"patience": 2, "metric": "average_precision"}
    values = findings_study(["one"], metrics=["average_precision"], stopping=stopping).model_dump(mode="json")
    assert ["effusion", "edema", "nodule"] == parse_study(values, source="again").model_dump(mode="json")["task"][
        "labels"
    ]


def test_a_table_of_labels_goes_through_pandas(tmp_path: Path) -> None:
    """Booleans and gaps of a DataFrame's Parquet file are labels as well."""
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "edema": [True, False, None], "nodule": [1, 0, 1]})
    frame.astype({"edema": "boolean"}).to_parquet(tmp_path / "rows.parquet")
    assert [[-1, 1], [0, 0], [1, 1]] == all_labels(data_of(TableData(path=tmp_path / "rows.parquet"), TABLE))


def test_the_summary_of_training_rows_notices_labels_that_are_more_frequent(tmp_path: Path) -> None:
    """Of each label the patients that have it and that have it not; later rows of another share are named."""
    sites = site_folders(tmp_path, {"berlin": findings(300, seed=0, unknown=("nodule",))})
    summary = summary_of(read_site(load_site(sites["berlin"]), findings_study(["berlin"])))
    labels = {one.name: one for one in summary.labels}
    assert None is summary.label and 3 == len(labels)
    assert summary.num == labels["label 'nodule'"].missing
    assert summary.num == sum(labels["label 'edema'"].counts.values())
    again = TrainingSummary.model_validate_json(summary.to_bytes())
    assert summary == again
    findings(300, seed=1, shift=3).to_csv(tmp_path / "new.csv", index=False)
    found = drift(again, read_inputs(tmp_path / "new.csv", again.task, labelled=True))
    assert {"label 'effusion'", "label 'edema'"} <= {one.column for one in found.findings}
