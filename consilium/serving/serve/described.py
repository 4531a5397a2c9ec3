"""How `/predict` is described in `openapi.json`."""

from typing import Any

_SCALAR = {"type": ["string", "number", "boolean", "null"]}
_ONE_OF_TABLE = {"type": "array", "minItems": 1, "items": {"type": "object", "additionalProperties": _SCALAR}}
_PICTURES = {"type": "array", "items": {"type": "string", "format": "binary"}}
_PREDICTION = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "description": "rows from 1, items of x from 0, a picture's file name"},
        "class": {"type": "string"},
        "probabilities": {
            "type": "object",
            "additionalProperties": {"type": "number"},
            "description": "of each class, or of each of several labels, which do not add up to 1",
        },
        "shares": {
            "type": "object",
            "additionalProperties": {"type": "number"},
            "description": "the part of the picture that is of each class, where the answer is a mask",
        },
        "mask": {
            "type": "string",
            "contentEncoding": "base64",
            "contentMediaType": "image/png",
            "description": "pixels are numbers of classes, in the picture's own size, shown in colours",
        },
        "value": {"type": "number"},
        "low": {"type": "number"},
        "high": {"type": "number"},
        "reason": {"type": "string", "description": "why there is no answer; then nothing else is there"},
    },
}
_ANSWER = {
    "type": "object",
    "required": ["model", "predictions", "unread"],
    "properties": {
        "model": {"type": "object", "description": "study, run, round, served, site and digest of the model"},
        "predictions": {"type": "array", "items": _PREDICTION, "description": "in the order of the request"},
        "unread": {"type": "integer", "description": "how many have a reason and no answer"},
    },
}
_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_REFUSED = {
    "400": "no such document",
    "401": "the token is missing or wrong",
    "413": "too long, or too many at once",
    "415": "a body of another type",
    "422": "not what the model reads",
    "503": "busy, or it took too long",
}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


PREDICT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            **_json(
                {
                    "oneOf": [
                        {"type": "object", "required": ["rows"], "properties": {"rows": _ONE_OF_TABLE}},
                        {"type": "object", "required": ["x"], "properties": {"x": {"type": "array", "minItems": 1}}},
                    ]
                }
            ),
            "multipart/form-data": {"schema": {"type": "object", "properties": {"pictures": _PICTURES}}},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    "responses": {
        "200": {"description": "an answer or a reason for each input", "content": _json(_ANSWER)},
        **{status: {"description": what, "content": _json(_ERROR)} for status, what in _REFUSED.items()},
    },
}
"""The request and the answers."""
