"""The values with which a coordinator may run an accepted study later without asking: `[accept]` of a `study.toml`.

A site that accepted a study obeys that study, and those that differ from it in settings with a range, inside it.
Nothing moves unless a range says so: another method or strategy comes with the defaults of its settings, except for
those that have ranges of their own. What decides which data is read, who takes part or which model is trained takes no
range.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from consilium.common.errors import ConfigError, clean, written
from consilium.common.study.extents import Extent, Words
from consilium.common.study.rangeable import TABLES, kinds, parsed, possible, settings
from consilium.common.study.record import Record
from consilium.common.study.study import StudyConfig

UNHEARD_OF = frozenset({"accept", "join_timeout_seconds"})
"""Settings of a study that change nothing at a site."""

_EITHER = {"training.epochs": "training.steps", "training.steps": "training.epochs"}
"""Settings of which a study has one: a range of one lets it take the other's place."""

_ABSENT = "nothing"


@dataclass(frozen=True)
class Ranges:
    """The ranges of a study, by the settings' paths.

    Args:
        here: in which of them a site's own settings allow less.
    """

    by_path: Mapping[str, Extent] = field(default_factory=dict)
    here: Mapping[str, Extent] = field(default_factory=dict)
    struck: frozenset[str] = frozenset()

    def holds(self, path: str, value: object) -> bool:
        """Return whether a setting may have a value, though the study has another."""
        extent, here = self.by_path.get(path), self.here.get(path)
        if extent is None or path in self.struck or not extent.holds(value):
            return False
        return here is None or here.holds(value)

    def open(self) -> dict[str, str]:
        """Return in words what may change."""
        return {
            path: f"{extent}{f', here only {self.here[path]}' if path in self.here else ''}"
            for path, extent in self.by_path.items()
            if path not in self.struck
        }


@dataclass(frozen=True)
class Difference:
    """A setting in which a study differs from the accepted one; `inside` if a range holds the value."""

    path: str
    asked: object
    accepted: object
    inside: bool

    def words(self, ranges: Ranges) -> str:
        """Return setting, value asked for, and what was accepted: of a site's own settings only that they say less."""
        extent = ranges.by_path.get(self.path)
        later = "" if extent is None else f" and later {extent}"
        less = ", of which this site's own settings allow less" if self.path in {*ranges.here, *ranges.struck} else ""
        return f"{self.path} (asked for: {_shown(self.asked)}; accepted: {_shown(self.accepted)}{later}{less})"


def ranges_of(study: StudyConfig, *, source: str) -> Ranges:
    """Return the ranges of a study, all of which hold the study's own values.

    Raises:
        ConfigError: a setting takes no range, its words are none, or the study itself lies outside; names `source`.
    """
    found = parsed(study.accept, possible(study, study.accept), what="accept", source=source)
    own = leaves(study)
    for path, extent in found.items():
        value = own.get(path)
        if value is not None and not extent.holds(value):
            raise ConfigError(
                f"accept.{path}: the study itself has {_shown(value)}, which is outside '{extent}': widen the range, "
                f"or change the setting ({source})"
            )
    return Ranges(found)


def narrowed(ranges: Ranges, own: bool | Mapping[str, Words], *, source: str) -> Ranges:
    """Return ranges as a site's `accept_ranges` leaves them: all, none, or those it names, no wider than it says.

    Raises:
        ConfigError: a setting takes no range, or its words are none; names `source`.
    """
    if isinstance(own, bool):
        return ranges if own else Ranges(ranges.by_path, struck=frozenset(ranges.by_path))
    here = check_words(own, what="accept_ranges", source=source)
    kept = {path: extent for path, extent in here.items() if path in ranges.by_path}
    return Ranges(ranges.by_path, here=kept, struck=frozenset(ranges.by_path.keys() - kept.keys()))


def check_words(words: Mapping[str, Words], *, what: str, source: str) -> dict[str, Extent]:
    """Return what ranges mean for any study.

    Args:
        what: the key that holds the ranges.

    Raises:
        ConfigError: a setting takes no range, or its words are none; names `source`.
    """
    return parsed(words, settings(), what=what, source=source)


def compare(accepted: StudyConfig, asked: StudyConfig, ranges: Ranges) -> list[Difference]:
    """Return in which settings a study differs from the accepted one, but for those that change nothing at a site."""
    before, now = leaves(accepted), leaves(asked)
    for table in TABLES:
        kind = f"{table}.kind"
        if before[kind] != now[kind]:
            _other_kind(before, now, table, getattr(asked, table) if ranges.holds(kind, now[kind]) else None)
    found = []
    for path in sorted(before.keys() | now.keys()):
        old, new = before.get(path, _ABSENT), now.get(path, _ABSENT)
        if _same(old, new) or path.split(".")[0] in UNHEARD_OF:
            continue
        other = _EITHER.get(path)
        gives_way = other is not None and new is None and ranges.holds(other, now.get(other))
        found.append(Difference(path, new, old, inside=gives_way or ranges.holds(path, new)))
    return found


def _same(old: object, new: object) -> bool:
    """Return whether two values are written alike: -0.0 is another value than 0.0, as are columns in another order.

    They make another digest of the study, by which a site counts how often its test split was read.
    """
    return old == new and written(old) == written(new)


def _other_kind(before: dict[str, Any], now: dict[str, Any], table: str, asked: Record | None) -> None:
    """Compare another kind with its own defaults; without `asked`, the kind alone counts."""
    kind = before[f"{table}.kind"]
    for values in (before, now) if asked is None else (before,):
        for path in [path for path in values if path.startswith(f"{table}.") and path != f"{table}.kind"]:
            del values[path]
    if asked is not None:
        before |= {f"{table}.{name}": value for name, value in leaves(type(asked)()).items()}
        before[f"{table}.kind"] = kind


def in_words(study: StudyConfig, ranges: Ranges) -> list[str]:
    """Return one line for each setting that may change, and one for each method and strategy it may become."""
    own, lines = leaves(study), []
    for path, extent in ranges.open().items():
        now = own.get(path)
        lines.append(f"{path} {extent}" + ("" if now is None else f" (now {_plainly(now)})"))
        table, _, last = path.partition(".")
        if table in TABLES and last == "kind":
            meant = {kind: what for kind, what in kinds(table).items() if ranges.holds(path, kind)}
            lines += [f"  {kind}: {what}" for kind, what in meant.items()]
    return lines


def _plainly(value: object) -> str:
    return value if isinstance(value, str) else _shown(value)


def leaves(record: Record) -> dict[str, Any]:
    """Return every single setting by its path; lists and dictionaries are one."""
    found: dict[str, Any] = {}
    for name in type(record).model_fields:
        value = getattr(record, name)
        if isinstance(value, Record):
            found |= {f"{name}.{path}": inner for path, inner in leaves(value).items()}
        else:
            found[name] = value
    return found


def _shown(value: object) -> str:
    if isinstance(value, Record):
        return "other settings"
    if value is None or value == _ABSENT:
        return _ABSENT
    return str(value).lower() if isinstance(value, bool) else clean(written(value), 80)
