"""The beginnings that rows share, and the order in which rows are sent."""

from __future__ import annotations

import functools
import hashlib
from itertools import chain

import orjson
import pytest

from promptmill.core.request import Shared
from promptmill.jobs.rows.plain_template import PlainTemplate
from promptmill.jobs.rows.row_lines import RowReader
from promptmill.jobs.rows.row_questions import Questions, RowRequests
from promptmill.jobs.rows.template import ExpressionTemplate
from promptmill.jobs.run import shared_beginnings
from promptmill.jobs.run.open_rows import OpenRows
from promptmill.jobs.run.shared_beginnings import in_groups
from promptmill.jobs.store.description import Target
from promptmill.jobs.store.rounds import Round
from sure import sure

LONG = 5000
beginnings = functools.partial(shared_beginnings.beginnings, least=4096)


def requests(template: str, system: str = "") -> RowRequests:
    questions = Questions(columns=((0, "document"), (1, "question")), template=sure(PlainTemplate.of(template)))
    return RowRequests(RowReader("table", system_prompt=system), questions)


def ends(template: str, system: str = "", document: str = "d" * LONG) -> list[int]:
    cells = orjson.dumps([document, "why?"])
    return [one.characters for one in beginnings(requests(template, system), 0, None, cells)]


@pytest.mark.parametrize(
    ("template", "system", "expected"),
    [
        ("{{document}} {{question}}", "", [LONG + 1]),
        ("{{question}} {{document}}", "", []),  # the order of the template does not change
        ("Say {{question}}", "s" * LONG, [LONG, LONG + 4]),
        ("From {{document}}: {{question}}?", "s" * LONG, [LONG, LONG + 5, 2 * LONG + 7]),
        ("{{document}}", "", []),
        ("Say {{question}}", "short", []),
    ],
)
def test_a_beginning_ends_behind_the_system_prompt_or_a_field_of_the_template(template, system, expected):
    assert ends(template, system) == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [("s" * LONG + "\r\nSay {{ text | upper }}", LONG + 4), ("s" * LONG + " {%- if text %}yes{% endif %}", LONG)],
)
def test_a_prompt_with_expressions_begins_with_the_text_before_the_first(template, expected):
    made = ExpressionTemplate(template)
    line = orjson.dumps({"prompt": made.render({"text": "a"})})
    found = beginnings(RowRequests(RowReader("table"), Questions(template=made)), 0, line, b"")
    assert [one.characters for one in found] == [expected]


def test_messages_before_the_last_are_a_beginning():
    messages = [{"role": role, "content": "x" * LONG} for role in ("system", "user", "assistant", "user")]
    made = RowRequests(RowReader("jsonl"), Questions())
    found = beginnings(made, 0, None, orjson.dumps({"messages": messages}))
    assert [one.characters for one in found] == [LONG, 2 * LONG, 3 * LONG]


IMAGE = {"type": "image_url", "image_url": {"url": "a.png"}}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "system", "content": [{"type": "text", "text": "s" * LONG}]}], [LONG]),
        ([{"role": "system", "content": "s" * LONG}, {"role": "user", "content": [IMAGE]}], [LONG]),
        ([{"role": "user", "content": [IMAGE, {"type": "text", "text": "s" * LONG}]}], []),
        ([{"role": "user", "content": [IMAGE]}, {"role": "assistant", "content": "s" * LONG}], []),
        ([{"role": "assistant", "content": "s" * LONG, "tool_calls": [{"id": "1"}]}], []),
        ([{"role": "system", "content": "ü" * 2048}], [2048]),  # its bytes count
    ],
)
def test_a_beginning_ends_before_the_first_image_or_tool_call(messages, expected):
    made = RowRequests(RowReader("jsonl"), Questions())
    row = orjson.dumps({"messages": [*messages, {"role": "user", "content": "why?"}]})
    assert [one.characters for one in beginnings(made, 0, None, row)] == expected


def test_a_row_without_a_valid_question_has_no_beginning():
    assert beginnings(requests("{{document}} {{question}}"), 0, None, orjson.dumps(["", "why?"])) == []


def _look(row: str) -> list[Shared]:
    """Return the beginnings of a row such as `xa1`: all with `x` share it, and those with `xa` share more."""
    return [Shared(5000, row[:1]), Shared(9000, row[:2])] if row[:1].isalpha() else []


def _sent(pages: list[list[str]], *, reorders: bool = True) -> list[str]:
    found = in_groups(iter(pages), _look, len, reorders=reorders)
    return [f"{row}:{shared.key}" if shared else row for row, shared in chain.from_iterable(found)]


def test_rows_with_the_same_beginning_are_sent_one_after_the_other():
    rows = ["xa1", "xb1", "1", "xa2", "xb2", "xc1"]
    assert _sent([rows]) == ["xa1:xa", "xa2:xa", "xb1:xb", "xb2:xb", "1", "xc1:x"]


def test_the_order_stays_where_rounds_expect_it():
    rows = ["xa1", "xb1", "xa2", "xb2"]
    assert _sent([rows], reorders=False) == ["xa1:xa", "xb1:xb", "xa2:xa", "xb2:xb"]


def test_a_window_is_bounded_by_rows_and_bytes(monkeypatch):
    pages = [[f"xa{n}", f"xb{n}"] for n in range(4)]
    monkeypatch.setattr(shared_beginnings, "WINDOW_ROWS", 4)
    assert [row[:2] for row in _sent(pages)] == ["xa", "xa", "xb", "xb"] * 2
    monkeypatch.setattr(shared_beginnings, "WINDOW_ROWS", 100)
    monkeypatch.setattr(shared_beginnings, "WINDOW_BYTES", 8)
    assert [row[:2] for row in _sent(pages)] == ["xa", "xa", "xb", "xb"] * 2


def test_pages_without_a_shared_beginning_pass_as_they_come():
    pages = [["1", "2"], ["3"], ["4", "5"]]
    found = in_groups(iter(pages), _look, len, reorders=True)
    assert [[row for row, _ in page] for page in found] == pages


def test_fewer_rows_than_a_beginning_pays_for_do_not_share_it():
    rows = ["xa1", "xa2", "xa3", "xb1", "xb2"]
    found = in_groups(iter([rows]), _look, len, 3, reorders=True)
    shared = {row: one and one.key for row, one in chain.from_iterable(found)}
    assert shared == {"xa1": "xa", "xa2": "xa", "xa3": "xa", "xb1": "x", "xb2": "x"}


@pytest.mark.parametrize(("sends_once", "expected"), [(True, [False, False, True, True]), (False, [True] * 4)])
def test_a_beginning_that_only_rows_with_one_question_have_is_not_shared(store, sends_once, expected):
    rows = ("a", "why?"), ("a", "why?"), ("b", "who?"), ("b", "how?")
    cells = [orjson.dumps([document * LONG, question]) for document, question in rows]
    store.change(
        (
            "INSERT INTO row VALUES (?, ?, NULL, ?)",
            [(n, hashlib.blake2b(row, digest_size=16).digest(), row) for n, row in enumerate(cells)],
        )
    )
    made = requests("{{document}} {{question}}")
    open_rows = OpenRows(
        store, Round(1, "open", ""), [Target()], [made], sharing=2, least_shared=4096, sends_once=sends_once
    )
    assert [bool(row.shared) for page in open_rows.in_groups() for row in page] == expected
