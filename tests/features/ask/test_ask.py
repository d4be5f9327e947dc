"""Jobs that ask several questions about each row, each its own column."""

from __future__ import annotations

import csv
import json
from collections import Counter
from typing import Any, cast

import pytest

import promptmill
from decision_replies import decides, likeliest, shares
from promptmill.jobs.store import statistics
from replies import answer, choose, late, status

TONE = ("--ask", "Tone:good|bad!=Is it praise? {{mail}}")
TOPIC = ("--ask", "Topic=Which topic = what? {{mail}}")
STARS = ("--ask", "Stars:low<high!=How many stars? {{mail}}")
WHY = ("--ask", "Why=Why is it {{Tone}}? {{mail}}")
ALL = (*TONE, *TOPIC, *STARS, *WHY)
NAMES = ["Tone", "Topic", "Stars", "Why"]
PRICE = ("--set", "price={input: 1000000, output: 0}", "--set", "sampling_params.max_tokens=50")
DECIDES = {"dialect": "systemone", "model_name": "jev-1.14.0"}


def _question(seen: Any) -> str:
    """Return the first word of the question in a request."""
    return str(seen.prompt.rpartition("\n\n")[2].split()[0])


def _replied(seen: Any) -> Any:
    """Answer each question in its form."""
    wanted = seen.json.get("response_format")
    if wanted is None:
        return answer(f"because {seen.prompt.rpartition(' ')[2]}")
    values = {"Tone": "bad", "Stars": "high", "Topic": "mails", "amount": 5}
    return answer(json.dumps({name: values[name] for name in wanted["json_schema"]["schema"]["properties"]}))


@pytest.fixture
def asked(bench: Any) -> Any:
    """A bench whose endpoint answers all questions."""
    bench.upstream.reply = choose(_replied)
    return bench


def table(bench: Any, rows: int = 6, **others: str) -> None:
    bench.input = bench.path / "in.csv"
    with bench.input.open("w", newline="") as file:
        csv.writer(file).writerows([["mail", *others], *([f"m{at}", *others.values()] for at in range(rows))])


def sent(bench: Any) -> Counter[str]:
    """Return the number of requests by the first word of their question."""
    return Counter(map(_question, bench.upstream.seen))


def test_each_question_is_a_column_and_an_answer_goes_into_a_later_question(asked):
    table(asked)
    found = asked.succeed(*ALL)
    assert sent(asked) == {"Is": 6, "Which": 6, "How": 6, "Why": 6}
    assert (found["done"], found["requests"]) == (6, 24)
    for at, row in enumerate(asked.answers()):
        assert row["answer"] == {"Tone": "bad", "Topic": f"because m{at}", "Stars": "high", "Why": f"because m{at}"}
        assert row["error"] is None
    later = [seen.prompt for seen in asked.upstream.seen if _question(seen) == "Why"]
    assert sorted(later) == [f"Why is it bad? m{at}" for at in range(6)]
    words = sum(len(seen.prompt.split()) for seen in asked.upstream.seen)
    assert found["prompt_tokens"] == words
    assert asked.succeed(*ALL)["done"] == 6
    assert len(asked.upstream.seen) == 24


def test_a_table_has_a_column_for_each_question(asked):
    table(asked, 2)
    asked.output = asked.path / "out.csv"
    asked.succeed(*ALL)
    with asked.output.open(newline="") as file:
        header, first, _ = csv.reader(file)
    assert header[:5] == ["mail", *NAMES]
    assert first[:5] == ["m0", "bad", "because m0", "high", "because m0"]


def test_questions_without_columns_are_fields_of_one_request(asked):
    table(asked, 3)
    shared = ("--ask", "Tone:good|bad=Is it praise?", "--ask", "amount:number=Which amount?")
    asked.succeed("--prompt", "Mail: {{mail}}", *shared)
    assert len(asked.upstream.seen) == 3
    fields = asked.upstream.seen[0].json["response_format"]["json_schema"]["schema"]["properties"]
    assert fields["Tone"] == {"enum": ["good", "bad", None], "description": "Is it praise?"}
    assert asked.answers()[0]["answer"] == {"Tone": "bad", "amount": 5}
    assert asked.folder.spec.parts == {}


def test_the_prompt_of_the_questions_may_be_in_a_file(asked):
    table(asked, 1)
    (asked.path / "p.txt").write_text("Mail: {{mail}}\n")
    shared = ("--prompt-file", "p.txt", "--ask", "Tone:good|bad=Is it praise?", "--ask", "amount:number=Which?")
    assert asked.run(*shared, "--together", "2", "--dry-run").returncode == 0
    asked.succeed(*shared, "--ask", "Why=Why {{Tone}}?")
    assert [seen.prompt for seen in asked.upstream.seen] == ["Mail: m0", "Mail: m0\n\nWhy bad?"]


def test_files_are_asked_about_as_a_whole(asked):
    (asked.path / "mails").mkdir()
    for name in ("a", "b"):
        (asked.path / "mails" / f"{name}.txt").write_text(f"text {name}")
    asked.input, asked.output = asked.path / "mails", asked.path / "out.csv"
    asked.succeed("--ask", "Tone:good|bad!=Is it? {{content}}", "--ask", "Why=Why is it {{Tone}}? {{content}}")
    assert sorted(seen.prompt for seen in asked.upstream.seen)[2:] == [f"Why is it bad? text {n}" for n in "ab"]


def test_a_refused_key_ends_the_job_with_the_endpoints_error(asked):
    table(asked, 4)
    asked.upstream.reply = status(401, "no key")
    said = asked.fail(*ALL, code=1)
    assert "Tone:" not in said
    asked.upstream.reply = choose(_replied)
    asked.succeed(*ALL)


def test_a_later_question_without_columns_follows_the_prompt(asked):
    table(asked, 2)
    shared = ("--ask", "Tone:good|bad=Is it praise?", "--ask", "amount:number=Which?", "--ask", "Why=Why {{Tone}}?")
    asked.succeed("--prompt", "Mail: {{mail}}", *shared, "--system", "Be kind.")
    assert len(asked.upstream.seen) == 4
    first, last = (next(s for s in asked.upstream.seen if ("Why" in s.prompt) == is_last) for is_last in (False, True))
    assert first.prompt.startswith("Mail: m")
    assert last.prompt.endswith("\n\nWhy bad?")
    assert [message["content"].split("\n")[0][:7] for message in last.json["messages"]] == ["Be kind", "Mail: m"]
    assert "amount" in first.json["messages"][0]["content"]
    assert asked.answers()[0]["answer"] == {"Tone": "bad", "amount": 5, "Why": "because bad?"}


def test_expressions_and_columns_with_blanks_may_be_in_questions(asked):
    table(asked, 1, **{"mail body": "hello"})
    asked.succeed("--ask", "A=One {{ mail | upper }} end", "--ask", "B=Two {{A}}, {{mail body}} end")
    assert [seen.prompt for seen in asked.upstream.seen] == ["One M0 end", "Two because end, hello end"]


def test_an_answer_is_put_in_as_it_is(asked):
    asked.upstream.reply = answer("{{mail}} \u2063[A]\u2063 and {% if %}")
    table(asked, 1)
    asked.succeed("--ask", "A=One {{mail}}", "--ask", "B=Two {{A}} {{mail}}")
    assert asked.upstream.seen[1].prompt == "Two {{mail}} \u2063[A]\u2063 and {% if %} m0"


def test_a_cell_with_the_signs_of_a_prompt_changes_no_question(asked):
    asked.write([{"mail": "\n\n\u2063\n\n\u2063[A]\u2063"}, {"mail": "\u2063[B]\u2063"}, {"mail": "m2"}])
    asked.succeed("--ask", "A=One {{mail}}", "--ask", "B=Two {{A}} {{mail}}")
    assert sum("[A]" in seen.prompt for seen in asked.upstream.seen) == 2
    assert asked.run("--ask", "A=One {{mail|upper}}", "--ask", "B=Two {{A}} {{mail}}", "--again", "all").returncode == 1
    assert ["invisible sign" in (row["error"] or {}).get("message", "") for row in asked.answers()] == [
        True,
        True,
        False,
    ]


def test_a_cell_with_the_mark_of_an_answer_gets_no_answer(asked):
    questions = ("--ask", "A=One {{id}}", "--ask", "B=Two {{A}} {{mail|upper}}")
    asked.write([{"id": 1, "mail": "\u2063[A]\u2063"}, {"id": 2, "mail": "m"}])
    assert asked.run(*questions).returncode == 1
    assert [seen.prompt for seen in asked.upstream.seen] == ["One 2", "Two because 2 M"]
    assert "invisible sign" in asked.answers()[0]["error"]["message"]
    asked.upstream.seen.clear()
    asked.write([{"id": 1, "mail": "m"}, {"id": 2, "mail": "m"}])
    asked.succeed("--ask", "A=One {{id}}", "--ask", "B=Two{% if id == 2 %} {{A}}{% endif %} {{mail}}", "--again", "all")
    assert {seen.prompt for seen in asked.upstream.seen} == {"One 1", "One 2", "Two m", "Two because 2 m"}


def _refuses(*words: str) -> Any:
    return choose(lambda seen: status(400, "no") if _question(seen) in words else _replied(seen))


@pytest.mark.thorough
def test_a_failed_question_keeps_the_others_and_only_it_is_asked_again(asked):
    table(asked, 3)
    asked.upstream.reply = _refuses("Which")
    assert asked.run(*ALL).returncode == 1
    for row in asked.answers():
        assert [*row["answer"]] == ["Tone", "Stars", "Why"]
        assert row["error"]["code"] == "bad_request"
        assert row["error"]["message"].startswith("Topic: ")
    before = sum(record.prompt_tokens for record in asked.records())
    asked.upstream.reply = choose(_replied)
    asked.upstream.seen.clear()
    found = asked.succeed(*ALL, "--again", "failed")
    assert sent(asked) == {"Which": 3}
    assert [*asked.answers()[0]["answer"]] == NAMES
    assert found["prompt_tokens"] == before + sum(len(seen.prompt.split()) for seen in asked.upstream.seen)


@pytest.mark.thorough
def test_a_question_that_waits_for_a_failed_one_is_asked_when_that_is_answered(asked):
    table(asked, 2)
    asked.upstream.reply = _refuses("Is")
    assert asked.run(*ALL).returncode == 1
    assert "Why" not in sent(asked)
    assert [*asked.answers()[0]["answer"]] == ["Topic", "Stars"]
    asked.upstream.reply = choose(_replied)
    asked.upstream.seen.clear()
    asked.succeed(*ALL, "--again", "failed")
    assert sent(asked) == {"Is": 2, "Why": 2}


def test_again_all_asks_every_question_of_failed_rows(asked):
    table(asked, 2)
    asked.upstream.reply = _refuses("Which")
    assert asked.run(*ALL).returncode == 1
    asked.upstream.reply = choose(_replied)
    asked.upstream.seen.clear()
    asked.succeed(*ALL, "--again", "all")
    assert sent(asked) == {"Is": 2, "Which": 2, "How": 2, "Why": 2}


def test_an_edited_question_or_row_asks_its_rows_again(asked):
    table(asked, 4)
    asked.succeed(*ALL)
    asked.upstream.seen.clear()
    table(asked, 5)
    asked.succeed(*ALL)
    assert sent(asked) == {"Is": 1, "Which": 1, "How": 1, "Why": 1}
    edited = (*TONE, *TOPIC, *STARS, "--ask", "Why=Why, then, is it {{Tone}}? {{mail}}")
    said = asked.fail(*edited)
    assert "The prompt of job" in said
    asked.upstream.seen.clear()
    asked.succeed(*edited, "--again", "all")
    assert sum(sent(asked).values()) == 20


def answers(bench: Any) -> list[dict[str, Any]]:
    return [row["answer"] for row in bench.answers()]


def test_a_new_question_asks_only_itself_and_keeps_all_answers(asked):
    table(asked, 30)
    paid = asked.succeed(*TONE, *TOPIC, *PRICE)["cost"]
    before = answers(asked)
    asked.upstream.reply = choose(lambda seen: answer(json.dumps({"Stars": "low"})))
    dry = json.loads(asked.run(*STARS, *TONE, *TOPIC, *PRICE, "--dry-run", "--json").stdout)
    assert (dry["taken_in_part"], dry["requests"], dry["answers"]) == (30, 30, 30)
    said, found = asked.run(*STARS, *TONE, *TOPIC, *PRICE), asked.status()
    assert sent(asked) == {"Is": 30, "Which": 30, "How": 30}
    assert answers(asked) == [{"Stars": "low", **row} for row in before]
    assert "30 rows keep some answers; only new questions are asked." in said.stdout
    assert (found["answered"], found["failed"], found["requests"]) == (30, 0, 90)
    assert found["cost"] > paid
    assert not any(record.extras.get("changed") for record in asked.records())
    asked.succeed(*TOPIC, *TONE, *STARS)
    assert len(asked.upstream.seen) == 90, "another order asks nothing"


def test_a_row_with_a_new_question_has_what_was_paid_for_all_questions(asked):
    table(asked, 5)
    for sent_rows, more in ((10, ()), (15, STARS), (20, (*STARS, *WHY))):
        found, rows = asked.succeed(*TONE, *TOPIC, *more, *PRICE), asked.answers()
        assert sum(row["cost"] for row in rows) == pytest.approx(found["cost"])
        assert sum(row["usage"]["prompt_tokens"] for row in rows) == found["prompt_tokens"]
        assert (found["requests"], found["retries"], len(asked.upstream.seen)) == (sent_rows, 0, sent_rows)
        with asked.folder.reading() as store:
            assert statistics.cost(store) == pytest.approx(found["cost"]), "no cost counts twice"


def test_equal_rows_keep_an_answer_each_for_a_new_question(asked):
    asked.upstream.reply = choose(lambda seen: answer(f"answer {seen.number}"))
    asked.write([{"mail": "same"}] * 4)
    asked.succeed(*TOPIC)
    before = answers(asked)
    asked.write([{"mail": "other"}, *[{"mail": "same"}] * 4])
    asked.succeed(*TOPIC, "--ask", "Why=Why? {{mail}}")
    assert [{"Topic": row["Topic"]} for row in answers(asked)[1:]] == before
    assert sent(asked) == {"Which": 5, "Why?": 5}


def test_a_new_question_may_use_answers_that_exist(asked):
    table(asked, 3)
    asked.succeed(*TONE, *TOPIC)
    table(asked, 4)
    asked.succeed(*TONE, *TOPIC, *WHY)
    assert sent(asked) == {"Is": 4, "Which": 4, "Why": 4}
    assert [*answers(asked)[0]] == ["Tone", "Topic", "Why"]


@pytest.mark.thorough
@pytest.mark.parametrize("point", ["after-write:3", "before-write:5", "after-write:9", "after-put:6"])
def test_a_kill_while_a_new_question_is_asked_loses_no_answer(asked, point):
    table(asked, 30)
    asked.succeed(*TONE, *TOPIC)
    before = answers(asked)
    asked.upstream.reply = late(0.03, choose(_replied))
    asked.run(*TONE, *TOPIC, *STARS, killed_at=point, concurrency=4)
    asked.succeed(*TONE, *TOPIC, *STARS)
    assert answers(asked) == [{**row, "Stars": "high"} for row in before]
    counts = sent(asked)
    assert (counts["Is"], counts["Which"]) == (30, 30)
    assert counts["How"] <= 30 + 2 * 4


def test_a_removed_or_edited_question_is_refused_and_another_output_takes_the_others(asked):
    table(asked, 30)
    asked.succeed(*TONE, *TOPIC, *STARS)
    before, own, count = answers(asked), asked.output, len(asked.upstream.seen)
    edited = ("--ask", "Tone:good|bad!=Is it kind? {{mail}}")
    for more in ((*TONE, *TOPIC), (*edited, *TOPIC, *STARS), (*edited, *TOPIC, *STARS, *WHY)):
        assert f"With another output, --from {own} asks only what is new." in asked.fail(*more)
    assert asked.run(*TONE, *TOPIC, *STARS, *WHY, "--temperature", "0.5").returncode == 2
    assert (answers(asked), len(asked.upstream.seen)) == (before, count)
    asked.output = asked.path / "other.jsonl"
    asked.upstream.seen.clear()
    dry = json.loads(asked.run(*TONE, *TOPIC, "--from", str(own), "--dry-run", "--json").stdout)
    assert (dry["taken"], dry["requests"], dry["answers"]) == (30, 0, 0)
    said = asked.run(*edited, *TOPIC, *STARS, *WHY, "--from", str(own))
    assert sent(asked) == {"Is": 30, "Why": 30}, "a question that uses the edited one is asked, too"
    assert "30 rows keep some answers" in said.stdout
    assert "another sampling" not in said.stdout
    asked.output, asked.upstream.seen[:] = asked.path / "fewer.jsonl", []
    asked.succeed(*TOPIC, *TONE, "--from", str(own))
    assert [*answers(asked)[0].items()] == [("Topic", before[0]["Topic"]), ("Tone", "bad")]
    assert not asked.upstream.seen


@pytest.mark.thorough
def test_a_row_that_failed_keeps_its_answers_for_new_questions(asked):
    table(asked, 3)
    asked.upstream.reply = _refuses("Which")
    assert asked.run(*TONE, *TOPIC).returncode == 1
    asked.upstream.reply = choose(_replied)
    asked.upstream.seen.clear()
    asked.succeed(*TONE, *TOPIC, *STARS)
    assert sent(asked) == {"Which": 3, "How": 3}


@pytest.mark.parametrize("point", ["after-write:3", "before-write:5", "after-write:9"])
def test_after_a_kill_nothing_that_was_answered_is_paid_again(asked, point):
    table(asked, 30)
    asked.upstream.reply = late(0.03, choose(_replied))
    first = asked.run(*ALL, *PRICE, killed_at=point, concurrency=4)
    assert first.returncode != 0
    found = asked.succeed(*ALL, *PRICE)
    assert found["done"] == 30
    assert all([*row["answer"]] == NAMES for row in asked.answers())
    assert 120 <= len(asked.upstream.seen) <= 120 + 2 * 4
    assert found["cost"] == pytest.approx(sum(len(seen.prompt.split()) for seen in asked.upstream.seen), rel=0.05)
    with asked.folder.reading() as store:
        assert store.read("SELECT name FROM job WHERE name GLOB 'asked *'") == []


def test_a_budget_holds_and_a_larger_one_asks_only_what_is_missing(asked):
    table(asked, 12)
    most = 150
    done = asked.run(*ALL, *PRICE, "--max-cost", str(most), concurrency=2)
    assert done.returncode != 0
    spent = asked.status()["cost"]
    assert 0 < spent <= most
    found = asked.succeed(*ALL, *PRICE, "--max-cost", "100000")
    assert sent(asked) == {"Is": 12, "Which": 12, "How": 12, "Why": 12}
    assert found["cost"] == pytest.approx(sum(len(seen.prompt.split()) for seen in asked.upstream.seen))


def test_a_dry_run_shows_all_questions_and_counts_their_requests(asked):
    table(asked, 3)
    asked.output = asked.path / "out.csv"
    done = asked.run(*ALL, *PRICE, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["rows"], found["answers"], found["requests"]) == (3, 3, 12)
    shown = [prompt.rpartition("\n\n")[2] for prompt in found["prompts"]]
    assert shown[2:] == ["How many stars? m0", "Why is it {{Tone}}? m0"]
    assert found["columns"]["added"][:4] == NAMES
    assert found["estimated_cost"] == pytest.approx(found["estimated_prompt_tokens"])
    assert asked.upstream.seen == []


def deciding(bench: Any) -> Any:
    bench.upstream.reply = decides()
    bench.settings |= DECIDES
    return bench


def test_a_deciding_model_gets_closed_questions_about_the_same_columns_in_one_request(bench):
    deciding(bench)
    table(bench, 4)
    third = ("--ask", "Urgent:boolean!=Does it need a reply today? {{mail}}")
    found = bench.succeed(*TONE, *STARS, *third)
    assert len(bench.upstream.seen) == found["requests"] == 4
    body = bench.upstream.seen[0].json
    assert [*body["questions"]] == ["Tone", "Stars", "Urgent"]
    assert "Is it praise?" in body["questions"]["Tone"]["instructions"]
    assert "Is it praise?" not in body["questions"]["Stars"]["instructions"]
    for at, row in enumerate(bench.answers()):
        chances = shares(["good", "bad"], f"m{at}", "Tone")
        assert row["answer"]["Tone"] == likeliest(chances)
        assert row["probabilities"]["Tone"] == chances
        assert row["scores"].keys() == {"Stars"}


def test_a_deciding_model_gets_an_earlier_answer_beside_the_column(bench):
    deciding(bench)
    table(bench, 1)
    bench.succeed(*TONE, "--ask", "Fair:yes|no!=Is {{Tone}} fair? {{mail}}")
    first, second = (seen.json for seen in bench.upstream.seen)
    assert first["state"] == "m0"
    assert second["state"] == {"Tone": bench.answers()[0]["answer"]["Tone"], "mail": "m0"}
    assert "`Tone` fair?" in second["questions"]["Fair"]["instructions"]


def test_a_declined_question_of_a_deciding_model_keeps_the_others_with_their_probabilities(bench):
    deciding(bench)
    bench.upstream.reply = decides(lambda body: body | {"answers": {"Tone": body["answers"]["Tone"]}})
    table(bench, 1)
    assert bench.run(*TONE, *STARS).returncode == 1
    (row,) = bench.answers()
    assert [*row["answer"]] == ["Tone"]
    assert [*row["probabilities"]] == ["Tone"]
    assert "`Stars`" in row["error"]["message"]


def test_a_new_question_of_a_deciding_model_keeps_the_answers_with_their_probabilities(bench):
    deciding(bench)
    table(bench, 3)
    bench.succeed(*TONE)
    before = bench.answers()
    other = {"type": "choice", "choice": "good", "probabilities": {"good": 1.0, "bad": 0.0}}
    bench.upstream.reply = decides(lambda body: body | {"answers": body["answers"] | {"Tone": other}})
    dry = json.loads(bench.run(*TONE, *STARS, "--dry-run", "--json").stdout)
    assert (dry["taken_in_part"], dry["requests"]) == (3, 3)
    bench.succeed(*TONE, *STARS)
    assert len(bench.upstream.seen) == 6
    for old, new in zip(before, bench.answers(), strict=True):
        assert new["answer"].keys() == {"Tone", "Stars"}
        assert new["answer"]["Tone"] == old["answer"]["Tone"]
        assert new["probabilities"]["Tone"] == old["probabilities"]["Tone"]


def test_a_deciding_model_gets_no_open_question(bench):
    deciding(bench)
    table(bench, 1)
    for more in ((), ("--dry-run",)):
        assert "The field Topic may have any value" in bench.fail(*TONE, *TOPIC, *more)
    assert bench.upstream.seen == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--ask", "Is it good? {{mail}}"), "has no name; write NAME=PROMPT"),
        (("--ask", "A=Is it good?"), "A names no column"),
        (("--ask", "A=Is it {{A}}? {{mail}}"), "A uses its own answer"),
        (("--ask", "A={{B}} {{mail}}", "--ask", "B={{A}} {{mail}}"), "A, B wait for each other's answers"),
        (("--ask", "A={{B}}", "--ask", "B=Is {{mail}}"), "A names no column, only answers"),
        (("--ask", "A={{C}} {{mail}}", "--ask", "B=Is {{mail}}"), "--ask: the input has no column 'C'"),
        (("--ask", "id=Is {{mail}}", "--ask", "B={{id}} {{mail}}"), "id in a prompt may be the column or the answer"),
        (("--ask", "A=x {{mail}}", "--ask", "A=y {{mail}}"), "two questions with the name A"),
        (("--ask", "a,b=x {{mail}}"), "'a,b' names 2 columns"),
        (("--ask", "a:whole=x {{mail}}"), "There is no type 'whole'"),
        (("--ask", "a= "), "a has no prompt"),
        (("--ask", "a=\u2063{{mail}}"), "invisible sign"),
        ((*TONE, "--prompt", "x {{mail}}"), "none is asked about the prompt"),
        ((*TONE, "--choices", "a,b"), "--ask cannot be used with --choices"),
        ((*TONE, "--schema", "a,b"), "--ask cannot be used with --schema"),
        ((*TONE, "--embed", "{{mail}}"), "--ask cannot be used with --embed"),
        ((*TONE, "--batch"), "--ask cannot be used with --batch"),
        ((*TONE, "--together", "3"), "--ask cannot be used with --together"),
        ((*TONE, "--decide", "judge"), "--ask cannot be used with --decide"),
        ((*TONE, "--quote"), "--ask cannot be used with --quote"),
        ((*TONE, "--sure", "other"), "--ask cannot be used with --sure"),
        ((*TONE, "--split", "500"), "--ask cannot be used with --split"),
        ((*TONE, "--dedupe"), "--ask cannot be used with --dedupe"),
        ((*TONE, "--model", "a", "--model", "b"), "--ask cannot be used with several models"),
        ((*TONE, "--prompt", "a=x {{mail}}", "--prompt", "b=y {{mail}}"), "--ask cannot be used with several prompts"),
        ((*TONE, "--set", "sampling_params.n=2"), "needs one answer to a question"),
        ((*TONE, "--set", "image_tag=praise"), "leave the tag praise out"),
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_what_cannot_be_asked_is_refused_before_the_first_request(asked, options, words, *, dry):
    table(asked, 2, id="7")
    said = asked.fail(*options, *(["--dry-run"] if dry else []))
    assert words in said, said
    assert asked.upstream.seen == []


@pytest.mark.parametrize("more", [("--together", "3"), ("--quote",), ("--model", "a", "--model", "b"), ("--dedupe",)])
def test_questions_that_are_one_request_go_with_the_other_options(asked, more):
    table(asked, 2)
    shared = ("--prompt", "Mail: {{mail}}", "--ask", "Tone:good|bad=Is it praise?", "--ask", "amount:number=Which?")
    assert asked.run(*shared, *more, "--dry-run").returncode == 0


def test_equal_rows_and_a_configured_dedupe_mix_no_questions(asked):
    asked.input = asked.path / "in.csv"
    asked.input.write_text("mail\nm0\nm0\nm0\n")
    asked.succeed(*ALL, "--temperature", "0", dedupe=True)
    for row in asked.answers():
        assert row["answer"] == {"Tone": "bad", "Topic": "because m0", "Stars": "high", "Why": "because m0"}


def test_images_go_with_each_question(asked, tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8), "red").save(asked.path / "a.png")
    asked.write([{"photo": "a.png", "mail": "m0"}])
    asked.succeed(*TONE, *WHY, "--image-column", "photo")
    contents = [seen.json["messages"][-1]["content"] for seen in asked.upstream.seen]
    assert [[part["type"] for part in content] for content in contents] == [["text", "image_url"]] * 2
    assert [content[0]["text"] for content in contents] == ["Is it praise? m0", "Why is it bad? m0"]


def _config(bench: Any) -> str:
    """Return the path of a configuration file for programs."""
    path = bench.path / "config.yaml"
    own = {"base_url": bench.upstream.url, **bench.settings}
    path.write_text(json.dumps({"backend": "openai", "backend_configs": {"openai": own}}))
    return str(path)


@pytest.mark.thorough
@pytest.mark.parametrize(("prompt", "place"), [(None, " {{mail}}"), ("{{mail}}", "")])
def test_a_table_of_a_program_has_a_column_for_each_question(asked, prompt, place):
    pa = pytest.importorskip("pyarrow")
    asks = {"Tone:good|bad!": f"Is it praise?{place}", "amount:integer!": f"How much?{place}"}
    found = promptmill.bulk(pa.table({"mail": ["m1", "m2"]}), prompt=prompt, ask=asks, config=_config(asked))
    table = found.table()
    assert table.column_names[:3] == ["mail", "Tone", "amount"]
    assert (table["Tone"].to_pylist(), table["amount"].to_pylist()) == (["bad", "bad"], [5, 5])
    assert table.schema.field("amount").type == pa.int64()


def test_a_program_asks_with_labels_that_are_defined(asked):
    config = _config(asked)
    tone = ("Is it praise? {{mail}}", {"good": "a praise", "bad": "a complaint"})
    found = promptmill.bulk([{"mail": "m1"}], ask={"Tone!": tone, "Why": "Why is it {{Tone}}? {{mail}}"}, config=config)
    assert found.answers == [{"Tone": "bad", "Why": "because m1"}]
    first, second = (json.dumps(seen.json["messages"]) for seen in asked.upstream.seen)
    assert "- bad: a complaint" in first
    assert "complaint" not in second
    fair = ("Fair? {{mail}}", {"good": "it is fair", "bad": "it is unfair"})
    promptmill.bulk([{"mail": "m1"}], ask={"Tone!": tone, "Stars!": fair}, config=config)
    of_stars = [said for seen in asked.upstream.seen if "Fair?" in (said := json.dumps(seen.json))]
    assert all("it is unfair" in said and "complaint" not in said for said in of_stars)
    assert of_stars
    named = promptmill.bulk(
        [{"mail": "m1"}], prompt={"a": "M: {{mail}}"}, ask={"Tone!": tone, "A": "Why?"}, config=config
    )
    assert named.answers[0]["Tone"] == "bad"
    both = {"Tone": ("Praise?", tone[1]), "Stars": ("Fair?", fair[1])}
    with pytest.raises(promptmill.PromptmillError, match="defines good in two ways in one request"):
        promptmill.bulk([{"mail": "m1"}], prompt="{{mail}}", ask=both, config=config)
    with pytest.raises(promptmill.PromptmillError, match="`ask`: A names no column"):
        promptmill.bulk(["x"], ask={"A": "b"}, config=config)
    with pytest.raises(promptmill.PromptmillError, match="`ask` is a text"):
        promptmill.bulk(["x"], ask=cast("Any", "A=b {{text}}"), config=config)


@pytest.mark.thorough
def test_a_job_remembers_its_questions(asked):
    table(asked, 3)
    asked.succeed(*ALL, "--limit", "1")
    done = asked.jobs(asked.folder.job_id, "--resume")
    assert done.returncode == 0, done.stderr
    assert asked.status()["done"] in {1, 3}


def test_a_truncated_answer_is_one_of_the_row(asked):
    table(asked, 1)
    asked.upstream.reply = choose(
        lambda seen: answer("cut", finish_reason="length") if _question(seen) == "Which" else _replied(seen)
    )
    asked.succeed(*ALL)
    (row,) = asked.answers()
    assert row["finish_reason"] == "length"
    assert row["answer"]["Topic"] == "cut"
