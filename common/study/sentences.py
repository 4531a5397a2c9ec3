"""Validation errors of settings and messages, in sentences."""

import difflib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from consilium.common.errors import clean, written
from consilium.common.study.names import PATTERNS_IN_WORDS

MAX_PROBLEMS = 20
"""How many problems of one file or message are listed."""


def describe(error: ValidationError, source: str, *, without: Collection[str] = ()) -> str:
    """Return a validation error as one sentence per problem: `where: what, got value (file)`.

    Text from outside must neither fill a log nor steer a terminal: long values and long lists of problems are cut, and
    control characters written out.

    Args:
        without: settings whose problems are left out, as they are not known yet; "" if there is no other.
    """
    problems = [
        one for one in _causes(error.errors(include_url=False)) if "".join(map(str, one["loc"][:1])) not in without
    ]
    sentences = [_sentence(problem, source) for problem in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        sentences.append(f"... and {len(problems) - MAX_PROBLEMS} more problems ({source})")
    return "\n".join(sentences)


def _causes(problems: Sequence[Any]) -> Iterator[Any]:
    """Yield the problems but for lists that are too short because pydantic left their wrong entries out."""
    places = {problem["loc"][:-1] for problem in problems}
    for problem in problems:
        if problem["type"] != "too_short" or problem["loc"] not in places:
            yield problem


def _sentence(problem: Any, source: str) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "union_tag_not_found":
        where = f"{where}.kind" if where else "kind"
    prefix = f"{_shortened(where)}: " if where else ""
    return clean(f"{prefix}{_what(problem)} ({source})", 2000)


def _what(problem: Any) -> str:
    """Return what is wrong with a value, without its place."""
    context = {name: _plain(value) for name, value in problem.get("ctx", {}).items()}
    match problem["type"]:
        case "extra_forbidden":
            return "unknown key; docs/reference lists every key"
        case "missing" | "union_tag_not_found":
            return "is required, got nothing"
        case "union_tag_invalid":
            return _no_such_kind(context["tag"], context["expected_tags"].replace("'", ""))
        case "value_error":
            return str(context["error"])
        case "too_short" if context["min_length"] == 1:
            return "must not be empty"
        case "string_pattern_mismatch":
            words = PATTERNS_IN_WORDS.get(context["pattern"], "of the letters and signs that are allowed here")
            return f"must be {words}, got {_shortened(written(problem['input']))}"
        case "json_invalid" | "json_type":
            return f"is not valid JSON, got {_shortened(written(problem['input']))}"
        case kind if kind in _MUST:
            return f"must {_MUST[kind].format_map(context)}, got {_shortened(written(problem['input']))}"
        case _:
            return f"cannot be used, got {_shortened(written(problem['input']))}"


_MUST = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "be true or false"),
    **dict.fromkeys(("string_type", "string_unicode"), "be text in quotes"),
    **dict.fromkeys(("tuple_type", "list_type"), "be a list in brackets"),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "model_attributes_type"), "be a section with keys"),
    **dict.fromkeys(("path_type", "is_instance_of"), "be a path in quotes"),
    **dict.fromkeys(("date_type", "date_parsing", "date_from_datetime_parsing"), "be a day such as 2027-01-31"),
    "finite_number": "be a finite number",
    "literal_error": "be {expected}",
    "greater_than": "be greater than {gt}",
    "greater_than_equal": "be at least {ge}",
    "less_than": "be less than {lt}",
    "less_than_equal": "be at most {le}",
    "too_short": "have at least {min_length} entries",
    "too_long": "have at most {max_length} entries",
    "string_too_short": "have at least {min_length} characters",
    "string_too_long": "have at most {max_length} characters",
}
"""The requirement on a value, by pydantic's name of the error; braces are filled from the error's context."""


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _no_such_kind(tag: str, known: str) -> str:
    close = difflib.get_close_matches(_shortened(tag), known.split(", "), n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"there is no kind '{_shortened(tag)}'; {hint}known: {known}"


def _shortened(text: str, limit: int = 200) -> str:
    """Return the first `limit` characters and how many there were."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
