"""How often an interval is wrong: exact nulls and known effects, 4,000 studies per row; writes `coverage.csv`.

    python benchmarks/coverage.py                # 21 minutes on one core, beside other work
    python benchmarks/coverage.py --studies 400  # quicker, noisier

Every row is one kind of study. Under the null joined and alone are exchangeable, or their difference has the mean 0 by
construction (skewed errors); `clear` is the share of studies in which `consilium.findings` says that joining helps or
hurts. `effect` is the least true effect that is said to be clear in 80 % of studies (`power` is that share, measured
anew), in shares of answers or in standard deviations between patients; `covers` is the share of intervals that hold it.
Seeds: their part in the variance of the mean is 0.92 times that of the patients, the median of the studies under
`benchmarks/results`. With one seed the two models are given, and only patients are redrawn. Splits: ridge models that
see the same columns, each with its own noise, trained anew on every split of one data set; studies differ in the data
set. Empty: the largest effect of such a study is clear in fewer than 80 %. With fewer than 10 test patients of one
split nothing is said at all: `no_sentence` is the share of such studies.
"""

import argparse
import csv
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from consilium.common.seeds import seed_for
from consilium.findings import Evidence, Interval, interval_of, over_sites, over_splits, verdict

Floats = NDArray[np.float64]

RATIO = 0.92
"""Variance of the mean over seeds by that over patients."""
POWER = 0.8
OUT = Path(__file__).parent / "results" / "coverage.csv"
TRAIN_PER_TEST = 4
AUROC_DRAWS = 300


@dataclass(frozen=True)
class Case:
    """One kind of study.

    Args:
        labels: `class`: answers are right or wrong; `number`: differences of absolute errors; `auroc`: of areas.
        errors: `right` in most or about half of the answers (class); how differences spread over patients (number).
        n: test patients of a site (per split).
        rows: of a patient at most; from 1, each number as frequent.
    """

    labels: str
    errors: str
    n: int
    seeds: int = 1
    splits: int = 1
    sites: int = 1
    rows: int = 1


def cases() -> Iterator[Case]:
    """Yield the rows of the table."""
    for n in (6, 8, 10, 15, 30, 60, 200):
        for seeds in (1, 3, 5):
            for errors in ("often right", "half right"):
                yield Case("class", errors, n, seeds)
            for errors in ("normal", "heavy", "skewed"):
                yield Case("number", errors, n, seeds)
    for n in (10, 15, 30, 60):
        for seeds in (1, 3):
            yield Case("class", "often right", n, seeds, rows=6)
            yield Case("number", "normal", n, seeds, rows=6)
            yield Case("number", "skewed", n, seeds, rows=6)
    for n, sites in ((6, 4), (10, 4), (30, 4), (6, 20), (30, 20)):
        for seeds in (1, 3):
            yield Case("class", "often right", n, seeds, sites=sites)
            yield Case("number", "skewed", n, seeds, sites=sites)
    for n in (15, 30, 60):
        for seeds in (1, 3):
            yield Case("auroc", "normal", n, seeds)
    for n in (6, 8, 10, 15, 30, 60, 200):
        for labels in ("class", "number"):
            yield Case(labels, "ridge", n, splits=20)
    for labels in ("class", "number"):
        yield Case(labels, "ridge", 30, seeds=3, splits=20)


# --- one split ---------------------------------------------------------------------------------------


def class_rows(
    case: Case, shift: float, generator: np.random.Generator, seed_sd: float, seeds: Floats
) -> tuple[Floats, NDArray[np.int64]]:
    """Return joined right minus alone right `(seeds, rows)`, and the patient of every row.

    A row's answer is right where ease + the patient's own deviation per model + the seed's + noise is above 0.
    """
    groups = patients_of(case, generator)
    ease = 1.3 if case.errors == "often right" else 0.0
    shared = generator.normal(ease, 1.0, case.n)
    right = []
    for model in range(2):
        own = generator.normal(0, 0.5, case.n)
        noise = generator.normal(0, 0.4, (case.seeds, len(groups)))
        level = (shared + own)[groups] + noise + seed_sd * seeds[model][:, None] - shift * model
        right.append((level > 0).astype(np.float64))
    return right[1] - right[0], groups


def number_rows(
    case: Case, shift: float, generator: np.random.Generator, seed_sd: float, seeds: Floats
) -> tuple[Floats, NDArray[np.int64]]:
    """Return differences of errors `(seeds, rows)`, of spread 1 over patients, and the patient of every row."""
    groups = patients_of(case, generator)
    match case.errors:
        case "normal":
            own = generator.normal(0, 1, case.n)
        case "heavy":  # as many as a t of 3 degrees of freedom
            own = generator.standard_t(3, case.n) / math.sqrt(3)
        case _:  # skewness 2
            own = generator.exponential(1, case.n) - 1
    noise = generator.normal(0, 0.4, (case.seeds, len(groups)))
    drift = seed_sd * (seeds[1] - seeds[0]) / math.sqrt(2)
    return shift + own[groups] + noise + drift[:, None], groups


def auroc_evidence(case: Case, shift: float, generator: np.random.Generator, seed_sd: float, seeds: Floats) -> Evidence:
    """Return the difference of two areas under the curve with its bootstrap draws: no mean of rows."""
    sick = np.arange(case.n) < case.n // 2
    shared = generator.normal(0, 1, case.n) + sick
    counts = np.array(
        [np.bincount(generator.integers(0, case.n, case.n), minlength=case.n) for _ in range(AUROC_DRAWS)]
    )
    counts = np.vstack([np.ones(case.n), counts]).astype(np.float64)
    pairs = counts[:, sick].sum(axis=1) * counts[:, ~sick].sum(axis=1)
    areas = []
    for model in range(2):
        own = generator.normal(0, 0.7, case.n)
        drift = seed_sd * seeds[model][:, None] + shift * model
        scores = shared + own + drift * sick + generator.normal(0, 0.4, (case.seeds, case.n))
        higher = (scores[:, sick, None] > scores[:, None, ~sick]).astype(np.float64)
        with np.errstate(invalid="ignore"):  # draws without one of the classes are undefined: NaN
            areas.append(np.einsum("dp,spn,dn->sd", counts[:, sick], higher, counts[:, ~sick], optimize=True) / pairs)
    found = areas[1] - areas[0]
    return Evidence(values=found[:, 0], draws=found[:, 1:], num_rows=case.n)


def patients_of(case: Case, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return the patient of every row."""
    sizes = generator.integers(1, case.rows + 1, case.n) if case.rows > 1 else np.ones(case.n, dtype=np.int64)
    return np.repeat(np.arange(case.n), sizes)


def one_split(case: Case, shift: float, generator: np.random.Generator, seed_sd: float) -> Interval:
    """Return a study's interval."""
    seeds = generator.normal(0, 1, (2, case.seeds))
    if case.labels == "auroc":
        return interval_of(auroc_evidence(case, shift, generator, seed_sd, seeds), kind="difference")
    make = class_rows if case.labels == "class" else number_rows
    found = []
    for _ in range(case.sites):
        rows, groups = make(case, shift, generator, seed_sd, seeds)
        found.append(Evidence.of_rows(rows, groups if case.rows > 1 else None))
    if case.sites > 1:
        return over_sites(found, [1.0] * case.sites, kind="difference")
    return interval_of(found[0], kind="difference")


def seed_sd_of(case: Case) -> float:
    """Return the spread of seeds that makes their part in the variance of the mean `RATIO` times the patients'."""
    if case.seeds == 1:
        return 0.0
    if case.labels == "auroc":
        return 0.43 * math.sqrt(30 / case.n)  # about the same ratio
    generator = np.random.default_rng(1)
    make = class_rows if case.labels == "class" else number_rows

    def means(sd: float, count: int) -> tuple[float, float]:
        """Return the variance of the mean from seeds, and from patients."""
        big = replace(case, n=20_000, seeds=count)
        rows, _ = make(big, 0.0, generator, sd, generator.normal(0, 1, (2, count)))
        return float(rows.mean(axis=1).var(ddof=1)) / case.seeds, float(rows.mean(axis=0).var())

    of_seeds, _ = means(0.1, 200)
    small = replace(case, n=case.n)
    generator = np.random.default_rng(2)
    of_patients = np.var([make(small, 0.0, generator, 0.0, np.zeros((2, case.seeds)))[0].mean() for _ in range(4000)])
    return 0.1 * math.sqrt(RATIO * float(of_patients) / case.sites / of_seeds)


# --- splits ------------------------------------------------------------------------------------------


def ridge(case: Case, shift: float, generator: np.random.Generator, _: float) -> Interval:
    """Return the interval over splits of two ridge models, each on its own noisy view of the same six columns.

    A seed is which four of the six a model sees; a larger `shift` makes joined's view clearer.
    """
    size = case.n * (TRAIN_PER_TEST + 1)
    truth = generator.normal(0, 1, (size, 6))
    y = truth.sum(axis=1) / math.sqrt(6) + generator.normal(0, 0.7, size)
    y = np.sign(y) if case.labels == "class" else y
    runs = case.splits * case.seeds
    order = np.repeat(np.argsort(generator.random((case.splits, size)), axis=1), case.seeds, axis=0)
    test, train = order[:, : case.n], order[:, case.n :]
    scores = []
    for noise in (1.0, math.exp(-shift)):
        view = truth + noise * generator.normal(0, 1, truth.shape)
        kept = np.argsort(generator.random((runs, 6)), axis=1)[:, : 4 if case.seeds > 1 else 6]
        x = view[train[:, :, None], kept[:, None, :]]
        gram = np.matmul(x.transpose(0, 2, 1), x) + np.eye(x.shape[2])
        weights = np.linalg.solve(gram, np.matmul(x.transpose(0, 2, 1), y[train][:, :, None]))
        answers = np.matmul(view[test[:, :, None], kept[:, None, :]], weights)[:, :, 0]
        right = np.sign(answers) == y[test] if case.labels == "class" else -np.abs(answers - y[test])
        scores.append(right.mean(axis=1).reshape(case.splits, case.seeds).mean(axis=1))
    return over_splits(list(scores[1] - scores[0]), test_to_train=1 / TRAIN_PER_TEST)


# --- the table -----------------------------------------------------------------------------------------


def studies(case: Case, shift: float, count: int, seed_sd: float) -> list[Interval]:
    """Return the intervals of `count` studies, the same random numbers for every shift."""
    make: Callable[..., Interval] = one_split if case.splits == 1 else ridge
    label = repr(case)
    return [make(case, shift, np.random.default_rng(seed_for(index, label)), seed_sd) for index in range(count)]


def clear(found: list[Interval]) -> float:
    """Return the share of studies with a clear difference."""
    return float(np.mean([verdict(one) in ("helps", "hurts") for one in found]))


def measured(case: Case, count: int) -> dict[str, object]:
    """Return one line of the table."""
    sd = seed_sd_of(case) if case.splits == 1 else 0.0
    null = studies(case, 0.0, count, sd)
    line: dict[str, object] = asdict(case) | {"studies": count, "clear": clear(null), "effect": "", "power": ""}
    line |= {"covers": "", "no_sentence": round(float(np.mean([one.low is None for one in null])), 3)}
    few = max(count // 16, 100)
    low, high = 0.0, 4.0
    if line["no_sentence"] == 1 or clear(studies(case, high, few, sd)) < POWER:
        return line
    for _ in range(6):
        middle = (low + high) / 2
        low, high = (low, middle) if clear(studies(case, middle, few, sd)) >= POWER else (middle, high)
    found = studies(case, high, count // 4, sd)
    effect = float(np.mean([one.value for one in found]))
    known = [one for one in found if one.low is not None and one.high is not None]
    covers = float(np.mean([one.low <= effect <= one.high for one in known]))  # type: ignore[operator]  # known ones have both ends
    return line | {"effect": round(abs(effect), 3), "power": round(clear(found), 3), "covers": round(covers, 3)}


def main() -> None:
    """Measure every row, print it, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only", default="", help="rows whose text holds this")
    arguments = parser.parse_args()
    lines, began = [], time.monotonic()
    for case in cases():
        if arguments.only in repr(case):
            lines.append(measured(case, arguments.studies // (4 if case.labels == "auroc" else 1)))
            sys.stderr.write(f"{time.monotonic() - began:6.0f} s  {' '.join(map(str, lines[-1].values()))}\n")
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    worst = max(lines, key=lambda line: float(str(line["clear"])))
    sys.stderr.write(f"worst row: {worst}\n")


if __name__ == "__main__":
    main()
