"""Servers on this machine: Ollama, LM Studio, llama.cpp, by name and at an address that names none of them."""

from __future__ import annotations

import base64
import io
import json

import orjson
import pytest
from PIL import Image

from promptmill.core.request import Conversation, ImagePart, Message, Sampling, TextPart
from replies import answer, choose, raw, status

JSON_MODE = Sampling(response_format={"type": "json_object"})


@pytest.mark.parametrize("kind", ["WEBP", "GIF"])
async def test_a_server_that_reads_all_formats_gets_images_as_they_are(upstream, drive, tmp_path, kind):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.image", kind)
    parts = (ImagePart(str(tmp_path / "a.image")), TextPart("What?"))
    assert (await drive([Conversation((Message("user", parts),))], provider="vllm")).answered == 1
    data = base64.b64encode((tmp_path / "a.image").read_bytes()).decode()
    assert f"data:image/{kind.lower()};base64,{data}" in json.dumps(upstream.seen[0].json)


@pytest.mark.parametrize("block", [{}, {"provider": "llama.cpp"}, {"provider": "lmstudio"}, {"provider": "ollama"}])
@pytest.mark.parametrize(
    ("kind", "options", "sent"), [("WEBP", {}, "jpeg"), ("WEBP", {"lossless": True}, "png"), ("GIF", {}, "png")]
)
async def test_local_servers_get_png_and_jpeg_alone(upstream, drive, tmp_path, block, kind, options, sent):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.image", kind, **options)
    parts = (ImagePart(str(tmp_path / "a.image")), TextPart("What?"))
    result = await drive([Conversation((Message("user", parts),))], **block)
    assert result.answered == 1
    (url,) = [
        part["image_url"]["url"] for part in upstream.seen[0].json["messages"][0]["content"] if "image_url" in part
    ]
    assert url.startswith(f"data:image/{sent};")
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
    assert image.tobytes()[0] > 240, "it is red"


async def test_a_server_with_the_words_of_lm_studio_gets_schemas_from_then_on(upstream, drive):
    refusal = status(400, "'response_format.type' must be 'json_schema' or 'text'")

    def lm_studio(seen):
        return answer('{"a": 1}') if seen.json["response_format"]["type"] == "json_schema" else refusal

    upstream.reply = choose(lm_studio)
    result = await drive(["a", "b", "c"], concurrency=1, sampling=JSON_MODE)
    assert result.texts == ['{"a": 1}'] * 3
    assert len(upstream.seen) == 4


@pytest.mark.parametrize("error", ["Error: Operation canceled.", "Error: Error loading model."])
@pytest.mark.parametrize("block", [{}, {"provider": "lmstudio"}])
async def test_a_model_that_is_being_loaded_costs_no_answer(upstream, drive, error, block):
    loading = status(400, f'Failed to load model "m". {error}', code="model_not_found")
    upstream.reply = choose(lambda seen: loading if seen.number <= 2 else answer())
    assert (await drive(["a", "b", "c"], retries=5, max_delay=0.02, **block)).answered == 3


@pytest.mark.parametrize("said", ["'image_url' must be a base64 encoded image.", "invalid image input"])
async def test_a_server_that_fetches_no_images_is_named_with_the_remedy(upstream, drive, said):
    upstream.reply = status(400, said)
    failure = (await drive(["a"], retries=1)).failures[0]
    assert "fetch_images: true" in failure.error.hint


@pytest.mark.parametrize(
    ("prompt", "tokens", "finish", "is_cut"),
    [
        ("word " * 9000, 2050, "stop", True),
        ("word " * 9000, 4094, "length", True),
        ("字" * 40_000, 2050, "stop", True),
        ("字" * 11_000, 2050, "stop", True),
        ("a text", 4096, "stop", True),
        ("a text", 4094, "length", True),
        ("word " * 9000, 9003, "stop", False),
        ("字" * 6000, 4000, "stop", False),
        ("-" * 9000 + " " * 9000, 600, "stop", False),
        ("word " * 300, 12, "stop", False),
    ],
)
@pytest.mark.parametrize("block", [{}, {"provider": "ollama"}])
async def test_a_prompt_that_the_server_has_cut_brings_a_warning(
    upstream, drive, block, prompt, tokens, finish, is_cut
):
    choice = {"message": {"content": "yes"}, "finish_reason": finish}
    usage = {"prompt_tokens": tokens, "completion_tokens": 2}
    upstream.reply = raw(orjson.dumps({"choices": [choice], "usage": usage}))
    result = await drive([prompt], **block)
    (outcome,) = result.outcomes
    assert len(outcome.warnings) == is_cut
    assert list(result.call.warnings) == list(outcome.warnings)
    assert all("OLLAMA_CONTEXT_LENGTH" in warning for warning in outcome.warnings)


@pytest.mark.parametrize(
    "said", ["System role not supported", "Conversation roles must alternate user/assistant/user/assistant/..."]
)
async def test_a_chat_template_without_a_system_turn_gets_its_words_in_the_user_turn(upstream, drive, said):
    refusal = status(400, said)
    upstream.reply = choose(lambda seen: refusal if seen.json["messages"][0]["role"] == "system" else answer())
    turns = Message("system", "Be brief."), Message("user", "Who?")
    parts = Message("system", "Be brief."), Message("user", (TextPart("Who?"),))
    result = await drive([Conversation(turns), Conversation(turns), Conversation(parts)], concurrency=1)
    assert result.answered == 3
    first, *sent = [seen.json["messages"] for seen in upstream.seen]
    assert first[0]["role"] == "system"
    assert sent[:2] == [[{"role": "user", "content": "Be brief.\n\nWho?"}]] * 2
    assert [part["text"] for part in sent[2][0]["content"]] == ["Be brief.", "\n\n", "Who?"]


async def test_a_model_whose_template_has_a_system_turn_keeps_it_after_a_row_with_other_turns(upstream, drive):
    said = "After the optional system message, conversation roles must alternate user/assistant/user/assistant/..."
    upstream.reply = choose(lambda seen: status(400, said) if len(seen.json["messages"]) > 2 else answer())
    one = Message("system", "Be brief."), Message("user", "Who?")
    result = await drive([Conversation((*one, one[1])), Conversation(one)], concurrency=1)
    assert result.answered == 1
    assert [seen.json["messages"][0]["role"] for seen in upstream.seen] == ["system"] * 2


async def test_a_refusal_of_other_turns_is_that_items_error(upstream, drive):
    upstream.reply = status(400, "Conversation roles must alternate user/assistant/user/assistant/...")
    result = await drive([Conversation((Message("assistant", "Hi"), Message("user", "Who?")))], retries=1)
    assert (result.answered, len(upstream.seen)) == (0, 2)
