"""The parts of a row's prompt, which stay next to its conversation."""

from __future__ import annotations

import orjson
import pytest

from promptmill.answering.flights import request_digest
from promptmill.core.request import Conversation, Fields, Message, Request, Sampling
from promptmill.jobs.rows.plain_template import PlainTemplate
from promptmill.jobs.rows.questions import Questions, RowRequests
from promptmill.jobs.rows.row_lines import RowReader

PARTS = ("Which topic? ", "text", "")


def fields(template: str | None, row: object, columns: tuple[tuple[int, str], ...] | None = None) -> Fields | None:
    made = Questions(columns, None if template is None else PlainTemplate.of(template))
    kind = "jsonl" if columns is None else "table"
    return RowRequests(RowReader(kind), made).request(0, None, orjson.dumps(row)).fields


def test_a_request_has_the_fields_of_a_plain_template():
    assert fields("Which topic? {{text}}", {"text": "Stars", "other": 1}) == Fields(PARTS, ("Stars",))
    assert fields("Which topic? {{text}}", [1, "Stars"], ((1, "text"),)) == Fields(PARTS, ("Stars",))
    assert fields("{{a}} or {{b}}", {"a": None, "b": [1]}) == Fields(("", "a", " or ", "b", ""), ("", "[1]"))


@pytest.mark.parametrize(("template", "row"), [("Which topic?", {"text": "Stars"}), (None, {"prompt": "Stars?"})])
def test_a_prompt_without_places_has_no_fields(template, row):
    assert fields(template, row) is None


# The keys of answers that earlier versions stored: they may not change, or every cached answer is paid for again.
_KNOWN = {
    "temperature": "9344993ecc96d5a6e2b77e9aa3b630c8d949c3688df5b8b5",
    "choices": "25a5feb7537971198ed186d52c6834831ffa799d38226be4",
    "quote": "e4ea1892a376aea4bdae7bb847ac3ce23d3062a7d4ea83ae",
}


@pytest.mark.parametrize("given", [{}, {"choices": ["a", "b"]}, {"quote": True}])
def test_fields_leave_the_keys_of_cached_answers_unchanged(given):
    sampling = Sampling.model_validate({"temperature": 0, **given})
    asked = Conversation((Message("user", "Which topic? Stars"),))
    request = Request(3, asked, sampling, {"seed": 1}, fields=Fields(PARTS, ("Stars",)))
    assert request_digest(request, b"m").hex() == _KNOWN[next(iter(given), "temperature")]
