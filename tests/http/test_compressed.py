"""Bodies in zstd: what they hold counts, not their own size."""

from __future__ import annotations

import json

import pytest

from served import BEARER

pa = pytest.importorskip("pyarrow")
pytestmark = pytest.mark.http
ZSTD = {**BEARER, "Content-Encoding": "zstd", "Content-Type": "application/json"}
PATH = "/v1/chat/completions"
BODY = {"model": "default", "messages": [{"role": "user", "content": "hi there"}]}


def _zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


def _post(server, body, headers=ZSTD):
    found = server.ask("POST", PATH, headers, body)
    return found.status, found.json


@pytest.mark.features("openai_server")
def test_a_body_in_zstd_is_answered(guarded):
    code, reply = _post(guarded, _zstd(json.dumps(BODY).encode()))
    assert (code, reply["choices"][0]["message"]["content"]) == (200, "echo: hi there")


@pytest.mark.features("openai_server")
@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (_zstd(b'{"model": "' + b"x" * 100_000_000 + b'"}'), 413, "larger than"),
        (_zstd(b"[" + b"1," * 30_000 + b"1]"), 400, "not a JSON object"),
        (_zstd(b" " * (65 << 10)), 413, "larger than"),
        (_zstd(json.dumps(BODY).encode())[:-4], 400, "not in zstd"),
        (json.dumps(BODY).encode(), 400, "not in zstd"),
        (_zstd(b""), 400, "not valid JSON"),
    ],
)
def test_the_limit_holds_for_what_is_inside_and_other_bytes_are_refused(guarded, data, code, words):
    found, reply = _post(guarded, data)
    assert (found, words in reply["error"]["message"]) == (code, True), reply


def test_another_encoding_is_a_415_with_the_remedy(guarded):
    found = guarded.ask("POST", "/mcp", {**ZSTD, "Content-Encoding": "gzip"}, b"x")
    assert (found.status, "zstd" in found.message) == (415, True)
