"""Pools of texts: tables, files in a folder for each class, plain texts; what each site gets, and the study."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from text_studies import sentences, write_csv

from consilium.client.data import read_data
from consilium.common.errors import ConfigError, DataError
from consilium.common.study.load import load_study
from consilium.common.study.site import TextData
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import TextTask
from consilium.data.options import SplitOptions
from consilium.data.split import split_pool

IID = SplitOptions("iid", sites=2, min_examples=5)
TWO: dict[str, Any] = {"by": "iid", "sites": 2}
PLAIN: dict[str, Any] = {"sites": 2, "next": "character"}
NAMES = [f"P {number}" for number in range(48)]
PLAY = "\n\n".join(
    f"{name}:\nline {at} of {name} goes on for a while, and then it ends." for at in range(12) for name in NAMES
)


def examples(out: Path, study: StudyConfig, site: str) -> int:
    """How many examples a site of a federation reads in its study."""
    data = read_data(TextData(path=out / site / "data"), study.task, study.split, site=site, min_examples=2)
    return data.raw.num_own


def rows(out: Path) -> list[str]:
    """The lines of all sites' tables, without their headers."""
    return [line for file in sorted(out.glob("*/data/texts.csv")) for line in file.read_text().splitlines()[1:]]


def test_every_text_of_a_table_is_at_one_site_as_it_was(tmp_path: Path) -> None:
    """Rows go whole; the study names the columns, and a small model of texts with enough vectors."""
    write_csv(tmp_path / "pool.csv", sentences(60, seed=1))
    notes = split_pool(tmp_path / "pool.csv", tmp_path / "f", SplitOptions("iid", 2, label="label", text="text"))
    study = load_study(tmp_path / "f" / "study.toml")
    assert isinstance(study.task, TextTask) and (("bad", "good"), 16) == (study.task.classes, study.task.length)
    assert "text_mean" == study.model.name and [] == notes
    told = (tmp_path / "pool.csv").read_text().splitlines()[1:]
    assert sorted(line.replace('"', "") for line in told) == sorted(
        line.replace('"', "") for line in rows(tmp_path / "f")
    )
    assert 60 == sum(examples(tmp_path / "f", study, site) for site in study.sites)


def test_rows_without_a_text_are_left_out_and_said(tmp_path: Path) -> None:
    """A site would refuse them; copies of a text are at one site, whatever their label and their blanks."""
    copies = [("the zebra was  kind", "good"), ("The zebra was kind", "bad")] * 3
    write_csv(tmp_path / "pool.csv", [*sentences(40, seed=1), ("", "good"), ("  ", "bad"), *copies])
    notes = split_pool(
        tmp_path / "pool.csv", tmp_path / "f", SplitOptions("iid", 3, label="label", text="text", min_examples=5)
    )
    assert "2 rows without a text are left out" in notes
    assert "5 of 46 examples are exact copies of others; copies are at one site" in notes
    where = [file for file in (tmp_path / "f").glob("*/data/texts.csv") if "zebra" in file.read_text()]
    assert 1 == len(where)


def by_class(folder: Path) -> Path:
    """Write 120 sentences as files: class/writer/number.txt, of 30 writers with texts of both classes."""
    for place, (text, label) in enumerate(sentences(120, seed=2)):
        file = folder / label / f"w{place // 2 % 30}" / f"{place}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'{text},\r\n"{place}"\n')
    return folder


def test_files_in_folders_of_classes_become_rows(tmp_path: Path) -> None:
    """With commas, quotes and line ends in them; a writer's are at one site, and the study knows whose each is."""
    by_class(tmp_path / "pool")
    split_pool(tmp_path / "pool", tmp_path / "f", SplitOptions("iid", 2, group="folder", min_examples=10))
    study = load_study(tmp_path / "f" / "study.toml")
    assert ("patient", ("bad", "good")) == (study.split.group, study.task.classes)
    assert 120 == sum(examples(tmp_path / "f", study, site) for site in study.sites)
    writers = [
        set(re.findall(r"/w\d+/", (tmp_path / "f" / site / "data" / "texts.csv").read_text())) for site in study.sites
    ]
    assert 30 == len(writers[0] | writers[1]) and not writers[0] & writers[1]


def test_plain_text_is_cut_into_contiguous_parts(tmp_path: Path) -> None:
    """One after the other they are the text; parts are about equal, and the record counts what sites read."""
    text = " ".join(f"word{number}" for number in range(2500)) + "\n"
    (tmp_path / "pool.txt").write_text(text)
    split_pool(tmp_path / "pool.txt", tmp_path / "f", SplitOptions("contiguous", 3, next="character"))
    study = load_study(tmp_path / "f" / "study.toml")
    parts = [(tmp_path / "f" / site / "data" / "pool.txt").read_text() for site in study.sites]
    assert text == "".join(parts) and max(map(len, parts)) < 1.1 * min(map(len, parts))
    record = (tmp_path / "f" / "federation.toml").read_text()
    assert [int(count) for count in re.findall(r"pieces = (\d+)", record)] == [
        examples(tmp_path / "f", study, site) for site in study.sites
    ]
    assert "classes" not in (tmp_path / "f" / "study.toml").read_text()


def test_words_that_follow_are_the_most_frequent_ones(tmp_path: Path) -> None:
    """99 of them and `other`, counted by hand; the study reads as many pieces as the record says."""
    folder = tmp_path / "pool"
    folder.mkdir()
    words = [f"w{number % (1 + number % 130)}" for number in range(9000)]
    (folder / "a.txt").write_text(" ".join(words[:5000]))
    (folder / "b.txt").write_text(" ".join([*words[5000:], "other"]))
    split_pool(folder, tmp_path / "f", SplitOptions("contiguous", 2, next="word"))
    study = load_study(tmp_path / "f" / "study.toml")
    *named, last = study.task.classes
    counts = Counter(words)
    assert ("other", 99) == (last, len(named))
    assert sorted(counts[word] for word in named) == sorted(counts.values())[-99:]
    record = (tmp_path / "f" / "federation.toml").read_text()
    assert [int(count) for count in re.findall(r"pieces = (\d+)", record)] == [
        examples(tmp_path / "f", study, site) for site in study.sites
    ]


def test_a_speaker_is_at_one_site_and_counts_as_a_patient(tmp_path: Path) -> None:
    """Each has a file of what he says in its order, and the study keeps a speaker on one side of its split."""
    (tmp_path / "play.txt").write_text(PLAY)
    options = SplitOptions("iid", 2, next="character", group="speaker", min_examples=20)
    split_pool(tmp_path / "play.txt", tmp_path / "f", options)
    study = load_study(tmp_path / "f" / "study.toml")
    files = sorted((tmp_path / "f").glob("*/data/*.txt"))
    assert sorted(f"p-{number}" for number in range(48)) == sorted(file.stem for file in files)
    (first,) = (file.read_text() for file in files if file.stem == "p-7")
    assert [f"line {at} of P 7 goes on for a while, and then it ends." for at in range(12)] == first.split("\n\n")
    data = read_data(TextData(path=files[0].parent), study.task, study.split, site="a", min_examples=2)
    assert data.raw.patients is not None and len(list(files[0].parent.iterdir())) == len(set(data.raw.patients))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"text": "text"}, "a table needs --label"),
        ({"text": "words", "label": "label"}, "has no column 'words'"),
        ({"text": "text", "label": "label", "series": True}, "--series does not go with --text"),
        ({"text": "text", "next": "word"}, "--text does not go with --next"),
        ({"label": "label"}, "--text COLUMN makes a study that learns from what is written as text"),
        ({"next": "word"}, "expected a .txt file, or a folder with some"),
        ({"text": "text", "label": "label", "by": "feature"}, "--by feature is for images"),
    ],
)
def test_options_that_do_not_fit_a_table_are_refused(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    """With a sentence that says what to do."""
    write_csv(tmp_path / "pool.csv", sentences(60, seed=1))
    with pytest.raises((ConfigError, DataError), match=re.escape(sentence)):
        split_pool(tmp_path / "pool.csv", tmp_path / "f", SplitOptions(**(TWO | options)))
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"by": "iid"}, "--by iid would tear a text to pieces: divide it --by contiguous"),
        ({"by": "dirichlet"}, "--by dirichlet is for examples with a label"),
        ({"by": "contiguous", "group": "folder"}, "--group 'folder': of a plain text --group is 'speaker'"),
        ({"by": "iid", "group": "speaker"}, "0 of 1 blocks begin with a line such as 'ROMEO:'"),
        ({"by": "contiguous", "delimiter": ","}, "--delimiter is for tables; plain texts have no rows of text"),
        ({"by": "contiguous", "text": "text"}, "--text does not go with --next"),
        ({"by": "contiguous", "official_test": True}, "name a common test text by task.test"),
    ],
)
def test_options_that_do_not_fit_a_plain_text_are_refused(
    tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    """With a sentence that says what to do."""
    (tmp_path / "pool.txt").write_text("just words " * 500)
    with pytest.raises((ConfigError, DataError), match=re.escape(sentence)):
        split_pool(tmp_path / "pool.txt", tmp_path / "f", SplitOptions(**(PLAIN | options)))


def test_texts_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    """One behind a link out of the pool, one that is no text, an empty one, and a single class."""
    (tmp_path / "secret.txt").write_text("somebody else's")
    pool = by_class(tmp_path / "pool")
    for name, content, sentence in (
        ("bad/x.txt", None, "file 'bad/x.txt' is a link that leads out of the pool"),
        ("bad/y.txt", b"\xff\xfe", "file 'bad/y.txt' is not UTF-8 text"),
        ("bad/z.txt", b" \n", "file 'bad/z.txt' is empty"),
    ):
        if content is None:
            (pool / name).symlink_to(tmp_path / "secret.txt")
        else:
            (pool / name).write_bytes(content)
        with pytest.raises(DataError, match=re.escape(sentence)):
            split_pool(pool, tmp_path / "f", IID)
        (pool / name).unlink()
    with pytest.raises(DataError, match=r"texts are in 0 folders of classes, expected at least two \(class/text.txt\)"):
        split_pool(pool / "bad" / "w1", tmp_path / "f", IID)
    (pool / "plain.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(DataError, match=r"'plain\.txt' is a link that leads out of the pool"):
        split_pool(pool, tmp_path / "f", SplitOptions("contiguous", 2, next="word"))
