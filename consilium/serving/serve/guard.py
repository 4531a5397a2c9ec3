"""What stands before every page: who may ask, by which name, and that nothing of an error leaves but a sentence."""

import base64
import hashlib
import hmac
import logging
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from consilium.common.host.address import same_host
from consilium.serving.serve.metrics import ServeMetrics
from consilium.serving.serve.refusals import FAILED, SECURITY, Refusal

log = logging.getLogger(__name__)

OPEN = frozenset({"/healthz"})
"""Pages that need no token: they say nothing of the model."""
PAGES = frozenset({"/", "/predict", "/model", "/healthz", "/metrics", "/openapi.json"})


class Guard:
    """Wraps an application.

    Args:
        hosts: the names by which this server may be called, without ports; `*.` stands for one label.
        token: what every request must show; None: everybody on this machine may ask.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str], token: str | None, metrics: ServeMetrics) -> None:
        self._app, self._hosts, self._metrics = app, tuple(hosts), metrics
        self._token = None if token is None else _hashed(token.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            return
        path, begun = scope["path"] if scope["path"] in PAGES else "other", False

        async def sent(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self._metrics.see_request(path, message["status"])
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(Headers(scope=scope), path)
            await self._app(scope, receive, sent)
        except Refusal as refusal:
            await refusal.response()(scope, receive, sent)
        except Exception as error:  # its text may hold a value, so neither the client nor the log gets it
            log.error("request failed path=%s error=%s place=%s", path, type(error).__name__, _place(error))
            if not begun:
                await FAILED.response()(scope, receive, sent)

    def _check(self, headers: Headers, path: str) -> None:
        """Refuse names that are not ours, so that no page of another place reads answers by a name of its own."""
        if not self._is_ours(_host(headers.get("host", ""))):
            raise Refusal(400, "the request is for another host; call the server by the name or address it was given")
        origin = headers.get("origin")
        if origin is not None and not self._is_ours(_host(urlsplit(origin).netloc)):
            raise Refusal(403, "the request comes from a page of another place, which may not ask")
        if self._token is None or path in OPEN:
            return
        if not hmac.compare_digest(_hashed(_shown(headers.get("authorization", ""))), self._token):
            raise Refusal(
                401,
                "the request needs the server's token: Authorization: Bearer TOKEN",
                {"WWW-Authenticate": 'Bearer, Basic realm="the token is the password", charset="UTF-8"'},
            )

    def _is_ours(self, host: str) -> bool:
        if not host:
            return False
        rest = host.partition(".")[2]
        return any(same_host(host, own) or (own.startswith("*.") and rest == own[2:].lower()) for own in self._hosts)


def _host(text: str) -> str:
    """Return the host of `host:port`, without brackets."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0].lower().removesuffix(".")


def _shown(authorization: str) -> bytes:
    """Return the token of a request: of a program as it is, of a browser as the password."""
    kind, _, value = authorization.partition(" ")
    if kind.lower() == "bearer":
        return value.strip().encode()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except ValueError:
            return b""
    return b""


def _hashed(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _place(error: BaseException) -> str:
    """Return where an error came from: file and line, without its text."""
    trace: Any = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "unknown" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
