"""A student of embeddings: the vectors of rows, from this machine or an endpoint, and jobs that it answers rows of."""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections import Counter
from typing import Any
from unittest import mock
from zlib import crc32

import numpy as np
import orjson
import pytest

import promptmill
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Conversation, Message, Request, Sampling
from promptmill.features.labels import student as classifier
from promptmill.features.labels import student_answers
from promptmill.features.labels.row_texts import fields_of
from promptmill.features.labels.rule import VECTORS, SureRule
from promptmill.features.labels.student import RowText, VectorStudent
from promptmill.jobs.rows.plain_template import PlainTemplate
from promptmill.jobs.rows.row_lines import RowReader
from promptmill.jobs.rows.row_questions import Questions, RowRequests
from promptmill.jobs.rows.template import ExpressionTemplate
from promptmill.jobs.store.records import SLOT
from replies import answer, choose, status
from topics import MOST_WRONG, POINTS, ROWS, STUDENT, TOPICS, drawn, named, row, sent, strong, text, topic, wrong

EMBEDDINGS = (*STUDENT[:-1], "embeddings")


class Words:
    """An encoder: the vector of a text is the sum of a direction for each of its words."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.error: PromptmillError | None = None
        self.number = 1

    def load(self, settings: Any, report: Any) -> Words:
        del report
        self.settings = settings
        if self.error is not None:
            raise self.error
        return self

    def version(self, settings: Any = None) -> str:
        del settings
        return f"words {self.number}"

    def encode(self, texts: list[str], step: Any = None) -> Any:
        step(len(texts))
        self.texts += texts
        return np.array([np.frombuffer(row(one).vector, "<f2") for one in texts], np.float32)


@pytest.fixture
def encoder(monkeypatch):
    """Return the encoder of this machine, of small tables."""
    found = Words()
    for name in ("load", "version"):
        monkeypatch.setattr(f"promptmill.features.embeddings.local.encoders.{name}", getattr(found, name))
    return found


@pytest.fixture
def bench(bench):
    bench.upstream.reply = choose(strong)
    bench.write([{"id": f"r{n}", "text": text(n)} for n in range(ROWS)])
    with mock.patch.multiple(student_answers, FEWEST_ROWS=1_000, _FEWEST_TAUGHT=200):
        yield bench


async def embeddings(exchange: Any) -> None:
    """Answer with the vectors of texts that `Words` returns."""
    texts = exchange.seen.json["input"]
    data = [
        {"index": at, "embedding": array("f", np.frombuffer(row(one).vector, "<f2")).tolist()}
        for at, one in enumerate(texts)
    ]
    body = {"object": "list", "data": data, "usage": {"prompt_tokens": len(texts), "total_tokens": len(texts)}}
    await exchange.respond(200, {}, json.dumps(body).encode())


def models(bench: Any, **more: Any) -> tuple[str, str]:
    """Return options with a strong model, and a model of vectors at the same endpoint, with their prices."""
    found = json.loads(named(bench)[1].removeprefix("models="))
    block = {**found["strong"]["openai"], "model_name": "vectors", **more}
    return "--set", f"models={json.dumps({**found, 'vectors': {'openai': block, 'price': {'input': 1, 'output': 0}}})}"


def vectors(bench: Any) -> dict[int, bytes]:
    with sqlite3.connect(bench.folder.database) as database:
        query = f"SELECT key - {VECTORS * SLOT}, vector FROM answer WHERE key >= {VECTORS * SLOT} AND code IS NULL"
        return dict(database.execute(query))


# ---- the texts


@pytest.mark.parametrize(
    ("template", "cells", "fields"),
    [
        ("Which topic? {{text}}", {"text": "Stars"}, "Stars"),
        ("{{title}}{{text}}", {"title": "One", "text": "Two"}, "One\nTwo"),
        ("{{title}}: {{text}}!", {"title": "A: B", "text": "C!"}, "A: B\nC!"),
        ("{{text}}", {"text": "  as it is "}, "  as it is "),
        ("Which topic?", {}, ""),
    ],
)
def test_a_vector_is_of_the_fields_of_a_row(template, cells, fields):
    made = Questions(template=PlainTemplate.of(template))
    request = RowRequests(RowReader("jsonl"), made).request(0, None, orjson.dumps(cells))
    assert fields_of(request, made.template) == fields


def test_of_a_prompt_with_expressions_only_its_beginning_is_left_out():
    request = Request(0, Conversation((Message("user", "Which topic? STARS!"),)), Sampling())
    assert fields_of(request, ExpressionTemplate("Which topic? {{text | upper}}!")) == " STARS!"


def test_a_prompt_that_is_a_field_is_taken_whole():
    request = Request(0, Conversation((Message("user", "Which topic?"),)), Sampling())
    assert fields_of(request, None) == "Which topic?"


# ---- the classifier


def test_a_text_without_a_vector_or_with_another_length_has_no_answer():
    learned = VectorStudent([(row(text(n)), topic(text(n))) for n in range(60)])
    without, other, has = RowText("goal"), RowText("goal", b"\0" * 6), row("goal match")
    found = learned.answers([without, has, other])
    assert found[0] is None is found[2]
    assert found[1] is not None
    assert found[1][0] == "sport"
    assert learned.answers([]) == []


def test_of_many_labels_vectors_alone_are_learned():
    examples = [(row(f"word{n % 30} and {n}"), f"label {n % 30}") for n in range(600)]
    learned = VectorStudent(examples)
    found = learned.answers([row(f"word{n} and more") for n in range(30)])
    assert sum(one is not None and one[0] == f"label {n}" for n, one in enumerate(found)) >= 25
    assert learned._model._words is None


def test_equal_vectors_leave_the_words():
    same = np.ones(4, "<f2").tobytes()
    learned = VectorStudent([(RowText(text(n), same), topic(text(n))) for n in range(300)])
    found = learned.answers([RowText(text(n), same) for n in range(300, 400)])
    assert sum(one is not None and one[0] == topic(text(n)) for n, one in enumerate(found, 300)) >= 80


@pytest.mark.parametrize(
    ("encoders", "has_sklearn", "kind"), [(["use"], True, "embeddings"), ([], True, "words"), (["e5"], False, "words")]
)
def test_the_default_is_what_this_installation_can_do(monkeypatch, encoders, has_sklearn, kind):
    monkeypatch.setattr("promptmill.features.embeddings.local.encoders.installed", lambda: encoders)
    monkeypatch.setattr(classifier, "find_spec", lambda name: has_sklearn or None)
    for given in ({"student": True}, {"sure": {"model": "strong", "student": True}}):
        rule = SureRule.of({"sure": "strong", **given}, [""])
        assert rule is not None
        assert rule.student == kind
        assert rule.only_model == "strong"


# ---- jobs with an encoder of this machine


def test_it_learns_from_vectors_that_are_stored_once(bench, encoder):
    found = bench.succeed(*EMBEDDINGS, *named(bench))
    givers = Counter(each["sure"] for each in bench.answers())
    assert givers["student"] == found["sure"]["cheap"] > ROWS / 2
    assert sent(bench) == {"strong": givers["strong"] + givers["sample"]}
    assert wrong(bench.answers()) <= MOST_WRONG
    assert sorted(encoder.texts) == sorted(map(text, range(ROWS))), "of the fields, not the prompt"
    stored = vectors(bench)
    assert stored == {n: row(text(n)).vector for n in stored}
    assert len(stored) == ROWS
    encoder.texts.clear()
    bench.upstream.seen.clear()
    bench.succeed(*EMBEDDINGS, *named(bench))
    assert not encoder.texts
    assert not bench.upstream.seen


def test_an_encoder_that_cannot_be_loaded_ends_the_job_before_anything_is_paid(bench, encoder):
    encoder.error = PromptmillError(Code.ENGINE_LOAD_FAILED, "It cannot be downloaded.", "Take `--student words`.")
    done = bench.run(*EMBEDDINGS, *named(bench))
    assert done.returncode
    assert "It cannot be downloaded. Take `--student words`." in done.stdout + done.stderr
    assert not bench.upstream.seen
    encoder.error = None
    bench.succeed(*EMBEDDINGS, *named(bench))
    assert wrong(bench.answers()) <= MOST_WRONG


@pytest.mark.thorough
def test_if_it_does_not_pay_only_the_drawn_rows_have_vectors(bench, encoder):
    bench.upstream.reply = choose(lambda seen: answer([*TOPICS][crc32(seen.prompt.encode()) % 3]))
    found = bench.succeed(*EMBEDDINGS, *named(bench))
    assert not found["sure"]["expected"]["pays"]
    assert len(encoder.texts) == len(drawn(bench)) < ROWS
    assert sent(bench) == {"strong": ROWS}


def test_rows_that_are_changed_or_added_get_new_vectors(bench, encoder):
    bench.succeed(*EMBEDDINGS, *named(bench))
    encoder.texts.clear()
    changed = "goal goal goal goal match"
    rows = [{"id": f"r{n}", "text": changed if n in {3, 700} else text(n)} for n in range(ROWS + 40)]
    bench.write(rows)
    bench.succeed(*EMBEDDINGS, *named(bench))
    assert not {*encoder.texts} - {changed, *map(text, range(ROWS, ROWS + 40))}
    assert all(each["answer"] for each in bench.answers())


def test_vectors_of_another_version_of_the_encoder_are_not_mixed_with_these(bench, encoder):
    options = (*EMBEDDINGS, *named(bench))
    bench.succeed(*options, "--limit", "1200")
    encoder.number = 2
    assert "was begun with another encoder" in bench.fail(*options)
    encoder.number = 1
    bench.succeed(*options)


@pytest.mark.thorough
def test_the_encoder_of_the_configuration_counts_beside_named_models(bench, encoder):
    bench.succeed(*EMBEDDINGS, *named(bench), "--set", "backend_configs.encoder.model=use")
    assert encoder.settings.model == "use"
    bench.output = bench.path / "second.jsonl"
    bench.succeed(*EMBEDDINGS, *named(bench))
    assert encoder.settings.arithmetic == "int8"


@pytest.mark.thorough
def test_rows_that_are_too_long_to_be_read_at_once_get_vectors_too(bench, encoder):
    with mock.patch("promptmill.jobs.store.database.limited", lambda cursor, texts: cursor.fetchmany(7)):
        bench.succeed(*EMBEDDINGS, *named(bench))
    assert len(vectors(bench)) == ROWS
    assert len(encoder.texts) == ROWS


@pytest.mark.thorough
def test_an_outage_at_the_first_vectors_costs_nothing(bench):
    bench.upstream.other_posts = status(503)
    first = bench.run(*EMBEDDINGS, "--embed-model", "vectors", *models(bench))
    assert first.returncode
    assert "answered 503" in first.stdout + first.stderr
    assert not sent(bench)["strong"]


def test_vectors_of_an_earlier_run_may_be_all_that_a_job_has(bench):
    async def first(exchange: Any) -> None:
        await (embeddings if exchange.seen.number < 2 else status(503))(exchange)

    bench.upstream.other_posts = first
    options = (*EMBEDDINGS, "--embed-model", "vectors", *models(bench, retries=1, patience=1, concurrency=1))
    assert bench.run(*options).returncode
    assert vectors(bench)
    assert not sent(bench)["strong"]
    bench.upstream.other_posts = embeddings
    bench.succeed(*options)
    assert vectors(bench) == {n: row(text(n)).vector for n in range(ROWS)}


@pytest.mark.parametrize("more", [{"retries": 1, "patience": 1}, pytest.param({}, marks=pytest.mark.thorough)])
def test_vectors_that_failed_for_a_while_are_requested_by_the_next_run(bench, more):
    async def later(exchange: Any) -> None:
        await (embeddings if exchange.seen.number < 4 else status(503))(exchange)

    bench.upstream.other_posts = later
    options = (*EMBEDDINGS, "--embed-model", "vectors", *models(bench, **more))
    first = bench.run(*options)
    assert first.returncode
    assert "answered 503" in first.stdout + first.stderr
    assert 0 < len(vectors(bench)) < ROWS
    assert sent(bench)["strong"] == len(drawn(bench)), "the strong model does not take the place of the student"
    bench.upstream.other_posts = embeddings
    found = bench.succeed(*options)
    assert len(vectors(bench)) == ROWS
    assert found["sure"]["factor"] > 2


def test_a_job_keeps_its_kind_of_student(bench, encoder):
    bench.succeed(*STUDENT, *named(bench))
    said = bench.fail(*EMBEDDINGS, *named(bench))
    assert "was begun with --student words; write that, or name another output" in said


def test_a_program_may_have_it(bench, encoder):
    found = promptmill.bulk(
        [{"text": text(n)} for n in range(ROWS)],
        prompt="Which topic? {{text}}",
        choices=[*TOPICS],
        base_url=bench.upstream.url,
        sure="strong",
        student="embeddings",
        progress=False,
    )
    assert found.status["sure"]["factor"] > 2
    assert "embedding" not in found.rows[0]


# ---- vectors of an endpoint


@pytest.mark.thorough
def test_vectors_come_from_an_endpoint_many_in_a_request(bench):
    bench.upstream.other_posts = embeddings
    options = (*EMBEDDINGS, "--embed-model", "vectors", *models(bench))
    found = bench.succeed(*options)
    asked = [seen for seen in bench.upstream.seen if seen.target.endswith("/embeddings")]
    texts = [one for seen in asked for one in seen.json["input"]]
    assert sorted(texts) == sorted(map(text, range(ROWS)))
    assert len(asked) <= 12
    assert {frozenset(seen.json) for seen in asked} <= {frozenset({"model", "input", "encoding_format"})}
    assert found["sure"]["factor"] > 2
    assert wrong(bench.answers()) <= MOST_WRONG
    assert vectors(bench) == {n: row(text(n)).vector for n in range(ROWS)}
    with sqlite3.connect(bench.folder.database) as database:
        query = "SELECT sum(json_extract(more, '$.cost')), sum(prompt_tokens) FROM answer WHERE key >= ?"
        cost, tokens = database.execute(query, (VECTORS * SLOT,)).fetchone()
    assert tokens == ROWS
    assert cost == pytest.approx(ROWS * 1e-6, abs=ROWS * 5e-10)  # each row's cost has nine decimals
    bench.upstream.seen.clear()
    bench.succeed(*options)
    assert not bench.upstream.seen


@pytest.mark.thorough
def test_a_model_of_vectors_has_the_parameters_of_its_own(bench):
    bench.upstream.other_posts = embeddings
    found = json.loads(models(bench)[1].removeprefix("models="))
    found["vectors"] |= {"extra_params": {"input_type": "query"}, "sampling_params": {"dimensions": 24}}
    bench.succeed(*EMBEDDINGS, "--embed-model", "vectors", "--set", f"models={json.dumps(found)}")
    asked = [seen.json for seen in bench.upstream.seen if seen.target.endswith("/embeddings")]
    assert {(one["input_type"], one["dimensions"], "choices" in one) for one in asked} == {("query", 24, False)}


def test_an_endpoint_without_vectors_ends_the_job_before_anything_is_paid(bench):
    said = bench.fail(*EMBEDDINGS, "--embed-model", "vectors", *models(bench), code=1)
    assert "Unknown request URL" in said
    assert {seen.target for seen in bench.upstream.seen} == {"/v1/embeddings"}


def test_a_row_without_a_vector_goes_to_the_strong_model(bench):
    async def some(exchange: Any) -> None:
        if any("number 7" in one for one in exchange.seen.json["input"]):
            await status(400, "No.", code="content_filter")(exchange)
        else:
            await embeddings(exchange)

    bench.upstream.other_posts = some
    bench.succeed(*EMBEDDINGS, "--embed-model", "vectors", *models(bench))
    refused = [each for each in bench.answers() if "number 7" in each["text"]]
    assert {each["sure"] for each in refused} <= {"strong", "sample"}
    assert all(each["answer"] == topic(each["text"]) for each in refused)
    assert Counter(each["sure"] for each in bench.answers())["student"] > ROWS / 3


def test_the_price_of_the_vectors_is_in_the_dry_run(bench):
    done = bench.run(*EMBEDDINGS, "--embed-model", "vectors", *models(bench), "--dry-run")
    assert "vectors of all rows: about $0.0" in done.stdout
    assert not bench.upstream.seen


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ((*STUDENT, "--embed-model", "m"), "--embed-model needs --student embeddings"),
        ((*STUDENT[:-2], "--embed-model", "m"), "--embed-model needs --student"),
    ],
)
def test_options_that_do_not_go_together_are_refused(bench, options, problem):
    assert problem in bench.fail(*options)


@pytest.mark.parametrize(
    ("given", "problem"), [({"student": False, "embed_model": "m"}, "needs"), ({"student": ""}, "is one of words")]
)
def test_a_value_without_effect_is_refused(given, problem):
    with pytest.raises(PromptmillError, match=problem):
        SureRule.of({"sure": {"model": "strong", **given}}, [""])


@pytest.mark.thorough
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_job_learns_from_the_same_vectors(bench, point):
    bench.upstream.other_posts = embeddings
    rows = 5_200  # a student needs so many
    bench.write([{"id": f"r{n}", "text": text(n)} for n in range(rows)])
    options = (*EMBEDDINGS, "--embed-model", "vectors", *models(bench, concurrency=2))
    first = bench.run(*options, killed_at=point)
    assert first.returncode in {-9, 0}, first.stderr
    before = bench.folder.known_spec().plan.parts
    found = bench.succeed(*options)
    (part,) = bench.folder.known_spec().plan.parts
    if before and before[0].cut is not None:
        assert before[0] == part
    assert not part.is_ended
    assert found["done"] == rows
    texts = [one for seen in bench.upstream.seen if "input" in seen.json for one in seen.json["input"]]
    assert {*texts} == {*map(text, range(rows))}
    assert len(texts) <= rows + 4 * 256, "two requests in flight, and those whose outcomes were not written"
    assert wrong(bench.answers()) <= MOST_WRONG
