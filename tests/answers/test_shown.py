"""What a model is shown of the form of its answer."""

from __future__ import annotations

import pytest

from promptmill.answers.response_format import asking_for
from promptmill.answers.shown import shown_of
from promptmill.core.request import NOT_SHOWN, Sampling, Shown
from promptmill.jobs.inputs.short_forms import schema_of_fields, schema_of_many

LABELS = Shown("The labels:\n- billing\n- tech", ("billing", "tech"))


def fields(text: str, **more: object) -> Sampling:
    return Sampling(response_format=asking_for(schema_of_fields(text)), **more)


def test_labels_are_named_where_the_server_does_not_show_them():
    sampling = Sampling(choices=["billing", "tech"])
    assert shown_of(sampling, shows=False) == LABELS
    assert shown_of(sampling, shows=True) == NOT_SHOWN


def test_definitions_are_always_shown():
    sampling = Sampling(choices=["billing", "tech"], definitions={"billing": "Money.", "tech": ""})
    defined = Shown("The labels:\n- billing: Money.\n- tech")
    assert (shown_of(sampling, shows=False), shown_of(sampling, shows=True)) == (defined, defined)
    many = Sampling(response_format=asking_for(schema_of_many(["billing", "tech"])), definitions=sampling.definitions)
    assert shown_of(many, shows=False) == defined


def test_fields_are_named_with_their_values():
    text = "customer,amount:number!,due:date!,team:billing|tech!,urgent:boolean!,tags:list"
    shown = shown_of(fields(f"{text},items:rows(item!,price:number)"), shows=False)
    assert shown.words.splitlines() == [
        "The fields of the answer:",
        "- customer: text; or null",
        "- amount: number",
        "- due: date (YYYY-MM-DD)",
        "- team: one of billing, tech",
        "- urgent: true or false",
        "- tags: list of text",
        "- items: list of object with item (text), price (number)",
    ]
    assert {"customer", "billing", "tech", "items", "price"} <= {*shown.names}


def test_labels_of_fields_are_shown_with_their_definitions():
    shown = shown_of(fields("team:billing|tech!,urgent:boolean!", definitions={"tech": "It is broken."}), shows=False)
    assert shown == Shown(
        "The fields of the answer:\n- team: one of billing, tech\n- urgent: true or false\n\n"
        "The labels:\n- tech: It is broken."
    )


def test_descriptions_and_ranges_of_a_schema_are_shown():
    properties = {
        "stars": {"type": "integer", "minimum": 1, "maximum": 5, "description": "How many\n stars?"},
        "mood": {"enum": ["calm", "cross", None], "$comment": "from the lowest to the highest"},
    }
    schema = {"type": "object", "properties": properties, "required": ["stars", "mood"]}
    assert shown_of(Sampling(response_format=asking_for(schema)), shows=False) == Shown(
        "The fields of the answer:\n- stars (How many stars?): 1 to 5\n"
        "- mood: one of calm, cross, from the lowest to the highest; or null"
    )


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "integer"}},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"enum": ["x"]}}},
    ],
)
def test_a_schema_that_has_no_short_form_is_shown_itself(schema):
    words = shown_of(Sampling(response_format=asking_for(schema)), shows=False).words
    assert words.startswith('The schema of the answer:\n{"type":')


@pytest.mark.parametrize(
    "wanted", [None, {"type": "text"}, {"type": "json_object"}, {"type": "json_schema", "json_schema": 7}]
)
def test_answers_without_a_form_have_nothing_to_show(wanted):
    assert shown_of(Sampling(response_format=wanted), shows=False) == NOT_SHOWN


def test_thousands_of_labels_are_not_shown_but_their_definitions_are():
    labels = [f"label number {at}" for at in range(1_000)]
    assert shown_of(Sampling(choices=labels), shows=False) == NOT_SHOWN
    assert len(shown_of(Sampling(choices=labels, definitions=dict.fromkeys(labels, "x")), shows=False).words) > 16_000


@pytest.mark.parametrize(
    "schema",
    [
        *({"type": ["null", "string"]}, True, {"type": "object"}, {"enum": [None, 1, True]}, {}),
        *({"type": ["null", "null"]}, {"type": ["null", {}]}, {"type": [["string"]]}),
    ],
)
def test_any_schema_of_a_field_has_words(schema):
    inner = schema
    for _ in range(200):
        schema = {"type": "array", "items": schema}
    whole = {"type": "object", "properties": {"a": schema, "b": inner}, "required": ["a"]}
    assert shown_of(Sampling(response_format=asking_for(whole)), shows=False).words.count("list of") <= 5


@pytest.mark.parametrize(
    ("texts", "is_named"),
    [
        (["Billing or TECH?"], True),
        (["Only these: billing", "and tech"], True),
        (["billing, technical"], False),
        (["rebilling, tech, billing"], True),
        (["billing"], False),
        ([], False),
    ],
)
def test_a_prompt_that_names_all_labels_is_left_alone(texts, is_named):
    assert LABELS.beside(texts) == ("" if is_named else LABELS.words)


def test_words_of_scripts_without_spaces_are_found():
    assert not Shown("w", ("好评", "差评")).beside(["这是好评还是差评"])


def test_a_long_text_is_not_searched_for_thousands_of_labels():
    labels = tuple(f"label {at}" for at in range(5_000))
    assert Shown("w", labels).beside([" ".join(labels)]) == "w"
    assert Shown("w", labels[:50]).beside([" ".join(labels)]) == ""
