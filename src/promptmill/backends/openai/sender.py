"""Senders make one attempt at a request, in this process or in a worker process: encode, post, read the response."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias

from promptmill.backends.openai.asked_wait import exhausted_s
from promptmill.backends.openai.chat_completion import StreamPreview
from promptmill.backends.openai.endpoint import Endpoint, elsewhere
from promptmill.backends.openai.failures import FailureKind, RetryDecision, classify_exception
from promptmill.backends.openai.http_connection import HttpResponse
from promptmill.backends.openai.limit.endpoint_state import EndpointState
from promptmill.backends.openai.reply import answer_in, other_answer_in
from promptmill.backends.openai.request import Head, ImageEncoder
from promptmill.backends.openai.transport import Pool
from promptmill.backends.protocol import Call, Completion
from promptmill.core.errors import Code, PromptmillError, without_frames
from promptmill.core.request import ImagePart, Request

Prepared: TypeAlias = Any
"""The result of `Sender.prepare`: a request's images here, its place in a file for a worker."""
NOTHING: Mapping[str, bytes] = {}


class Sender(Protocol):
    """Makes attempts for one call."""

    def prepare(self, request: Request) -> Awaitable[Prepared] | None:
        """Prepare the request before it takes a place at an endpoint; return an awaitable of the result for `send`.

        None, the usual case, means `NOTHING`. The awaitable raises the request's own error, or that none can be sent.
        """
        ...

    async def send(
        self, request: Request, endpoint_state: EndpointState, prepared: Prepared, *, fresh: bool
    ) -> Completion | RetryDecision:
        """Send once, on a new connection if `fresh`. Raises `PromptmillError` for an error of the request itself."""
        ...

    async def aclose(self) -> None:
        """Free the call's resources."""
        ...


class LocalSender:
    """Encodes and sends in this process."""

    def __init__(
        self,
        pool: Pool,
        image_encoder: Callable[[], ImageEncoder],
        call: Call,
        *,
        unsupported_is_error: bool,
    ) -> None:
        """`image_encoder` makes one for the first image."""
        self._pool = pool
        self._make_image_encoder = image_encoder
        self._image_encoder: ImageEncoder | None = None
        self._call = call
        self._unsupported_is_error = unsupported_is_error

    def prepare(self, request: Request) -> Awaitable[Mapping[str, bytes]] | None:
        """Return the request's images, read and encoded."""
        images = request.conversation.images
        if not images:
            return None
        if self._image_encoder is None:
            self._image_encoder = self._make_image_encoder()
        return self._image_encoder.read(images)

    async def send(
        self, request: Request, endpoint_state: EndpointState, prepared: Mapping[str, bytes], *, fresh: bool
    ) -> Completion | RetryDecision:
        """Encode, post, read."""
        if request.path:
            return await self._send_elsewhere(request, endpoint_state, fresh=fresh)
        endpoint, encoder = endpoint_state.endpoint, endpoint_state.encoder
        head = encoder.head(request)
        warnings = self._warnings_of(head, endpoint) if head.refused else ()
        preview = self._call.preview
        if prepared and endpoint.profile.images == "data" and self._passes_on(request.conversation.images):
            raise PromptmillError(
                Code.INVALID_IMAGE,
                f"{endpoint.name} fetches no images from the web.",
                "Set `fetch_images: true` to have them fetched here, or give files.",
            )
        body = encoder.encode(head, request.conversation, prepared, stream=preview is not None)
        inline = head.inline
        on_data = None if preview is None else StreamPreview(preview, inline=inline).feed
        try:  # not in a function of its own: each coroutine takes some 2,000 instructions
            response = await self._pool.send(endpoint, body, fresh=fresh, on_data=on_data)
        except Exception as error:  # noqa: BLE001 (every exception is classified, so that one item never ends a call)
            return _decision_on(error, endpoint)
        keep_raw = self._call.facts.keep_raw
        if response.is_soon_read:
            found = answer_in(response, endpoint, keep_raw=keep_raw, inline=inline)
        else:
            found = await self._pool.read_apart(answer_in, response, endpoint, keep_raw=keep_raw, inline=inline)
        if isinstance(found, RetryDecision):
            if preview is not None and response.status in {400, 422}:
                self._call.preview = None  # it may be the streaming that is refused
                return await self.send(request, endpoint_state, prepared, fresh=fresh)
            return found
        if response.headers.any_zero():
            _note_limit(response, endpoint_state)
        if found.reasoning and not inline and (problem := found.unanswered):
            kind = FailureKind.TRANSIENT if found.finish_reason is None else FailureKind.ITEM
            return RetryDecision(kind, problem, usage=found.usage, tier=found.tier, unmetered=not found.is_metered)
        if warnings:
            found.warnings = warnings
        return found

    def _warnings_of(self, head: Head, endpoint: Endpoint) -> tuple[str, ...]:
        """Warn about the parameters that the endpoint refuses, or raise the error that the operator wants instead."""
        texts = [f"{endpoint.name} takes no `{name}`" for name in head.refused]
        if self._unsupported_is_error:
            raise PromptmillError(Code.UNSUPPORTED, f"{texts[0]}.")
        warnings = tuple(f"{text}; it was left out." for text in texts)
        for warning in warnings:
            self._call.warn(warning)
        return warnings

    def _passes_on(self, images: Sequence[ImagePart]) -> bool:
        return self._image_encoder is not None and self._image_encoder.passes_on(images)

    async def aclose(self) -> None:
        """Stop reading images."""
        if self._image_encoder is not None:
            self._image_encoder.close()

    async def _send_elsewhere(
        self, request: Request, endpoint_state: EndpointState, *, fresh: bool
    ) -> Completion | RetryDecision:
        """Post the body of a request for another path than chats, and keep its response, both unchanged."""
        endpoint = elsewhere(endpoint_state.endpoint, request.path)
        body = endpoint_state.encoder.encode_body(request)
        try:
            response = await self._pool.send(endpoint, body, fresh=fresh)
        except Exception as error:  # noqa: BLE001 (as above)
            return _decision_on(error, endpoint)
        found = await self._pool.read_apart(other_answer_in, response, endpoint)
        if isinstance(found, Completion):
            _note_limit(response, endpoint_state)
        elif found.kind is FailureKind.ENDPOINT and response.status in {404, 405}:
            return replace(found, kind=FailureKind.ITEM)  # it lacks this route, but may have the route of chats
        return found


def _decision_on(error: Exception, endpoint: Endpoint) -> RetryDecision:
    """Return the decision about an attempt without a response."""
    without_frames(error)
    return classify_exception(error, endpoint)


def _note_limit(response: HttpResponse, endpoint_state: EndpointState) -> None:
    """Have the endpoint paused if the headers of an answer report that the limit of the minute is used up."""
    if wait_s := exhausted_s(response.headers):
        endpoint_state.used_up(wait_s)
