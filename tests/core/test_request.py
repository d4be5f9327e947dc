"""What callers may send as a prompt, and what becomes of it; the sampling parameters that are allowed."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import (
    ROLES,
    Conversation,
    FilePart,
    ImagePart,
    Message,
    Sampling,
    TextPart,
    check_encodable,
    conversation_from_messages,
    conversation_from_prompt,
)
from promptmill.core.wording import shape


def _one(item):
    (message,) = conversation_from_prompt(item, "prompt_ls[0]").messages
    return message


@pytest.mark.parametrize(
    "item",
    [
        "hello",
        {"content": "hello"},
        {"content": {"text": "hello"}},
        {"content": {"type": "text", "text": "hello"}},
        {"text": "hello"},
        {"type": "text", "text": "hello"},
        {"role": "user", "content": "hello"},
        {"role": "user", "content": {"type": "text", "text": "hello"}},
        {"role": "user", "content": {"type": "text", "text": "hello", "annotations": {"priority": 1}, "_meta": {}}},
    ],
)
def test_every_accepted_shape_of_a_text_is_the_same_user_turn(item):
    assert _one(item) == Message("user", "hello")


def test_typed_parts_are_texts_and_images_in_order():
    message = _one(
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image_url", "image_url": {"url": "http://h/x.png", "detail": "low"}},
                {"type": "image_url", "image_url": "y.png"},
            ],
        }
    )
    assert message.content == (TextPart("a"), ImagePart("http://h/x.png", "low"), ImagePart("y.png"))
    assert [image.source for image in Conversation((message,)).images] == ["http://h/x.png", "y.png"]


@pytest.mark.parametrize(
    ("item", "found"),
    [
        (3, "a number"),
        (None, "null"),
        (True, "true or false"),
        (["a"], "a list of 1"),
        ({}, "an object without keys"),
        ({"prompt": "x"}, "an object with the keys 'prompt'"),
        ({"content": "x", "text": "y"}, "an object with the keys 'content', 'text'"),
        ({"content": 3}, "a number"),
        ({"content": None}, "null"),
        ({"content": []}, "a list of 0"),
        ({"content": {"type": "image", "data": "…"}}, "an object with the keys 'type', 'data'"),
        ({"text": 3}, "a number"),
        ({"text": {"text": "x"}}, "an object with the keys 'text'"),
        ({"role": "user"}, "no content"),
        ({"role": "user", "content": None}, "no content"),
        ({"role": "user", "content": ["a"]}, "a text"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "an object with the keys 'type'"),
        ({"role": "user", "content": [{"type": "text", "text": 3}]}, "a number"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "an object with the keys"),
        ({"role": "robot", "content": "x"}, "the role 'robot'"),
        ({"role": 3, "content": "x"}, "a number"),
        ({"role": None, "content": "x"}, "no role"),
    ],
)
def test_any_other_shape_is_refused_with_its_place_and_shape(item, found):
    with pytest.raises(PromptmillError) as caught:
        conversation_from_prompt(item, "prompt_ls[7]")
    assert caught.value.code is Code.INVALID_INPUT
    assert caught.value.message.startswith("prompt_ls[7]")
    assert found in caught.value.message


def test_a_refused_shape_is_described_without_what_it_says():
    with pytest.raises(PromptmillError) as caught:
        conversation_from_prompt({"content": [{"type": "audio", "secret": "hunter2"}]}, "prompt_ls[0]")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("role", sorted(ROLES))
def test_known_roles_go_through(role):
    assert _one({"role": role, "content": "x"}) == Message(role, "x")


def test_other_fields_of_a_message_go_through():
    message = _one({"role": "tool", "content": "42", "tool_call_id": "c1", "name": None})
    assert message.extra == {"tool_call_id": "c1"}


def test_an_assistant_turn_may_be_only_tool_calls():
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    conversation = conversation_from_messages(
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": calls}], "messages"
    )
    assert conversation.messages[1] == Message("assistant", None, {"tool_calls": calls})


def test_messages_name_the_index_of_what_is_wrong():
    with pytest.raises(PromptmillError, match=r"^messages\[1\] has the role 'bot'"):
        conversation_from_messages([{"role": "user", "content": "x"}, {"role": "bot", "content": "y"}], "messages")
    with pytest.raises(PromptmillError, match=r"^messages\[0\] is a text"):
        conversation_from_messages(["x"], "messages")
    with pytest.raises(PromptmillError, match=r"^messages is empty"):
        conversation_from_messages([], "messages")


def test_a_system_prompt_goes_first():
    conversation = conversation_from_prompt("x", "p").with_system("be brief")
    assert conversation.messages == (Message("system", "be brief"), Message("user", "x"))


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_prompt_replaces_a_leading_system_turn(role):
    turns = [{"role": role, "content": "old"}, {"role": "user", "content": "x"}]
    conversation = conversation_from_messages(turns, "messages").with_system("new")
    assert conversation.messages == (Message("system", "new"), Message("user", "x"))


def test_without_a_system_prompt_the_turns_stay():
    conversation = conversation_from_messages([{"role": "system", "content": "old"}], "messages")
    assert conversation.with_system("") is conversation


def test_images_follow_the_text_in_order():
    conversation = conversation_from_prompt("what?", "p").with_images(["a.png", "b.png"], None)
    assert conversation.messages[0].content == (TextPart("what?"), ImagePart("a.png"), ImagePart("b.png"))
    assert [image.source for image in conversation.images] == ["a.png", "b.png"]


def test_the_kth_tag_is_replaced_by_the_kth_image():
    conversation = conversation_from_prompt("<img>left, right<img>!", "p").with_images(["a.png", "b.png"], "<img>")
    assert conversation.messages[0].content == (
        ImagePart("a.png"),
        TextPart("left, right"),
        ImagePart("b.png"),
        TextPart("!"),
    )


@pytest.mark.parametrize(("text", "sources"), [("<img> <img>", ["a.png"]), ("<img>", ["a", "b"]), ("none", ["a.png"])])
def test_as_many_images_as_tags_or_it_is_an_error(text, sources):
    with pytest.raises(PromptmillError, match="image tag") as caught:
        conversation_from_prompt(text, "p").with_images(sources, "<img>")
    assert caught.value.code is Code.INVALID_INPUT


def test_nothing_is_made_for_tags_that_do_not_fit(monkeypatch):
    prompt = conversation_from_prompt("<img>" * 1000, "p")
    monkeypatch.setattr("promptmill.core.request._tagged", lambda *_: pytest.fail("a text of tags was split"))
    with pytest.raises(PromptmillError, match="1000 time"):
        prompt.with_images(["a.png"], "<img>")


def test_a_tag_in_a_prompt_without_images_stays_text():
    conversation = conversation_from_prompt("what does <img> mean?", "p")
    assert conversation.with_images([], "<img>") is conversation


def test_images_join_those_that_a_message_brings():
    item = {"content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": "own.png"}]}
    conversation = conversation_from_prompt(item, "p").with_images(["b.png"], None)
    assert [image.source for image in conversation.images] == ["own.png", "b.png"]


def test_images_alone_leave_no_empty_text():
    conversation = conversation_from_prompt("", "p").with_images(["a.png"], None)
    assert conversation.messages[0].content == (ImagePart("a.png"),)


@pytest.mark.parametrize(
    ("conversation", "fine"),
    [
        (Conversation((Message("user", "grüße 😀 \0"),)), True),
        (Conversation((Message("assistant", None, {"tool_calls": []}),)), True),
        (Conversation((Message("user", "a\ud800"),)), False),
        (Conversation((Message("user", (TextPart("fine"), TextPart("\udc00"))),)), False),
    ],
)
def test_half_a_surrogate_pair_is_found(conversation, fine):
    if fine:
        check_encodable(conversation)
        return
    with pytest.raises(PromptmillError, match="surrogate"):
        check_encodable(conversation)


def test_a_shape_is_short_whatever_the_value():
    assert len(shape({f"{'k' * 100}{i}": i for i in range(100)})) < 400
    assert shape("x" * 1000) == "a text"
    assert shape(object()) == "a object"


@pytest.mark.parametrize("role", [[], ["user"], {}, 1, True])
def test_a_role_that_is_no_text_is_refused_in_words(role):
    with pytest.raises(PromptmillError, match="Known roles"):
        conversation_from_messages([{"role": role, "content": "x"}], "messages")


def test_only_what_is_set_is_given():
    assert Sampling().given() == {}
    assert Sampling(temperature=0, top_p=None, seed=7).given() == {"temperature": 0, "seed": 7}


def test_one_stop_text_is_a_list_of_one():
    assert Sampling(stop="\n").stop == ["\n"]
    assert Sampling(stop=["a", "b"]).stop == ["a", "b"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": "hot"},
        {"top_p": -0.1},
        {"top_p": 1.1},
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"stop": [1]},
        {"stop": 5},
        {"presence_penalty": 3},
        {"frequency_penalty": -3},
        {"top_k": -2},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"response_format": "json"},
        {"temperature": float("inf")},
        {"top_k": 1.5},
        {"best_of": 2},
    ],
)
def test_values_out_of_bounds_and_unknown_names_are_refused(wrong):
    with pytest.raises(ValidationError):
        Sampling(**wrong)


_PDF = "data:application/pdf;base64,JVBERi0xLjQ="


@pytest.mark.parametrize(
    ("part", "read"),
    [
        (
            {"type": "file", "file": {"file_data": _PDF, "filename": "a.pdf"}},
            FilePart(_PDF, "pdf", "a.pdf"),
        ),
        ({"type": "file", "file": {"file_data": "/invoices/a.pdf"}}, FilePart("/invoices/a.pdf", "pdf")),
        (
            {
                "type": "resource",
                "resource": {"uri": "file:///x/a.pdf", "blob": "JVBERi0xLjQ=", "mimeType": "application/pdf"},
            },
            FilePart(_PDF, "pdf", "a.pdf"),
        ),
        (
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}},
            FilePart("data:audio/mp3;base64,AAAA", "audio"),
        ),
        (
            {"type": "audio", "data": "AAAA", "mimeType": "audio/mpeg"},
            FilePart("data:audio/mp3;base64,AAAA", "audio"),
        ),
        (
            {"type": "resource", "resource": {"uri": "x:y", "blob": "AAAA", "mimeType": "audio/x-wav"}},
            FilePart("data:audio/wav;base64,AAAA", "audio"),
        ),
    ],
)
def test_files_of_callers_become_parts_and_stay_the_same_as_messages(part, read):
    conversation = conversation_from_messages([{"role": "user", "content": [part]}], "messages")
    assert conversation.messages[0].content == (read,)
    assert conversation.file_kinds == {read.kind}
    assert conversation_from_messages(conversation.as_messages(), "messages") == conversation


def test_a_path_of_a_recording_stays_the_same_as_messages():
    conversation = conversation_from_prompt("What?", "p").with_images([FilePart("calls/a.wav", "audio")], None)
    assert conversation_from_messages(conversation.as_messages(), "messages") == conversation


def test_files_have_their_place_around_a_text_whose_tags_are_of_images():
    files: list[str | FilePart] = [FilePart("a.pdf", "pdf"), "a.png"]
    before = conversation_from_prompt("see <img>", "p").with_images(files, "<img>", "before").messages[0].content
    assert before == (FilePart("a.pdf", "pdf"), TextPart("see "), ImagePart("a.png"))
