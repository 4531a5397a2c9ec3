"""The pages of a server: `/predict`, `/model`, `/healthz`, `/metrics`, `/openapi.json` and one for people."""

from collections.abc import Collection
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from consilium.common import __version__
from consilium.common.study.task import TableTask, TextTask
from consilium.serving.serve.answering import Served
from consilium.serving.serve.body import asked_in_json, of_pictures, of_rows
from consilium.serving.serve.described import PREDICT
from consilium.serving.serve.desk import Desk, Read
from consilium.serving.serve.guard import Guard
from consilium.serving.serve.page import POLICY, page, row_of
from consilium.serving.serve.receiving import JSON, fields, json_body, kind_of, uploads
from consilium.serving.serve.refusals import FAILED, Refusal, json_response


class Pages:
    """The pages of a server whose desk answers."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._served = desk, desk.served

    async def predict(self, request: Request) -> Response:
        """Answer about the rows, arrays or pictures of a request."""
        return await self._desk.answered(lambda: self._asked(request), json_response)

    async def show_model(self) -> Response:
        """Say what the model is, what it expects and how good it was."""
        return json_response(self._served.described())

    async def show_health(self) -> Response:
        """Say that the server runs and has its model."""
        return json_response({"status": "ok"})

    async def show_metrics(self) -> Response:
        """Return the counts, and how the last inputs differ from training."""
        await self._desk.compare()
        return Response(self._desk.metrics.page(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def show_page(self) -> Response:
        """Return the page for people."""
        return self._page()

    async def answer_page(self, request: Request) -> Response:
        """Answer on the page for people."""
        try:
            return await self._desk.answered(lambda: self._filled_in(request), lambda answer: self._page(answer=answer))
        except Refusal as refusal:
            return self._page(problem=refusal.sentence, status=refusal.status)

    async def _asked(self, request: Request) -> Read:
        task = self._served.model.record.task
        if kind_of(request) == JSON:
            content = await json_body(request)
            return lambda: asked_in_json(content, task)
        pictures = await uploads(request)
        return lambda: of_pictures(pictures, task)

    async def _filled_in(self, request: Request) -> Read:
        task = self._served.model.record.task
        if isinstance(task, TableTask | TextTask):
            row = row_of(await fields(request), task)
            return lambda: of_rows([row], task)
        pictures = await uploads(request)
        return lambda: of_pictures(pictures, task)

    def _page(self, *, answer: dict[str, Any] | None = None, problem: str = "", status: int = 200) -> Response:
        content = page(self._served, answer=answer, problem=problem)
        return Response(content, status, {"Content-Security-Policy": POLICY}, "text/html")


def build_app(served: Served, *, hosts: Collection[str], token: str | None) -> ASGIApp:
    """Return the application, with its guard before it.

    Args:
        hosts: the names by which it may be called.
        token: what a request must show; None: nothing.
    """
    desk = Desk(served)
    pages = Pages(desk)
    api = FastAPI(
        title=f"consilium: {served.model.record.provenance.study}",
        version=__version__,
        docs_url=None,  # its scripts would come from elsewhere
        redoc_url=None,
        exception_handlers={Refusal: _refused, HTTPException: _unknown, Exception: _failed},
    )
    api.add_api_route("/predict", pages.predict, methods=["POST"], openapi_extra=PREDICT)
    for path, shown in {
        "/model": pages.show_model,
        "/healthz": pages.show_health,
        "/metrics": pages.show_metrics,
    }.items():
        api.add_api_route(path, shown, methods=["GET"])
    api.add_api_route("/", pages.show_page, methods=["GET"], include_in_schema=False)
    api.add_api_route("/", pages.answer_page, methods=["POST"], include_in_schema=False)
    return Guard(api, hosts=hosts, token=token, metrics=desk.metrics)


async def _refused(_: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return refusal.response()


async def _unknown(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentences = {404: "there is no such page; /model says what the server answers", 405: "this page is asked otherwise"}
    sentence = sentences.get(error.status_code, "the request cannot be answered")
    return Refusal(error.status_code, sentence, error.headers).response()


async def _failed(_: Request, __: Exception) -> Response:
    """Answer to an error of ours, which goes on to the guard and into the log."""
    return FAILED.response()
