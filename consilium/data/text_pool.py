"""Texts as something to divide: plain ones in blocks, and the tasks of texts."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from consilium.common.data.groups import Copies
from consilium.common.study.names import MAX_CLASS_NAME
from consilium.common.study.task import Regression, TextTask
from consilium.common.study.text_task import OTHER
from consilium.data.options import Next
from consilium.data.table_pool import Labels, TablePool

_WORDS = 99
"""Words that are told apart where the next word is learned; all others are one more class."""
_LENGTHS = {"character": 32, "word": 16}
PIECES = "pieces"
"""What the examples of a plain text are called where classes are counted."""
SPEAKER_PATTERN = r"^(.+)\.txt$"
"""As `split.group` of a study: each speaker has a file at a site."""


@dataclass(frozen=True, eq=False)
class PlainPool:
    """Plain texts in blocks that are never cut, in their order.

    Args:
        names: the file that each block goes to, at whatever site.
        speakers: whose each block is; None where that was not asked for.
    """

    blocks: tuple[str, ...]
    names: tuple[str, ...]
    next: Next
    speakers: tuple[str, ...] | None = None

    @cached_property
    def y(self) -> Labels:
        """No labels: all zero."""
        return np.zeros(len(self.blocks), dtype=np.int64)

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the one name under which examples are counted."""
        return (PIECES,)

    @property
    def copies(self) -> Copies:
        """Return that no block is a copy: short ones are equal by chance."""
        return Copies(np.arange(len(self.blocks)))

    def whose(self, group: str) -> list[str]:
        """Return whose each block is."""
        assert self.speakers is not None
        return list(self.speakers)

    def files(self, rows: Labels) -> dict[str, str]:
        """Return the content of each file of a site that has these blocks."""
        glue = "" if self.speakers is None else "\n\n"
        parts: dict[str, list[str]] = {}
        for row in rows.tolist():
            parts.setdefault(self.names[row], []).append(self.blocks[row])
        return {name: glue.join(blocks) for name, blocks in parts.items()}

    def count(self, rows: Labels) -> int:
        """Return how many pieces a site with these blocks has, as it cuts them."""
        length = _LENGTHS[self.next]
        units = (len(text if self.next == "character" else _words(text)) for text in self.files(rows).values())
        return sum(max(0, -(-(number - length) // (length + 1))) for number in units)


def plain_task(pool: PlainPool) -> TextTask:
    """Return the task of what follows; of words, the most frequent ones of the pool are told apart."""
    length = _LENGTHS[pool.next]
    if pool.next == "character":
        return TextTask.model_validate({"next": "character", "length": length})
    counts = Counter(word for block in pool.blocks for word in _words(block))
    words = [word for word, _ in counts.most_common() if word != OTHER and len(word) <= MAX_CLASS_NAME][:_WORDS]
    return TextTask(next="word", length=length, classes=(*words, OTHER))


def text_task(pool: TablePool, *, number: Regression | None) -> TextTask:
    """Return the task of texts with a label: as many tokens as most of them have, 16 to 256."""
    assert pool.text is not None
    lengths = [len(_words(text)) for text in pool.texts]
    wanted = int(np.quantile(lengths, 0.95)) if lengths else 0
    length = next((size for size in (16, 32, 64, 128) if size >= wanted), 256)
    classes = pool.classes if number is None else ()
    return TextTask(text=pool.text, label=pool.label, length=length, classes=classes, regression=number)


def _words(text: str) -> list[str]:
    """Return the words of a text as sites see them."""
    from consilium.client.data.text_tokens import words_of  # and with it torch

    return words_of(text)
