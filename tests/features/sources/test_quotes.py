"""Values with quotes, which are looked up in the row's text."""

from __future__ import annotations

import asyncio
import csv
import json
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

import promptmill
from fakes import openai_configuration
from promptmill.answers.response_format import asking_for
from promptmill.backends.protocol import Call, Completion, Facts
from promptmill.core.errors import PromptmillError
from promptmill.core.request import Request, Sampling, conversation_from_messages, conversation_from_prompt
from promptmill.core.sources import leaves
from promptmill.features.sources import quote_status, quoting
from promptmill.features.sources.quoted_form import QuotedForm
from promptmill.features.sources.quoting import QuotedAnswers
from promptmill.features.sources.searched_text import Text
from promptmill.jobs.inputs.any_format import objects_in
from promptmill.service.service import Service
from replies import answer, choose, from_request
from tables import write_rows
from waiting import until

ASKED = ("--prompt", "Read {{text}}", "--fields", "number,total:number?", "--quote")
INVOICE = "Invoice R-7.\nTotal due: EUR 12.50"
READ = {
    "number": {"quote": "invoice r-7", "value": "R-7"},
    "total": {"quote": "EUR 12.50", "value": 12.5},
}
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
MADE_UP = {"number": {"quote": "Invoice R-8", "value": "R-8"}, "total": {"quote": "", "value": 12.5}}


def table(bench: Any) -> list[dict[str, str]]:
    with bench.output.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def replying(bench, upstream):
    def begun(replies: dict[str, Any], name: str = "out.csv") -> None:
        def reply(seen: Any) -> Any:
            found = next(one for text, one in replies.items() if text in seen.prompt)
            return answer(found if isinstance(found, str) else json.dumps(found))

        upstream.reply = choose(reply)
        bench.write([{"text": text} for text in replies])
        bench.output = bench.path / name

    return begun


def test_each_value_has_its_quote_with_its_place(bench, replying, upstream):
    replying(
        {INVOICE: READ, "No invoice.": {"number": {"quote": "", "value": ""}, "total": {"quote": "", "value": None}}}
    )
    found = bench.succeed(*ASKED)
    rows = table(bench)
    assert [(row["number"], row["total"]) for row in rows] == [("R-7", "12.5"), ("", "")]
    assert json.loads(rows[0]["sources"]) == {
        "number": {"quote": "Invoice R-7", "start": 0, "end": 11, "column": "text"},
        "total": {"quote": "EUR 12.50", "start": 24, "end": 33, "column": "text"},
    }
    assert json.loads(rows[1]["sources"]) == {"number": None, "total": None}
    assert found["quotes"] == {"quotes": 2, "missing": 0, "rows": 0}
    sent = upstream.seen[0].json
    assert "quote" not in sent, "a parameter of promptmill is not sent"
    (total,) = [sent["response_format"]["json_schema"]["schema"]["properties"]["total"]]
    assert [*total["properties"]] == ["quote", "value"]
    assert "copy the words of the text" in sent["messages"][-1]["content"]


def test_a_quote_that_the_text_lacks_is_counted_and_reviewed_first(bench, replying):
    replying({"Invoice R-7, EUR 12.50": READ, INVOICE: MADE_UP})
    found = bench.succeed(*ASKED)
    rows = table(bench)
    assert rows[1]["number"] == "R-8", "the value is kept"
    assert json.loads(rows[1]["sources"]) == {
        "number": {"quote": "Invoice R-8", "is_missing": True},
        "total": {"quote": "", "is_missing": True},
    }
    assert found["quotes"] == {"quotes": 4, "missing": 2, "rows": 1}
    said = bench.jobs(str(bench.output)).stdout
    assert "quotes    4, 2 of them missing in 1 row; a review shows these rows first" in said
    with bench.folder.reading() as store:
        shown = quote_status.section(found, store, bench.folder.known_spec())
    assert shown["lines"] == ["2 of 4 quotes found in the texts of their rows; 2 missing, in 1 row."]


@pytest.mark.features("review")
def test_a_review_begins_with_missing_quotes(bench, replying):
    replying({f"Invoice R-7, EUR 12.50 of {at}": READ for at in range(3)} | {INVOICE: MADE_UP})
    bench.succeed(*ASKED)
    command = [sys.executable, "-m", "promptmill", "review", str(bench.output), "-o", "to-do.xlsx"]
    done = bench.here(command, bench.path)
    assert done.returncode == 0, done.stderr
    first, *_ = objects_in(bench.path / "to-do.xlsx")
    assert "no such quote; number: 'Invoice R-8'; total: none" in str(first)


def test_a_dry_run_names_the_column_and_counts_what_is_sent(bench, replying):
    replying({INVOICE: READ})
    plain, found = (json.loads(bench.run(*asked, "--dry-run", "--json").stdout) for asked in (ASKED[:-1], ASKED))
    assert found["columns"]["added"][-1] == "sources"
    assert found["estimated_prompt_tokens"] > plain["estimated_prompt_tokens"] + 40


def test_each_item_of_a_list_has_one_quote(bench, replying):
    items = [
        {"quote": "3 screws", "value": {"item": "screws", "count": 3}},
        {"quote": "9 nails", "value": {"item": "nails", "count": 9}},
    ]
    replying({"3 screws and 9 nails": {"items": items}})
    bench.succeed("--prompt", "Read {{text}}", "--fields", "items:rows(item,count:integer)", "--quote")
    rows = table(bench)
    assert [(row["item"], row["count"]) for row in rows] == [("screws", "3"), ("nails", "9")]
    assert [json.loads(row["sources"])["items"]["quote"] for row in rows] == ["3 screws", "9 nails"]


def test_equal_items_stand_one_after_another(bench, replying):
    items = [{"quote": "3 screws", "value": "screws"}] * 3
    replying({"3 screws, 3  screws": {"items": items}})
    bench.succeed("--prompt", "Read {{text}}", "--fields", "items:list", "--quote")
    (row,) = table(bench)
    assert [one["start"] for one in json.loads(row["sources"])["items"]] == [0, 10, 0]


def test_words_of_the_prompt_are_no_words_of_the_row(bench, replying, upstream):
    replying({INVOICE: READ})
    said = bench.fail("--prompt", "Invoice R-7? {{ text | trim }}", "--fields", "number", "--quote", code=2)
    assert "looks its quotes up in the columns of a prompt with plain places alone" in said
    assert not upstream.seen


def test_the_text_of_a_file_is_told_from_its_name(bench, upstream):
    (bench.path / "mails").mkdir()
    for name in ("a", "b"):
        (bench.path / "mails" / f"{name}.txt").write_text(f"No {name}7.")

    def reply(seen: Any) -> Any:
        quote = "No a7" if "No a7" in seen.prompt else "No b7"
        return answer(json.dumps({"number": {"quote": quote, "value": "7"}}))

    upstream.reply = choose(reply)
    bench.input, bench.output = bench.path / "mails", bench.path / "out.csv"
    bench.succeed("--prompt", "No {{path}}: {{content}}", "--fields", "number", "--quote")
    sources = [json.loads(row["sources"])["number"] for row in table(bench)]
    assert [(one["column"], one["start"]) for one in sources] == [("content", 0)] * 2


@pytest.mark.thorough
def test_equal_prompts_of_other_columns_have_their_own_places(bench, upstream):
    upstream.reply = answer(json.dumps({"about": {"quote": "parcel", "value": "parcel"}}))
    bench.write([{"a": "late", "b": "parcel x"}, {"a": "late parcel", "b": "x"}])
    bench.output = bench.path / "out.csv"
    asked = ("--prompt", "{{a}} {{b}}", "--fields", "about", "--quote")
    assert "--quote cannot be used with --dedupe" in bench.fail(*asked, "--dedupe")
    bench.succeed(*asked, "--temperature", "0", "--set", f"cache={bench.path / 'cache'}")
    assert [json.loads(row["sources"])["about"]["column"] for row in table(bench)] == ["b", "a"]
    assert len(upstream.seen) == 2
    bench.succeed(*asked, "--temperature", "0", "--set", f"cache={bench.path / 'cache'}", "--again", "all")
    assert [json.loads(row["sources"])["about"]["column"] for row in table(bench)] == ["b", "a"]
    assert len(upstream.seen) == 2, "the cache has both"


ROW = {"id": 1, "a": "so late", "b": "parcel x"}
EDITED = [
    ("the words move to another column", {**ROW, "a": "so late parcel", "b": "x"}, {"quote": "parcel"}),
    ("they move within the column", {**ROW, "a": "so", "b": "late parcel x"}, {"quote": "parcel"}),
    ("another column is edited", {**ROW, "id": 7}, {"quote": "parcel", "start": 0, "end": 6, "column": "b"}),
]


@pytest.mark.thorough
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize(("row", "source"), [case[1:] for case in EDITED], ids=[case[0] for case in EDITED])
def test_an_answer_that_an_edited_row_keeps_has_no_place_of_another_text(bench, upstream, suffix, row, source):
    upstream.reply = answer(json.dumps({"about": {"quote": "parcel", "value": "parcel"}}))
    bench.input, bench.output = bench.path / f"in.{suffix}", bench.path / "out.jsonl"
    for each in (ROW, row):
        write_rows(bench.input, [each])
        bench.succeed("--prompt", "{{a}} {{b}}", "--fields", "about", "--quote")
    (found,) = objects_in(bench.output)
    assert (found["sources"], len(upstream.seen)) == ({"about": source}, 1)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_quote_has_no_place_in_a_column_with_another_name(bench, upstream, suffix):
    upstream.reply = answer(json.dumps({"about": {"quote": "parcel", "value": "parcel"}}))
    bench.input, bench.output = bench.path / f"in.{suffix}", bench.path / "out.jsonl"
    for name in "ab":
        write_rows(bench.input, [{"id": 1, name: "late parcel"}])
        bench.succeed("--prompt", f"{{{{{name}}}}}", "--fields", "about", "--quote")
    (found,) = objects_in(bench.output)
    assert (found["b"], found["sources"], len(upstream.seen)) == ("late parcel", {"about": {"quote": "parcel"}}, 1)


def test_a_choice_without_its_quote_is_counted(bench, replying):
    replying({"The parcel was late.": "delivery"})
    found = bench.succeed("--prompt", "About? {{text}}", "--choices", "delivery,price", "--quote")
    assert found["quotes"] == {"quotes": 1, "missing": 1, "rows": 1}


def test_slips_in_a_reply_are_corrected(bench, replying, upstream):
    replying({INVOICE: """Using {the} text: {'number': {'quote': 'Invoice R-7', 'value': 'R-7'},}"""})
    bench.succeed("--prompt", "Read {{text}}", "--fields", "number", "--quote")
    (row,) = table(bench)
    assert (row["number"], json.loads(row["sources"])["number"]["start"], len(upstream.seen)) == ("R-7", 0, 1)


def test_a_model_sees_its_quotes_when_it_is_asked_again(bench, upstream):
    wrong = json.dumps({**READ, "total": {"quote": "EUR 12.50", "value": "much"}})
    upstream.reply = from_request(2, answer(json.dumps(READ)), answer(wrong))
    bench.write([{"text": INVOICE}])
    bench.output = bench.path / "out.csv"
    bench.succeed(*ASKED)
    (row,) = table(bench)
    assert (row["total"], json.loads(row["sources"])["total"]["start"]) == ("12.5", 24)
    first, second = (seen.json["messages"] for seen in upstream.seen)
    assert second[: len(first)] == first, "the beginning, with what a quote is, stays in the provider's cache"
    said, complaint = second[len(first) :]
    assert (said["role"], said["content"]) == ("assistant", wrong)
    assert complaint["content"].startswith("This answer does not satisfy")


async def test_a_complaint_is_no_text_of_the_row(upstream, closing):
    made_up = {"number": {"quote": "the corrected JSON alone", "value": "R-8"}}
    wrong, right = (json.dumps({**made_up, "total": {"quote": "", "value": value}}) for value in ("much", None))
    upstream.reply = from_request(2, answer(right), answer(wrong))
    service = closing(Service(openai_configuration(upstream.url)))
    schema = {"type": "object", "properties": {"number": {"type": "string"}, "total": {"type": ["number", "null"]}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    plan = service.config.with_sampling({"quote": True, "response_format": wanted})
    item = conversation_from_prompt(INVOICE, "a prompt")
    (found,) = await service.generate([item], Call(Facts(total=1)), config=plan)
    assert "the corrected JSON alone" in upstream.seen[1].json["messages"][-1]["content"]
    assert found.sources["number"] == {"quote": "the corrected JSON alone", "is_missing": True}


def test_fields_may_have_the_names_of_a_quote(bench, replying):
    reply = {name: {"quote": "Invoice R-7", "value": "R-7"} for name in ("quote", "is_missing")}
    replying({INVOICE: reply})
    found = bench.succeed("--prompt", "Read {{text}}", "--fields", "quote,is_missing", "--quote")
    assert found["quotes"] == {"quotes": 2, "missing": 0, "rows": 0}


def test_a_quote_of_an_image_is_refused(bench, upstream):
    bench.write([{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]}]}])
    bench.output = bench.path / "out.csv"
    bench.fail("--fields", "number", "--quote", code=1)
    (row,) = table(bench)
    assert "An image has no text in which a quote could be looked up" in row["error"]
    assert not upstream.seen


def test_a_choice_has_a_quote(bench, replying):
    replying({"The parcel was late.": {"quote": "was late", "value": "delivery"}})
    bench.succeed("--prompt", "What is it about? {{text}}", "--choices", "delivery,price", "--quote")
    (row,) = table(bench)
    assert row["answer"] == "delivery"
    assert json.loads(row["sources"])["quote"] == "was late"


def test_a_reply_without_quotes_is_asked_for_again_only_if_it_breaks_the_schema(bench, replying, upstream):
    replying({INVOICE: f"Here it is:\n```json\n{json.dumps({'number': 'R-7', 'total': 12.5})}\n```"})
    found = bench.succeed(*ASKED)
    (row,) = table(bench)
    assert (row["number"], row["total"]) == ("R-7", "12.5")
    assert found["quotes"]["missing"] == 2
    assert len(upstream.seen) == 1


@pytest.mark.thorough
def test_a_resumed_job_keeps_the_sources_and_pays_nothing(bench, replying, upstream):
    replying({INVOICE: READ})
    bench.succeed(*ASKED)
    first, sent = bench.output.read_bytes(), len(upstream.seen)
    bench.output.unlink()
    bench.succeed(*ASKED)
    assert (bench.output.read_bytes(), len(upstream.seen)) == (first, sent)


@pytest.mark.parametrize("asked", [(), ("--choices", "a,b", "--sure", "x"), ("--fields", "a", "--votes", "3")])
def test_quotes_need_an_answer_with_fields(bench, replying, asked):
    replying({INVOICE: READ})
    said = bench.fail("--prompt", "Read {{text}}", *asked, "--quote")
    assert "quote" in str(said)


@pytest.mark.thorough
@pytest.mark.features("together")
def test_rows_together_have_their_own_quotes(bench, upstream):
    def reply(seen: Any) -> Any:
        records = [json.loads(line) for line in seen.prompt.splitlines() if line.startswith('{"id"')]
        found = {one["id"]: {"number": {"quote": f"No {one['text'][3:]}", "value": one["text"][3:]}} for one in records}
        answers = [{"id": name, "answer": its} for name, its in found.items()]
        return answer(json.dumps({"answers": answers}))

    upstream.reply = choose(reply)
    bench.write([{"text": f"no {at}"} for at in range(10)])
    bench.output = bench.path / "out.csv"
    bench.succeed("--prompt", "Read {{text}}", "--fields", "number", "--quote", "--together", "5")
    rows = table(bench)
    assert [row["number"] for row in rows] == [str(at) for at in range(10)]
    assert [json.loads(row["sources"])["number"]["quote"] for row in rows] == [f"no {at}" for at in range(10)]
    assert len(upstream.seen) == 2


@pytest.mark.features("documents")
def test_quotes_of_pieces_stand_in_the_whole_document(bench, upstream):
    pages = [
        f"Page {at}. Party {name} pays {at}00 euros. " + "Nothing else. " * 60 for at, name in enumerate("ABCD", 1)
    ]
    text = "\f".join(pages)

    def reply(seen: Any) -> Any:
        found = [name for name in "ABCD" if f"Party {name} pays" in seen.prompt]
        parties = [{"quote": f"party {name} pays {'ABCD'.index(name) + 1}00", "value": name} for name in found]
        end = {"quote": "Page 1.", "value": "one"} if "A" in found else {"quote": "", "value": None}
        return answer(json.dumps({"party": parties, "end": end}))

    upstream.reply = choose(reply)
    bench.write([{"text": text}])
    bench.output = bench.path / "out.csv"
    bench.succeed("--prompt", "{{text}}", "--fields", "party:list,end", "--quote", "--split", "500", "--overlap", "0")
    (row,) = table(bench)
    assert json.loads(row["party"]) == [*"ABCD"]
    sources = json.loads(row["sources"])
    assert [text[one["start"] : one["end"]] for one in sources["party"]] == [
        f"Party {name} pays {at}00" for at, name in enumerate("ABCD", 1)
    ]
    assert [one["page"] for one in sources["party"]] == [1, 2, 3, 4]
    assert sources["end"]["quote"] == "Page 1."


@pytest.mark.features("documents")
def test_pieces_give_objects_their_places_and_true_quotes_go_first(bench, upstream):
    pages = [f"Page {at}. {'Nothing else. ' * 60}" for at in range(1, 4)]
    text = "\f".join(pages) + " The seller is in Rome."

    def reply(seen: Any) -> Any:
        is_last = "in Rome" in seen.prompt
        city = {"quote": "seller is in Rome" if is_last else "Rome!", "value": "Rome"}
        return answer(json.dumps({"seller": {"city": city}}))

    upstream.reply = choose(reply)
    schema = {
        "type": "object",
        "properties": {"seller": {"$ref": "#/$defs/s"}},
        "$defs": {"s": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
    (bench.path / "s.json").write_text(json.dumps(schema))
    bench.write([{"text": text}])
    bench.output = bench.path / "out.csv"
    bench.succeed("--prompt", "{{text}}", "--schema", "s.json", "--quote", "--split", "500", "--overlap", "0")
    (row,) = table(bench)
    city = json.loads(row["sources"])["seller"]["city"]
    assert (text[city["start"] : city["end"]], city["page"]) == ("seller is in Rome", 3)


async def test_a_call_has_the_sources_of_its_answers(upstream, closing):
    upstream.reply = answer(json.dumps(READ))
    service = closing(Service(openai_configuration(upstream.url)))
    schema = {"type": "object", "properties": {"number": {"type": "string"}, "total": {"type": "number"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    plan = service.config.with_sampling({"quote": True, "response_format": wanted})
    item = conversation_from_prompt(INVOICE, "a prompt")
    (found,) = await service.generate([item], Call(Facts(total=1)), config=plan)
    assert json.loads(found.text) == {"number": "R-7", "total": 12.5}
    assert {name: its["quote"] for name, its in leaves(found.sources)} == {
        "number": "Invoice R-7",
        "total": "EUR 12.50",
    }


async def test_a_call_without_a_schema_has_no_quotes(upstream, closing):
    service = closing(Service(openai_configuration(upstream.url)))
    item = conversation_from_prompt(INVOICE, "a prompt")
    plan = service.config.with_sampling({"quote": True})
    (found,) = await service.generate([item], Call(Facts(total=1)), config=plan)
    assert "`quote` needs answers with" in found.error.message
    assert not upstream.seen


async def test_a_schema_that_cannot_be_quoted_fails_its_request_alone(upstream, closing):
    service = closing(Service(openai_configuration(upstream.url)))
    schema = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    plan = service.config.with_sampling({"quote": True, "response_format": wanted})
    item = conversation_from_prompt(INVOICE, "a prompt")
    (found,) = await service.generate([item], Call(Facts(total=1)), config=plan)
    assert "refers to itself as a whole" in found.error.message
    assert not upstream.seen


@pytest.mark.parametrize(
    ("text", "quote"), [("x" * 5000, "x"), ("ab " * 2000, "b"), ("ab-\nc " * 2000, "b"), ("12 " * 2000, "2")]
)
def test_the_places_of_quotes_of_one_letter_are_counted(monkeypatch, text, quote):
    monkeypatch.setattr(quoting, "MOST_SEARCHED", 10_000_000)
    column = quoting._Column("", Text(text))
    texts = quoting.RowTexts([column])
    found = [texts.source(quote, "a value") for _ in range(200)]
    assert column.text.compared < 20_000, "each of 200 quotes has a thousand places or more"
    assert found[-1] == {"quote": quote, "is_missing": True}


async def test_quotes_are_not_looked_up_when_the_client_has_left(upstream, closing, monkeypatch):
    looked, may_go_on = [], threading.Event()

    def find(_: Text, quote: str, start: int = 0) -> None:
        looked.append((quote, start))
        may_go_on.wait()

    def divided(*given: Any) -> Any:
        try:
            return with_sources(*given)
        finally:
            has_ended.set()

    with_sources, has_ended = quoting._with_sources, threading.Event()
    monkeypatch.setattr(quoting, "_with_sources", divided)
    monkeypatch.setattr(Text, "find", find)
    upstream.reply = answer(json.dumps({"list": [{"quote": f"q{at}", "value": "v"} for at in range(100)]}))
    service = closing(Service(openai_configuration(upstream.url)))
    schema = {"type": "object", "properties": {"list": {"type": "array", "items": {"type": "string"}}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    plan = service.config.with_sampling({"quote": True, "response_format": wanted})
    item = conversation_from_prompt(INVOICE * 100, "a prompt")
    asking = asyncio.ensure_future(service.generate([item], Call(Facts(total=1)), config=plan))
    await until(lambda: bool(looked))
    asking.cancel()
    await asyncio.wait({asking})
    may_go_on.set()
    await until(has_ended.is_set)
    assert len(looked) == 1


async def test_instructions_of_a_developer_are_no_text(upstream, closing):
    upstream.reply = answer(json.dumps(READ))
    service = closing(Service(openai_configuration(upstream.url)))
    schema = {"type": "object", "properties": {"number": {"type": "string"}, "total": {"type": "number"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    plan = service.config.with_sampling({"quote": True, "response_format": wanted})
    said = [{"role": "developer", "content": INVOICE}, {"role": "user", "content": "EUR 12.50"}]
    item = conversation_from_messages(said, "a prompt")
    (found,) = await service.generate([item], Call(Facts(total=1)), config=plan)
    assert {name: its.get("is_missing", False) for name, its in leaves(found.sources)} == {
        "number": True,
        "total": False,
    }


def test_python_has_the_sources(bench, replying, upstream):
    replying({INVOICE: READ})
    result = promptmill.bulk(
        [{"text": INVOICE}],
        prompt="Read {{text}}",
        fields="number,total:number?",
        quote=True,
        base_url=upstream.url,
        model="m",
    )
    (row,) = result.rows
    assert row["sources"]["total"]["quote"] == "EUR 12.50"


@pytest.mark.parametrize(
    ("schema", "reply", "value"),
    [
        ({"properties": {"quote": {"type": "string"}, "value": {"type": "integer"}}},
         {"quote": {"quote": "q", "value": "a"}, "value": {"quote": "q", "value": 1}}, {"quote": "a", "value": 1}),
        ({"properties": {"seller": {"$ref": "#/$defs/s"}},
          "$defs": {"s": {"type": "object", "properties": {"city": {"type": "string"}}}}},
         {"seller": {"city": {"quote": "q", "value": "Rome"}}}, {"seller": {"city": "Rome"}}),
        ({"properties": {"n": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}},
         {"n": {"quote": "", "value": None}}, {"n": None}),
        ({"properties": {"l": {"type": "array", "uniqueItems": True, "items": {"enum": ["a", "b"]}}}},
         {"l": [{"quote": "q", "value": "a"}, "b"]}, {"l": ["a", "b"]}),
        ({"properties": {"n": {"type": "integer"}}}, {"n": {"quote": "q", "value": 123456789012345678901234567890}},
         {"n": 123456789012345678901234567890}),
    ],
)  # fmt: skip
def test_a_reply_is_divided_by_its_schema(schema, reply, value):
    whole = {"type": "object", **schema}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": whole}}
    form = QuotedForm.of(Sampling(response_format=wanted))
    found = form.answer(f"So: {json.dumps(reply)} .", lambda quote, value: None)
    assert found is not None
    assert found[0].startswith("So: ")
    assert json.loads(found[0][4:-2]) == value


def _form_of(**schema: Any) -> QuotedForm:
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object", **schema}}}
    return QuotedForm.of(Sampling(response_format=wanted))


def test_an_object_that_may_be_null_may_still_be_null():
    seller = {"anyOf": [{"$ref": "#/$defs/s"}, {"type": "null"}]}
    form = _form_of(properties={"seller": seller}, **{"$defs": {"s": {"type": "object", "properties": {"city": {}}}}})
    wanted = (form.sampling.response_format or {})["json_schema"]["schema"]["properties"]["seller"]
    assert wanted["anyOf"][1] == {"type": "null"}
    found = form.answer('{"seller": null}', lambda quote, value: None)
    assert found is not None
    assert json.loads(found[0]) == {"seller": None}


def test_further_fields_of_an_answer_stay_as_they_are():
    found = _form_of(properties={}, additionalProperties=True).answer(
        '{"net": {"value": 5}}', lambda quote, value: None
    )
    assert found is not None
    assert json.loads(found[0]) == {"net": {"value": 5}}


def test_a_schema_that_refers_to_itself_has_one_quote_for_each_turn():
    node = {"type": "object", "properties": {f"n{at}": {"$ref": "#/$defs/n"} for at in range(5)}}
    form = _form_of(properties={"root": {"$ref": "#/$defs/n"}}, **{"$defs": {"n": node}})
    assert len(json.dumps(form.sampling.response_format)) < 3000
    with pytest.raises(PromptmillError, match="refers to itself as a whole"):
        _form_of(properties={"kids": {"type": "array", "items": {"$ref": "#"}}})


def _levels(count: int, each: Callable[[dict[str, str]], dict[str, Any]]) -> dict[str, Any]:
    """Return definitions of which each refers to the next one."""
    named = {f"l{at}": each({"$ref": f"#/$defs/l{at + 1}"}) for at in range(count)}
    return {**named, f"l{count}": {"type": "string"}}


@pytest.mark.parametrize(
    ("count", "each"),
    [
        (13, lambda next_: {"type": "object", "properties": {"a": next_, "b": next_}}),
        (3, lambda next_: {"type": "object", "properties": {f"f{at}": next_ for at in range(30)}}),
        (13, lambda next_: {"allOf": [{"type": "object", "properties": {"a": next_, "b": next_}}]}),
        (13, lambda next_: {"type": "object", "properties": {"a": {"anyOf": [next_, {"type": "null"}]}, "b": next_}}),
        (1, lambda next_: {"type": "object", "properties": {f"f{at}": {"$ref": "#/$defs/l0"} for at in range(10_001)}}),
        (1, lambda next_: {"type": "object", "properties": {f"f{at}": {"type": "string"} for at in range(10_001)}}),
    ],
    ids=["twice", "wide", "in one alternative", "or null", "of itself", "without references"],
)
def test_a_schema_has_few_values_when_its_references_are_written_out(count, each):
    with pytest.raises(
        PromptmillError, match=r"cannot take a schema of more than 10,000 values or 2 MiB.*fewer fields"
    ):
        _form_of(properties={"root": {"$ref": "#/$defs/l0"}}, **{"$defs": _levels(count, each)})


def test_a_schema_stays_short_when_its_references_are_written_out():
    long = {"type": "object", "description": "x" * 10_000, "properties": {"a": {"type": "string"}}}
    with pytest.raises(PromptmillError, match="2 MiB, its references written out"):
        _form_of(properties={f"f{at}": {"$ref": "#/$defs/long"} for at in range(300)}, **{"$defs": {"long": long}})


@pytest.mark.thorough
def test_mutual_references_end_at_the_bound():
    named = {f"n{at}": {"type": "object", "properties": {}} for at in range(12)}
    for each in named.values():
        each["properties"] = {name: {"$ref": f"#/$defs/{name}"} for name in named}
    with pytest.raises(PromptmillError, match="more than 10,000 values"):
        _form_of(properties={"root": {"$ref": "#/$defs/n0"}}, **{"$defs": named})


_NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("sampling", "reply", "kept"),
    [
        (Sampling(response_format=asking_for(_NUMBER)), '{"n": {"quote": "R-7", "value": 7}}', {"content": [1]}),
        (Sampling(choices=("a", "b")), '{"quote": "R-7", "value": "a"}', None),
        (Sampling(choices=("a", "b")), "a", None),
    ],
    ids=["fields", "choice", "no quote"],
)
async def test_log_probabilities_stay_beside_quotes_unless_they_are_of_a_choice_and_its_quote(sampling, reply, kept):
    async def answer_one(request: Request, call: Call) -> Completion:
        return Completion(reply, logprobs={"content": [1]})

    request = Request(0, conversation_from_prompt(INVOICE, "a prompt"), sampling.model_copy(update={"quote": True}))
    outcome = await QuotedAnswers().wrap(answer_one)(request, Call())
    assert isinstance(outcome, Completion)
    assert outcome.text in {'{"n":7}', "a"}
    assert outcome.logprobs == kept
