"""What noise costs, from a comparison's results.csv: accuracy on all sites' test rows together, and points lost.

    python benchmarks/pooled.py benchmarks/results/heart-private --train 390

Of every row with a budget, against the same row without: the mean over splits, and in points the mean loss, its
standard deviation over splits, and its 95 % interval, corrected for the training rows that splits share.
"""

import argparse
from pathlib import Path

import pandas as pd
from committed.result import say

from consilium.findings import over_splits

LAST = "last round"
POINTS = 100


def pooled(folder: Path) -> tuple[pd.DataFrame, float]:
    """Return accuracy on all test rows by split and row, and how many test rows a split has on average."""
    rows = pd.read_csv(folder / "results.csv")
    rows = rows[rows["round"] == LAST]
    sums = rows.assign(right=rows["accuracy"] * rows["num_test"]).groupby(["row", "split"])[["right", "num_test"]].sum()
    return (sums["right"] / sums["num_test"]).unstack("row"), float(sums["num_test"].mean())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder with results.csv")
    parser.add_argument("--train", type=float, required=True, help="training rows of all sites together, per split")
    options = parser.parse_args()
    accuracy, num_test = pooled(options.folder)
    for name in accuracy:
        line = f"{name:32} {accuracy[name].mean():.3f}"
        before, _, budget = str(name).rpartition(" + eps ")
        if before in accuracy and budget:
            lost = (accuracy[before] - accuracy[name]).dropna() * POINTS
            found = over_splits(lost.tolist(), test_to_train=num_test / options.train)
            line += f"   {lost.mean():6.2f} ({lost.std(ddof=1):.2f}) [{found.low:+.2f}, {found.high:+.2f}]"
        say(line)


if __name__ == "__main__":
    main()
