"""Print committed comparisons as docs/results has them: a table of methods, and every site's sentence.

python benchmarks/tables.py NAME [NAME ...]
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consilium.comparison.evaluation import UNBOUNDED

RESULTS = Path(__file__).parent / "results"


def of(name: str) -> str:
    """Return one result as Markdown.

    Args:
        name: a folder of `benchmarks/results` with a `summary.json`.
    """
    found = json.loads((RESULTS / name / "summary.json").read_text(encoding="utf-8"))
    places = 2 if found["metric"] in UNBOUNDED else 3
    lines = ["| method | mean of sites | weighted | worst site | minus local only |", "|---|---|---|---|---|"]
    for line in found["lines"]:
        over, against = line["numbers"]["over"], line["minus local only"]
        texts = [_number(over["mean"], places), _number(over["weighted mean"][:1], places)]
        texts += [_number(over["worst site"][:1], places)]
        texts += [_number(against["over"]["mean"], places, sign="+") if against else ""]
        lines.append(f"| {_titled(line)} | {' | '.join(texts)} |")
    sentences = [f"- {one['text']}" for one in found["headlines"].values()]
    return "\n".join([*lines, "", *sentences, *(f"- {problem}" for problem in found["problems"])])


def _titled(line: Mapping[str, Any]) -> str:
    return f"{line['row']}{f' (of {among})' if (among := line['among']) else ''}"


def _number(values: list[float | None], places: int, *, sign: str = "") -> str:
    if values is None or values[0] is None:
        return "-"
    value, *bounds = (None if one is None else f"{one:{sign}.{places}f}" for one in values)
    known = [bound for bound in bounds if bound is not None]
    return f"{value} [{known[0]}, {known[1]}]" if known else f"{value}"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"## {name}\n\n{of(name)}\n")  # a script tells what it found
