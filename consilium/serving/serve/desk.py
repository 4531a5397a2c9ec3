"""Has requests answered, one at a time, by a thread of its own: torch uses all cores for each."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import Response

from consilium.serving.serve.answering import Served
from consilium.serving.serve.body import Asked
from consilium.serving.serve.limits import ANSWER_SECONDS, MAX_WAITING
from consilium.serving.serve.metrics import ServeMetrics
from consilium.serving.serve.recent import Recent
from consilium.serving.serve.refusals import Refusal

log = logging.getLogger(__name__)

Read = Callable[[], Asked]
Shown = Callable[[dict[str, Any]], Response]
_COMPARE_SECONDS = 2.0
"""So long a page waits for the comparison with training; else it shows the last one."""


class Desk:
    """Where requests wait; a few at most, of which one is answered."""

    def __init__(self, served: Served) -> None:
        self.served, self._recent = served, Recent(served.summary)
        self.metrics = ServeMetrics(served)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._open = 0
        self._comparing: asyncio.Future[None] | None = None

    async def answered(self, receive: Callable[[], Awaitable[Read]], shown: Shown) -> Response:
        """Receive a request and return its answer.

        Args:
            receive: takes the body; what it returns reads the inputs, in the thread.
            shown: makes the answer a response, in the thread too.

        Raises:
            Refusal: too many wait, it took too long, or the request cannot be answered.
        """
        if self._open >= MAX_WAITING:
            raise Refusal(503, "the server is busy with other requests; come again", {"Retry-After": "1"})
        self._open += 1
        try:
            read = await receive()
            work = asyncio.get_running_loop().run_in_executor(self._worker, self._work, read, shown)
        except BaseException:
            self._open -= 1
            raise
        work.add_done_callback(self._leave)
        done, _ = await asyncio.wait([work], timeout=ANSWER_SECONDS)
        if not done:
            raise Refusal(503, f"there was no answer within {ANSWER_SECONDS:.0f} seconds; ask about fewer at once")
        return work.result()

    async def compare(self) -> None:
        """Compare the last inputs with training, if that is quick enough now."""
        if self._comparing is None or self._comparing.done():
            self._comparing = asyncio.get_running_loop().run_in_executor(self._worker, self._compare)
        await asyncio.wait([self._comparing], timeout=_COMPARE_SECONDS)

    def _leave(self, work: "asyncio.Future[Response]") -> None:
        self._open -= 1
        if not work.cancelled():
            work.exception()  # whoever asked may have left

    def _work(self, read: Read, shown: Shown) -> Response:
        begun, question = time.perf_counter(), read()
        answer = self.served.answer(question)
        response = shown(answer)
        seconds, unread = time.perf_counter() - begun, answer["unread"]
        answered = len(answer["predictions"]) - unread
        self._recent.add(question.inputs)
        self.metrics.see_rows(answered=answered, unread=unread, seconds=seconds)
        log.info("answered rows=%d unread=%d seconds=%.3f", answered, unread, seconds)
        return response

    def _compare(self) -> None:
        self.metrics.see_drift(self._recent.drift(), len(self._recent))
