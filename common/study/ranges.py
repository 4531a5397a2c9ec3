"""Ranges of settings that several algorithms have, and the list of a union's variants."""

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import Field

from consilium.common.study.record import Record

Positive = Annotated[float, Field(gt=0)]

Beta = Annotated[float, Field(ge=0, lt=1)]


def variants(config: Any) -> Iterator[Any]:
    """Yield the settings classes of a union such as `MethodConfig`, in its order."""
    if isinstance(config, type) and issubclass(config, Record):
        yield config
    elif get_origin(config) in (Union, UnionType):
        for variant in get_args(config):
            yield from variants(variant)
    elif get_args(config):
        yield from variants(get_args(config)[0])
