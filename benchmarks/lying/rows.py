"""Tables of what came of lies, written row by row: what has been run is there if the rest is stopped."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def write_rows(out: Path, fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write each row as soon as it is there, and print it."""
    with out.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fields, lineterminator="\n")
        table.writeheader()
        for row in rows:
            table.writerow(row)
            file.flush()
            print(*row.values(), sep=", ", flush=True)
