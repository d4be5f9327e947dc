"""The walk over a request reaches every text that its types have, and no other."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import pytest

from every_text import Filler, texts_in
from promptmill.core.request import Conversation, CutText, Fields, Message, Request, Sampling, TextPart
from promptmill.core.texts import UNSENT, TextKind, changed, texts_of


class Marking:
    """A change that marks each text, and keeps it with its kind."""

    def __init__(self) -> None:
        self.seen: dict[str, TextKind] = {}

    def __call__(self, text: str, kind: TextKind, /) -> str:
        self.seen[text] = kind
        return f"<{text}>"

    def fields(self, fields: Fields, /) -> Fields:
        words = tuple(
            self(part, TextKind.NAME if at % 2 else TextKind.INSTRUCTION) for at, part in enumerate(fields.parts)
        )
        return Fields(words, tuple(self(text, TextKind.EVIDENCE) for text in fields.texts))


def test_each_text_of_a_request_is_reached():
    filler = Filler()
    for request in filler.every(Request):
        change = Marking()
        sent = request.with_texts(change)
        own = {text for text in texts_in(request) if text in filler.words}
        assert own <= change.seen.keys(), "a field of a request is forgotten"
        left = {text for text in texts_in(sent) if text in filler.words}
        assert not left, "the walk sees a text, and its result is dropped"


@dataclass(frozen=True, slots=True)
class LaterPart(TextPart):
    note: str = ""


class LaterSampling(Sampling):
    note: str | None = None


@dataclass(slots=True)
class LaterRequest(Request):
    note: str = ""
    hidden: Annotated[str, UNSENT] = ""


class LaterTuple(NamedTuple):
    note: str
    hidden: Annotated[str, UNSENT] = "own"


@pytest.mark.parametrize(
    "later",
    [LaterPart("a", note="later"), LaterSampling(note="later"), LaterTuple("later"), [{"a": ({"b": "later"},)}]],
)
def test_a_new_field_is_reached_without_further_code(later):
    change = Marking()
    assert "<later>" in str(changed(later, change, TextKind.EVIDENCE))
    assert "own" not in change.seen


def test_a_new_field_of_a_request_is_reached_and_a_marked_one_is_not():
    later = LaterRequest(0, Conversation(()), Sampling(), note="later", hidden="own")
    change = Marking()
    with pytest.raises(AttributeError, match="note"):  # it is reached; `Request.changed` copies the known fields alone
        later.with_texts(change)
    assert change.seen == {"later": TextKind.EVIDENCE}
    assert {"note", "hidden"} & {name for name, _ in texts_of(LaterRequest) or ()} == {"note"}


@dataclass(slots=True)
class Forgotten:
    """A request with a walk of its own, which a later field is added to."""

    known: str = ""
    note: str = ""

    def with_texts(self, change: Marking) -> Forgotten:
        return dataclasses.replace(self, known=change(self.known, TextKind.EVIDENCE))


def test_the_test_of_every_text_fails_for_a_forgotten_field():
    filler, change = Filler(), Marking()
    requests = filler.every(Forgotten)
    for request in requests:
        request.with_texts(change)
    assert len(filler.words - change.seen.keys()) == 1


SCHEMA = {
    "title": "t",
    "properties": {"type": {"type": "string", "enum": ["a"], "default": {"k": 1}}, "name": {"const": "c", "x": "y"}},
    "required": ["type"],
    "$defs": {"d": {"description": "said", "examples": ["e", {"k": "v"}]}},
}
KINDS = {
    TextKind.INSTRUCTION: {"t", "said", "y"},
    TextKind.ANSWER: {"a", "c"},
    TextKind.EVIDENCE: {"1", "e", "k", "v"},
}


def test_the_texts_of_a_schema_have_their_kinds_and_all_others_are_names():
    change = Marking()
    changed(SCHEMA, change, TextKind.INSTRUCTION)
    for kind, texts in KINDS.items():
        assert {text for text, own in change.seen.items() if own is kind} == texts
    assert {"type", "name", "d", "properties", "string"} <= change.seen.keys()


CALL = {"id": "c", "type": "function", "function": {"name": "send"}}


@pytest.mark.parametrize(
    ("arguments", "after"),
    [
        ('{"to": {"a": 5}}', '{"<to>": {"<a>": "<5>"}}'),
        ('{"to": "a", "to": "b"}', '<{"to": "a", "to": "b"}>'),
        ("no JSON", "<no JSON>"),
        ("[" * 100_000, f"<{'[' * 100_000}>"),
        ('{"a": true}', '{"<a>": true}'),
    ],
)
def test_the_arguments_of_a_call_are_json_with_names_and_numbers(arguments, after):
    call = CALL | {"function": {"name": "send", "arguments": arguments}}
    change = Marking()
    message = changed(Message("assistant", None, {"tool_calls": [call], "name": "Jane"}), change, TextKind.EVIDENCE)
    assert message.extra is not None
    assert message.extra["<tool_calls>"][0]["<function>"]["<arguments>"] == after
    assert change.seen["send"] is TextKind.NAME
    assert change.seen["Jane"] is TextKind.EVIDENCE


def test_ids_of_calls_stay_unless_they_have_no_form_of_an_id():
    turns = {"tool_calls": [{"id": "call_4111111111111111"}], "tool_call_id": "+49 30 901820"}
    change = Marking()
    changed(Message("tool", "hi", turns), change, TextKind.EVIDENCE)
    assert "call_4111111111111111" not in change.seen
    assert change.seen["+49 30 901820"] is TextKind.EVIDENCE


def test_a_request_without_a_changed_text_is_the_request_itself():
    def same(text: str, kind: TextKind) -> str:
        return text

    same.fields = lambda fields: fields  # type: ignore[attr-defined]
    for request in Filler().every(Request):
        assert request.with_texts(same) is request


@pytest.mark.parametrize("is_part", [False, True])
def test_the_text_of_a_row_is_changed_as_a_row_also_inside_of_further_words(is_part):
    fields = Fields(("Mail: ", "mail", ""), ("hi there",), cut=CutText(0, "", "") if is_part else None)
    content = "Mail: [Characters 1 to 8.]\nhi there!" if is_part else fields.whole
    request = Request(0, Conversation((Message("user", content),)), Sampling(), fields=fields)
    change = Marking()
    (text,) = request.with_texts(change).conversation.texts
    whole = Fields(("<Mail: >", "<mail>", "<>"), ("<hi there>",)).whole
    assert text == ("<Mail: [Characters 1 to 8.]\n><hi there><!>" if is_part else whole)


def test_answers_that_are_merged_are_evidence_and_no_instruction():
    words = "Decide from these answers: Jane"
    request = Request(0, Conversation((Message("user", words),)), Sampling(), fields=Fields((words,), ()), is_part=True)
    change = Marking()
    request.with_texts(change)
    assert request.with_texts(change).conversation.texts == [f"<{words}>"]
    assert change.seen[words] is TextKind.EVIDENCE


def test_what_is_no_text_stays():
    given = {"a": [1, None, True, 2.5, "b"], 3: "c"}
    change = Marking()
    assert changed(given, change, TextKind.EVIDENCE) == {"<a>": [1, None, True, 2.5, "<b>"], 3: "<c>"}


def test_parameters_that_promptmill_applies_itself_are_not_sent():
    change = Marking()
    changed(Sampling(reasoning="inline", stop=["end"], reasoning_effort="low"), change, TextKind.INSTRUCTION)
    assert change.seen == {"end": TextKind.EVIDENCE, "low": TextKind.NAME}


def test_keys_decide_what_the_texts_of_a_body_are():
    given = {
        "model": "gpt",
        "id": 5,
        "call_id": "c_1",
        "arguments": {"to": "a"},
        "prediction": {"type": "content", "content": "Jane"},
        "properties": {"enum": {"description": "d"}, "user": {"type": "string"}},
    }
    change = Marking()
    found = changed(given, change, TextKind.INSTRUCTION)
    assert (found["<model>"], found["<id>"], found["<call_id>"]) == ("gpt", 5, "c_1")
    kinds = {"a": TextKind.INSTRUCTION, "Jane": TextKind.EVIDENCE, "d": TextKind.INSTRUCTION, "string": TextKind.NAME}
    assert kinds.items() <= change.seen.items()


def test_words_of_schemas_mean_nothing_in_data():
    change = Marking()
    changed({"enum": ["a"], "properties": {"type": "b", "name": "c"}}, change, TextKind.EVIDENCE)
    assert {text: change.seen[text] for text in "abc"} == {
        "a": TextKind.EVIDENCE,
        "b": TextKind.NAME,
        "c": TextKind.EVIDENCE,
    }


@pytest.mark.parametrize(("text", "after"), [('{"a":1}', '{"a":1}'), ('{"a":"é"}', '{"a": "É"}')])
def test_json_without_a_changed_text_keeps_its_form(text, after):
    def change(text: str, kind: TextKind) -> str:
        return text.replace("é", "É")

    assert changed({"arguments": text}, change, TextKind.EVIDENCE) == {"arguments": after}
