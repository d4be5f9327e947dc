"""The sender makes one attempt at an item: it encodes and posts the request, and reads the response.

`Item` is a request with the record of its attempts. An attempt is counted before the request is handed to the pool.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from promptmill.backends.openai.asked_wait import exhausted_s
from promptmill.backends.openai.chat_completion import StreamPreview
from promptmill.backends.openai.dialects import DIALECTS
from promptmill.backends.openai.dialects.deciding import note_on_model
from promptmill.backends.openai.endpoint import Endpoint, elsewhere
from promptmill.backends.openai.failures import FailureKind, RetryDecision, classify_exception
from promptmill.backends.openai.http_connection import HttpResponse
from promptmill.backends.openai.limit.endpoint_state import EndpointState, Permit
from promptmill.backends.openai.reply import answer_in, other_answer_in
from promptmill.backends.openai.request_body import Head, ImageEncoder, RequestEncoder
from promptmill.backends.openai.transport import Pool
from promptmill.backends.protocol import NO_USAGE, Call, Completion, Growing, Spent, Usage
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Conversation, Request, check_left_out
from promptmill.images.files import NOUNS

NOTHING: Mapping[str, bytes] = {}
# If an item is refused because of load although at least this many other requests succeed per refusal, the item itself
# is the cause: by chance, only one item in a million gets five such refusals in a row.
_SUCCESSES_PER_REFUSAL = 10
_SMALLEST_CONTEXT = 2048  # Ollama's default until 2025: the smallest usual context
_FEWEST_TOKENS = 512  # min tokens of a shortened prompt; a server that reports fewer for a long text counts differently
_SHORT_TOKEN = 5  # max characters per token; English texts have 4.3, spaces included
_LONG_TOKEN = 16  # max bytes per token
_TOOLS = frozenset({"tools", "functions"})
_UNASKED_CALL = (
    "An answer is the call of a tool, although the request has no tools: look at the prompt, and at the chat template "
    "of the server."
)
_LOST_CHARACTER = (
    "A character of an answer was lost: \ufffd stands for bytes that are no UTF-8. Correct the encoding of the "
    "server's replies, or the charset in its `Content-Type`."
)


@dataclass(slots=True)
class Billed:
    """The attempts that may be billed: the reported usage of some attempts, and the number of the other attempts."""

    spent: tuple[Spent, ...] = ()
    unmetered: int = 0

    @property
    def usage(self) -> Usage:
        """The sum of the reported usages."""
        return sum((usage for usage, _ in self.spent), NO_USAGE)


class Item:
    """A request and the record of its attempts. All `attempts` were sent; `counted` of them count against `retries`."""

    # the defaults are on the class, because most items need only one attempt, which changes few of the attributes
    permit: Permit | None = None
    """The permit of the last attempt."""
    tokens: int = 0
    """The estimated size of the request, if `tpm` is set."""
    counted: int = 0
    refusals: int = 0
    first_refusal: tuple[int, int] = (0, 0)
    """The endpoint's `successes` and `rejections` when it first refused the item because of load."""
    failed_at: EndpointState | None = None
    failed_serial: int = 0
    losses: int = 0
    """The number of attempts that ended without an answer although the endpoint had accepted the connection."""
    is_suspect: bool = False
    """Whether the item may crash its server. Such an item is sent while no other suspect is in flight."""
    stale: bool = False
    """Whether the next attempt needs a new connection."""
    since: float = 0.0
    """The time at which the item got its first permit; 0 before that."""
    billed: Billed | None = None
    """The attempts that got no answer, but may be billed."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.attempts = request.attempts

    def charge(self, decision: RetryDecision | None) -> None:
        """Add an unanswered attempt to `billed` if it may be billed. `decision`: None if the usage is unknown."""
        if decision is not None and not decision.may_be_billed:
            return
        self.billed = self.billed or Billed()
        self.billed.unmetered += decision is None or decision.unmetered
        if decision is not None and decision.usage != NO_USAGE:
            self.billed.spent += ((decision.usage, decision.tier),)

    def is_refused_for_load(self, endpoint_state: EndpointState) -> bool:
        """Return whether load really caused the refusals; it did not if other requests are hardly ever refused."""
        if not self.refusals or self.failed_at is not endpoint_state:
            self.refusals = 0
            self.first_refusal = endpoint_state.health.successes, endpoint_state.load.rejections
            return True
        successes, rejections = self.first_refusal
        others = endpoint_state.load.rejections - rejections - self.refusals
        return endpoint_state.health.successes - successes <= _SUCCESSES_PER_REFUSAL * others


class Sender:
    """Makes attempts for one call."""

    def __init__(self, pool: Pool, images: ImageEncoder, call: Call, *, unsupported_is_error: bool) -> None:
        self._pool, self._images, self._call = pool, images, call
        self._unsupported_is_error = unsupported_is_error

    def prepare(self, request: Request) -> Awaitable[Mapping[str, bytes]] | None:
        """Return the request's images and files, read and encoded; None if there are none."""
        parts = request.conversation.sourced
        return self._images.read(parts) if parts else None

    async def send(
        self, item: Item, endpoint_state: EndpointState, prepared: Mapping[str, bytes]
    ) -> Completion | RetryDecision:
        """Encode and post the request, and read the response."""
        request = item.request
        if request.path or endpoint_state.encoder.decides:
            other = self._send_elsewhere if request.path else self._decide
            return await other(item, endpoint_state, prepared)
        endpoint, encoder = endpoint_state.endpoint, endpoint_state.encoder
        head = encoder.head(request)
        call = self._call
        warnings = left_out(encoder, head, request, call, is_error=self._unsupported_is_error)
        preview = call.preview
        if prepared:
            self._check_prepared(request, endpoint)
        body = encoder.encode(head, request.conversation, prepared, request.shared, stream=preview is not None)
        growing = None if preview is None else _shown(preview, endpoint, inline=head.wanted.inline)
        endpoint = head.endpoint if preview is None else head.streaming
        item.attempts += 1
        call.sending(request, again=item.attempts > 1)
        try:  # not in a separate function, because each coroutine takes about 2,000 instructions
            if growing is None:
                response = await self._pool.send(endpoint, body, fresh=item.stale)
            else:
                with contextlib.closing(growing):
                    response = await self._pool.send(endpoint, body, fresh=item.stale, on_data=growing.feed)
        except Exception as error:  # noqa: BLE001 (every exception is classified, so that one item never ends a call)
            return classify_exception(error, endpoint)
        wanted = head.wanted._replace(keep_raw=True) if call.facts.keep_raw else head.wanted
        if response.is_soon_read:
            reading = answer_in(response, endpoint, wanted)
        else:
            reading = await self._pool.read_apart(answer_in, response, endpoint, wanted)
        if isinstance(reading, RetryDecision):
            corrected = encoder.is_corrected(head, reading.error.message)
            if corrected or (preview is not None and response.status in {400, 422}):
                _note_change(head, encoder.head(request), call)
                call.preview = preview if corrected else None  # perhaps the endpoint refuses only streaming
                call.ledger.not_billed(request)
                return await self.send(item, endpoint_state, prepared)
            return reading
        if response.headers.any_zero():
            _note_limit(response, endpoint_state)
        for warning in _doubts(request, reading, endpoint):
            call.warn(warning)
            warnings += (warning,)
        if problem := reading.unanswered:
            kind = FailureKind.TRANSIENT if reading.finish_reason is None else FailureKind.ITEM
            return RetryDecision(
                kind,
                problem,
                usage=reading.usage,
                tier=reading.tier,
                unmetered=not reading.is_metered,
                reasoning=reading.reasoning or "",
            )
        reading.warnings = warnings
        return reading

    def _check_prepared(self, request: Request, endpoint: Endpoint) -> None:
        """Raise the errors of `check_form`, and `PromptmillError` (`invalid_image`) for an image that the endpoint
        would have to download."""
        check_form(request, endpoint)
        if not endpoint.profile.images.from_web and self._images.passes_on(request.conversation.images):
            raise PromptmillError(
                Code.INVALID_IMAGE,
                f"{endpoint.name} does not download images.",
                "Set `fetch_images: true` so that promptmill downloads them, or send files.",
            )

    async def _decide(
        self, item: Item, endpoint_state: EndpointState, prepared: Mapping[str, bytes]
    ) -> Completion | RetryDecision:
        """Post evidence and questions, and read the answers of a deciding model."""
        encoder, request, call = endpoint_state.encoder, item.request, self._call
        head = encoder.head(request)
        warnings = left_out(encoder, head, request, call, is_error=self._unsupported_is_error)
        body, questions = encoder.decision(head, request, prepared)
        item.attempts += 1
        call.sending(request, again=item.attempts > 1)
        try:
            response = await self._pool.send(head.endpoint, body, fresh=item.stale)
        except Exception as error:  # noqa: BLE001 (as above)
            return classify_exception(error, head.endpoint)
        wanted = head.wanted._replace(keep_raw=call.facts.keep_raw, questions=questions)
        read = self._pool.read_apart
        soon = response.is_soon_read
        reading = (
            answer_in(response, head.endpoint, wanted)
            if soon
            else await read(answer_in, response, head.endpoint, wanted)
        )
        if isinstance(reading, RetryDecision) and encoder.sends_text(body, reading.error.message):
            call.ledger.not_billed(request)
            return await self._decide(item, endpoint_state, prepared)
        if isinstance(reading, Completion):
            if response.headers.any_zero():
                _note_limit(response, endpoint_state)
            doubts = _doubts(request, reading, head.endpoint)
            if reading.answered_by and (note := note_on_model(wanted.model, reading.answered_by)):
                doubts.append(note)
            for doubt in doubts:
                call.warn(doubt)
                warnings += (doubt,)
            reading.warnings = warnings
        return reading

    def close(self) -> None:
        """Stop reading images."""
        self._images.close()

    async def _send_elsewhere(
        self, item: Item, endpoint_state: EndpointState, prepared: Mapping[str, bytes]
    ) -> Completion | RetryDecision:
        """Post the unchanged body of a request that is not a chat. Keep the response unchanged, or only its vectors."""
        endpoint = elsewhere(endpoint_state.endpoint, item.request.path)
        body = endpoint_state.encoder.encode_body(item.request, prepared)
        item.attempts += 1
        self._call.sending(item.request, again=item.attempts > 1)
        try:
            response = await self._pool.send(endpoint, body, fresh=item.stale)
        except Exception as error:  # noqa: BLE001 (as above)
            return classify_exception(error, endpoint)
        texts = 0 if self._call.facts.keep_raw else item.request.texts
        reading = await self._pool.read_apart(other_answer_in, response, endpoint, texts=texts)
        if isinstance(reading, Completion):
            _note_limit(response, endpoint_state)
        elif reading.kind is FailureKind.ENDPOINT and response.status in {404, 405}:
            return replace(reading, kind=FailureKind.ITEM)  # this path is missing, but the path of chats may exist
        return reading


def _shown(show: Callable[[Growing], None], endpoint: Endpoint, *, inline: bool) -> StreamPreview:
    delta_in = DIALECTS[endpoint.dialect].delta_in
    return StreamPreview(show, delta_in, inline=inline, later=asyncio.get_running_loop().call_later)


def left_out(encoder: RequestEncoder, head: Head, request: Request, call: Call, *, is_error: bool) -> tuple[str, ...]:
    """Warn about parameters and cache marks that the endpoint refuses, and return the warnings.

    Raises `PromptmillError` (`unsupported`) if `request` requires one of the parameters, or if the operator wants an
    error.
    """
    refused = head.refused + encoder.lost_marks(head, request.conversation)
    if not refused:
        return ()
    name = head.endpoint.name
    check_left_out(refused, refused if is_error else request.required, name)
    warnings = tuple(f"{name} takes no `{one}`; it was left out." for one in refused)
    for warning in warnings:
        call.warn(warning)
    return warnings


def check_form(request: Request, endpoint: Endpoint) -> None:
    """Raise `PromptmillError` (`unsupported`) if the provider takes no schema and no choices together with a file."""
    for kind in request.conversation.file_kinds if request.has_form else ():
        limits = endpoint.profile.files.get(kind)
        if limits is not None and not limits.takes_schema:
            text = f"{endpoint.name} takes no schema and no choices beside a {NOUNS[kind]}."
            raise PromptmillError(Code.UNSUPPORTED, text, "Ask for a text, or choose another endpoint.")


def _doubts(request: Request, answer: Completion, endpoint: Endpoint) -> list[str]:
    """Return warnings: a prompt may be shortened, characters were lost, or the called tool was not sent."""
    cut = _cut_prompt(request.conversation, answer, endpoint) if endpoint.profile.cuts_prompts else ""
    is_unasked = answer.tool_calls and not answer.text and not request.has_form and _TOOLS.isdisjoint(request.extra)
    return [
        *([cut] if cut else []),
        *([_LOST_CHARACTER] if "\ufffd" in answer.text else []),
        *([_UNASKED_CALL] if is_unasked else []),
    ]


def _cut_prompt(conversation: Conversation, answer: Completion, endpoint: Endpoint) -> str:
    """Return a warning if the server has shortened, or may have shortened, the prompt; otherwise `""`.

    A word is at least one token. In text without spaces (Chinese, base64), a token has about six bytes on average.
    """
    tokens, filled = answer.usage.prompt_tokens, answer.usage.prompt_tokens
    if answer.finish_reason == "length":
        filled += answer.usage.completion_tokens
    remedy = "raise the context length of the server (Ollama: OLLAMA_CONTEXT_LENGTH), or shorten the prompts."
    if filled >= _SMALLEST_CONTEXT and filled.bit_count() == 1:
        return f"{endpoint.name} may have cut a prompt: it fills a context of {filled:,} tokens exactly; {remedy}"
    texts = conversation.texts if tokens >= _FEWEST_TOKENS else []
    if sum(map(len, texts)) <= _SHORT_TOKEN * tokens:  # the usual case, in which words need not be counted
        return ""
    words = [word for text in texts for word in text.split()]
    if tokens < max(len(words), sum(len(word.encode("utf-8", "replace")) for word in words) // _LONG_TOKEN):
        return f"{endpoint.name} has cut a prompt: it reports far fewer tokens than the text has; {remedy}"
    return ""


def _note_change(sent: Head, now: Head, call: Call) -> None:
    """Warn if the endpoint has refused a parameter of the prompt cache, which is no longer sent, or `top_logprobs`."""
    if b'"top_logprobs":5' in now.text and b'"top_logprobs":5' not in sent.text:
        call.warn(f"{sent.endpoint.name} takes 5 `top_logprobs`: the probabilities of the other choices are estimates.")
    if now.cache != sent.cache:
        call.warn(f"{sent.endpoint.name} refuses OpenAI's parameters for the prompt cache; they were left out.")


def _note_limit(response: HttpResponse, endpoint_state: EndpointState) -> None:
    """Pause the endpoint if the headers of an answer report that the limit per minute is used up."""
    if wait_s := exhausted_s(response.headers):
        endpoint_state.used_up(wait_s)
