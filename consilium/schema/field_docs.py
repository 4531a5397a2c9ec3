"""The docstrings under the fields of settings: what each key of a TOML file means."""

import ast
import inspect
import textwrap
from typing import Any

from pydantic import BaseModel

from consilium.common.study.record import Record


def field_docs(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstring under every field, inherited ones too.

    Raises:
        ValueError: a field has none.
    """
    texts = known_field_docs(model)
    if missing := model.model_fields.keys() - texts.keys() - {"kind"}:
        raise ValueError(f"{model.__module__}.{model.__name__}: no docstring under {sorted(missing)}")
    return texts


def known_field_docs(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstrings under fields that have one, inherited ones too."""
    texts: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if issubclass(cls, BaseModel) and cls not in (BaseModel, Record):
            texts |= _docs_in(cls)
    return texts


def _docs_in(cls: type[Any]) -> dict[str, str]:
    try:
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    except (OSError, TypeError, SyntaxError):  # a class without a source file, e.g. from a notebook
        return {}
    assert isinstance(node, ast.ClassDef)
    texts = {}
    for field, text in zip(node.body, node.body[1:], strict=False):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(content))):
                texts[name] = " ".join(content.split()).replace("None: ", "none: ")
    return texts
