"""Requests that are not answered: a status and a sentence, as JSON."""

import json
from collections.abc import Mapping

from fastapi import Response

SECURITY = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of every answer: nothing of patients stays in a cache, and no other page shows or reads it."""


class Refusal(Exception):
    """A request that is refused.

    Args:
        status: of HTTP.
        sentence: what is wrong and what was expected, without a value of the inputs.
    """

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, dict(headers or {})

    def response(self) -> Response:
        """Return it as an answer."""
        return json_response({"error": self.sentence}, status=self.status, headers=self.headers)


FAILED = Refusal(500, "the server failed at this request; its log says where")
"""An error of ours, whose text may hold a value and so is shown to nobody."""


def json_response(
    document: Mapping[str, object], *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a document as an answer; a number that JSON does not have is an error of ours."""
    content = json.dumps(document, allow_nan=False).encode()
    return Response(content, status_code=status, headers=dict(headers or {}), media_type="application/json")
