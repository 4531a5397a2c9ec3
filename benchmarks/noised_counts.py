"""How often an interval of a share of noised counts is wrong: 4,000 sites per row; writes `noised_counts.csv`.

    python benchmarks/noised_counts.py                # 4 minutes on one core, beside other work
    python benchmarks/noised_counts.py --sites 400    # quicker, noisier

A site of a private study has `n` test patients; a model answers each of them right with probability `share`. It counts
right and wrong answers with normal noise of standard deviation `noise` each, rounded and cut at 0, and announces n with
discrete Laplace noise of scale `announced` (0: it declares n). `shown` is the share of such sites whose interval is
shown, `covers` that of the intervals shown that hold the true share, and `wrong` the share of all sites at which an
interval is shown that does not: nominally at most 0.05.
"""

import argparse
import csv
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np

from consilium.common.protocol.counts import TestCounts
from consilium.common.seeds import seed_for
from consilium.findings import findings_of

OUT = Path(__file__).parent / "results" / "noised_counts.csv"
SIZES, SHARES, NOISES, ANNOUNCED = (20, 50, 100, 400, 1000), (0.5, 0.7, 0.9, 0.98), (1, 3, 8, 20, 60), (0.0, 7.0)


@dataclass(frozen=True)
class Case:
    """One kind of site."""

    n: int
    share: float
    noise: int
    announced: float


@dataclass(frozen=True)
class Measured:
    """What was counted over the sites of a row."""

    shown: float
    covers: float | None
    wrong: float
    width: float | None


def cases() -> list[Case]:
    """Return the rows."""
    return [Case(*each) for each in product(SIZES, SHARES, NOISES, ANNOUNCED)]


def intervals(case: Case, sites: int) -> Iterator[tuple[float, float]]:
    """Yield the intervals that are shown, of so many sites."""
    random = np.random.default_rng(seed_for(0, "noised counts", repr(case)))
    for _ in range(sites):
        right = int(random.binomial(case.n, case.share))
        noised = [max(0, count + round(random.normal(0, case.noise))) for count in (right, case.n - right)]
        announced = max(1, case.n + (round(random.laplace(0, case.announced)) if case.announced else 0))
        count = round(announced * noised[0] / sum(noised)) if sum(noised) else announced // 2
        told = TestCounts(num_test=announced, personal=count, noise=case.noise)
        found = findings_of({"site": told}).sites["site"]["personal"]
        if found is not None and found.bounds is not None:
            yield found.bounds


def measure(case: Case, sites: int) -> Measured:
    """Return how often an interval is shown, and how often it is right."""
    shown = list(intervals(case, sites))
    right = sum(low <= case.share <= high for low, high in shown)
    return Measured(
        shown=len(shown) / sites,
        covers=right / len(shown) if shown else None,
        wrong=(len(shown) - right) / sites,
        width=sum(high - low for low, high in shown) / len(shown) if shown else None,
    )


def main() -> None:
    """Measure all rows and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    with chosen.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*Case.__dataclass_fields__, *Measured.__dataclass_fields__])
        for case in cases():
            values = asdict(measure(case, chosen.sites)).values()
            writer.writerow([*asdict(case).values(), *("" if one is None else f"{one:.4f}" for one in values)])
            file.flush()


if __name__ == "__main__":
    main()
