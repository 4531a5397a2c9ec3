"""What each column of a table holds at this site, and what looks wrong about it; none of this leaves the site."""

from collections.abc import Iterator

import numpy as np

from consilium.client.data import read_site
from consilium.client.data.base import Feature, RawData
from consilium.client.operations.doctor.finding import Finding, passed, warned
from consilium.client.operations.doctor.labels import label_lines
from consilium.common.data.oddities import Code, Floats, codes_in, odd_facts, other_unit
from consilium.common.errors import ConsiliumError, listed
from consilium.common.study.scale import ColumnScale
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import CategoryColumn, TableTask

MOST_COLUMNS = 40
"""So many columns are written out, odd ones first."""
_FEW_VALUES = 4
_INDENT = "\n" + 6 * " "


def check_columns(config: SiteConfig, study: StudyConfig | None) -> list[Finding]:
    """Return range and missing share of each column, the label's shares, and what looks wrong; nothing if no table.

    Data that cannot be read are for the check of the data to name.
    """
    if study is None or not isinstance(study.task, TableTask):
        return []
    try:
        data = read_site(config, study)
    except ConsiliumError:
        return []
    raw, task = data.raw, study.task
    seen = [_Seen(feature, raw, task) for feature in raw.features]
    odd = [(one.feature.name, facts) for one in seen if (facts := list(one.odd()))]
    lines = [one.words for one in sorted(seen, key=lambda one: one.feature.name not in dict(odd))]
    told = [*label_lines(raw, task), *lines[:MOST_COLUMNS]]
    text = f"{len(seen)} columns, shown here only:{_INDENT}{_INDENT.join(told)}"
    if len(lines) > MOST_COLUMNS:
        text += f"{_INDENT}and {len(lines) - MOST_COLUMNS} more"
    if not odd:
        return [passed("columns", text)]
    said = listed([f"column '{name}' {'; '.join(facts)}" for name, facts in odd], 10, "columns")
    codes = {one.feature.name: [f"{code.value:g}" for code in one.codes] for one in seen if one.codes}
    fix = "see whether this is so at this hospital"
    if codes:
        wanted = ", ".join(f'"{name}" = [{", ".join(values)}]' for name, values in list(codes.items())[:5])
        fix += f"; where a number means that nothing is known, set data.missing_values = {{ {wanted} }} in site.toml"
    return [warned("columns", f"{said}{_INDENT}{text}", fix)]


class _Seen:
    """One column of the site's own rows."""

    def __init__(self, feature: Feature, raw: RawData, task: TableTask) -> None:
        place = slice(feature.start, feature.start + feature.width)
        self._x: Floats = raw.x[: raw.num_own, place].numpy()
        self.feature, self._column = feature, task.columns[feature.name]
        scale = task.scale if isinstance(task.scale, dict) else {}
        self._expected: ColumnScale | None = scale.get(feature.name)
        self.codes: list[Code] = [] if feature.category else codes_in(self._x[:, 0])

    def odd(self) -> Iterator[str]:
        """Yield what looks wrong."""
        if self.feature.category:
            yield from (fact for fact in odd_facts(self._places()) if "whole numbers" not in fact)
            return
        values = self._x[:, 0]
        yield from odd_facts(values)
        yield from (f"has {code.words}" for code in self.codes)
        if self._expected is not None and (text := other_unit(values, self._expected.mean, self._expected.std)):
            yield text

    def _places(self) -> Floats:
        """Return which value each row has `(N,)`, NaN where it is missing."""
        whole = np.concatenate([np.full((len(self._x), 1), 0.5), self._x], axis=1)
        places: Floats = whole.argmax(axis=1).astype(np.float64)
        places[np.isnan(self._x[:, 0])] = np.nan
        return places

    @property
    def words(self) -> str:
        """What the column holds."""
        name, missing = self.feature.name, float(np.isnan(self._x[:, 0]).mean())
        gaps = f", {missing:.1%} missing" if missing else ""
        if isinstance(self._column, CategoryColumn):
            places = self._places()
            shares = [(value, float((places == at).mean())) for at, value in enumerate(self._column.values)]
            return f"{name}: {listed([f'{value} {share:.1%}' for value, share in shares], 12, 'values')}{gaps}"
        known = self._x[:, 0][~np.isnan(self._x[:, 0])]
        if not len(known):
            return f"{name}: no value"
        different, times = np.unique(known, return_counts=True)
        if len(different) <= _FEW_VALUES:
            said = [f"{value:g} {count / len(self._x):.1%}" for value, count in zip(different, times, strict=True)]
            return f"{name}: {', '.join(said)}{gaps}"
        low, middle, high = float(known.min()), float(np.median(known)), float(known.max())
        return f"{name}: {low:.4g} to {high:.4g}, median {middle:.4g}{gaps}"
