"""Bodies of requests that share a beginning: how a provider is told to keep it in its cache."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from fakes import openai_plan
from promptmill.backends.openai.endpoint import endpoints
from promptmill.backends.openai.request_body import RequestEncoder
from promptmill.core.request import (
    Conversation,
    ImagePart,
    Message,
    Request,
    Sampling,
    Shared,
    TextPart,
)

MARK = {"type": "ephemeral"}
LONG = "s" * 5000


def body(
    provider: str, conversation: Conversation, shared: Shared | None, *, sampling: Sampling | None = None, **block: Any
) -> dict[str, Any]:
    """Return the body of a request to a provider."""
    for_an_hour = block.pop("for_an_hour", False)
    plan = openai_plan("http://127.0.0.1:1", provider=provider, model_name="claude-3-5-haiku", **block)
    encoder = RequestEncoder(endpoints(plan, {})[0], "m", enable_thinking=None, stream=False)
    request = Request(0, conversation, sampling or Sampling())
    images = {image.source: b'"data:image/png;base64,QUFBQQ=="' for image in conversation.images}
    written = encoder.encode(encoder.head(request), conversation, images, shared, for_an_hour=for_an_hour)
    found: dict[str, Any] = orjson.loads(written if isinstance(written, bytes) else b"".join(written))
    return found


def talk(*turns: tuple[str, Any]) -> Conversation:
    return Conversation(tuple(Message(role, content) for role, content in turns))


def text(value: str, mark: Any = None) -> dict[str, Any]:
    return {"type": "text", "text": value} | ({"cache_control": mark} if mark else {})


def test_a_beginning_within_a_message_becomes_a_block_of_its_own():
    found = body("anthropic", talk(("user", "a document, why?")), Shared(11, "k"))
    assert found["messages"] == [{"role": "user", "content": [text("a document,", MARK), text(" why?")]}]


def test_a_long_system_prompt_has_a_mark_of_its_own():
    found = body("anthropic", talk(("system", LONG), ("user", "a document, why?")), Shared(5011, "k"))
    assert found["system"] == [text(LONG, MARK)]
    assert found["messages"][0]["content"] == [text("a document,", MARK), text(" why?")]


def test_a_short_system_prompt_has_none():
    found = body("anthropic", talk(("system", "short"), ("user", "a document, why?")), Shared(16, "k"))
    assert found["system"] == "short"


def test_a_beginning_may_end_with_the_system_prompt():
    found = body("anthropic", talk(("system", LONG), ("user", "why?")), Shared(5000, "k"), for_an_hour=True)
    assert found["system"] == [text(LONG, MARK | {"ttl": "1h"})]
    assert found["messages"] == [{"role": "user", "content": "why?"}]


def test_a_beginning_of_messages_ends_with_one_of_them():
    turns = ("system", "s"), ("user", "question"), ("assistant", "answer"), ("user", "why?")
    found = body("anthropic", talk(*turns), Shared(15, "k"))
    assert found["messages"][1]["content"] == [text("answer", MARK)]
    assert found["messages"][2]["content"] == "why?"


def test_instructions_for_a_schema_are_a_part_of_the_beginning():
    form = {"type": "json_object"}
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    for wanted in (form, schema):
        conversation = talk(("user", "a document, why?"))
        found = body("anthropic", conversation, Shared(11, "k"), sampling=Sampling(response_format=wanted))
        assert found["messages"][0]["content"][0] == text("a document,", MARK)


def test_images_come_behind_the_beginning():
    content = (TextPart("a document, why?"), ImagePart("a.png"))
    found = body("anthropic", talk(("user", content)), Shared(11, "k"))
    first, second, image = found["messages"][0]["content"]
    assert (first, second, image["type"]) == (text("a document,", MARK), text(" why?"), "image")


def test_a_mark_of_the_caller_stays_the_only_one():
    own = Message("system", LONG, {"cache_control": MARK})
    found = body("anthropic", Conversation((own, Message("user", "why?"))), Shared(5002, "k"))
    assert found["system"] == [text(LONG, MARK)]
    assert found["messages"] == [{"role": "user", "content": "why?"}]


@pytest.mark.parametrize("dialect", ["openai", "responses"])
def test_openai_gets_a_key_for_each_beginning(dialect):
    found = body("openai", talk(("user", "a document, why?")), Shared(11, "key"), dialect=dialect)
    assert found["prompt_cache_key"] == "key"
    assert "cache_control" not in str(found)


def test_a_key_of_the_caller_comes_first():
    plan = openai_plan("http://127.0.0.1:1", provider="openai", model_name="m")
    encoder = RequestEncoder(endpoints(plan, {})[0], "m", enable_thinking=None, stream=False)
    request = Request(0, talk(("user", "hi")), Sampling(), {"prompt_cache_key": "mine"})
    written = encoder.encode(encoder.head(request), request.conversation, {}, Shared(2, "ours"))
    assert orjson.loads(written if isinstance(written, bytes) else b"")["prompt_cache_key"] == "mine"


@pytest.mark.parametrize("block", [{"provider": "groq"}, {"provider": "anthropic", "dialect": "openai"}])
def test_others_get_nothing(block):
    conversation = talk(("user", "a document, why?"))
    assert body(**block, conversation=conversation, shared=Shared(11, "k")) == body(
        **block, conversation=conversation, shared=None
    )
