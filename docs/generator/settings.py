"""Pages of settings: every table of a TOML file with its keys, types, ranges, defaults and meanings."""

import types
import typing
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from consilium.schema.field_docs import field_docs
from docs.generator.markdown import page, paragraph, summary, table

COLUMNS = ("key", "value", "meaning")

ENTRIES = {"columns": "column", "scale": "column", "flower": "name"}
"""What the keys of a table of free names are called."""

PAGES = {
    "method": "table, see [methods](methods.md)",
    "strategy": "table, see [strategies](strategies.md)",
    "weighting.factors": "list of tables, see [weightings](weightings.md)",
    "uplink": "list of tables, see [codecs](codecs.md)",
    "downlink": "list of tables, see [codecs](codecs.md)",
}
"""Keys of `study.toml` whose settings have a page of their own."""

_WORDS = {int: "whole number", float: "number", str: "text", bool: "`true`, `false`", Path: "path", date: "date"}
_PLURALS = {"whole number": "whole numbers", "number": "numbers", "text": "texts", "table": "tables"}
_SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def settings_page(file: str, introduction: str, model: type[BaseModel]) -> str:
    """Return the page of a TOML file, one section for every table in it."""
    lines = [f"# `{file}`", "", *paragraph(introduction)]
    for path, kind, section in _sections(model, ""):
        if path:
            heading = f"`[{path}]`" + (f', kind = "{kind}"' if kind else "")
            lines += [f"## {heading}", "", *paragraph(summary(section))]
        lines += table(COLUMNS, settings_rows(section, path))
    return page(lines)


def settings_rows(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield the row of every key of one table, `kind` first; a key that is always the same has no meaning."""
    texts = field_docs(model)
    for name, field in sorted(model.model_fields.items(), key=lambda item: item[0] != "kind"):
        if name == "kind":
            yield "`kind`", f'`"{field.default}"`; required', ""
            continue
        what = PAGES.get(f"{path}.{name}".lstrip(".")) or _what(name, field)
        yield f"`{name}`", f"{what}; {_default(field)}", texts[name]


def _sections(model: type[BaseModel], path: str, kind: str = "") -> Iterator[tuple[str, str, type[BaseModel]]]:
    """Yield (path, kind, model) of a table and of every table inside it."""
    yield path, kind, model
    for name, field in model.model_fields.items():
        inner = f"{path}.{name}".lstrip(".")
        if inner in PAGES:
            continue
        if _is_free(name, field):
            inner = f"{inner}.<{ENTRIES[name]}>"
        models = list(_models(field.annotation))
        for nested in models:
            yield from _sections(nested, inner, nested.model_fields["kind"].default if len(models) > 1 else "")


def _is_free(name: str, field: FieldInfo) -> bool:
    """Say whether a field is a table whose keys a person chooses."""
    return name in ENTRIES and dict in set(_origins(field.annotation))


def _what(name: str, field: FieldInfo) -> str:
    """Return what a value may be, in words: its type, and the range that is checked."""
    words, bounds = _type(field.annotation)
    if _is_free(name, field):
        words = words.replace("table", f"table by {ENTRIES[name]}")
    return f"{words} {', '.join([*bounds, *_bounds(field.metadata)])}".strip()


def _type(annotation: Any) -> tuple[str, list[str]]:
    """Return a type in words, and the bounds inside it."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        words, bounds = _type(arguments[0])
        return words, [*bounds, *_bounds(arguments[1:])]
    if origin in (Union, types.UnionType):
        parts = [_type(argument) for argument in arguments if argument is not type(None)]
        if {words for words, _ in parts} > {"`true`, `false`"}:
            parts = [part for part in parts if part[0] != "`true`, `false`"] + [("true or false", [])]
        return " or ".join(dict.fromkeys(words for words, _ in parts)), [bound for _, more in parts for bound in more]
    if origin is Literal:
        return ", ".join(f"`{argument}`" for argument in arguments), []
    if origin is tuple:
        words, bounds = _type(arguments[0])
        return f"list of {_PLURALS.get(words, words)}", bounds
    if origin is dict:
        return "table", []
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table", []
    return _WORDS[annotation], []


def _bounds(metadata: Iterable[Any]) -> list[str]:
    limits = [more for item in metadata for more in (item.metadata if isinstance(item, FieldInfo) else [item])]
    return [
        f"{sign} {getattr(limit, name)}" for limit in limits for name, sign in _SIGNS.items() if hasattr(limit, name)
    ]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return f"default {'empty' if field.default_factory is not None else _written(field.default)}"


def _written(value: Any) -> str:
    """Return a default as a person would write it."""
    match value:
        case None:
            return "none"
        case BaseModel():
            names = [name for name in type(value).model_fields if name == "kind" or name in value.model_fields_set]
            return ", ".join(f"`{name} = {_toml(getattr(value, name))}`" for name in names) or "its own"
        case ():
            return "empty"
        case tuple() if any(isinstance(item, BaseModel) for item in value):
            return ", ".join(_written(item) for item in value)
        case _:
            return f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str() | Path():
            return f'"{value}"'
        case tuple():
            return f"[{', '.join(_toml(item) for item in value)}]"
        case _:
            return str(value)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the settings models that a type is made of, in its order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)


def _origins(annotation: Any) -> Iterator[Any]:
    yield typing.get_origin(annotation)
    for argument in typing.get_args(annotation):
        yield from _origins(argument)
