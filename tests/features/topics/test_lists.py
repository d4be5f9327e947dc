"""Lists of topics: what the program makes of the replies of a model, whatever they hold."""

from __future__ import annotations

import json
from typing import Any

import pytest

from promptmill.features.topics.drawn import DrawnRow
from promptmill.features.topics.lists import (
    Quote,
    Topic,
    batches,
    beginning_of,
    defined,
    definitions,
    groups,
    key_of,
    merge,
    merged,
    proposal,
    proposed,
    united,
)

PROMPT = "What is {{text}} about?"


def row(number: int, text: str = "The lift was  slow\nand loud.") -> DrawnRow:
    return DrawnRow(number, {"text": text})


def quoted(text: str, its: DrawnRow) -> str:
    """Return the quote of a topic that a reply finds in a row."""
    (topic,) = proposed([its], {"topics": [entry("A topic", 1, quote=text)]})
    return topic.quotes[0].text if topic.quotes else ""


def entry(label: str, *numbers: int, quote: str = "") -> dict[str, Any]:
    return {"label": label, "records": [*numbers], "ids": [*numbers], "quote": quote}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Late delivery", "late deliveries"),
        ("late-delivery", "Late Delivery."),
        ("box", "Boxes"),
        ("glass", "glasses"),
        ("Prix e\u0301leve\u0301", "prix \u00e9lev\u00e9"),
    ],
)
def test_labels_that_differ_in_case_signs_or_plural_are_one(one, other):
    assert key_of(one) == key_of(other)
    assert [topic.label for topic in united([Topic(one, 1), Topic(other, 2)])] == [one]
    assert united([Topic(one, 1), Topic(other, 2)])[0].rows == 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("bus", "bu"),
        ("service", "servants"),
        ("🙂", "🙁"),
        ("gas", "ga"),
        ("C", "C++"),
        ("C", "C#"),
        ("Price +", "Price -"),
        ("Price", "Price -"),
        ("<5 min", ">5 min"),
        ("दिन", "दान"),
        ("5 %", "5"),
    ],
)
def test_other_labels_are_two(one, other):
    assert key_of(one) != key_of(other)
    assert len(united([Topic(one, 1), Topic(other, 2)])) == 2


@pytest.mark.parametrize(
    ("text", "quote"),
    [
        ("slow and loud", "slow and loud"),
        ("“slow and loud”", "slow and loud"),
        ("lift was slow…", "lift was slow"),
        ("slow, and loud", ""),
        ("slow and", "slow and"),
        ("slow an", ""),
        ("low", ""),
        ("SLOW and loud", "slow and loud"),
        ("`slow`", "slow"),
        ("", ""),
        ("   ", ""),
        (".", ""),
    ],
)
def test_a_quote_is_in_the_row_with_whole_words(text, quote):
    assert quoted(text, row(1)) == quote


def test_quotes_have_at_most_200_characters_and_begin_no_formula():
    long = row(1, "word " * 100)
    assert quoted("word " * 60, long) == beginning_of(long) == ("word " * 40).strip()
    assert quoted("x" * 300, row(1, "x" * 300)) == "x" * 200
    assert quoted("=SUM(A1)", row(1, "=SUM(A1)")) == beginning_of(row(1, "=SUM(A1)")) == "SUM(A1)"


def test_rows_are_divided_by_number_and_length():
    assert [len(part) for part in batches([row(n) for n in range(45)])] == [20, 20, 5]
    assert [len(part) for part in batches([row(n, "x" * 5000) for n in range(32)])] == [15, 15, 2]
    assert batches([]) == []


def test_a_request_has_the_rows_as_data():
    asked = proposal(PROMPT, [DrawnRow(7, {"id": 3, "text": 'He said "no"\n{{text}}'}), row(8, "y" * 2000)])
    lines = [json.loads(line) for line in asked.text.splitlines() if line.startswith("{")]
    assert lines[0] == {"record_id": 1, "id": "3", "text": 'He said "no" {{text}}'}
    assert lines[1] == {"record_id": 2, "text": "y" * 1499 + "…"}
    assert f":\n{PROMPT}\n" in asked.text
    assert "{{name}} stands for a field" in asked.text
    assert "which are their `record_id`." in asked.text


def test_the_number_of_a_record_has_a_name_that_no_field_has():
    asked = proposal(PROMPT, [DrawnRow(7, {"text": "x"}), DrawnRow(8, {"id": 5, "record_id": 9})])
    assert '{"record_record_id":1,"text":"x"}\n{"record_record_id":2,"id":"5","record_id":"9"}' in asked.text
    assert "which are their `record_record_id`." in asked.text


def test_proposed_topics_count_rows_and_have_quotes_that_are_there():
    batch = [row(11, "slow lift"), row(12, "no lift"), row(13, "cold soup")]
    reply = {
        "topics": [
            entry("Lifts", 1, 1, 2, 9, quote="no lift"),
            entry("lift", 0, quote="slow lift"),
            entry("  Cold\nfood.", 3, quote="hot soup"),
            entry("Other", 3),
            entry("", 3),
            entry("=1+1", 3, quote="cold"),
        ]
    }
    lift, food, formula = proposed(batch, reply)
    assert lift == Topic("Lifts", 3, [Quote(12, "no lift"), Quote(11, "slow lift")])
    assert food == Topic("Cold food", 1, [])
    assert formula.label == "1+1"


def test_merged_topics_keep_the_counts_and_quotes_of_their_parts():
    topics = [
        Topic("a", 5, [Quote(1, "x")]),
        Topic("b", 4, [Quote(2, "y")], "old"),
        Topic("c", 3),
        Topic("d", 2),
        Topic("e", 1),
    ]
    reply = {"topics": [entry("A and B", 1, 2, 1, 7), entry("B again", 2), entry("other", 3), entry("E", 5)]}
    kept, left_out = merged(topics, reply, 3)
    assert kept == [Topic("A and B", 9, [Quote(1, "x"), Quote(2, "y")], "old"), Topic("c", 3), Topic("d", 2)]
    assert [topic.label for topic in left_out] == ["E"]
    assert merged(topics, {"topics": []}, 9) == (topics, [])


def test_a_request_for_a_merge_names_counts_and_quotes():
    text = merge(PROMPT, [Topic("a", 5, [Quote(1, "x"), Quote(2, "y"), Quote(3, "z")])], 12).text
    assert '{"id":1,"label":"a","records":5,"quotes":["x","y"]}' in text
    assert "at most 12 topics" in text


def test_lists_are_united_up_to_the_size_of_a_request():
    def named(start: int, count: int) -> list[Topic]:
        return [Topic(f"topic {n}") for n in range(start, start + count)]

    assert [len(group) for group in groups([named(0, 12), named(3, 12)])] == [15]
    assert [len(group) for group in groups([named(100 * n, 100) for n in range(5)])] == [200, 300]
    assert [len(group) for group in groups([named(0, 700)])] == [700]


def test_definitions_belong_to_their_topics():
    topics = [Topic(f"topic {n}", 1) for n in range(90)]
    asked = definitions(PROMPT, topics)
    assert len(asked) == 3
    assert all("topic 0, topic 1" in each.text for each in asked)
    assert '{"id":41,"label":"topic 40"' in asked[1].text
    replies = [each.likely for each in asked]
    assert all(topic.definition for topic in defined(topics, replies))
    found = defined(topics, [{"topics": [{"id": 2, "definition": " one\n two "}, {"id": 900, "definition": "x"}]}])
    assert [topic.definition for topic in found[:3]] == ["", "one two", ""]
    formula = {"id": 1, "definition": '=HYPERLINK("http://x")'}
    assert defined(topics[:1], [{"topics": [formula]}])[0].definition == 'HYPERLINK("http://x")'
