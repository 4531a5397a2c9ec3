"""Texts as a task of a study: `[task]` with `kind = "text"`."""

from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from consilium.common.study.labels_task import SeveralLabelsTask, check_no_label, labelled_by_first
from consilium.common.study.names import ColumnName, Sha256, clean_text
from consilium.common.study.record import Record
from consilium.common.study.task_base import LabelTask, labelled_by_time

OTHER = "other"
"""The class of what no other class names, where the next character or word is learned."""
CHARACTERS = ("newline", "space", *map(chr, range(33, 127)), OTHER)
"""Names of the characters that are told apart: line feed, blank, the printable ones of ASCII, and all others."""
MOST_IDS = 2**23
"""Most tokens that are told apart: whole numbers up to here are exact in float32."""


def inside(file: str) -> str:
    """Return a path below `weights_dir`; refuse one that could lead out of it."""
    path = PurePosixPath(file)
    if not file or path.is_absolute() or ".." in path.parts or "\\" in file:
        raise ValueError(f"must be a path inside the site's weights folder, e.g. minilm/tokenizer.json, got '{file}'")
    return clean_text(file)


PathInside = Annotated[str, Field(max_length=200), AfterValidator(inside)]
"""A file or folder below the site's `weights_dir`."""


class ByteTokens(Record):
    """Every byte of the text in UTF-8 is a token: 256 of them, and none is unknown."""

    kind: Literal["bytes"] = "bytes"

    @property
    def size(self) -> int:
        """How many tokens are told apart."""
        return 256


class CharacterTokens(Record):
    """Every character is a token: line feed, blank, the printable ones of ASCII; all others are one."""

    kind: Literal["characters"] = "characters"

    @property
    def size(self) -> int:
        """How many tokens are told apart."""
        return len(CHARACTERS)


class WordTokens(Record):
    """Every word, in lower case, and every sign is a token: the number that its SHA-256 gives, below `buckets`.

    No list of words is made from anybody's texts, so none leaves a site; some words share a number.
    """

    kind: Literal["words"] = "words"
    buckets: int = Field(default=8192, ge=16, le=MOST_IDS)
    """How many numbers there are."""

    @property
    def size(self) -> int:
        """How many tokens are told apart."""
        return self.buckets


class FileTokens(Record):
    """Tokens of a `tokenizer.json`, as pretrained models bring it along; needs the extra `text`."""

    kind: Literal["file"] = "file"
    file: PathInside
    """Where it lies in every site's `weights_dir`, e.g. `minilm/tokenizer.json`."""
    sha256: Sha256
    """The SHA-256 that the file must have: another tokeniser would give the model other words."""
    size: int = Field(ge=2, le=MOST_IDS)
    """How many tokens it tells apart."""


Tokens = Annotated[ByteTokens | CharacterTokens | WordTokens | FileTokens, Field(discriminator="kind")]


class TextTask(LabelTask, SeveralLabelsTask):
    """Learn from texts: their label, or with `next` the character or the word that follows.

    Texts with a label are rows of a `.csv` or `.parquet` file, or `.txt` files in one sub-folder per class. With
    `next`, `.txt` files are read as they are, and every piece of them is an example whose label is what follows it.
    """

    data_kinds: ClassVar[tuple[str, ...]] = ("text",)
    kind: Literal["text"] = "text"
    text: ColumnName = "text"
    """The column with the text."""
    label: ColumnName = "label"
    """The column with the class or the number; leave it out with `survival` and `labels`, which name their columns."""
    length: int = Field(default=64, ge=1, le=4096)
    """Tokens of a text that the model sees: the first ones, or with `next` the last ones before what follows."""
    tokens: Tokens = WordTokens()
    """What a text is divided into; with `next = "character"` they are characters unless said otherwise."""
    next: Literal["character", "word"] | None = None
    """Learn what follows: the character, one of 97 classes; or the word, one of `classes` (`other`: any other one)."""
    step: int | None = Field(default=None, ge=1)
    """With `next`: characters or words from one example to the next; None: `length` + 1, so that none overlap."""

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, values: Any) -> Any:
        """Fill in what follows from the next character being learned."""
        if isinstance(values, dict) and values.get("next") == "character":
            return {"classes": CHARACTERS, "tokens": {"kind": "characters"}, **values}
        return labelled_by_time(labelled_by_first(values))

    @model_validator(mode="after")
    def _check(self) -> "TextTask":
        if self.text == self.label:
            raise ValueError(f"text and label are both column '{self.text}': name the two columns")
        check_no_label(self.label, self.labels)
        if self.survival is not None and self.label != self.survival.time:
            raise ValueError(f"label '{self.label}': survival says where the label is, leave 'label' out")
        if self.text in self.label_columns:
            raise ValueError(f"label '{self.text}' is also the column of the texts")
        if self.next is None:
            if self.step is not None:
                raise ValueError("step is for 'next', where texts are cut into pieces: leave it out")
            return self
        given = {"regression": self.regression, "survival": self.survival, "labels": self.labels or None}
        if others := [name for name, value in given.items() if value is not None]:
            other = others[0]
            raise ValueError(f"next learns a character or a word, which is one of 'classes': leave '{other}' out")
        if self.next == "character" and self.classes != CHARACTERS:
            raise ValueError("next = 'character' has classes of its own, all characters: leave 'classes' out")
        if self.tokens.kind not in (("words",) if self.next == "word" else ("characters",)):
            fitting = "words" if self.next == "word" else "characters"
            raise ValueError(
                f"next = '{self.next}' cuts texts into {fitting}: set tokens.kind = '{fitting}', got "
                f"'{self.tokens.kind}'"
            )
        return self

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example: `(length,)`, the tokens' numbers from 1 on, then zeros."""
        return (self.length,)

    @property
    def scale(self) -> None:
        """Nothing of a text is scaled."""
        return None

    @property
    def scaled_columns(self) -> tuple[str, ...]:
        """Nothing of a text is scaled."""
        return ()

    @property
    def scaled_values(self) -> str:
        """Which values of an example are scaled."""
        return "no values"

    @property
    def agrees_on_scale(self) -> bool:
        """Nothing of a text is scaled."""
        return False

    @property
    def label_columns(self) -> dict[str, str]:
        """The columns of the label, and what each is for, in words."""
        if self.labels:
            return self.columns_of_labels
        return {self.label: " (task.label)"} if self.survival is None else self.survival.columns

    @property
    def label_name(self) -> str:
        """The label's column."""
        return f"'{self.label}'"
