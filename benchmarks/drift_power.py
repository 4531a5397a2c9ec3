"""How often new inputs that differ from those of training are found, and how often ones that do not.

Run with `python -m benchmarks.drift_power`, about two minutes on one core. Tables of eleven columns; 400 data sets
each without a difference, 150 each with a number column that is off by so many standard deviations.
"""

from collections.abc import Iterator

import numpy as np
import torch

from consilium.client.data import RawData, UnscaledData
from consilium.client.data.base import Inputs
from consilium.client.data.cells import features_of
from consilium.client.data.split import Split
from consilium.client.served.drift import drift
from consilium.client.served.summary import summary_of
from consilium.common.data.groups import Copies
from consilium.common.protocol.cards import DataCard
from consilium.common.study.task import CategoryColumn, NumberColumn, TableTask

NUMBERS = {f"number {place}": NumberColumn() for place in range(8)}
CATEGORIES = {
    "three": CategoryColumn(values=tuple("abc")),
    "two": CategoryColumn(values=tuple("ab")),
    "eight": CategoryColumn(values=tuple("abcdefgh")),
}
SHARES = ([0.5, 0.3, 0.2], [0.8, 0.2], [0.5, 0.2, 0.1, 0.1, 0.05, 0.03, 0.01, 0.01])
TASK = TableTask(classes=("no", "yes"), label="ill", columns={**NUMBERS, **CATEGORIES}, missing="impute")
SIZES = ((60, 40), (200, 50), (1000, 200))


def rows(count: int, chance: np.random.Generator, off: float = 0.0) -> torch.Tensor:
    """Return rows of new patients; the first column is off by so many standard deviations."""
    numbers = chance.normal(0, 1, (count, 8))
    numbers[:, 0] += off
    numbers[:, 4:6] = np.round(numbers[:, 4:6] * 10 + 50)
    numbers[:, 6] = np.round(chance.exponential(2, count))
    numbers[:, 7] = chance.random(count) < 0.3
    numbers[:, 1][chance.random(count) < 0.1] = np.nan
    codes = [np.eye(len(share))[chance.choice(len(share), count, p=share)][:, 1:] for share in SHARES]
    return torch.from_numpy(np.concatenate([numbers, *codes], axis=1))


def findings(trained: int, new: int, off: float, repeats: int) -> Iterator[set[str]]:
    """Yield the columns found in each data set."""
    features, none = features_of(TASK), np.arange(0)
    for repeat in range(repeats):
        chance = np.random.default_rng([trained, new, repeat])
        every, labels = np.arange(trained), torch.zeros(trained, dtype=torch.int64)
        raw = RawData(rows(trained, chance), labels, 0, Copies(every), features=features)
        summary = summary_of(UnscaledData("site", TASK, raw, Split(every, none, none), DataCard.model_construct()))
        inputs = Inputs(rows(new, chance, off), tuple(map(str, range(new))), features=features)
        yield {one.column for one in drift(summary, inputs).findings}


def main() -> None:
    """Print the share of data sets with a finding where nothing differs, and of those where the column is found."""
    print("training  new  wrong    0.3    0.5   0.75    1.0")
    for trained, new in SIZES:
        wrong = sum(map(bool, findings(trained, new, 0.0, 400))) / 400
        found = [
            sum("column 'number 0'" in one for one in findings(trained, new, off, 150)) / 150
            for off in (0.3, 0.5, 0.75, 1.0)
        ]
        print(f"{trained:8} {new:4}" + "".join(f" {share:6.1%}" for share in (wrong, *found)), flush=True)


if __name__ == "__main__":
    main()
