"""Bodies of requests that share a beginning: how a provider is told to keep it in its cache."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from driving import opened
from fakes import openai_config
from promptmill.backends import registry
from promptmill.backends.openai.endpoint import endpoints
from promptmill.backends.openai.request_body import RequestEncoder
from promptmill.backends.protocol import Call, Completion, Facts
from promptmill.core.request import (
    CACHE_MARKS,
    NOTHING_SHARED,
    Conversation,
    ImagePart,
    Message,
    Request,
    Sampling,
    Shared,
    TextPart,
)
from replies import answer, choose, status
from upstream import Reply, Seen, Upstream

MARK = {"type": "ephemeral"}
LONG = "s" * 5000


def body(
    provider: str, conversation: Conversation, shared: Shared | None, *, sampling: Sampling | None = None, **block: Any
) -> dict[str, Any]:
    """Return the body of a request to a provider."""
    for_an_hour, extra, model = block.pop("for_an_hour", False), block.pop("extra", {}), block.pop("model", "m")
    config = openai_config("http://127.0.0.1:1", provider=provider, model_name=model, **block)
    encoder = RequestEncoder(endpoints(config, {})[0], model, enable_thinking=None, stream=False)
    request = Request(0, conversation, sampling or Sampling(), extra)
    images = {image.source: b'"data:image/png;base64,QUFBQQ=="' for image in conversation.images}
    written = encoder.encode(encoder.head(request), conversation, images, shared, for_an_hour=for_an_hour)
    found: dict[str, Any] = orjson.loads(written if isinstance(written, bytes) else b"".join(written))
    return found


async def answered_with(upstream: Upstream, request: Request, **block: Any) -> list[str]:
    """Have a request answered, and return the warnings of the call."""
    async with opened(upstream.url, api_key="k", **block) as backend:
        call = Call(Facts(total=1))
        backend.enter(call)
        outcome = await backend.answer(request, call)
        await backend.leave(call)
    assert isinstance(outcome, Completion), outcome
    assert {*outcome.warnings} <= {*call.warnings}
    return list(call.warnings)


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
    config = openai_config("http://127.0.0.1:1", provider="openai", model_name="m")
    encoder = RequestEncoder(endpoints(config, {})[0], "m", enable_thinking=None, stream=False)
    request = Request(0, talk(("user", "hi")), Sampling(), {"prompt_cache_key": "mine"})
    written = encoder.encode(encoder.head(request), request.conversation, {}, Shared(2, "ours"))
    assert orjson.loads(written if isinstance(written, bytes) else b"")["prompt_cache_key"] == "mine"


BREAKPOINT: dict[str, Any] = {"prompt_cache_breakpoint": {"mode": "explicit"}}
EXPLICIT = {"mode": "explicit"}
NEW: dict[str, Any] = {"provider": "openai", "model": "gpt-5.6-luna"}


def part(value: str, kind: str = "text", **marks: Any) -> dict[str, Any]:
    return {"type": kind, "text": value, **marks}


def test_a_beginning_ends_with_a_breakpoint():
    found = body(**NEW, conversation=talk(("system", LONG), ("user", "a document, why?")), shared=Shared(5011, "k"))
    assert found["messages"][0]["content"] == [part(LONG, **BREAKPOINT)]
    assert found["messages"][1]["content"] == [part("a document,", **BREAKPOINT), part(" why?")]
    assert (found["prompt_cache_key"], found["prompt_cache_options"]) == ("k", EXPLICIT)


def test_a_beginning_ends_with_a_breakpoint_in_the_responses_api():
    turns = ("system", LONG), ("user", "2 + 2?"), ("assistant", "4"), ("user", "why?")
    found = body(**NEW, dialect="responses", conversation=talk(*turns), shared=Shared(5007, "k"))
    system, example, reply, last = found["input"]
    assert system["content"] == [part(LONG, "input_text", **BREAKPOINT)]
    assert example["content"] == [part("2 + 2?", "input_text", **BREAKPOINT)]  # an assistant's text has none
    assert (reply["content"], last["content"]) == ("4", "why?")
    assert found["prompt_cache_options"] == EXPLICIT


@pytest.mark.parametrize("dialect", ["openai", "responses"])
def test_nothing_is_written_for_a_row_that_shares_nothing(dialect):
    found = body(**NEW, dialect=dialect, conversation=talk(("user", LONG)), shared=NOTHING_SHARED)
    assert found["prompt_cache_options"] == EXPLICIT
    assert "prompt_cache_key" not in found
    assert "breakpoint" not in str(found)


def test_a_call_is_sent_as_it_is():
    found = body(**NEW, conversation=talk(("system", LONG), ("user", LONG)), shared=None)
    assert found.keys() == {"model", "messages"}


@pytest.mark.parametrize(
    ("extra", "options"),
    [
        ({"prompt_cache_options": {"mode": "implicit"}}, {"mode": "implicit"}),
        ({"prompt_cache_retention": "24h"}, None),  # refused together with the options
    ],
)
def test_options_of_the_caller_come_first(extra, options):
    found = body(**NEW, conversation=talk(("user", "a document, why?")), shared=Shared(11, "k"), extra=extra)
    assert found.get("prompt_cache_options") == options
    assert found["messages"][0]["content"][0] == part("a document,", **BREAKPOINT)


def test_a_request_has_at_most_four_marks():
    turns = [("system", f"{n}" * 5000) for n in range(6)]
    found = body(**NEW, conversation=talk(*turns, ("user", "document, why?")), shared=Shared(30_009, "k"))
    marked = ["prompt_cache_breakpoint" in str(message) for message in found["messages"]]
    assert marked == [False, False, False, True, True, True, True]
    found = body("anthropic", talk(*turns, ("user", "document, why?")), Shared(30_009, "k"))
    assert str(found).count("cache_control") == 4


@pytest.mark.parametrize(
    ("model", "has_breakpoints"),
    [
        *((name, True) for name in ("gpt-5.6", "gpt-5.6-luna", "gpt-5.7-mini", "gpt-5.10", "gpt-6", "gpt-6.1-nano")),
        *((name, True) for name in ("openai/gpt-5.6-sol", "us.openai.gpt-5.6-sol", "ft:gpt-5.6-luna:me::1")),
        *((name, False) for name in ("gpt-5.5", "gpt-5.4-mini", "gpt-5", "gpt-5-mini", "gpt-4o", "gpt-35-turbo")),
        *((name, False) for name in ("o4-mini", "gpt-oss-120b", "my-deployment")),
    ],
)
def test_models_from_gpt_5_6_on_get_breakpoints(model, has_breakpoints):
    conversation, shared = talk(("user", "a document, why?")), Shared(11, "k")
    for provider in ("openai", "azure", "openrouter", "bedrock"):
        found = body(provider, conversation, shared, model=model)
        assert ("prompt_cache_breakpoint" in str(found)) == has_breakpoints
        assert ("prompt_cache_options" in found) == has_breakpoints
        assert isinstance(found["messages"][0]["content"], list if has_breakpoints else str)
        assert ("prompt_cache_key" in found) == (has_breakpoints or provider in {"openai", "azure"})


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        *(
            (name, 512)
            for name in ("claude-opus-5", "claude-fable-5", "claude-mythos-5", "anthropic.claude-opus-5-v1:0")
        ),
        *(
            (name, 1024)
            for name in ("claude-sonnet-5", "claude-opus-4-8", "claude-sonnet-4-5", "claude-opus-4-20250514")
        ),
        *((name, 2048) for name in ("claude-opus-4-7", "claude-3-5-haiku-latest", "claude-3-haiku-20240307")),
        *((name, 4096) for name in ("claude-haiku-4-5", "claude-opus-4-5-20251101", "claude-opus-4.6")),
    ],
)
def test_each_claude_caches_from_a_length_of_its_own(model, tokens):
    cache = registry.prompt_cache_of(openai_config("http://127.0.0.1:1", provider="anthropic", model_name=model))
    assert cache is not None
    assert cache.least == 4 * tokens
    system = "s" * 4 * tokens
    for text in (system, system[1:]):
        found = body("anthropic", talk(("system", text), ("user", "hi, why?")), Shared(len(text) + 3, "k"), model=model)
        assert ("cache_control" in str(found["system"])) == (text is system)


# Marks of the caller


OWN = Conversation(
    (
        Message("system", (TextPart("rules", {"cache_control": MARK}), TextPart("more"))),
        Message("user", (TextPart("a document,", {**BREAKPOINT, "cache_control": MARK}), TextPart("why?"))),
    )
)


@pytest.mark.parametrize(
    ("block", "kept"),
    [
        (NEW, {"prompt_cache_breakpoint"}),
        ({**NEW, "dialect": "responses"}, {"prompt_cache_breakpoint"}),
        ({"provider": "azure", "model": "gpt-5.6"}, {"prompt_cache_breakpoint"}),
        ({"provider": "openai", "model": "gpt-5.4-mini"}, set()),
        ({"provider": "openrouter", "model": "openai/gpt-5.6-luna"}, {"prompt_cache_breakpoint", "cache_control"}),
        ({"provider": "openrouter", "model": "anthropic/claude-opus-5"}, {"cache_control"}),
        ({"provider": "dashscope"}, {"cache_control"}),
        ({"provider": "anthropic"}, {"cache_control"}),
        ({"provider": "anthropic", "dialect": "openai"}, set()),
        ({"provider": "google"}, set()),
        ({"provider": "groq"}, set()),
        ({"provider": "mistral"}, set()),
        ({"provider": ""}, {"prompt_cache_breakpoint", "cache_control"}),  # a gateway gets everything unchanged
    ],
)
def test_marks_of_the_caller_arrive_or_are_reported(block, kept):
    assert {name for name in CACHE_MARKS if name in str(body(**block, conversation=OWN, shared=None))} == kept
    assert {name for name in CACHE_MARKS if name in str(body(**block, conversation=OWN, shared=Shared(4, "k")))} == kept
    given = dict(block)
    dialect, model = given.pop("dialect", None), given.pop("model", "m")
    chosen = {"dialect": dialect} if dialect else {}
    config = openai_config("http://127.0.0.1:1", provider=given["provider"] or None, model_name=model, **chosen)
    encoder = RequestEncoder(endpoints(config, {})[0], model, enable_thinking=None, stream=False)
    assert {*encoder.lost_marks(encoder.head(Request(0, OWN, Sampling())), OWN)} == CACHE_MARKS - kept


def test_a_mark_stays_at_its_place_in_each_message():
    found = body("anthropic", OWN, None)
    assert found["system"] == [text("rules", MARK), text("more")]
    assert found["messages"][0]["content"] == [text("a document,", MARK), text("why?")]
    image = ImagePart("a.png", marks={"cache_control": MARK})
    reply = Message("assistant", (TextPart("yes"), TextPart("no", {"cache_control": MARK})))
    found = body("anthropic", Conversation((Message("user", (image,)), reply, Message("user", "why?"))), None)
    assert found["messages"][0]["content"][0]["cache_control"] == MARK
    assert found["messages"][1]["content"] == [text("yesno", MARK)]


@pytest.mark.parametrize("dialect", ["responses", "gemini"])
def test_a_mark_at_a_place_that_an_api_lacks_is_reported(dialect):
    config = openai_config("http://127.0.0.1:1", dialect=dialect, model_name="gpt-5.6")
    encoder = RequestEncoder(endpoints(config, {})[0], "gpt-5.6", enable_thinking=None, stream=False)
    head = encoder.head(Request(0, talk(("user", "hi")), Sampling()))
    reply = Message("assistant", (TextPart("yes", BREAKPOINT),))
    of_message = Message("user", "hi", {"cache_control": MARK})
    assert encoder.lost_marks(head, Conversation((reply,))) == ["prompt_cache_breakpoint"]
    assert encoder.lost_marks(head, Conversation((of_message,))) == ["cache_control"]


async def test_a_mark_that_was_left_out_is_a_warning(upstream):
    upstream.reply = answer("yes")
    block = {"provider": "openai", "model_name": "gpt-5.4-mini"}
    warnings = await answered_with(upstream, Request(0, OWN, Sampling()), **block)
    assert ["takes no `cache_control`; it was left out" in warning for warning in warnings] == [True, False]
    assert "takes no `prompt_cache_breakpoint`; it was left out" in warnings[1]


async def test_an_endpoint_that_refuses_breakpoints_gets_requests_without_them(upstream):
    def reply(seen: Seen) -> Reply:
        refuses = "prompt_cache_options" in seen.json or "breakpoint" in str(seen.json)
        return status(400, "Unknown parameter: 'prompt_cache_options'.") if refuses else answer("yes")

    upstream.reply = choose(reply)
    block = {"provider": "azure", "model_name": "gpt-5.6"}
    request = Request(0, talk(("user", "a document, why?")), Sampling(), shared=Shared(11, "k"))
    (warning,) = await answered_with(upstream, request, **block)
    assert "refuses OpenAI's parameters for the prompt cache" in warning
    assert upstream.seen[-1].json["prompt_cache_key"] == "k"
    own = request.changed(conversation=OWN.with_marks(lambda _: BREAKPOINT))
    _, warning = await answered_with(upstream, own, **block)
    assert "takes no `prompt_cache_breakpoint`; it was left out" in warning


async def test_an_endpoint_that_refuses_the_key_gets_requests_without_it(upstream):
    refused = status(400, "Unrecognized request argument supplied: prompt_cache_key")
    upstream.reply = choose(lambda seen: refused if "prompt_cache_key" in seen.json else answer("yes"))
    request = Request(0, talk(("user", "a document, why?")), Sampling(), shared=Shared(11, "k"))
    (warning,) = await answered_with(upstream, request, provider="azure", model_name="deepseek")
    assert "refuses OpenAI's parameters for the prompt cache" in warning


@pytest.mark.parametrize("block", [{"provider": "groq"}, {"provider": "anthropic", "dialect": "openai"}])
def test_others_get_nothing(block):
    conversation = talk(("user", "a document, why?"))
    assert body(**block, conversation=conversation, shared=Shared(11, "k")) == body(
        **block, conversation=conversation, shared=None
    )


def test_the_length_of_a_system_prompt_is_in_bytes():
    system = "ä" * (len(LONG) // 2)
    found = body("anthropic", talk(("system", system), ("user", "a document, why?")), Shared(len(system) + 11, "k"))
    assert found["system"] == [text(system, MARK)]
