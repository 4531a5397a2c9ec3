"""How often a site's sentence on survival is wrong: two models that rank equally well; writes `survival_null.csv`.

    python benchmarks/survival_null.py                # a minute on one core
    python benchmarks/survival_null.py --studies 400  # quicker, noisier

Joined and alone answer a patient's log risk plus noise of their own, of the same size, so that neither is better. Times
are exponential, some censored at a time of their own. `clear` is the share of studies in which a site says that joining
helps or hurts it, from its own draws (`comparison`), and from what leaves a site (`report`); `no_sentence` the share in
which nothing is said, as the test rows hold too few events. Holm's correction over sites makes it less.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from consilium.common.intervals.evidence import Evidence
from consilium.common.protocol.estimates import estimates_of
from consilium.common.survival.evidence import evidence_of
from consilium.common.survival.times import Times
from consilium.comparison.evidence import minus
from consilium.findings import Interval, interval_of, verdict

OUT = Path(__file__).parent / "results" / "survival_null.csv"
SIZES = (20, 35, 50)
CENSORED = (0.2, 0.5, 0.8)


def study(n: int, censored: float, number: int) -> Iterator[Interval | None]:
    """Yield the differences of a study: of a comparison, and of a report; None where it has no pair."""
    chance = np.random.default_rng([n, round(100 * censored), number])
    truth = chance.normal(size=n)
    events, ends = chance.exponential(np.exp(-truth)), chance.exponential(np.exp(-truth)) * (1 - censored) / censored
    of = Times(np.minimum(events, ends), events <= ends)
    risks = {name: truth + chance.normal(size=n) for name in ("local", "personal")}
    found = evidence_of(of, risks, None, who=f"{n} {number}")
    if not found:
        yield from (None, None)
        return
    yield interval_of(minus(found["personal"], found["local"]), kind="difference")
    told = estimates_of(found, neutral=0.5).difference
    assert told is not None
    yield interval_of(Evidence.of_estimate(told.value, told.error, num_rows=n), kind="difference")


def row(n: int, censored: float, studies: int) -> dict[str, float | int]:
    """Return a line of the table."""
    found = [[verdict(one) for one in study(n, censored, number)] for number in range(studies)]
    comparison, report = zip(*found, strict=True)
    clear = [sum(one in ("helps", "hurts") for one in said) / studies for said in (comparison, report)]
    silent = sum(one in ("too_few", "unknown") for one in comparison) / studies
    return {"n": n, "censored": censored, "comparison": clear[0], "report": clear[1], "no_sentence": silent}


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    rows = []
    for n in SIZES:
        for censored in CENSORED:
            rows.append(row(n, censored, arguments.studies))
            print(rows[-1], flush=True)
    with arguments.out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
