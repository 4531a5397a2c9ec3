"""Texts: their tokens, the readers of tables, of files by class and of plain text, and what is refused."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import text_studies
import torch
from pydantic import ValidationError

from consilium.client.data.inputs import read_inputs, rows_inputs
from consilium.client.data.text import read_text
from consilium.client.data.text_tokens import bucket_of, encoder_of, padded, read_tokenizer, tokenizer_file, words_of
from consilium.common.errors import ConfigError, DataError, ModelError
from consilium.common.study.site import TableData, TextData
from consilium.common.study.task import Regression
from consilium.common.study.text_task import CHARACTERS, ByteTokens, FileTokens, TextTask, WordTokens
from consilium.common.study.training import SplitConfig

TASK = TextTask(classes=("bad", "good"), length=8)
SPLIT = SplitConfig(test=0.25, validation=0.25)


def read(path: Path, task: TextTask = TASK, split: SplitConfig = SPLIT, *, max_skipped: int = 0) -> Any:
    """Return a site's texts before they are divided."""
    config = TextData(path=path, max_skipped=max_skipped)
    return read_text(config, task, split, site="berlin")


def plain(**settings: Any) -> TextTask:
    """Return a task of next characters."""
    return TextTask.model_validate({"kind": "text", "next": "character", "length": 3, **settings})


def test_tokens_are_counted_from_one_and_padding_is_zero() -> None:
    """Bytes 104 and 105 of 'hi' are 105 and 106 in x, and zeros follow; a longer text is cut."""
    task = TextTask(classes=("a", "b"), length=4, tokens=ByteTokens())
    ids = [encoder_of(task)(text) for text in ("hi", "hello")]
    assert [[105, 106, 0, 0], [105, 102, 109, 109]] == padded(ids, 4).tolist()
    assert padded(ids, 4).dtype == np.float32


def test_a_word_has_the_number_that_its_sha256_gives() -> None:
    """The first 8 bytes of the SHA-256 of the word in lower case, modulo the buckets; signs are words."""
    expected = int.from_bytes(hashlib.sha256(b"film").digest()[:8], "big") % 1000
    assert expected == bucket_of("film", 1000)
    assert ["a", "film", ",", "don", "'", "t"] == words_of("A film, don't")
    task = TextTask(classes=("a", "b"), tokens=WordTokens(buckets=1000))
    assert [expected, expected] == encoder_of(task)("Film FILM")


def test_largest_token_number_is_exact_in_float32() -> None:
    """A number at the limit of all settings is the same after the way through float32."""
    from consilium.common.study.text_task import MOST_IDS

    assert MOST_IDS == int(padded([[MOST_IDS - 1]], 1)[0, 0])


def test_rows_of_a_table_become_tokens_and_classes(tmp_path: Path) -> None:
    """Columns are found by name in any order, among others, with commas and quotes in a text."""
    (tmp_path / "rows.csv").write_text('id,label,text\n1,good,"so, so ""kind"""\n2,bad,dull\n3,bad,no no no\n')
    raw = read(tmp_path)
    assert (3, 8) == tuple(raw.x.shape) and torch.float32 == raw.x.dtype
    assert [1, 0, 0] == raw.y.tolist()
    expected = [bucket_of(word, 8192) + 1 for word in ("so", ",", "so", '"', "kind", '"')] + [0, 0]
    assert expected == raw.x[0].tolist()


def test_files_in_a_folder_per_class_give_what_a_table_gives(tmp_path: Path) -> None:
    """The same texts as files and as rows are the same examples, apart from their order."""
    rows = text_studies.sentences(8, seed=1)
    for number, (text, label) in enumerate(rows):
        file = tmp_path / "files" / label / f"{number}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    table = read(text_studies.write_csv(tmp_path / "table" / "rows.csv", rows).parent)
    files = read(tmp_path / "files")
    assert sorted(map(tuple, table.x.tolist())) == sorted(map(tuple, files.x.tolist()))
    assert {tuple(x): y for x, y in zip(table.x.tolist(), table.y.tolist(), strict=True)} == {
        tuple(x): y for x, y in zip(files.x.tolist(), files.y.tolist(), strict=True)
    }


def test_next_character_is_the_label_of_the_piece_before_it(tmp_path: Path) -> None:
    """'abcdefgh' in pieces of 3, none overlapping: abc -> d, efg -> h; with step 1 every place of a section is one."""
    (tmp_path / "a.txt").write_text("abcdefgh", encoding="utf-8")
    raw = read(tmp_path, plain())
    spelled = [[CHARACTERS[int(one) - 1] for one in row] for row in raw.x]
    assert [["a", "b", "c"], ["e", "f", "g"]] == spelled
    assert ["d", "h"] == [CHARACTERS[y] for y in raw.y.tolist()]
    (tmp_path / "a.txt").write_text("abcdefgh" * 10, encoding="utf-8")
    assert 10 * 5 == len(read(tmp_path, plain(step=1)).y)


def test_next_word_counts_as_other_where_it_is_no_class(tmp_path: Path) -> None:
    """With the class 'other' every piece is an example; without it only those that a class follows."""
    (tmp_path / "a.txt").write_text("the king said queen went there the king", encoding="utf-8")
    task = TextTask(classes=("king", "other"), next="word", length=1)
    assert [0, 1, 1, 0] == read(tmp_path, task).y.tolist()
    assert [0, 1, 0] == read(tmp_path, TextTask(classes=("king", "queen"), next="word", length=1)).y.tolist()


def test_a_regression_of_texts_has_numbers_as_labels(tmp_path: Path) -> None:
    """A label of 30 with center 10 and scale 20 is 1 for the model; a word is refused without being shown."""
    (tmp_path / "rows.csv").write_text("text,label\nfine,30\nfine too,10\n")
    task = TextTask(regression=Regression(center=10, scale=20, tolerance=5))
    assert [1.0, 0.0] == read(tmp_path, task).y.tolist()
    (tmp_path / "rows.csv").write_text("text,label\nfine,30\nfine too,secretword\n")
    with pytest.raises(DataError, match="column 'label': expected a finite number") as error:
        read(tmp_path, task)
    assert "secretword" not in str(error.value)


def test_patients_and_parts_come_from_columns(tmp_path: Path) -> None:
    """split.group and split.parts name columns of a table of texts."""
    lines = [f"text {place},good,p{place // 2},{'test' if place > 5 else 'train'}" for place in range(12)]
    (tmp_path / "rows.csv").write_text("text,label,who,part\n" + "\n".join(lines) + "\n")
    raw = read(tmp_path, split=SplitConfig(group="who", parts="part", validation=0))
    assert raw.patients is not None and ["p0", "p0", "p1"] == list(raw.patients[:3])
    assert [0] * 6 + [2] * 6 == raw.parts.tolist()


def test_pieces_that_overlap_are_on_one_side_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what a model was trained on would be in its test rows; pieces of other sections share nothing."""
    (tmp_path / "a.txt").write_text("".join(chr(97 + place % 26) for place in range(100)))
    assert read(tmp_path, plain(step=4)).patients is None
    raw = read(tmp_path, plain(step=1))
    assert [f"a.txt {section}" for section in range(10) for _ in range(7)] == raw.patients
    assert [0, 10, 20] == [int(raw.x[7 * section, 0] - raw.x[0, 0]) for section in range(3)]
    monkeypatch.setattr("consilium.client.data.text.MOST_NUMBERS", 290)
    with pytest.raises(DataError, match=r"up to 291 tokens in pieces of 3, at most 290 are read: raise task\.step"):
        read(tmp_path, plain(step=1))


def test_parts_of_texts_come_from_a_file_beside_them(tmp_path: Path) -> None:
    """Of rows and of files alike, also where one of them is skipped; the file is no table of texts."""
    index = SplitConfig(parts="which.csv", validation=0)
    words = ["test" if place > 2 else "train" for place in range(5)]
    rows, files = tmp_path / "rows", tmp_path / "files"
    rows.mkdir()
    (rows / "~$open.xlsx").write_text("of an open workbook")
    (rows / "data.csv").write_text("text,label\na,good\nb,bad\n,good\nc,bad\nd,good\n")
    (rows / "which.csv").write_text("row,part\n" + "".join(f"{place},{word}\n" for place, word in enumerate(words)))
    assert [0, 0, 2, 2] == read(rows, split=index, max_skipped=1).parts.tolist()
    names = []
    for place, text in enumerate(["a", "b", " ", "c", "d"]):
        names.append(f"{'good' if place < 3 else 'bad'}/{place}.txt")
        (files / names[-1]).parent.mkdir(parents=True, exist_ok=True)
        (files / names[-1]).write_text(text)
    told = "".join(f"{name},{word}\n" for name, word in zip(names, words, strict=True))
    (files / "which.csv").write_text("file,part\n" + told)
    found = read(files, split=index, max_skipped=1)
    assert [0, 0, 2, 2] == sorted(found.parts.tolist())
    assert [1, 1, 0, 0] == found.y[np.argsort(found.parts, kind="stable")].tolist()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("text,label\nfine,good\n,bad\n", "line 3: column 'text' is empty"),
        ("text,label\nfine,good\nnot,secretword\n", "column 'label': expected one of"),
        ("text,other\nfine,good\n", "has no column 'label'"),
        ("text,label\nfine,good,more\n", "expected 2 fields"),
    ],
)
def test_unusable_rows_are_named_without_their_values(tmp_path: Path, content: str, sentence: str) -> None:
    """Every fault says where it is and what was expected, and shows no text of a row."""
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(DataError, match=sentence) as error:
        read(tmp_path)
    assert "secretword" not in str(error.value)


def test_skipped_rows_are_counted(tmp_path: Path) -> None:
    """Of four rows one has no text and one another label: two are skipped where two may be."""
    (tmp_path / "rows.csv").write_text("text,label\nfine,good\n,bad\ndull,bad\nx,nothing\n")
    raw = read(tmp_path, max_skipped=2)
    assert (2, 2) == (len(raw.y), raw.num_skipped)
    with pytest.raises(DataError, match="at most 1 allowed"):
        read(tmp_path, max_skipped=1)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    """Another kind of data, an empty folder, an unknown class and a missing path have sentences of their own."""
    with pytest.raises(ConfigError, match=r"data\.kind is 'table', expected 'text'"):
        read_text(TableData(path=tmp_path), TASK, SPLIT, site="berlin")
    with pytest.raises(DataError, match="has neither a table"):
        read(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "nowhere")
    (tmp_path / "ugly").mkdir()
    with pytest.raises(DataError, match="folder 'ugly' is none of the study's classes"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"has no \.txt file"):
        read(tmp_path, plain())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"classes": ["a", "b"], "text": "label"}, "text and label are both column 'label'"),
        ({"classes": ["a", "b"], "step": 3}, "step is for 'next'"),
        ({"next": "character", "classes": ["a", "b"]}, "leave 'classes' out"),
        ({"next": "character", "tokens": {"kind": "bytes"}}, "set tokens.kind = 'characters'"),
        ({"next": "word", "classes": ["a", "b"], "tokens": {"kind": "bytes"}}, "set tokens.kind = 'words'"),
        ({"classes": ["a", "b"], "tokens": {"kind": "file", "file": "../x", "sha256": "0" * 64, "size": 9}}, "inside"),
    ],
)
def test_settings_that_say_nothing_sensible_are_refused(settings: dict[str, Any], sentence: str) -> None:
    """Each has its sentence."""
    with pytest.raises(ValidationError, match=sentence):
        TextTask.model_validate({"kind": "text", **settings})


def test_a_model_is_asked_about_tables_rows_and_files(tmp_path: Path) -> None:
    """A table without labels, a DataFrame's rows and a folder of files give the numbers that training sees."""
    rows = text_studies.sentences(6, seed=2)
    trained = read(text_studies.write_csv(tmp_path / "a" / "rows.csv", rows).parent)
    (tmp_path / "b.csv").write_text("text,id\n" + "".join(f"{text},{place}\n" for place, (text, _) in enumerate(rows)))
    asked = read_inputs(tmp_path / "b.csv", TASK, labelled=False, keep=["id"])
    assert torch.equal(trained.x, asked.x) and asked.y is None
    assert ("0", "1", "2", "3", "4", "5") == asked.kept["id"] and ("1", "2", "3", "4", "5", "6") == asked.names
    assert torch.equal(trained.x, rows_inputs([{"text": text} for text, _ in rows], TASK).x)
    (tmp_path / "c").mkdir()
    for place, (text, _) in enumerate(rows):
        (tmp_path / "c" / f"{place}.txt").write_text(text)
    assert torch.equal(trained.x, read_inputs(tmp_path / "c", TASK, labelled=False).x)
    labelled = read_inputs(tmp_path / "a", TASK, labelled=True)
    assert labelled.y is not None and torch.equal(trained.y, labelled.y)


def test_a_row_without_text_is_among_the_unread(tmp_path: Path) -> None:
    """It is named, and the others are answered."""
    asked = rows_inputs([{"text": "fine"}, {"text": None}, {}], TASK)
    assert ("1",) == asked.names and 2 == len(asked.unread)
    assert "row 2: column 'text' holds no text" == asked.unread[0].reason
    (tmp_path / "rows.csv").write_text("text,label\nfine,good\n,bad\ndull,neither\nbright,good\n,bad\n")
    told = read_inputs(tmp_path / "rows.csv", TASK, labelled=True)
    assert (("1", "4"), ["2", "3", "5"]) == (told.names, [one.name for one in told.unread])
    (tmp_path / "files").mkdir()
    for name, text in (("a.txt", "fine"), ("b.txt", ""), ("c.txt", "dull")):
        (tmp_path / "files" / name).write_text(text)
    told = read_inputs(tmp_path / "files", TASK, labelled=False)
    assert (("a.txt", "c.txt"), ["b.txt"]) == (told.names, [one.name for one in told.unread])


def test_what_follows_a_text_is_asked_by_its_end(tmp_path: Path) -> None:
    """Of 'abcdef' the last three characters are seen."""
    asked = rows_inputs([{"text": "abcdef"}], plain())
    assert ["d", "e", "f"] == [CHARACTERS[int(one) - 1] for one in asked.x[0]]


def test_tokeniser_of_a_file_is_held_to_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read from the weights folder; changed by a byte, or nowhere, it is refused in words."""
    monkeypatch.setattr("consilium.client.data.text_tokens._files", {})  # another test may have read it
    pytest.importorskip("tokenizers", reason="the extra 'text' is not installed")
    (tmp_path / "tiny").mkdir()
    file = tmp_path / "tiny" / "tokenizer.json"
    file.write_bytes(text_studies.tokenizer_bytes())
    tokens = FileTokens(file="tiny/tokenizer.json", sha256=text_studies.digest_of(file), size=40)
    task = TextTask(classes=("bad", "good"), length=6, tokens=tokens)
    other = file.read_bytes().replace(b"lovely", b"lovelz")
    (tmp_path / "changed" / "tiny").mkdir(parents=True)
    (tmp_path / "changed" / "tiny" / "tokenizer.json").write_bytes(other)
    with pytest.raises(DataError, match="was not read"):
        encoder_of(task)
    with pytest.raises(ModelError, match=r"sha256 is [0-9a-f]{64}, the study pins"):
        read_tokenizer(task, tmp_path / "changed", who="site 'berlin'")
    with pytest.raises(ModelError, match=r"put the file there"):
        read_tokenizer(task, tmp_path / "tiny" / "nowhere", None, who="site 'berlin'")
    read_tokenizer(task, tmp_path, who="site 'berlin'")
    assert file.read_bytes() == tokenizer_file(task)
    start, end, lovely = 2, 3, 4 + text_studies.WORDS.index("lovely")
    assert [start, lovely, 1, end] == list(encoder_of(task)("lovely nonsense"))
    assert 6 == len(encoder_of(task)("the " * 20)) and end == encoder_of(task)("the " * 20)[-1]
    small = task.model_copy(update={"tokens": tokens.model_copy(update={"size": 8})})
    with pytest.raises(ModelError, match="has 20 tokens, the study says 8"):
        encoder_of(small)
