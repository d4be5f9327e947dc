"""Answers the requests of a call whose replies arrive hours later, from a batch.

The bodies of requests are the same as in live requests, and replies are read in the same way.
"""

from __future__ import annotations

from promptmill.backends.batches import Reply
from promptmill.backends.openai.endpoint import Endpoint, elsewhere
from promptmill.backends.openai.failures import RetryDecision
from promptmill.backends.openai.http_connection import Headers, HttpResponse
from promptmill.backends.openai.reply import answer_in, other_answer_in
from promptmill.backends.openai.request_body import ImageEncoder, RequestEncoder
from promptmill.backends.openai.sender import check_form, left_out
from promptmill.backends.protocol import Call, Completion, Exchange, Failure, FixedShare, Outcome, portion_of
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Request

_IN_FLIGHT = 64  # the limit of bodies at a time; images of some are read while others are written


class ExchangedAnswers(FixedShare):
    """Answers the requests of one call: writes each request's body, and reads the reply that `exchange` returns."""

    def __init__(
        self,
        call: Call,
        exchange: Exchange,
        endpoint: Endpoint,
        encoder: RequestEncoder,
        images: ImageEncoder,
        *,
        unsupported_is_error: bool,
    ) -> None:
        super().__init__(_IN_FLIGHT)
        self._call, self._exchange = call, exchange
        self._endpoint, self._encoder = endpoint, encoder
        self._images = images
        self._unsupported_is_error = unsupported_is_error

    async def answer(self, request: Request) -> Outcome:
        """Return the outcome of one request, from the reply or from the failure that `exchange` returns."""
        try:
            reply = await self._exchange(request, self._body)
        except PromptmillError as error:
            if error.code is Code.STORAGE:  # the job's folder, which every request needs, is not usable
                raise
            return Failure(error, request.attempts)
        if isinstance(reply, Failure):
            return reply
        portion = request.portion
        self._call.counts.requests += portion is None or portion.at == 0
        outcome = self._outcome(request, reply)
        return outcome if portion is None else portion_of(outcome, portion)

    def _outcome(self, request: Request, reply: Reply) -> Outcome:
        answer = self._read(request, HttpResponse(reply.status, Headers({}), reply.body))
        if isinstance(answer, RetryDecision):
            return Failure(answer.error, request.attempts + 1, usage=answer.usage, unmetered=answer.unmetered)
        answer.attempts = request.attempts + 1
        if not request.path and (problem := answer.unanswered):
            return Failure(problem, answer.attempts, usage=answer.usage, unmetered=not answer.is_metered)
        return answer

    def close(self) -> None:
        """Stop reading images."""
        self._images.close()

    def _read(self, request: Request, response: HttpResponse) -> Completion | RetryDecision:
        keep_raw = self._call.facts.keep_raw
        if request.path:
            endpoint = elsewhere(self._endpoint, request.path)
            return other_answer_in(response, endpoint, texts=0 if keep_raw else request.texts)
        return answer_in(response, self._endpoint, self._encoder.wanted(request)._replace(keep_raw=keep_raw))

    async def _body(self, request: Request) -> bytes:
        """Return the body of a request. Raises `PromptmillError` if the request cannot be sent."""
        if request.path:
            return self._encoder.encode_body(request, {})
        head = self._encoder.head(request)
        left_out(self._encoder, head, request, self._call, is_error=self._unsupported_is_error)
        check_form(request, self._endpoint)
        images = await self._images.read(request.conversation.sourced)
        return self._encoder.encode(head, request.conversation, images, request.shared, for_an_hour=True)
