"""Which settings of a study may have a range, what a range's words mean for each of them, and why others take none."""

import difflib
import inspect
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from consilium.common.errors import ConfigError, listed, written
from consilium.common.study.extents import ANY, Anything, Extent, Value, Words, extent_of
from consilium.common.study.ranges import variants
from consilium.common.study.record import Record
from consilium.common.study.sentences import describe
from consilium.common.study.study import StudyConfig

TABLES = ("method", "strategy")
"""Settings that are a table of one kind among several."""

RANGED = frozenset({"training", "stopping", *TABLES}) | {
    *("seed", "rounds", "cohort_fraction", "over_selection", "quorum"),
    *("keep_best", "evaluate_every", "local_baseline", "round_timeout_seconds"),
}
"""What may have a range: single settings, and tables with all of theirs. Every other setting is refused."""

REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("name", "accept"), "says what was accepted"),
    **dict.fromkeys(("sites", "groups", "devices", "relays", "num_sites", "min_sites"), "decides who takes part"),
    **dict.fromkeys(("min_examples", "max_examples"), "decides whose data is taken"),
    "task": "decides which data is read, and what is said of it by name",
    "split": "decides which examples are trained on and which are kept for the test",
    "model": "decides which weights leave a site, and which file a site reads",
    **dict.fromkeys(("weighting", "metrics"), "decides what sites measure and send"),
    **dict.fromkeys(("uplink", "downlink"), "decides how weights travel"),
    "privacy": "decides what protects patients and sites",
    "defence": "decides what is believed of a site",
    "schedule": "decides which updates count together",
    "keep_updates": "decides what the coordinator keeps of each site",
    **dict.fromkeys(
        ("join_timeout_seconds", "absent_seconds", "straggler_seconds", "pause_limit_seconds"),
        "changes nothing at a site, so it may be changed in any case",
    ),
}
"""Why each of the other settings takes none."""

Settings = Mapping[str, tuple[FieldInfo, ...]]
"""Every setting by its path; in a table of several kinds, one field for each kind that has it."""


def settings() -> Settings:
    """Return every setting of a study."""
    found: dict[str, tuple[FieldInfo, ...]] = {}
    for path, each in _fields(StudyConfig, ""):
        found[path] = (*found.get(path, ()), each)
    return found


def _fields(record: type[Record], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, each in record.model_fields.items():
        many = get_origin(each.annotation) in (tuple, dict)
        tables = [] if many else list(variants(each.annotation))
        if not tables:
            yield f"{prefix}{name}", each
        for table in tables:
            yield from _fields(table, f"{prefix}{name}.")


def possible(study: StudyConfig, accept: Mapping[str, Words]) -> Settings:
    """Return the settings that a study within its ranges can have: those of the methods and strategies it names."""
    found = dict(settings())
    for table in TABLES:
        listed = accept.get(f"{table}.kind", ())
        own: type[Record] = type(getattr(study, table))  # of a package of one's own, it is among no variants
        records = [own, *(each for each in variants(_KINDS[f"{table}.kind"]) if _kind(each) in listed)]
        there: dict[str, tuple[FieldInfo, ...]] = {}
        for record in records:
            for path, each in _fields(record, f"{table}."):
                there[path] = (*there.get(path, ()), each)
        found = {path: fields for path, fields in found.items() if not path.startswith(f"{table}.")}
        found |= {**there, f"{table}.kind": settings()[f"{table}.kind"]}
    return found


_KINDS = {f"{table}.kind": StudyConfig.model_fields[table].annotation for table in TABLES}


def kinds(table: str) -> dict[str, str]:
    """Return every kind of method or strategy, with its first sentences: what sites share, train and keep."""
    records = list(variants(_KINDS[f"{table}.kind"]))
    return {_kind(each): " ".join((inspect.getdoc(each) or "").split("\n\n")[0].split()) for each in records}


def _kind(record: Any) -> str:
    return str(record.model_fields["kind"].default)


def parsed(words: Mapping[str, Words], known: Settings, *, what: str, source: str) -> dict[str, Extent]:
    """Return what ranges mean for the settings that there are.

    Args:
        what: the key that holds the ranges.

    Raises:
        ConfigError: a setting takes no range, or its words are none; names `source`.
    """
    found = {}
    for path, one in words.items():
        try:
            found[path] = _extent(path, one, known)
        except ValueError as error:
            raise ConfigError(f"{what}.{path}: {error} ({source})") from None
    return found


def _extent(path: str, words: Words, known: Settings) -> Extent:
    head = path.split(".")[0]
    if head in REFUSED:
        raise ValueError(f"takes no range: '{head}' {REFUSED[head]}; to change it, hand out a new bundle")
    fields = known.get(path)
    if fields is None:
        raise ValueError(_no_such_setting(path, head, known))

    def check(value: Value) -> None:
        if path in _KINDS and value not in kinds(head):
            raise ValueError(f"there is no {head} {written(value)}; known: {', '.join(kinds(head))}")
        problems = [problem for each in fields if (problem := _problem(each, value))]
        if len(problems) == len(fields):
            raise ValueError(problems[0])

    extent = extent_of(words, check)
    if isinstance(extent, Anything) and path != "seed":
        raise ValueError(f"only the seed may be '{ANY}': say from where to where")
    return extent


def _no_such_setting(path: str, head: str, known: Settings) -> str:
    inside = [each for each in known if each.startswith(f"{head}.")]
    if head in TABLES and path in settings():
        return f"is no setting of the study's {head}, nor of one that accept.{head}.kind lists"
    if inside:
        return f"is no single setting; there are {listed(inside, 10)}"
    close = difflib.get_close_matches(path, [each for each in known if each in RANGED], n=1, cutoff=0.75)
    return f"there is no setting '{path}'; " + (f"did you mean '{close[0]}'?" if close else "docs/reference has all")


def _problem(each: FieldInfo, value: Value) -> str:
    """Return why a setting does not take a value; "" if it does."""
    kind = next(_choices(each.annotation), each.annotation)
    ruled: Any = Annotated[kind, *each.metadata] if each.metadata else kind
    try:
        TypeAdapter(ruled).validate_python(value, strict=True)
    except ValidationError as error:
        return describe(error, "").removesuffix(" ()")
    return ""


def _choices(annotation: Any) -> Iterator[Any]:
    """Yield what an optional setting may be other than absent."""
    if type(None) in getattr(annotation, "__args__", ()):
        yield next(each for each in annotation.__args__ if each is not type(None))
