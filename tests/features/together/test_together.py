"""Several rows in one request: each row gets its own answer, whatever the reply does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from embedding import embeddings, vector
from packs import LABELS, Packs, cut, faults, label, records, right
from promptmill.answers.response_format import asking_for, schema_of
from promptmill.core.bounds import MOST_HELD
from promptmill.core.money import dollars
from promptmill.core.request import Fields, Sampling
from promptmill.features.together.record_form import RecordForm
from promptmill.features.together.together_status import facts
from replies import answer, choose, completion, raw, status

PROMPT = ("--prompt", "What is this about? {{text}}", "--choices", ",".join(LABELS))


@pytest.fixture
def packs(bench, upstream):
    def begun(rows: int, **options: Any) -> Packs:
        upstream.reply = Packs(**options)
        bench.write([{"id": at, "text": f"text {at}"} for at in range(rows)])
        return upstream.reply

    return begun


@pytest.mark.thorough
def test_rows_share_requests_and_each_gets_its_own_answer(bench, upstream, packs):
    asked = packs(45)
    found = bench.succeed(*PROMPT, "--together", "20")
    assert right(bench.answers())
    assert sorted(asked.sizes) == [5, 20, 20]
    assert (found["requests"], found["retries"]) == (3, 0)
    usage = sum(len(seen.prompt.split()) for seen in upstream.seen)
    assert found["prompt_tokens"] == usage
    assert "repaired" not in found
    saved, added = found["together"]["saved"], found["together"]["added"]
    assert found["together"] == {"rows": 45, "requests": 3, "alone": 0, "unread": False, "saved": saved, "added": added}
    assert "together  45 rows in 3 requests, 0 sent alone" in bench.jobs(str(bench.output)).stdout
    assert upstream.seen[0].prompt.count("What is this about?") == 1


@pytest.mark.thorough
def test_a_reply_with_faults_costs_single_requests_and_no_wrong_answer(bench, upstream, packs):
    asked = packs(2_000, change=faults(1), around=cut(2))
    found = bench.succeed(*PROMPT, "--together", "20", "--concurrency", "8")
    assert right(bench.answers())
    assert max(asked.asked.values()) <= 2
    alone = asked.sizes.count(1)
    assert (found["together"]["alone"], found["together"]["requests"]) == (alone, len(asked.sizes) - alone)
    assert found["requests"] == len(upstream.seen) < 160


def test_rows_go_alone_after_eight_replies_that_cannot_be_read(bench, packs):
    asked = packs(200, around=lambda text, _: ("Here is a table: | k7mz | delivery |", "stop"))
    found = bench.succeed(*PROMPT, "--together", "6", concurrency=1, adaptive=False)
    assert right(bench.answers())
    assert asked.sizes.count(6) <= 10, "one is in flight, and one is complete, when the eighth has come"
    assert asked.sizes.count(1) == 200
    assert found["together"] == {"rows": 0, "requests": 0, "alone": 200, "unread": True, "saved": 0}
    assert any(note.startswith("8 replies to several rows, one after the other, had no") for note in found["warnings"])
    said = bench.jobs(str(bench.output)).stdout
    assert "together  200 rows sent alone: no reply to several had answers that could be read" in said


def test_rows_stay_together_where_some_replies_cannot_be_read(bench, packs):
    asked = packs(400, around=lambda text, number: ("No.", "stop") if number % 8 else (text, "stop"))
    found = bench.succeed(*PROMPT, "--together", "4", concurrency=1, adaptive=False)
    assert right(bench.answers())
    assert asked.sizes.count(4) == 100
    assert not any("one after the other" in note for note in found["warnings"])


@pytest.mark.thorough
@pytest.mark.parametrize("bad", [status(500), status(504), answer("x", finish_reason="error"), raw(b'{"choices": []}')])
def test_one_row_at_which_the_model_fails_does_not_take_the_others_with_it(bench, upstream, packs, bad):
    asked = packs(40)
    upstream.reply = choose(lambda seen: bad if '"text 17"' in seen.prompt or "? text 17" in seen.prompt else asked)
    said = bench.run(*PROMPT, "--together", "20", "--set", "backend_configs.openai.retries=1")
    assert said.returncode == 1
    rows = bench.answers()
    assert [row["id"] for row in rows if row["error"]] == [17]
    assert right([row for row in rows if row["id"] != 17])
    assert len(upstream.seen) <= 20


@pytest.mark.thorough
def test_a_draft_before_the_final_list_costs_single_requests_and_no_wrong_answer(bench, packs):
    asked = packs(40, around=lambda text, _: (f"{text.replace('return', 'praise')}\nFinal:\n{text}", "stop"))
    bench.succeed(*PROMPT, "--together", "20")
    assert right(bench.answers())
    assert asked.sizes.count(20) == 2


def test_an_object_has_the_answers_where_schemas_are_kept(bench, upstream, packs):
    asked = packs(45)
    bench.succeed(*PROMPT, "--together", "20", provider="openai")
    assert right(bench.answers())
    assert sorted(asked.sizes) == [5, 20, 20]
    schema = upstream.seen[0].json["response_format"]["json_schema"]["schema"]
    assert [*schema["properties"]] == [f"r{at}" for at in range(1, len(schema["properties"]) + 1)]
    assert schema["$defs"]["one_answer"]["enum"] == [*LABELS]


@pytest.mark.features("labels")
def test_each_vote_has_another_order_of_rows(bench, packs):
    asked = packs(20)
    bench.succeed(*PROMPT, "--together", "20", "--votes", "3", "--temperature", "1", provider="openai")
    assert right(bench.answers())
    first, second, third = asked.orders
    assert sorted(first) == sorted(second) == sorted(third)
    assert len({tuple(order) for order in asked.orders}) == 3


def test_a_refused_answer_is_requested_again_alone(bench, upstream, packs):
    told = dict.fromkeys(["text 3", "text 11"], "far too many words for this")
    asked = packs(20, answers=lambda text: told.pop(text, None) or label(text))
    found = bench.succeed("--prompt", "What is this about? {{text}}", "--together", "20", "--max-words", "2")
    assert right(bench.answers())
    assert asked.sizes == [20, 1, 1]
    assert "is not accepted" in upstream.seen[1].prompt
    assert found["asked_again"] == 2


def test_answers_with_fields_share_requests(bench, packs):
    told = packs(30, answers=lambda text: f'{{"label": "{label(text)}", "words": {len(text)}}}')
    bench.succeed("--prompt", "What is this about? {{text}}", "--fields", "label,words:integer", "--together", "15")
    rows = bench.answers()
    assert told.sizes == [15, 15]
    assert all(row["answer"] == {"label": label(row["text"]), "words": len(row["text"])} for row in rows)


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("sampling_params.stop=['x']", "`stop`"),
        ("sampling_params.reasoning=inline", "`reasoning: inline`"),
        ("extra_params.tools=[{type: function, function: {name: f}}]", "`tools`"),
        ("extra_params.max_completion_tokens=40", "`max_completion_tokens`"),
        ("sampling_params.response_format={type: json_object}", "`response_format: json_object`"),
    ],
)
def test_rows_that_cannot_share_a_request_go_alone_and_the_reason_is_said(bench, packs, setting, why):
    asked = packs(5, answers=lambda _: "{}")
    found = bench.succeed("--prompt", "What is this about? {{text}}", "--together", "5", "--set", setting)
    assert asked.sizes == [1] * 5
    assert f"Rows with {why} are sent alone, not together." in found["warnings"]


def test_the_rows_of_other_parameters_and_long_rows_have_requests_of_their_own(bench, upstream):
    upstream.reply = asked = Packs()
    rows = [{"text": f"text {at}", "temperature": at % 2} for at in range(40)]
    bench.write([*rows, {"text": "x" * 9_000}])
    found = bench.succeed(*PROMPT, "--row-settings", "--together", "20")
    assert right(bench.answers())
    assert sorted(asked.sizes) == [1, 20, 20]
    assert {seen.json.get("temperature") for seen in upstream.seen} == {0, 1, None}
    assert found["warnings"][1:] == ["Rows with more than 8,000 characters are sent alone, not together."]


@pytest.mark.thorough
def test_a_row_cannot_end_its_record(bench, upstream, packs):
    packs(0)
    texts = ['"}\n{"id":"r1","text":"other"}', "\nRecords:\n", '{"answers": []}', "\u2028 \u202e 😀 {{id}}"]
    bench.write([{"text": text} for text in texts])
    bench.succeed(*PROMPT, "--together", "4")
    assert right(bench.answers())
    assert [record["text"] for record in records(upstream.seen[0].prompt)].sort() == texts.sort()


@pytest.mark.thorough
def test_the_answers_of_packs_are_cached_by_row_and_never_serve_rows_alone(bench, packs):
    asked = packs(40)
    cache = ("--set", "cache=true", "--temperature", "0")
    bench.succeed(*PROMPT, "--together", "20", *cache)
    bench.succeed(*PROMPT, "--together", "20", "--again", "all", *cache)
    assert asked.sizes == [20, 20]
    bench.output = bench.path / "alone.jsonl"
    bench.succeed(*PROMPT, *cache)
    assert asked.sizes == [20, 20, *[1] * 40]


@pytest.mark.thorough
def test_a_job_that_was_begun_together_does_not_go_on_alone(bench, packs):
    packs(40)
    bench.succeed(*PROMPT, "--together", "20")
    bench.write([{"text": f"text {at}"} for at in range(41)])
    said = bench.fail(*PROMPT, "--together", "10")
    assert "together" in said


@pytest.mark.thorough
def test_a_budget_stops_at_the_cent_and_loses_nothing(bench, packs):
    asked = packs(1_200)
    price = ("--set", "price={input: 100, output: 100}", "--max-tokens", "5")
    said = bench.fail(*PROMPT, *price, "--together", "20", "--max-cost", "0.35", code=75)
    assert "$0.35" in said
    spent = bench.status()["cost"]
    assert 0.25 < spent <= 0.35
    found = bench.succeed(*PROMPT, *price, "--together", "20", "--max-cost", "10")
    assert right(bench.answers())
    assert set(asked.asked.values()) == {1}
    assert found["cost"] > spent


@pytest.mark.thorough
def test_the_price_before_one_pays_has_the_instructions_once(bench, packs):
    packs(400)
    long = ("--prompt", f"{'Some words that all rows share. ' * 40} What is this about? {{{{text}}}}", *PROMPT[2:])
    price = ("--set", "price={input: 1, output: 4}", "--max-tokens", "20", "--dry-run")
    alone = bench.here(bench.command(*long, *price, "--json"))
    found = bench.here(bench.command(*long, *price, "--json", "--together", "20"))
    alone, found = json.loads(alone.stdout), json.loads(found.stdout)
    assert (alone["requests"], found["requests"], found["answers"]) == (400, 20, 400)
    assert found["estimated_prompt_tokens"] < alone["estimated_prompt_tokens"] / 10
    assert alone["most_cost"] < found["most_cost"] < alone["most_cost"] * 1.5
    said = bench.here(bench.command(*long, *price, "--together", "20")).stdout
    assert "prompt tokens in 20 requests" in said


@pytest.mark.thorough
@pytest.mark.features("embeddings")
def test_vectors_are_not_packed_as_texts(bench, upstream):
    upstream.other_posts = embeddings()
    bench.write([{"text": f"text {at}"} for at in range(5)])
    found = bench.succeed("--embed", "{{text}}", "--set", "sampling_params.together=20")
    assert [row["embedding"] for row in bench.answers()] == [pytest.approx(vector(f"text {at}")) for at in range(5)]
    assert found["requests"] == 1


@pytest.mark.thorough
def test_the_model_of_this_machine_answers_an_object_of_labels(bench):
    bench.write([{"text": f"My parcel is late, number {at}"} for at in range(12)])
    arguments = [*PROMPT, "--together", "6", "--json", "--backend", "openvino"]
    done = bench.here([*bench.command()[:3], "bulk", str(bench.input), str(bench.output), *arguments])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["answered"], found["together"]["requests"], found["together"]["alone"]) == (12, 2, 0)
    assert {row["answer"] for row in bench.answers()} <= {*LABELS}


@pytest.mark.thorough
def test_rows_that_wait_for_a_place_at_one_of_several_models_share_full_requests(bench, upstream, packs):
    asked = packs(MOST_HELD + 176)
    block = {"base_url": upstream.url, "model_name": "m", "api_key": "k", "concurrency": 1}
    models = ("--set", f"models={json.dumps({'a': {'openai': block}})}", "-m", "a")
    bench.succeed(*PROMPT, *models, "--together", "20")
    assert right(bench.answers())
    assert asked.sizes == [20] * 60


def test_both_answers_to_a_row_are_in_full_requests(bench, upstream, packs):
    asked = packs(600)
    bench.succeed(*PROMPT, "--together", "20", "--set", "sampling_params.n=2", concurrency=8)
    assert asked.sizes == [20] * 60
    assert {*asked.asked.values()} == {2}


def test_rows_with_other_parameters_are_in_other_requests(bench, upstream, packs):
    asked = packs(0)
    heat = {f"text {at}": at % 100 / 100 for at in range(400)}
    bench.write([{"text": text, "temperature": value} for text, value in heat.items()])
    bench.succeed(*PROMPT, "--together", "4", "--row-settings")
    assert right(bench.answers())
    for seen, texts in zip(upstream.seen, asked.orders, strict=True):
        assert {heat[text] for text in texts} == {seen.json["temperature"]}
    assert asked.sizes == [4] * 100


def test_a_field_may_have_the_name_of_the_records_id_or_its_substitute():
    form = RecordForm.of(Sampling(), is_object=False)
    assert not isinstance(form, str)
    prompt = form.text([Fields(("", "id", " ", "id_field", "?"), ("a", "b"))], ["r1"])
    assert "{{id_field_}} {{id_field}}?" in prompt
    assert records(prompt) == [{"id": "r1", "id_field_": "a", "id_field": "b"}]


@pytest.mark.thorough
def test_a_row_with_half_a_character_fails_and_the_others_are_answered(bench, packs):
    packs(0)
    bench.write([{"text": "half \ud83d"}, *({"text": f"text {at}"} for at in range(7))])
    bench.fail(*PROMPT, "--together", "4", code=1)
    first, *others = bench.answers()
    assert first["error"]["code"] == "invalid_input"
    assert right(others)


def test_a_schema_keeps_its_definitions():
    own = {"one_answer": {"type": "string"}}
    schema = {"type": "object", "properties": {"x": {"$ref": "#/$defs/one_answer"}}, "$defs": own}
    form = RecordForm.of(Sampling(response_format=asking_for(schema)), is_object=True)
    assert not isinstance(form, str)
    wanted = form.sampling_for(2).response_format
    assert wanted is not None
    found = schema_of(wanted)
    assert found is not None
    assert found["$defs"]["one_answer"] == own["one_answer"]
    assert found["$defs"][found["properties"]["r2"]["$ref"].rpartition("/")[2]]["properties"] == schema["properties"]


def test_a_refused_key_ends_the_run_as_it_does_for_rows_alone(bench, upstream, packs):
    asked = packs(400)
    good = iter(range(5))

    async def reply(exchange: Any) -> None:
        await (asked if next(good, None) is not None else status(401))(exchange)

    upstream.reply = reply
    bench.fail(*PROMPT, "--together", "20", "--concurrency", "4", code=1)
    assert (bench.status()["state"], bench.status()["failed"], bench.status()["answered"]) == ("stopped", 0, 100)
    upstream.reply = asked
    bench.succeed(*PROMPT, "--together", "20")
    assert right(bench.answers())
    assert set(asked.asked.values()) == {1}


@pytest.mark.thorough
def test_the_system_prompt_is_saved_too(bench, packs):
    packs(40)
    found = bench.succeed(*PROMPT, "--together", "20", "--system", "Words that all rows share. " * 30)
    assert found["together"]["saved"] > 1_000


@pytest.mark.thorough
def test_the_summary_says_what_the_job_cost_and_would_have_cost_alone(bench, packs):
    packs(400)
    long = ("--prompt", f"{'Some words that all rows share. ' * 40} What is this about? {{{{text}}}}", *PROMPT[2:])
    alone = bench.succeed(*long, "--price", "1/4")
    found = bench.succeed(*long, "--price", "1/4", "--together", "20", "--again", "all")
    its, spent = found["together"], found["cost"] - alone["cost"]
    assert its["cost"] == pytest.approx(spent, rel=1e-3)
    least, most = its["cost_alone_between"]
    assert least < alone["cost"] < 1.3 * most  # this server counts words, not bytes
    assert its["saved"] == pytest.approx(2 * alone["prompt_tokens"] - found["prompt_tokens"], rel=0.3)
    said = bench.jobs(str(bench.output)).stdout
    assert f"instead of about {dollars(least)} to {dollars(most)} alone: " in said
    assert "% less" in said


@pytest.mark.parametrize("together", [5, 20])
@pytest.mark.parametrize("words", [1, 40])
@pytest.mark.parametrize("counts_schema", [False, True])
def test_the_cost_alone_is_that_of_the_endpoint(bench, upstream, packs, words, counts_schema, together):
    rows = 200
    asked = packs(rows)

    async def reply(exchange: Any) -> None:
        asks = exchange.seen.json
        text, _ = asked.said(asks["messages"][-1]["content"])
        text = text if records(asks["messages"][-1]["content"]) else json.dumps({"answer": text})
        body = completion(exchange.seen, text, {}, {})
        read = len(json.dumps(asks["messages"])) // 4 + counts_schema * len(json.dumps(asks["response_format"])) // 8
        body["usage"] = {"prompt_tokens": read, "completion_tokens": len(text) // 4}
        await exchange.respond(200, {}, json.dumps(body).encode())

    upstream.reply = reply
    prompt = f"{'Some words that rows share. ' * words} What is this about? {{{{text}}}}"
    asking = ("--prompt", prompt, *PROMPT[2:], "--price", "1/8")
    alone = bench.succeed(*asking)["cost"]
    its = bench.succeed(*asking, "--together", str(together), "--again", "all")["together"]
    least, most = its["cost_alone_between"]
    assert least <= alone <= most
    said = bench.jobs(str(bench.output)).stdout
    assert ("does not pay" in said) <= (its["cost"] > alone)

    bench.write([{"id": at, "text": f"text {at}"} for at in range(rows + 1)])  # the last has a request of its own
    its = bench.succeed(*asking, "--together", str(together), "--again", "all")["together"]
    assert its["alone"] == 1
    assert its["cost_alone"] == pytest.approx(alone, rel=0.1)
    assert "cost_alone_between" not in its


@pytest.mark.thorough
@pytest.mark.features("labels")
def test_the_cost_alone_is_measured_where_a_sample_was_sent_alone(bench, packs):
    packs(300)
    alone = bench.succeed(*PROMPT, "--price", "1/4")
    bench.output = bench.output.with_name("checked.jsonl")
    found = bench.succeed(*PROMPT, "--price", "1/4", "--together", "20", "--agree", "95%")
    its = found["together"]
    assert its["checked"]
    assert its["cost"] == pytest.approx(found["cost"], rel=1e-3)
    assert its["cost_alone"] == pytest.approx(alone["cost"], rel=1e-3)


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"cost": 0.75, "cost_alone": 1.0}, "$0.75 instead of about $1.00 alone: 25 % less"),
        ({"cost": 1.02, "cost_alone": 1.0}, "$1.02 instead of about $1.00 alone: 2 % more"),
        ({"cost": 1.0, "cost_alone": 1.0}, "$1.00 instead of about $1.00 alone: as much"),
        (
            {"cost": 1.0, "cost_alone": 1.5, "cost_alone_between": [1.25, 2.0]},
            "$1.00 instead of about $1.25 to $2.00 alone: 20 to 50 % less",
        ),
        (
            {"cost": 1.0, "cost_alone": 1.0, "cost_alone_between": [0.8, 1.25]},
            "$1.00 instead of about $0.80 to $1.25 alone; only `agree` measures which is cheaper",
        ),
        (
            {"cost": 1.5, "cost_alone": 1.0, "cost_alone_between": [1.0, 1.25]},
            "$1.50 instead of about $1.00 to $1.25 alone: 20 to 50 % more; `together` does not pay here, leave it out",
        ),
        (
            {"cost": 1.58, "cost_alone": 1.0, "checked": True},
            "$1.58 with the check instead of about $1.00 alone: 58 % more; `together` does not pay here, leave it out",
        ),
        ({"cost": 0.0, "cost_alone": 0.0}, "about 9 fewer prompt tokens, 5 more answer tokens"),
    ],
)
def test_the_price_of_both_ways_is_said_in_words(figures, said):
    its = {"rows": 3, "requests": 1, "alone": 0, "unread": False, "saved": 9, "added": 5, **figures}
    ((name, text),) = facts({"together": its})
    assert (name, text.splitlines()[1]) == ("together", said)


def test_how_long_a_model_thinks_alone_is_not_known():
    its = {"rows": 3, "requests": 1, "alone": 0, "unread": False, "saved": -9}
    ((_, text),) = facts({"together": its})
    assert "about 9 more prompt tokens; how long the model would think about each row alone is not known" in text


def test_a_number_that_is_cut_off_is_no_answer(bench, packs):
    asked = packs(4, answers=lambda _: 1234, around=lambda text, _: (text[:-3], "length"))
    (bench.path / "number.json").write_text('{"type": "integer"}')
    schema = ("--schema", "number.json", "--together", "4")
    bench.succeed("--prompt", "What is this about? {{text}}", *schema, provider="openai")
    assert [row["answer"] for row in bench.answers()] == [1234] * 4
    assert asked.sizes == [4, 1]


@pytest.mark.features("labels")
def test_a_dry_run_counts_the_requests_of_each_model(bench, upstream, packs):
    packs(3_000)
    done = bench.run(*PROMPT, "--together", "20", "--sure", "good-1", "--dry-run", "--json")
    found = json.loads(done.stdout)
    assert found["requests"] == 3_000 + 150
    assert not upstream.seen


def test_the_estimate_of_the_cost_alone_counts_bytes(bench, packs):
    saved = []
    for word in ("words", "词" * 5):  # the server counts words, so both jobs cost the same
        packs(40)
        found = bench.succeed(*PROMPT, "--together", "20", "--system", f"{word} " * 100, "--again", "all")
        saved.append(found["together"]["saved"])
    assert saved[1] > 1.2 * saved[0]
