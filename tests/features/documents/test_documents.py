"""Rows longer than the model's window: pieces, the merged answer, its sources; kills, failures and refusals."""

from __future__ import annotations

import csv
import itertools
import json
import re
from types import SimpleNamespace
from typing import Any

import pytest

import byte_model
import promptmill
from long_texts import document, reader
from page_content import column
from page_content import written as report_of
from promptmill.features.documents.cutting import Piece, count_of, pieces, tokens
from promptmill.features.documents.document import place_of
from promptmill.features.documents.merging import Found, PieceTexts, decided, merged, nullable, schema_of_conflicts
from replies import answer, choose, status

ASKED = ("--prompt", "List the parties. {{text}}")
PIECES = ("--split", "700", "--overlap", "0")
"""Pieces without a shared page: one failure is one piece."""


def write(bench: Any, *texts: str) -> None:
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    with bench.input.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "text"])
        rows.writerows(enumerate(texts))


def out(bench: Any) -> list[dict[str, str]]:
    with bench.output.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.thorough
def test_forty_facts_on_151_pages_are_all_found_once_with_their_pages(bench):
    text, pages = document(151, 40)
    bench.upstream.reply = reader()
    write(bench, text, "Party X pays 1 euros.")
    bench.succeed(*ASKED, "--fields", "party:list", "--split", "1500")
    long, short = out(bench)
    found = json.loads(long["party"])
    assert sorted(found) == sorted(pages)
    assert json.loads(long["sources"])["party"] == [f"page {pages[name]}" for name in found]
    assert (json.loads(short["party"]), short["sources"]) == (["X"], "")
    assert all(tokens(seen.prompt) < 1700 for seen in bench.upstream.seen)


@pytest.mark.thorough
@pytest.mark.parametrize("window", [2000, 500], ids=["whole pieces", "halves"])
def test_facts_across_the_ends_of_pages_are_found(bench, window):
    text, _ = document(30, 0)
    pages = text.split(".\n\f\n")
    text = pages[0] + "".join(
        f" Party C{at} pays\n\f\n{at}00 euros. {page.partition(chr(10))[2]}" for at, page in enumerate(pages[1:])
    )
    bench.upstream.reply = reader(window)
    write(bench, text)
    bench.succeed(*ASKED, "--fields", "party:list", "--split", "900")
    (row,) = out(bench)
    assert sorted(json.loads(row["party"])) == sorted(f"C{at}" for at in range(29))


@pytest.mark.thorough
def test_a_configured_dedupe_mixes_no_pieces_of_equal_rows(bench):
    text, places = document(12, 4)
    bench.upstream.reply = reader()
    write(bench, text, text)
    bench.succeed(*ASKED, "--fields", "party:list", "--split", "900", "--temperature", "0", dedupe=True)
    assert [sorted(json.loads(row["party"])) for row in out(bench)] == [sorted(places)] * 2


@pytest.mark.thorough
def test_a_row_that_is_too_long_names_the_option_that_reads_it(bench):
    text, places = document(12, 4)
    bench.upstream.reply = reader()
    write(bench, text, "Party X pays 1 euros.")
    asked = (*ASKED, "--fields", "party:list")
    assert "--split auto --again failed reads rows that are too long in pieces" in bench.run(*asked).stdout
    sent = len(bench.upstream.seen)
    bench.succeed(*asked, "--split", "auto", "--again", "failed")
    assert [sorted(json.loads(row["party"])) for row in out(bench)] == [sorted(places), ["X"]]
    assert all("Party X pays" not in seen.prompt for seen in bench.upstream.seen[sent:]), "its answer is paid"


@pytest.mark.parametrize("name", ["doc.txt", "doc.md", "doc.jsonl"])
def test_a_text_file_whose_lines_are_rows_is_named_with_the_option_that_makes_it_a_document(bench, name):
    bench.input, bench.output = bench.path / name, bench.path / "out.csv"
    line = json.dumps({"text": "A pays B."}) if name == "doc.jsonl" else "A pays B."
    bench.input.write_text(f"{line}\n{line}\n")
    fields = ("--fields", "party:list", *(("--prompt", "{{text}}") if name == "doc.jsonl" else ()))
    hint = f"Each line of {name} is a row. --each file makes it one document, which a prompt names {{{{content}}}}."
    for more in (("--split", "700"), ("--split", "700", "--each", "file"), ()):
        is_named = name == "doc.txt" and "--split" in more and "--each" not in more
        if "--each" not in more or name != "doc.jsonl":
            assert (hint in bench.run(*fields, *more, "--dry-run").stderr) == is_named
    if name == "doc.txt":
        bench.upstream.reply = answer('{"party": ["A"]}')
        assert hint in bench.run(*fields, "--split", "700").stderr
        bench.output = bench.path / "whole.csv"
        bench.succeed(*fields, "--split", "700", "--each", "file")
        assert [row["path"] for row in out(bench)] == ["doc.txt"]


@pytest.mark.thorough
def test_the_system_prompt_counts_as_part_of_a_piece(bench):
    text, places = document(12, 4)
    bench.upstream.reply = reader()
    write(bench, text)
    bench.succeed(*ASKED, "--fields", "party:list", "--system", "Be exact. " * 100, "--split", "900")
    (row,) = out(bench)
    assert sorted(json.loads(row["party"])) == sorted(places)
    sent = ["".join(message["content"] for message in seen.json["messages"]) for seen in bench.upstream.seen]
    _, *sizes = sorted(map(tokens, sent))  # the last piece is smaller
    assert all(500 < size <= 900 for size in sizes)


def test_auto_learns_the_window_from_the_refusals_of_the_first_row(bench):
    text, places = document(12, 5)
    bench.upstream.reply = reader()
    write(bench, text, text.replace("Page", "PAGE"))
    bench.succeed(*ASKED, "--fields", "party:list", "--split", "auto", concurrency=1)
    assert [sorted(json.loads(row["party"])) for row in out(bench)] == [sorted(places)] * 2
    refused = [seen for seen in bench.upstream.seen if len(seen.prompt) / 4 > 2000]
    assert len([seen for seen in refused if "PAGE" in seen.prompt]) <= 1, "the second row is cut as the first one was"


def check_is_reviewed(bench: Any) -> None:
    """Check that a difference of pieces is counted, and is the first reason of a review, with both places."""
    summary = bench.jobs(str(bench.output)).stdout
    assert "pieces    1 field in 1 row had different values; a review shows these rows first" in summary
    (row,) = promptmill.review(bench.output)
    assert row["why"].startswith("pieces differ; amount: 1.0 (page")
    assert row["why"].count("(page") >= 2


def test_values_that_differ_are_decided_by_a_last_request_or_as_the_user_says(bench):
    text, _ = document(12, 3, seed=3)
    said: list[float] = []

    def pick(seen: Any) -> Any:
        schema = seen.json["response_format"]["json_schema"]["schema"]
        if "gave different values" in seen.prompt:
            return answer(json.dumps({"amount": 7.0}))
        return answer(_amount(seen, schema))

    def _amount(seen: Any, schema: Any) -> str:
        assert "null" in json.dumps(schema), "a piece may lack the value"
        at = [name for name in ("P0", "P1", "P2") if f"Party {name} " in seen.prompt]
        found = float(f"{at[0][1]}00") + 1 if at else None
        said.append(found or 0)
        return json.dumps({"amount": found})

    bench.upstream.reply = choose(pick)
    write(bench, text)
    bench.succeed(*ASKED, "--fields", "amount:number", "--split", "1000")
    (row,) = out(bench)
    assert float(row["amount"]) == 7.0
    assert len(json.loads(row["sources"])["amount"]) >= 2
    last = bench.upstream.seen[-1].prompt
    assert "gave different values" in last
    assert '"from": "page' in last

    check_is_reviewed(bench)

    bench.output = bench.path / "first.csv"
    bench.succeed(*ASKED, "--fields", "amount:number", "--split", "1000", "--merge", "first")
    (row,) = out(bench)
    assert float(row["amount"]) in {1.0, 101.0, 201.0}
    check_is_reviewed(bench)
    bench.output = bench.path / "sum.csv"
    said.clear()
    bench.succeed(*ASKED, "--fields", "amount:number", "--split", "1000", "--merge", "sum")
    (row,) = out(bench)
    assert float(row["amount"]) == sum(said)


def test_a_label_is_voted_by_the_pieces_and_a_tie_is_asked(bench):
    text, _ = document(9, 0)

    def pick(seen: Any) -> Any:
        if "gave different values" in seen.prompt:
            return answer("sale")
        return answer("sale" if "Page 1." in seen.prompt or "Page 5." in seen.prompt else "rent")

    bench.upstream.reply = choose(pick)
    write(bench, text)
    bench.succeed(*ASKED, "--choices", "sale,rent,other", "--split", "500")
    (row,) = out(bench)
    assert row["answer"] == "rent"
    assert "page 1" not in json.loads(row["sources"])


@pytest.mark.thorough
def test_a_text_is_written_by_a_last_request_with_the_merge_prompt(bench):
    text, _ = document(6, 0)
    bench.upstream.reply = choose(
        lambda seen: answer("whole" if seen.prompt.startswith("Join:") else f"part {seen.number}")
    )
    write(bench, text)
    bench.succeed(*ASKED, "--split", "800", "--merge-prompt", "Join:")
    (row,) = out(bench)
    assert row["answer"] == "whole"
    assert json.loads(row["sources"])[0].startswith("page")
    assert "[page" in bench.upstream.seen[-1].prompt
    assert "part 1" in bench.upstream.seen[-1].prompt


@pytest.mark.thorough
def test_failed_pieces_are_named_the_others_kept_and_the_next_run_sends_only_the_failed(bench):
    text, places = document(20, 8)
    lost = next(iter(places.values()))
    bench.upstream.reply = choose(lambda seen: status(400) if f"Page {lost}." in seen.prompt else reader())
    write(bench, text)
    bench.run(*ASKED, "--fields", "party:list", *PIECES)
    (row,) = out(bench)
    assert row["error"].startswith("bad_request: 1 of ")
    assert f"page {lost}" in row["error"]
    kept = json.loads(row["party"])
    assert {name for name, page in places.items() if page != lost} >= {*kept} > set()
    assert json.loads(row["sources"])["party"] == [f"page {places[name]}" for name in kept]
    sent = len(bench.upstream.seen)
    bench.upstream.reply = reader()
    bench.succeed(*ASKED, "--fields", "party:list", *PIECES, "--again", "failed")
    (row,) = out(bench)
    assert (sorted(json.loads(row["party"])), row["error"]) == (sorted(places), "")
    assert len(bench.upstream.seen) == sent + 1


@pytest.mark.features("report")
@pytest.mark.parametrize("fields", [("--fields", "party:list"), ()])
def test_a_report_shows_what_the_other_pieces_of_a_failed_row_have(bench, fields):
    text, places = document(9, 4)
    bench.upstream.reply = choose(lambda seen: status(400) if "Page 9." in seen.prompt else reader())
    write(bench, text)
    bench.run(*ASKED, *fields, "--split", "700", "--report", "report.html")
    (row,) = out(bench)
    kept = row["party" if fields else "answer"]
    assert row["error"]
    assert any(name in kept for name in places)
    (shown,) = column(*report_of(bench.path / "report.html"), "party" if fields else "answer")
    assert json.loads(shown) == json.loads(kept) if fields else shown == kept


@pytest.mark.thorough
def test_a_row_with_a_failed_piece_asks_nothing_more_and_leaves_open_what_differs(bench):
    text, _ = document(9, 0)
    amounts = {1: 7, 5: 8}

    def pick(seen: Any) -> Any:
        if "Page 9." in seen.prompt:
            return status(400)
        amount = next((value for page, value in amounts.items() if f"Page {page}." in seen.prompt), None)
        return answer(json.dumps({"amount": amount, "party": ["Ann"]}))

    bench.upstream.reply = choose(pick)
    bench.write([{"text": text}])
    bench.run(*ASKED, "--fields", "amount:number,party:list", "--split", "500")
    (row,) = bench.answers()
    assert row["error"]["code"] == "bad_request"
    assert row["answer"] == {"amount": None, "party": ["Ann"]}
    assert [place.partition(", ")[0].split()[-1] for place in row["sources"]["amount"]] == ["1", "5"]
    assert not [seen for seen in bench.upstream.seen if "gave different values" in seen.prompt]


@pytest.mark.thorough
@pytest.mark.parametrize("split", ["800", "auto"])
def test_a_text_with_a_failed_piece_or_last_request_has_the_texts_of_the_pieces(bench, split):
    text, _ = document(9, 0)

    def reply(refused: str) -> Any:
        def pick(seen: Any) -> Any:
            if len(seen.prompt) > 4000:
                return status(400, code="context_length_exceeded")
            return status(400) if refused in seen.prompt else answer(f"part {seen.number}")

        return choose(pick)

    bench.upstream.reply = reply("Page 9.")
    write(bench, text)
    command = (*ASKED, "--split", split, "--overlap", "0", "--merge-prompt", "Join:")
    bench.run(*command)
    (row,) = out(bench)
    assert row["error"].startswith("bad_request: 1 of ")
    assert row["answer"].startswith("[page")
    assert "\npart " in row["answer"]
    parts = row["answer"].count("part ")
    bench.upstream.reply = reply("Join:")
    bench.run(*command, "--again", "failed")
    (row,) = out(bench)
    assert row["error"].startswith("bad_request: 127")
    assert row["answer"].count("part ") == parts + 1


@pytest.mark.thorough
def test_a_piece_that_is_refused_as_too_long_is_cut_in_two_once(bench):
    text, places = document(8, 6)
    bench.upstream.reply = reader(900)
    write(bench, text)
    bench.succeed(*ASKED, "--fields", "party:list", "--split", "1500")
    (row,) = out(bench)
    assert sorted(json.loads(row["party"])) == sorted(places)
    bench.upstream.reply, bench.output = reader(300), bench.path / "short.csv"
    bench.run(*ASKED, "--fields", "party:list", "--split", "1500")
    (row,) = out(bench)
    assert "pieces failed" in row["error"]
    assert "--split" not in row["party"]


def test_other_pieces_than_the_job_began_with_are_refused(bench):
    text, _ = document(5, 2)
    bench.upstream.reply = reader()
    write(bench, text)
    bench.succeed(*ASKED, "--fields", "party:list", "--split", "1500")
    assert "pieces of 1500" in bench.fail(*ASKED, "--fields", "party:list", "--split", "600")
    bench.succeed(*ASKED, "--fields", "party:list", "--split", "600", "--again", "all")


@pytest.mark.thorough
@pytest.mark.parametrize("is_file", [False, True])
def test_a_dry_run_counts_the_pieces_that_the_run_sends(bench, is_file):
    texts = [document(pages, 2, seed=pages)[0] for pages in (41, 12)]
    write(bench, *texts, "short")
    prompt = f"{'List the parties, each once. ' * 20}{{{{{'content' if is_file else 'text'}}}}}"
    if is_file:
        bench.input = bench.path / "texts"
        bench.input.mkdir()
        for at, text in enumerate([*texts, "short"]):
            (bench.input / f"{at}.txt").write_text(text)
    bench.upstream.reply = answer('{"party": []}')
    asked = ("--prompt", prompt, "--fields", "party:list", "--split", "1000", "--overlap", "100")
    said = bench.run(*asked, "--dry-run").stdout
    assert not bench.upstream.seen
    bench.succeed(*asked)
    assert len(bench.upstream.seen) > 30
    assert f"about {len(bench.upstream.seen)} requests, with the pieces" in " ".join(said.split())


@pytest.mark.thorough
@pytest.mark.parametrize(
    "asked",
    [
        (*ASKED, "--model", "test-model", "--model", "b"),
        ("--prompt", "short=Parties? {{text}}", "--prompt", f"long={'List the parties. ' * 99}{{{{text}}}}"),
    ],
    ids=["models", "prompts"],
)
def test_a_dry_run_counts_the_pieces_for_each_model_and_prompt(bench, asked):
    write(bench, document(20, 2)[0], "short")
    bench.upstream.reply = reader()
    asked = (*asked, "--fields", "party:list", "--split", "1000")
    said = bench.run(*asked, "--dry-run").stdout
    bench.succeed(*asked)
    assert f"about {len(bench.upstream.seen)} requests" in " ".join(said.split())


@pytest.mark.parametrize(
    ("options", "is_joined"),
    [
        ((), True),
        (("--merge", "first"), False),
        (("--fields", "party,amount:number"), True),
        (("--fields", "party,amount:number", "--merge", "first"), False),
        (("--fields", "amount:number", "--merge", "sum"), False),
        (("--choices", "a,b"), True),
    ],
)
def test_a_dry_run_counts_the_last_request_of_each_row_in_pieces(bench, options, is_joined):
    write(bench, document(12, 2)[0], "short", document(20, 2)[0])
    asked = (*ASKED, "--split", "1000", "--max-tokens", "50", "--set", "price={input: 1, output: 1}")
    first = json.loads(bench.run(*asked, "--merge", "first", "--dry-run", "--json").stdout)
    found = json.loads(bench.run(*asked, *options, "--dry-run", "--json").stdout)
    assert found["requests"] - first["requests"] == (2 if is_joined else 0)


@pytest.mark.thorough
def test_the_price_of_a_dry_run_includes_the_requests_that_join_answers(bench):
    write(bench, document(12, 2)[0], "short", document(20, 2)[0])
    bench.upstream.reply = answer("It says so. " * 30)
    asked = (*ASKED, "--split", "1000", "--max-tokens", "90", "--set", "price={input: 100, output: 1000}")
    found = json.loads(bench.run(*asked, "--dry-run", "--json").stdout)
    cost = json.loads(bench.run(*asked, "--json").stdout)["cost"]
    assert 0 <= found["requests"] - len(bench.upstream.seen) <= 1, "pieces follow the measured size of a token"
    assert cost <= found["most_cost"]
    again = json.loads(bench.run(*asked, "--dry-run", "--json").stdout)
    assert again["estimated_cost"] == pytest.approx(cost, rel=0.01)


def test_the_highest_price_of_a_dry_run_has_an_answer_for_each_piece(bench):
    write(bench, document(20, 2)[0])
    asked = (*ASKED, "--fields", "party:list", "--split", "1000", "--dry-run", "--json")
    priced = ("--set", "price={input: 0, output: 1000}", "--set", "sampling_params.max_tokens=1000")
    found = json.loads(bench.run(*asked, *priced).stdout)
    assert found["requests"] > 10
    retries = 1
    assert found["most_cost"] == pytest.approx(found["requests"] * (1 + retries))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--split", "10"], "50 to 16777216"),
        (["--split", "1000", "--overlap", "800"], "half a piece at most"),
        (["--overlap", "8"], "--split"),
        (["--split", "1000", "--set", "sampling_params.n=2"], "--split needs one answer to a request, but `sampling_p"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_request(bench, words, said):
    write(bench, "text")
    assert said in bench.fail(*ASKED, *words)
    assert not bench.upstream.seen


@pytest.mark.processes
@pytest.mark.parametrize("point", [f"{side}-write:{n}" for n in (1, 2, 4) for side in ("before", "after")])
def test_a_killed_job_sends_no_stored_piece_again(bench, point):
    texts = [document(20, 6, seed=seed)[0] for seed in range(3)]
    bench.upstream.reply = reader()
    write(bench, *texts)
    command = (*ASKED, "--fields", "party:list", "--split", "900")
    bench.start(*command, killed_at=point, concurrency=4).wait()
    bench.succeed(*command, concurrency=4)
    expected = [sorted(document(20, 6, seed=seed)[1]) for seed in range(3)]
    assert [sorted(json.loads(row["party"])) for row in out(bench)] == expected
    prompts = [seen.prompt for seen in bench.upstream.seen]
    # four in flight at the endpoint, and those whose answers were about to be stored
    assert len(prompts) - len({*prompts}) <= 16


def test_pieces_cover_the_text_within_their_size_and_repeat_the_overlap():
    text, _ = document(7, 3)
    for size in (60, 333, 2000):
        cut = list(pieces(text, size))
        assert "".join(piece.of(text) for piece in cut) == text
        assert all(tokens(piece.of(text)) <= size for piece in cut)
    cut = list(pieces(text, 300, 50))
    assert all(0 < before.end - after.start < 300 for before, after in itertools.pairwise(cut))


@pytest.mark.parametrize(("size", "overlap"), [(60, 30), (100, 50)])
def test_no_piece_lies_within_the_one_before(size, overlap):
    text = ("1.25 2.50 3.75 words words words\n\n" * 3 + "end of the chapter\f") * 30
    cut = list(pieces(text, size, overlap))
    assert all(before.end < after.end and before.start < after.start for before, after in itertools.pairwise(cut))
    assert all(tokens(piece.of(text)) <= size for piece in cut)


def test_a_piece_repeats_nothing_where_the_repeated_part_would_fill_it():
    text = "word " * 20 + "\u5b57" * 200
    cut = list(pieces(text, 50, 25))
    assert [cut[0].start, cut[-1].end] == [0, len(text)]
    assert all(before.end < after.end for before, after in itertools.pairwise(cut))


def test_numbers_are_added_as_they_are_written():
    schema = {"type": "object", "properties": {"a": {"type": "number"}, "n": {"type": "integer"}}}
    found = [Found(0, {"a": 0.1, "n": 10**40}), Found(1, {"a": 0.2, "n": 1}), Found(2, {"a": 1.1})]
    value = merged(schema, found, "sum", PieceTexts(lambda one: one.piece)).value
    assert value == {"a": 1.4, "n": 10**40 + 1}
    assert isinstance(value["n"], int)


def test_an_item_that_the_schema_lists_is_a_value():
    kinds = {"type": "string", "enum": ["none", "nuts"]}
    schema = {"type": "array", "items": kinds}
    assert merged(schema, [Found(0, ["none"]), Found(1, ["none"])], "ask", PieceTexts(lambda one: one.piece)).value == [
        "none"
    ]
    assert merged({"type": "array"}, [Found(0, ["none"]), Found(1, ["nuts"])], "ask", PieceTexts(str)).value == ["nuts"]


def test_equal_items_of_different_pieces_are_counted_in_a_note(bench):
    text, _ = document(20, 6)
    bench.upstream.reply = answer('{"items": [{"name": "pen"}, {"name": "ink"}]}')
    write(bench, text)
    item = {"type": "object", "properties": {"name": {"type": "string"}}}
    schema = {"type": "object", "properties": {"items": {"type": "array", "items": item}}}
    found = bench.succeed(*ASKED, "--schema", json.dumps(schema), "--split", "900", "--merge", "distinct")
    assert len(json.loads(out(bench)[0]["items"])) == 2
    left_out = 2 * (len(bench.upstream.seen) - 1)
    assert left_out > 0
    assert any(warning.startswith(f"Lists have {left_out} items less") for warning in found["warnings"])


def test_equal_objects_are_several_unless_they_stand_in_the_text_that_two_pieces_share(bench):
    """An invoice may have two equal lines; one that stands in the overlap is read twice."""
    lines = [f"Position {at}: {'bolt M8' if at in {3, 4, 40} else f'part {at}'} EUR 5" for at in range(60)]

    async def reply(exchange):
        found = re.findall(r"Position \d+: (.*) EUR", exchange.seen.prompt)
        await answer(json.dumps({"items": [{"name": name, "price": 5} for name in found]}))(exchange)

    bench.upstream.reply = reply
    write(bench, "\n".join(lines))
    item = {"type": "object", "properties": {"name": {"type": "string"}, "price": {"type": "number"}}}
    schema = {"type": "object", "properties": {"items": {"type": "array", "items": item}}}
    bench.succeed(*ASKED, "--schema", json.dumps(schema), "--split", "200", "--overlap", "40")
    assert len(bench.upstream.seen) > 3
    names = [each["name"] for each in json.loads(out(bench)[0]["items"])]
    assert names == [line.partition(": ")[2].removesuffix(" EUR 5") for line in lines]


def test_an_item_that_shares_a_word_with_the_overlap_is_another_one():
    schema = {"type": "object", "properties": {"items": {"type": "array"}}}
    first, second = {"item": "screws", "count": 3}, {"item": "screws", "count": 1200}
    found = [Found(0, {"items": [first, second]}), Found(1, {"items": [second, first]})]
    places = PieceTexts(lambda one: one.piece, lambda _one, _other: "screws, 1,200 pieces")
    assert merged(schema, found, "ask", places).value == {"items": [first, second, first]}


@pytest.mark.thorough
def test_a_piece_may_answer_null_for_one_of_several_texts(bench):
    text, _ = document(20, 6)
    kind = {"type": "string", "enum": ["lease", "sale"]}
    kinds = {"type": "object", "properties": {"kind": kind}, "required": ["kind"]}
    said = {True: '{"kind": "sale"}', False: '{"kind": null}'}
    bench.upstream.reply = choose(lambda seen: answer(said["Page 8." in seen.prompt]))
    write(bench, text)
    bench.succeed(*ASKED, "--schema", json.dumps(kinds), "--split", "900", "--set", "check_retries=0")
    assert out(bench)[0]["kind"] == "sale"


def test_values_are_merged_by_their_types():
    schema = {
        "type": "object",
        "properties": {
            "names": {"type": "array", "items": {"type": "string"}},
            "end": {"type": "string", "format": "date"},
            "kind": {"enum": ["unknown", "lease"]},
            "seller": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    found = [
        Found(0, {"names": ["Ann ", "Bo"], "end": "2030-01-01", "kind": "unknown", "seller": {"city": "Rome"}}),
        Found(1, {"names": ["ann", "Cy"], "end": "unknown", "kind": None, "seller": {"city": "rome "}}),
        Found(2, {"names": None, "end": "2031-01-01"}),
    ]
    whole = merged(schema, found, "ask", PieceTexts(lambda one: one.piece))
    assert whole.value["names"] == ["Ann ", "Bo", "Cy"]
    assert whole.sources["names"] == [0, 0, 1]
    assert (whole.value["kind"], whole.value["seller"]) == ("unknown", {"city": "Rome"})
    assert {path: [one.value for one in values] for path, values in whole.conflicts.items()} == {
        ("end",): ["2030-01-01", "2031-01-01"]
    }
    assert "null" in json.dumps(nullable(schema)["properties"]["end"])


@pytest.mark.thorough
async def test_a_call_of_the_tool_splits_by_a_number_or_auto(bench, tools):
    text, places = document(12, 6)
    bench.upstream.reply = reader()
    bench.write([{"text": text}])
    asked = {"input_file": "in.jsonl", "prompt": "List the parties. {{text}}", "fields": "party:list"}
    async with tools() as call:
        for split in (700, "auto"):
            made = await call("bulk_generate", **asked, output_file=f"out-{split}.jsonl", options={"split": split})
            found = await call("bulk_status", job_id=made["job_id"], wait_s=20, read="answers")
            assert sorted(json.loads(found["rows"][0]["answer"])["party"]) == sorted(places)
            assert found["rows"][0]["sources"]["party"][0].startswith("page")


def test_a_full_budget_ends_a_row_and_more_money_pays_for_its_other_pieces_alone(bench):
    texts = [document(20, 6, seed=seed) for seed in range(3)]
    bench.upstream.reply = reader()
    write(bench, *(text for text, _ in texts))
    price = ("--set", "price={input: 1000, output: 1000}", "--set", "sampling_params.max_tokens=20")
    command = (*ASKED, "--fields", "party:list", "--split", "900", *price)
    assert "no room" in bench.run(*command, "--max-cost", "8", concurrency=4).stdout
    status = bench.succeed(*command, "--max-cost", "100", concurrency=4)
    prompts = [seen.prompt for seen in bench.upstream.seen]
    assert len(prompts) == len({*prompts})
    tokens_sent = status["prompt_tokens"] + status["completion_tokens"]
    assert status["cost"] == pytest.approx(tokens_sent / 1000)
    assert status["retries"] == 0


@pytest.mark.thorough
def test_all_rows_again_sends_all_pieces_again(bench):
    text, _ = document(8, 3)
    bench.upstream.reply = reader()
    write(bench, text)
    command = (*ASKED, "--fields", "party:list", "--split", "900")
    bench.succeed(*command)
    sent = len(bench.upstream.seen)
    bench.succeed(*command, "--again", "all")
    assert len(bench.upstream.seen) == 2 * sent


def test_all_rows_again_sends_all_pieces_of_a_failed_row_and_then_only_those_that_failed(bench):
    text, _ = document(8, 3)
    bench.upstream.reply = choose(lambda seen: status(400) if "Page 8." in seen.prompt else reader())
    write(bench, text)
    command = (*ASKED, "--fields", "party:list", "--split", "900", "--overlap", "0")
    bench.run(*command)
    sent = len(bench.upstream.seen)
    bench.run(*command, "--again", "all")
    assert len(bench.upstream.seen) == 2 * sent
    bench.run(*command, "--again", "failed")
    assert len(bench.upstream.seen) == 2 * sent + 1


@pytest.mark.thorough
def test_the_requests_for_refused_pieces_count(bench):
    text, _ = document(8, 6)
    bench.upstream.reply = reader(900)
    write(bench, text)
    for split in ("1500", "auto"):
        bench.output = bench.path / f"{split}.csv"
        bench.upstream.seen.clear()
        status = bench.succeed(*ASKED, "--fields", "party:list", "--split", split)
        assert (status["requests"], status["retries"]) == (len(bench.upstream.seen), 0)


def test_a_prompt_without_a_place_is_no_part_of_the_document(bench):
    bench.write([{"prompt": document(8, 3)[0]}])
    bench.upstream.reply = reader()
    bench.succeed("--fields", "party:list", "--split", "900")
    bench.output = bench.path / "loop.jsonl"
    bench.write([{"text": document(8, 3)[0]}])
    bench.succeed("--prompt", "{% if true %}{{ text | upper }}{% endif %}", "--fields", "party:list", "--split", "900")


def test_whole_requests_are_refused(bench):
    body = {"model": "test-model", "messages": [{"role": "user", "content": "a"}]}
    bench.write([{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}])
    assert "complete requests" in bench.run("--split", "900").stdout + bench.run("--split", "900").stderr
    assert not bench.upstream.seen


def test_pieces_of_writing_without_an_alphabet_repeat_the_overlap_and_no_more():
    text = "\u5408\u540c\u6761\u6b3e\u3002" * 400
    cut = list(pieces(text, 100, 50))
    assert len(cut) < 3 * len(list(pieces(text, 100)))
    assert all(after.start > before.start + 20 for before, after in itertools.pairwise(cut))


def test_the_estimate_of_tokens_counts_digits_and_marks_in_tables():
    table = "\n".join(f"{n * 7919 % 100_000}.{n % 100:02d},{n * 104_729 % 1_000_000}" for n in range(200))
    of_a_digit_each = sum(letter.isdigit() or letter in ",.\n" for letter in table)
    assert of_a_digit_each * 0.9 <= tokens(table) <= of_a_digit_each * 1.2
    assert all(tokens(piece.of(table)) <= 300 for piece in pieces(table, 300))


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1", "1"),
        ("1", 1),
        ("128.50", 128.5),
        ("EUR 128,50.", 128.5),
        ("1,250", 1250),
        ("$1,250.00", 1250.0),
        ("1.250,00", 1250),
        ("1\u202f250", 1250),
        ("1'250", 1250),
        ("12 500", 12500),
        ("12\u2009500,50", 12500.5),
        ("12 500", "12 500"),
        ("-5", -5),
        ("Ann  LEE", "ann lee"),
        ("word " * 40, "word " * 31 + "made up"),
        ("of 3 chairs", {"many": 1, "what": "Chairs"}),
    ],
)
def test_a_value_is_found_where_the_document_writes_it_in_its_own_way(written, value):
    text = f"In 2021 the 1st of 12.5% and 128.505.\fOf {written} each."
    assert place_of(text, Piece(0, len(text)), value) == "page 2"


@pytest.mark.parametrize(
    "value", ["202", 202, 28.5, 12850, 1.25, 500, "500", "12", "250", 12, True, None, "", {}, "12.5.2021"]
)
def test_a_part_of_a_word_or_number_is_no_place_of_a_value(value):
    text = "In 2021 all was true.\fOf 128.50 or 1,250.00 or 28.505 each, 12 500 in all."
    mark = "" if value is None or value is True else ", in other words"
    assert place_of(text, Piece(0, len(text)), value) == f"pages 1 to 2{mark}"


@pytest.mark.parametrize(("written", "value"), [("1,250 items\fEUR 1.25", 1.25), ("1.250 kg\fEUR 1,250.00", 1250)])
def test_a_number_with_one_meaning_goes_before_one_with_two(written, value):
    assert place_of(written, Piece(0, len(written)), value) == "page 2"


def test_a_text_that_means_no_value_is_kept_where_no_piece_has_another():
    schema = {"type": "object", "properties": {"allergies": {"type": "string"}}}
    same = [Found(0, {"allergies": "none"}), Found(1, {"allergies": None})]
    assert merged(schema, same, "ask", PieceTexts(lambda one: one.piece)).value == {"allergies": "none"}
    other = [*same, Found(2, {"allergies": "nuts"})]
    assert merged(schema, other, "ask", PieceTexts(lambda one: one.piece)).value == {"allergies": "nuts"}


def test_names_with_stops_and_shared_definitions_are_decided():
    schema = {
        "type": "object",
        "properties": {"net.sum": {"$ref": "#/$defs/amount"}, "of": {"type": "object", "properties": {"a": {}}}},
        "$defs": {"amount": {"type": "number"}},
    }
    found = [Found(at, {"net.sum": at, "of": {"a": at}}) for at in range(2)]
    whole = merged(schema, found, "ask", PieceTexts(lambda one: one.piece))
    asked = schema_of_conflicts(schema, whole.conflicts)
    assert (set(asked["properties"]), asked["$defs"]) == ({"net.sum", "of.a"}, schema["$defs"])
    assert decided(whole, {"net.sum": 7, "of.a": 8}) == {"net.sum": 7, "of": {"a": 8}}


@pytest.mark.thorough
def test_an_engine_reads_pieces_of_the_size_that_its_own_tokenizer_counts(bench):
    byte_model.save(bench.path / "model")  # a token for each byte, four times as many as the estimate; a window of 512
    bench.write([{"text": "The rent is due each May. " * 60}, {"text": "The rent is due."}])
    engine = {"backend": "hf", "backend_configs": {"hf": {"model_name_or_path": str(bench.path / "model")}}}
    config = bench.path / "engine.yaml"
    config.write_text(json.dumps(engine))
    command = bench.command("--prompt", "{{text}}", "--choices", "rent,sale", "--split", "300")
    command[command.index("--config") + 1] = str(config)
    done = bench.here(command)
    assert done.returncode == 0, done.stdout + done.stderr
    long, short = bench.answers()
    assert {long["error"], short["error"], short["sources"]} == {None}
    assert long["usage"]["prompt_tokens"] > 60 * 26
    assert all(place.startswith("characters") for place in long["sources"])


def test_the_tokenizer_of_a_model_in_the_cache_of_the_hub_counts_and_other_models_have_the_estimate(
    tmp_path, monkeypatch
):
    tokenizers = pytest.importorskip("tokenizers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--acme--words"
    (model / "snapshots/1").mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs/main").write_text("1")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(model / "snapshots/1/tokenizer.json"))

    def config(name: str, *, is_engine: bool = True) -> Any:
        return SimpleNamespace(model=name, record=SimpleNamespace(is_engine=is_engine))

    text = "The rent is due " * 100
    assert count_of(config("acme/words"))(text) == 400
    others = [config("acme/words", is_engine=False), config("acme/b"), config("no name"), config(__file__)]
    assert [count_of(other)(text) for other in others] == [tokens(text)] * 4


def test_a_later_run_reads_pieces_of_the_size_that_the_first_one_learned(bench):
    texts = [document(12, 5)[0], document(17, 9, seed=4)[0]]
    bench.upstream.reply = choose(lambda seen: status(400) if _is_page_7(seen.prompt, texts[1]) else reader())
    write(bench, *texts)
    command = (*ASKED, "--fields", "party:list", "--split", "auto")
    bench.run(*command, concurrency=1)
    assert [bool(row["error"]) for row in out(bench)] == [False, True]
    sent = len(bench.upstream.seen)
    bench.upstream.reply = reader()
    bench.succeed(*command, "--again", "failed")
    assert sorted(json.loads(out(bench)[1]["party"])) == sorted(document(17, 9, seed=4)[1])
    assert len(bench.upstream.seen) == sent + 1


def _is_page_7(prompt: str, text: str) -> bool:
    page = text.split("\f")[6].strip()
    return len(prompt) < 8000 and page in prompt
