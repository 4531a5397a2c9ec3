"""What a server that the attacker owns finds out about a site's patients, undefended and under each defence.

    python benchmarks/attacks.py --shared ../shared               # goes on with benchmarks/results/attacks.csv
    python benchmarks/attacks.py --shared ../shared --only crafted --repeats 2 --out attacks.csv

Each attack is run under every defence with the same budget, on the code that is deployed (`attacks/`), and its number
is written beside what chance gives. A defence that the attack cannot be run under (BatchNorm in training mode is
refused in a private study) has no row.
"""

import argparse
import csv
import logging
import tempfile
from pathlib import Path

import torch
from attacking.inversion import Budget
from attacking.running import Trial, attacks
from attacking.victims import DEFENCES, Defence, interval

RESULTS = Path(__file__).parent / "results" / "attacks.csv"
HEADER = ("attack", "defence", "score", "repeat", "value", "chance")
Row = tuple[str, str, str, int, float, float]


def read_rows(path: Path) -> list[Row]:
    """Return what is there already."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        _, *lines = list(csv.reader(file))
    return [(a, d, s, int(n), float(v), float(c)) for a, d, s, n, v, c in lines]


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write all rows."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [HEADER, *((*row[:4], f"{row[4]:.6g}", f"{row[5]:.6g}") for row in rows)]
        )


def can_be_run(attack: str, defence: Defence) -> bool:
    """Say whether sites accept the study of an attack under a defence."""
    return defence.epsilon is None or "BatchNorm trained" not in attack


def table(rows: list[Row]) -> str:
    """Return a line for each score of each attack, as Markdown: mean and 95 % interval over the repeats."""
    names = list(dict.fromkeys(defence.name for defence in DEFENCES))
    lines = [f"| attack, and what is scored | {' | '.join(names)} | chance |", f"|---|{'---|' * (len(names) + 1)}"]
    for attack, score in dict.fromkeys((row[0], row[2]) for row in rows):
        of = [row for row in rows if (row[0], row[2]) == (attack, score)]
        cells = [_cell([row[4] for row in of if row[1] == name]) for name in names]
        lines.append(f"| {attack}: {score} | {' | '.join(cells)} | {_cell([row[5] for row in of])} |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    """Return a mean with its interval; of fewer than three repeats without, and saying how few."""
    if not values:
        return "-"
    mean, half = interval(values)
    if len(values) < 3:
        return f"{_number(mean)} (n {len(values)})"
    return _number(mean) if half == 0 else f"{_number(mean)} ± {half:.2g}"


def _number(value: float) -> str:
    return "0" if abs(value) < 1e-6 else f"{value:.3g}"


def main() -> None:
    """Run what is missing, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, help="the folder whose data/ holds heart_disease and mnist")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="attacks whose name has this in it")
    parser.add_argument("--batches", default="1,2,8", help="of gradient inversion")
    parser.add_argument("--steps", type=int, default=400, help="of gradient inversion")
    parser.add_argument("--models", type=int, default=32, help="of membership inference")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    rows = read_rows(options.out)
    batches = tuple(int(one) for one in options.batches.split(","))
    chosen = dict(attacks(batches=batches, budget=Budget(steps=options.steps), models=options.models))
    for repeat in range(1, options.repeats + 1) if options.shared is not None else ():
        for name, attack in chosen.items():
            for defence in DEFENCES:
                there = {row[:2] + row[3:4] for row in rows}
                if options.only not in name or not can_be_run(name, defence) or (name, defence.name, repeat) in there:
                    continue
                with tempfile.TemporaryDirectory(prefix="attacks-") as folder:
                    found = attack(Trial(options.shared / "data", Path(folder), defence, repeat))
                rows += [(name, defence.name, score, repeat, *numbers) for score, numbers in found.items()]
                write_rows(options.out, rows)
                said = ", ".join(
                    f"{score} {value:.3g} (chance {chance:.3g})" for score, (value, chance) in found.items()
                )
                print(f"{name}, {defence.name}, {repeat}: {said}", flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
