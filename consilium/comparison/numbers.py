"""Every test number as one long table: what `results.csv` holds."""

from collections.abc import Iterable, Iterator

import pandas as pd

from consilium.comparison.comparison import Comparison
from consilium.comparison.rows import BEST, LAST, Place, Row, best_of


def all_numbers(comparison: Comparison, rows: Iterable[Row]) -> pd.DataFrame:
    """Return one line per row, split, seed, site and round (last, or best on validation); NaN: not defined.

    `support.<class>` is the number of test examples of a class. Of several labels `support.<label>` is the number of
    those that have it, `known.<label>` that of those that know it, and `auroc.<label>` and `auprc.<label>` are measured
    on these.
    """
    lines = []
    for row in rows:
        for place, site, when in _places(row):
            of_site = comparison.facts(place.cell, site)
            if place.model in of_site.metrics:
                cell = place.cell
                fixed = {"row": row.name, "chosen": place.chosen, "split": cell.split, "seed": cell.seed}
                fixed |= {"site": site, "round": when, "num_test": of_site.num_test}
                support = zip(comparison.task.classes, of_site.support, strict=True)
                fixed |= {f"support.{name}": count for name, count in support}
                for name, (there, absent) in (of_site.label_support or {}).items():
                    fixed |= {f"support.{name}": there, f"known.{name}": there + absent}
                lines.append(fixed | of_site.metrics[place.model])
    return pd.DataFrame(lines)


def _places(row: Row) -> Iterator[tuple[Place, str, str]]:
    for seeds in row.places.values():
        for sites in seeds:
            for site, place in sites.items():
                yield place, site, LAST
                yield best_of(place), site, BEST
