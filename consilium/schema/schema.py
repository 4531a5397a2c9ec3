"""JSON Schema made from the models that check the files, so that an editor knows every key, kind, range and default."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema

from consilium.common.errors import ConfigError
from consilium.common.study.packages import offers
from consilium.common.study.parts import OwnKinds, own_settings
from consilium.common.study.policy import PolicyConfig
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig
from consilium.schema.field_docs import known_field_docs

File = Literal["study", "site", "policy"]

DIALECT = "http://json-schema.org/draft-07/schema#"
"""What editors understand that know TOML."""

FILES: Mapping[File, type[BaseModel]] = {"study": StudyConfig, "site": SiteConfig, "policy": PolicyConfig}
_NOT_IN_FILES: Mapping[File, tuple[str, ...]] = {"study": ("num_sites",), "site": (), "policy": ()}
"""Fields that plans carry and files may not."""


def schema_of(file: File, *, own: bool = True) -> JsonSchemaValue:
    """Return the schema of a file.

    Args:
        own: with the kinds of parts that installed packages offer.
    """
    schema = FILES[file].model_json_schema(schema_generator=_WithOwnKinds if own else _Generator)
    for name in _NOT_IN_FILES[file]:
        schema["properties"].pop(name, None)
    return {"$schema": DIALECT, **schema, "title": f"{file}.toml of consilium"}


def schema_text(file: File, *, own: bool = True) -> str:
    """Return the schema of a file as text."""
    return json.dumps(schema_of(file, own=own), indent=1, ensure_ascii=False) + "\n"


class _Generator(GenerateJsonSchema):
    """Writes what TOML has: no null, descriptions under keys, and `kind` required where it tells tables apart."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        """Return the schema of a value that may be left out: TOML has no null."""
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Return a schema with its default, unless that is none."""
        made = super().default_schema(schema)
        if "default" in made:
            default = _without_none(made.pop("default"))
            made |= {} if default is None else {"default": default}
        return made

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """Return the schema of a table, with the docstring under every key."""
        made = super().model_schema(schema)
        model = schema["cls"]
        made.pop("title", None)
        texts = known_field_docs(model)
        properties = made.get("properties", {})
        for name, value in properties.items():
            value.pop("title", None)
            if name in texts:
                properties[name] = _described(value, texts[name])
        if "const" in properties.get("kind", {}):
            made["required"] = ["kind", *(name for name in made.get("required", ()) if name != "kind")]
            properties["kind"].pop("default", None)
        return made

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        """Return a union of tables with the list of its kinds, so that an editor can offer them."""
        made = super().tagged_union_schema(schema)
        made.pop("discriminator", None)
        if schema["discriminator"] == "kind":
            made |= _with_kinds([str(kind) for kind in schema["choices"]])
        return made

    def generate(self, schema: core_schema.CoreSchema, mode: JsonSchemaMode = "validation") -> JsonSchemaValue:
        """Return the whole schema; what stands next to a reference is ignored in draft 7, so it is wrapped."""
        made = super().generate(schema, mode)
        for part in _parts(made):
            if "$ref" in part and len(part) > 1:
                part["allOf"] = [{"$ref": part.pop("$ref")}]
        return made


class _WithOwnKinds(_Generator):
    """Also knows the kinds of parts that installed packages offer."""

    def function_wrap_schema(self, schema: core_schema.WrapValidatorFunctionSchema) -> JsonSchemaValue:
        """Return the schema of a union, with the settings of parts of one's own among its kinds."""
        made = super().function_wrap_schema(schema)
        own = schema.get("metadata", {}).get(OwnKinds.__name__)
        if not isinstance(own, OwnKinds) or "oneOf" not in made:
            return made
        known = set(made["properties"]["kind"]["enum"])
        for offer in offers(own.group):
            try:
                settings = own_settings(own.group, offer.name, own.base)
            except ConfigError:  # a broken package, or two that offer the same: the study says so when it is read
                continue
            if settings is not None and offer.name not in known:
                made["oneOf"].append(self.generate_inner(settings.__pydantic_core_schema__))
                made["properties"]["kind"]["enum"].append(offer.name)
        return made


def _described(value: JsonSchemaValue, text: str) -> JsonSchemaValue:
    return {"description": text, **{key: inner for key, inner in value.items() if key != "description"}}


def _without_none(value: Any) -> Any:
    """Return a default as TOML has it: without what is left out."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return value


def _with_kinds(kinds: list[str]) -> JsonSchemaValue:
    return {"type": "object", "required": ["kind"], "properties": {"kind": {"enum": kinds}}}


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object inside a schema, the inner ones after the outer."""
    if isinstance(value, dict):
        yield value
    for inner in list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _parts(inner)
