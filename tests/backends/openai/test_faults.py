"""The table: what each fault of an endpoint comes to. Contract, section 3."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from driving import ask, echoes, opened
from promptmill.backends.protocol import Completion
from promptmill.core.errors import Code
from replies import (
    answer,
    attempts,
    by_prompt,
    closed,
    drip,
    hang,
    html,
    huge,
    interim,
    late,
    quota,
    raw,
    redirect,
    reset,
    sse,
    status,
    truncated,
    wrong_length,
)
from upstream import Reply

RETRIES = 3
CAP = 5 * RETRIES
ONCE = (1, 1)
COUNTED = (RETRIES, RETRIES)
"""Tried as often as `retries` says."""
PUT_BACK = (CAP, CAP)
"""Not the item's fault: tried up to the hard cap."""
EITHER = (RETRIES, CAP)
"""Whether it counts depends on what else succeeded meanwhile."""


@dataclass
class Fault:
    """One row. `tries`: fewest and most attempts when the endpoint never answered anything, `beside`: when it does."""

    name: str
    reply: Reply
    code: set[Code]
    tries: tuple[int, int] = COUNTED
    beside: tuple[int, int] | None = None
    says: tuple[str, ...] = ()
    retryable: bool = True
    block: dict[str, Any] = field(default_factory=dict)


def _row(name: str, reply: Reply, code: Code | set[Code], *rest: Any, **more: Any) -> Fault:
    return Fault(name, reply, code if isinstance(code, set) else {code}, *rest, **more)


def _refused(number: int, code: Code | set[Code], *rest: Any, **more: Any) -> Fault:
    says = (str(number), "refused by the test")
    return _row(f"status {number}", status(number), code, *rest, says=says, **more)


SILENCE = {"timeout": [2, 0.3]}
GARBAGE = b"not json at all"
NO_FILTER = {"error": {"code": "content_filter", "message": "The response was filtered", "status": 400}}
TPM = (
    "Request too large for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Requested 90000. "
    "The input or output tokens must be reduced in order to run successfully."
)
OVER_CONTEXT = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens."

LOST = {"tries": COUNTED, "beside": EITHER}
FAULTS = [
    # the connection
    _row("reset before the answer", reset(), Code.CONNECTION_LOST, **LOST),
    _row("reset in the body", reset(20), Code.CONNECTION_LOST, **LOST),
    _row("closed before the answer", closed(), Code.CONNECTION_LOST, **LOST),
    _row("truncated chunked body", truncated(), Code.CONNECTION_LOST, **LOST),
    _row("Content-Length too long", wrong_length(40), Code.CONNECTION_LOST, **LOST),
    _row("Content-Length too short", wrong_length(-40), Code.BAD_RESPONSE),
    _row("hang before the headers", hang(), Code.TIMEOUT, block=SILENCE, says=("silent",)),
    _row("hang in the body", hang(20), Code.TIMEOUT, block=SILENCE, says=("silent",)),
    _row("hang after early hints", interim(hang()), Code.TIMEOUT, block=SILENCE, says=("silent",)),
    # what is no answer
    _row("invalid JSON", raw(GARBAGE), Code.BAD_RESPONSE, says=("JSON",)),
    _row("half a JSON", raw(b'{"choices": [{"mess'), Code.BAD_RESPONSE),
    _row("JSON that is no object", raw(b"[1, 2]"), Code.BAD_RESPONSE),
    _row("a JSON of something else", raw(b'{"status": "ok"}'), Code.BAD_RESPONSE),
    _row("choices of another shape", raw(b'{"choices": {"a": 1}}'), Code.BAD_RESPONSE),
    _row("deeply nested JSON", raw(b'{"choices":' * 100_000), Code.BAD_RESPONSE),
    _row("HTML with 200", html(), Code.BAD_RESPONSE, says=("web page",)),
    _row("empty body", raw(b""), Code.BAD_RESPONSE, says=("empty",)),
    _row("204", raw(b"", code=204), Code.BAD_RESPONSE),
    _row(
        "error object in a 200",
        raw(b'{"error": {"message": "out of order"}}'),
        Code.SERVER_ERROR,
        says=("out of order",),
    ),
    _row("error text in a 200", raw(b'{"error": "out of order"}'), Code.SERVER_ERROR, says=("out of order",)),
    _row(
        "error 502 in a 200", raw(b'{"error": {"message": "upstream", "code": 502}}'), Code.SERVER_ERROR, says=("502",)
    ),
    _row(
        "error 429 in a 200", raw(b'{"error": {"message": "slow", "code": 429}}'), Code.RATE_LIMITED, PUT_BACK, EITHER
    ),
    _row("empty choices", raw(b'{"choices": []}'), Code.EMPTY_ANSWER),
    _row("null content, no finish reason", answer(None, finish_reason=None), Code.EMPTY_ANSWER),
    _row("empty content, no finish reason", answer("", finish_reason=None), Code.EMPTY_ANSWER),
    _row(
        "no message",
        raw(b'{"choices": [{"index": 0, "message": null, "finish_reason": "stop"}]}'),
        Code.BAD_RESPONSE,
        says=("without a message",),
    ),
    _row("content of another shape", answer(5), Code.BAD_RESPONSE, says=("`content`",)),
    _row("parts of another shape", answer([{"a": 1}, 5]), Code.BAD_RESPONSE, says=("`content`",)),
    _row(
        "content of another shape, streamed",
        sse(b'data: {"choices": [{"delta": {"content": {"a": 1}}}]}'),
        Code.BAD_RESPONSE,
    ),
    _row(
        "calls of another shape", answer(None, message={"tool_calls": "x"}), Code.BAD_RESPONSE, says=("`tool_calls`",)
    ),
    _row("calls that are texts", answer("", message={"tool_calls": ["x"]}), Code.BAD_RESPONSE, says=("`tool_calls`",)),
    _row("a huge body", huge(96 << 20), Code.BAD_RESPONSE, says=("MiB",)),
    _row("a huge body behind gzip", huge(96 << 20, zipped=True), Code.BAD_RESPONSE, says=("MiB",)),
    # statuses that pass
    _refused(408, {Code.TIMEOUT, Code.SERVER_ERROR}),
    _refused(409, Code.SERVER_ERROR),
    _refused(425, Code.SERVER_ERROR),
    _refused(429, Code.RATE_LIMITED, PUT_BACK, EITHER),
    _refused(500, Code.SERVER_ERROR),
    _refused(502, Code.SERVER_ERROR),
    _refused(503, Code.SERVER_ERROR, COUNTED, EITHER),
    _refused(504, Code.SERVER_ERROR),
    _refused(529, Code.SERVER_ERROR),
    _row("502 with a page", html(502), Code.SERVER_ERROR, says=("502",)),
    _row("503 without a body", raw(b"", code=503), Code.SERVER_ERROR, COUNTED, EITHER, says=("503",)),
    # statuses that stay
    _refused(400, Code.BAD_REQUEST, ONCE, retryable=False),
    _refused(404, Code.NOT_FOUND, ONCE, retryable=False),
    _refused(405, Code.BAD_REQUEST, ONCE, retryable=False),
    _refused(413, Code.REQUEST_TOO_LARGE, ONCE, retryable=False),
    _refused(418, Code.BAD_REQUEST, ONCE, retryable=False),
    _refused(422, Code.BAD_REQUEST, ONCE, retryable=False),
    _row(
        "model not found",
        status(404, "The model `gpt-9` does not exist", code="model_not_found"),
        Code.NOT_FOUND,
        ONCE,
        says=("gpt-9",),
        retryable=False,
    ),
    _row(
        "context length, by its code",
        status(400, OVER_CONTEXT, code="context_length_exceeded"),
        Code.CONTEXT_LENGTH,
        ONCE,
        says=("4096",),
        retryable=False,
    ),
    _row(
        "context length, by its words (vLLM)",
        status(400, OVER_CONTEXT, code=400),
        Code.CONTEXT_LENGTH,
        ONCE,
        says=("4096",),
        retryable=False,
    ),
    _row(
        "429 for the request's own size",
        status(429, TPM, code="rate_limit_exceeded", kind="tokens"),
        Code.REQUEST_TOO_LARGE,
        ONCE,
        says=("Requested 90000",),
        retryable=False,
    ),
    _row(
        "a prompt that speaks of money",
        status(400, "Invalid prompt: 'my insufficient balance, exceeded your current quota'"),
        Code.BAD_REQUEST,
        ONCE,
        retryable=False,
    ),
    # filters
    _row("content filter", answer("half", finish_reason="content_filter"), Code.CONTENT_FILTER, ONCE, retryable=False),
    _row(
        "content filter as 400 (Azure)",
        status(400, "The response was filtered", code="content_filter"),
        Code.CONTENT_FILTER,
        ONCE,
        retryable=False,
    ),
]

REFUSED_KEYS = [
    _refused(401, Code.UNAUTHORIZED, ONCE, retryable=False),
    _refused(403, Code.UNAUTHORIZED, ONCE, retryable=False),
    _refused(402, Code.INSUFFICIENT_QUOTA, ONCE, retryable=False),
    _row("quota", quota(), Code.INSUFFICIENT_QUOTA, ONCE, says=("billing",), retryable=False),
]


def _check(failure: Any, fault: Fault, tries: tuple[int, int], upstream: Any) -> None:
    assert not isinstance(failure, Completion), f"answered with {failure.text[:80]!r}"
    error = failure.error
    assert error.code in fault.code, error
    assert tries[0] <= failure.attempts <= tries[1], f"{failure.attempts} attempts"
    assert upstream.attempts["bad"] == failure.attempts
    for text in (*fault.says, f"127.0.0.1:{upstream.port}"):
        assert text.lower() in error.message.lower()
    assert error.retryable is fault.retryable
    assert error.hint


both = pytest.mark.usefixtures("either_way")


def _cases(faults: list[Fault]) -> list[Any]:
    return [
        pytest.param(fault, id=fault.name, marks=[pytest.mark.simulated] if fault.block is SILENCE else [])
        for fault in faults
    ]


@both
@pytest.mark.parametrize("fault", _cases(FAULTS + REFUSED_KEYS))
async def test_a_fault_ends_the_item_as_the_table_says(upstream, drive, fault):
    upstream.reply = fault.reply
    result = await drive(["bad"], retries=RETRIES, **fault.block)
    _check(result.outcomes[0], fault, fault.tries, upstream)


@pytest.mark.thorough
@both
@pytest.mark.parametrize("fault", _cases(FAULTS))
async def test_a_fault_of_one_item_costs_no_other(upstream, drive, fault):
    upstream.reply = by_prompt({"bad": fault.reply}, late(0.005))
    prompts = [f"good {i}" for i in range(7)] + ["bad"] + [f"good {i}" for i in range(7, 30)]
    result = await drive(prompts, retries=RETRIES, concurrency=8, **fault.block)
    _check(result.outcomes.pop(7), fault, fault.beside or fault.tries, upstream)
    assert result.texts == echoes(prompts[:7] + prompts[8:])


PASSING = [fault for fault in FAULTS if fault.retryable]


@pytest.mark.parametrize("fault", _cases(PASSING))
async def test_a_fault_that_passes_costs_nothing(upstream, drive, fault):
    upstream.reply = attempts(fault.reply, fault.reply, answer())
    result = await drive(["bad"], retries=RETRIES, **fault.block)
    assert result.texts == echoes(["bad"])
    assert result.outcomes[0].attempts == 3


@both
@pytest.mark.parametrize("fault", _cases(PASSING))
async def test_a_fault_that_passes_costs_nothing_at_an_endpoint_that_has_answered(upstream, fault):
    async with opened(upstream.url, retries=RETRIES, **fault.block) as backend:
        await ask(backend, ["first"])
        upstream.reply = attempts(fault.reply, fault.reply, answer())
        result = await ask(backend, ["bad", "other"])
    assert result.texts == echoes(["bad", "other"])
    assert [outcome.attempts for outcome in result.outcomes] == [3, 3]
    assert result.call.counts.retries == 4


async def test_a_refused_connection_ends_the_item(upstream, drive):
    upstream.vanish()
    result = await drive(["hi"], retries=RETRIES)
    failure = result.failures[0]
    assert failure.error.code == Code.UNREACHABLE
    assert failure.attempts == RETRIES
    assert f"127.0.0.1:{upstream.port}" in failure.error.message


@pytest.mark.simulated
async def test_no_answer_to_the_connection_ends_the_item(drive, unaccepting):
    result = await drive(["hi"], retries=2, timeout=[0.3, 5], base_url=f"http://127.0.0.1:{unaccepting}/v1")
    failure = result.failures[0]
    assert failure.error.code in {Code.TIMEOUT, Code.UNREACHABLE}
    assert failure.error.retryable
    assert failure.attempts == 2
    assert 0.59 < result.seconds < 1


async def test_what_is_no_http_ends_the_item(drive, smtp):
    result = await drive(["hi"], retries=RETRIES, base_url=f"http://127.0.0.1:{smtp}/v1")
    assert result.failures[0].error.code in {Code.BAD_RESPONSE, Code.CONNECTION_LOST}


async def test_an_untrusted_certificate_ends_the_item_at_once(upstreams, drive):
    up = upstreams(tls=True)
    result = await drive(["hi"], base_url=up.url)
    failure = result.failures[0]
    assert failure.error.code == Code.TLS
    assert not failure.error.retryable
    assert failure.attempts <= 1
    assert "self-signed" in failure.error.message or "certificate" in failure.error.message
    assert not up.seen


async def test_https_to_a_plain_server_is_a_tls_error(upstream, drive):
    result = await drive(["hi"], base_url=upstream.url.replace("http:", "https:"))
    assert result.failures[0].error.code == Code.TLS
    assert "http" in result.failures[0].error.hint


async def test_plain_http_to_a_tls_server_is_no_answer(upstreams, drive):
    up = upstreams(tls=True)
    result = await drive(["hi"], base_url=up.url.replace("https:", "http:"))
    assert result.failures[0].error.code in {Code.CONNECTION_LOST, Code.BAD_RESPONSE, Code.TLS}


async def test_a_certificate_from_the_environment_is_trusted(upstreams, drive, monkeypatch):
    up = upstreams(tls=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(up.certificate))
    assert (await drive(["hi"], base_url=up.url)).texts == echoes(["hi"])


@pytest.mark.thorough
@both
@pytest.mark.simulated
@pytest.mark.parametrize("at", ["head", "body"])
async def test_a_slow_drip_is_waited_for_while_it_drips(upstream, drive, at):
    upstream.reply = late(0.2, drip(0.1, 8)) if at == "head" else drip(0.15, 8)
    result = await drive(["hi"], timeout=[0.5, 0.5])
    assert result.texts == echoes(["hi"])
    assert result.outcomes[0].attempts == 1


STREAM_FAULTS = [
    _row(
        "stream cut off", sse(b'data: {"choices":[{"delta":{"content":"ha"}}]}', cut=True), Code.CONNECTION_LOST, **LOST
    ),
    _row(
        "stream without an end",
        sse(b'data: {"choices":[{"delta":{"content":"ha"}}]}'),
        {Code.CONNECTION_LOST, Code.BAD_RESPONSE},
    ),
    _row("stream with garbage", sse(b"data: {nonsense"), Code.BAD_RESPONSE),
    _row("empty stream", sse(), {Code.BAD_RESPONSE, Code.EMPTY_ANSWER, Code.CONNECTION_LOST}),
    _row("only the end mark", sse(b"data: [DONE]"), {Code.EMPTY_ANSWER, Code.BAD_RESPONSE}),
    _row(
        "error in the stream",
        sse(b'data: {"error": {"message": "engine broke"}}'),
        Code.SERVER_ERROR,
        says=("engine broke",),
    ),
    _row(
        "error 503 in the stream",
        sse(b'data: {"error": {"message": "engine broke", "code": 503}}'),
        Code.SERVER_ERROR,
        COUNTED,
        EITHER,
        says=("engine broke",),
    ),
    _row("hang before the stream", hang(), Code.TIMEOUT, block=SILENCE),
    _row("429", status(429), Code.RATE_LIMITED, PUT_BACK, EITHER),
    _row("400", status(400), Code.BAD_REQUEST, ONCE, retryable=False),
    _row("HTML with 200", html(), Code.BAD_RESPONSE),
    _row("reset", reset(), Code.CONNECTION_LOST, **LOST),
]


@pytest.mark.thorough
@both
@pytest.mark.parametrize("fault", _cases(STREAM_FAULTS))
async def test_a_fault_of_a_stream_costs_no_other(upstream, drive, fault):
    upstream.reply = by_prompt({"bad": fault.reply}, late(0.005))
    prompts = [f"good {i}" for i in range(7)] + ["bad"] + [f"good {i}" for i in range(7, 20)]
    result = await drive(prompts, retries=RETRIES, concurrency=8, stream=True, **fault.block)
    _check(result.outcomes.pop(7), fault, fault.beside or fault.tries, upstream)
    assert result.texts == echoes(prompts[:7] + prompts[8:])


@both
async def test_one_redirect_leads_nowhere_else(upstreams, upstream, drive):
    elsewhere = upstreams()
    for code in (301, 302, 303, 307, 308):
        upstream.reply = redirect(elsewhere.url + "/chat/completions", code)
        failure = (await drive(["hi"])).failures[0]
        assert failure.error.code == Code.BAD_RESPONSE
        assert str(code) in failure.error.message
    assert not elsewhere.seen


@both
@pytest.mark.parametrize(
    "body",
    [
        b'{"error": {"message": "the reason"}}',
        b'{"error": "the reason"}',
        b'{"detail": "the reason"}',
        b'{"detail": [{"loc": ["body", "model"], "msg": "the reason", "type": "missing"}]}',
        b'{"message": "the reason"}',
        b'{"object": "error", "message": "the reason", "type": "BadRequestError", "code": 400}',
        b'[{"error": {"code": 400, "message": "the reason", "status": "INVALID_ARGUMENT"}}]',
        b"the reason",
    ],
)
async def test_the_reason_is_found_in_every_shape_of_error_body(upstream, drive, body):
    upstream.reply = raw(body, code=400)
    failure = (await drive(["hi"])).failures[0]
    assert "the reason" in failure.error.message
    assert "{" not in failure.error.message


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": null}',
        b'{"error": {"message": null}}',
        b"[]",
        b"null",
        b"\xff\xfe\x00",
        b"17",
        b'{"error": [1]}',
        b"",
    ],
)
async def test_an_error_body_of_any_shape_is_survived(upstream, drive, body):
    upstream.reply = raw(body, code=400)
    assert (await drive(["hi"])).failures[0].error.code == Code.BAD_REQUEST


async def test_a_long_reason_is_cut(upstream, drive):
    upstream.reply = status(400, "blah " * 100_000)
    assert len((await drive(["hi"])).failures[0].error.message) < 2000


@both
@pytest.mark.thorough
async def test_later_runs_are_right_after_every_fault(upstream):
    async with opened(upstream.url, retries=2, timeout=[2, 0.3]) as backend:
        for fault in (*FAULTS, *REFUSED_KEYS):
            if "huge" in fault.name:
                continue
            upstream.reply = fault.reply
            await ask(backend, ["bad"])
            upstream.reply = answer()
            assert (await ask(backend, ["good"])).texts == echoes(["good"]), fault.name


@both
@pytest.mark.simulated
@pytest.mark.parametrize("length", [0, 60_000], ids=["small", "large"])
async def test_interim_responses_have_an_end(upstream, length):
    bad = "bad" + "." * length

    async def flood(exchange):
        while True:
            await exchange.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100)
            await exchange.sleep(0.01)

    upstream.reply = by_prompt({bad: flood})
    async with opened(upstream.url, retries=1, timeout=[1, 1]) as backend:
        result = await ask(backend, ["good", bad])

    assert result.texts == ["echo: good", None]


@both
@pytest.mark.parametrize("hint", [b"100 Continue", b"103 Early Hints\r\nLink: </a.css>; rel=preload", b"199"])
async def test_interim_responses_end_at_the_size_of_a_head(upstream, hint):
    sent = []

    async def flood(exchange):
        while len(sent) < 200:  # 2.5 MB or more
            sent.append(hint)
            await exchange.write(b"HTTP/1.1 %b\r\n\r\n" % hint * 600)
        await hang()(exchange)

    upstream.reply = by_prompt({"bad": flood})
    async with opened(upstream.url, retries=1, timeout=[10, 600]) as backend:
        result = await ask(backend, ["good", "bad"])
    assert result.texts == ["echo: good", None]
    assert "bad_response" in str(result.outcomes[1])


@both
@pytest.mark.simulated
@pytest.mark.parametrize("length", [0, 60_000], ids=["small", "large"])
async def test_silence_after_early_hints_is_silence(upstream, length):
    bad = "bad" + "." * length
    upstream.reply = by_prompt({bad: interim(hang())})
    async with opened(upstream.url, retries=1, timeout=[2, 0.3]) as backend:
        found = await ask(backend, ["good", bad])
    assert found.texts == ["echo: good", None]
    assert found.codes == {"timeout"}
