"""Endpoints that cache the beginnings of prompts by the rules that the providers document, and report what they read.

    openai     by itself, from 1,024 tokens on, in steps of 128; with requests of the same `prompt_cache_key` and prefix
    gpt-5.6    up to a `prompt_cache_breakpoint`, from 1,024 tokens on, for half an hour, with the same key; the end of
               the last message is a breakpoint, too, unless `prompt_cache_options` has `mode: explicit`
    anthropic  up to a `cache_control`, from 1,024 tokens on, for five minutes or an hour; at most four marks

A beginning can be read only after the first reply to it. A token has four characters.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from replies import completion
from upstream import Exchange

_PER_TOKEN = 4
_LEAST, _STEP = 1024, 128
_MOST_MARKS = 4


class PromptCache:
    """A reply of an `Upstream`, with the cache of one provider."""

    def __init__(
        self,
        provider: str,
        *,
        late_s: float = 0.01,
        now: Callable[[], float] = time.monotonic,
        answer: Callable[[str], str] = lambda prompt: "yes",
    ) -> None:
        """`answer`: the answer to the last message's text, at GPT-5.6."""
        self._provider, self._late_s, self._now, self._answer = provider, late_s, now, answer
        self._until: dict[bytes, float] = {}
        self.prompt = self.read = self.written = 0
        """Tokens, of all requests together."""

    @property
    def units(self) -> float:
        """What all prompts cost, in tokens that no cache has."""
        return self.prompt - 0.9 * self.read + 0.25 * self.written

    async def __call__(self, exchange: Exchange) -> None:
        """Answer a request."""
        body = exchange.seen.json
        if self._provider == "anthropic":
            status, reply, entries = self._anthropic(exchange)
        else:
            rules = self._breakpoints if self._provider == "gpt-5.6" else self._openai
            status, (reply, entries) = 200, rules(exchange, body)
        await exchange.sleep(self._late_s)
        await exchange.respond(status, {}, orjson.dumps(reply))
        self._until |= {key: self._now() + seconds for key, seconds in entries.items()}

    def _is_kept(self, key: bytes) -> bool:
        return self._until.get(key, 0.0) > self._now()

    def _openai(self, exchange: Exchange, body: dict[str, Any]) -> tuple[Any, dict[bytes, float]]:
        texts = "".join(f"{message['role']}:{message['content']}" for message in body["messages"])
        tokens = len(texts) // _PER_TOKEN
        digest, entries, read = hashlib.sha256(body.get("prompt_cache_key", "").encode()), dict[bytes, float](), 0
        for end in range(_STEP, tokens + 1, _STEP):
            digest.update(texts[(end - _STEP) * _PER_TOKEN : end * _PER_TOKEN].encode())
            if end >= _LEAST:
                entries[digest.digest()] = 300.0
                read = end if self._is_kept(digest.digest()) else read
        self._count(tokens, read, 0)
        reply = completion(exchange.seen, "yes", {}, {})
        usage = {"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1}
        return reply | {"usage": usage | {"prompt_tokens_details": {"cached_tokens": read}}}, entries

    def _breakpoints(self, exchange: Exchange, body: dict[str, Any]) -> tuple[Any, dict[bytes, float]]:
        digest, end, ends = hashlib.sha256(body.get("prompt_cache_key", "").encode()), 0, dict[bytes, int]()
        for role, block in _blocks(body):
            digest.update(f"{role}:{block.get('text') or block.get('image_url')}".encode())
            end += len(block.get("text", ""))
            if block.get("prompt_cache_breakpoint") == {"mode": "explicit"}:
                ends[digest.digest()] = end // _PER_TOKEN
        if body.get("prompt_cache_options", {}).get("mode") != "explicit":
            ends[digest.digest()] = end // _PER_TOKEN
        ends = {key: tokens for key, tokens in [*ends.items()][-_MOST_MARKS:] if tokens >= _LEAST}
        read = max((tokens for key, tokens in ends.items() if self._is_kept(key)), default=0)
        prompt, written = end // _PER_TOKEN, max((*ends.values(), read)) - read
        self._count(prompt, read, written)
        details = {"cached_tokens": read, "cache_write_tokens": written}
        asked = (body.get("messages") or body["input"])[-1]["content"]
        answer = self._answer(asked if isinstance(asked, str) else "".join(part.get("text", "") for part in asked))
        if "input" in body:
            usage = {"input_tokens": prompt, "output_tokens": 1, "input_tokens_details": details}
            content = [{"type": "output_text", "text": answer}]
            message = {"type": "message", "role": "assistant", "content": content}
            reply: Any = {"object": "response", "status": "completed", "output": [message], "usage": usage}
        else:
            usage = {"prompt_tokens": prompt, "completion_tokens": 1, "prompt_tokens_details": details}
            reply = completion(exchange.seen, answer, {}, {}) | {"usage": usage}
        return reply, dict.fromkeys(ends, 1800.0)

    def _anthropic(self, exchange: Exchange) -> tuple[int, Any, dict[bytes, float]]:
        body = exchange.seen.json
        digest, end, read, entries = hashlib.sha256(), 0, 0, dict[bytes, float]()
        marked = marks = 0
        written_for = {300.0: 0, 3600.0: 0}
        for role, block in _blocks(body):
            digest.update(orjson.dumps([role, block["text"]]))
            end += len(block["text"]) // _PER_TOKEN
            if mark := block.get("cache_control"):
                marks += 1
                seconds = 3600.0 if mark.get("ttl") == "1h" else 300.0
                if end >= _LEAST:
                    if self._is_kept(digest.digest()):
                        read = end
                    else:
                        written_for[seconds] += end - max(marked, read)
                    marked = end
                    entries[digest.digest()] = seconds
        if marks > _MOST_MARKS:
            error = {
                "type": "invalid_request_error",
                "message": "A maximum of 4 blocks with cache_control may be given.",
            }
            return 400, {"type": "error", "error": error}, {}
        written = sum(written_for.values())
        self._count(end, read, written)
        usage = {
            "input_tokens": end - read - written,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": written,
            "cache_creation": {
                "ephemeral_5m_input_tokens": written_for[300.0],
                "ephemeral_1h_input_tokens": written_for[3600.0],
            },
            "output_tokens": 1,
        }
        content = [{"type": "text", "text": "yes"}]
        message = {"type": "message", "role": "assistant", "content": content, "stop_reason": "end_turn"}
        return 200, message | {"usage": usage}, entries

    def _count(self, prompt: int, read: int, written: int) -> None:
        self.prompt += prompt
        self.read += read
        self.written += written


def _blocks(body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    parts = [("system", body["system"])] if body.get("system") else []
    messages = body.get("messages") or body["input"]
    for role, content in [*parts, *((message["role"], message["content"]) for message in messages)]:
        for block in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            yield role, block
