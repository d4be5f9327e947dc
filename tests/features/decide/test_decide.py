"""Jobs in which one model decides the closed fields of a row, and another writes the open ones."""

from __future__ import annotations

import asyncio
import csv
import json
from typing import Any

import pytest

import promptmill
from decision_replies import decides, likeliest, shares
from fakes import openai_configuration
from promptmill.config.configuration import Configuration
from promptmill.service.service import Service
from replies import answer, choose, status

ASKED = ("--prompt", "Read this mail: {{mail}}", "--decide", "judge")
FIELDS = ("--fields", "team:billing|tech!,why!,urgent:boolean!")
INLINE = ("--set", "sampling_params.reasoning=inline")
KEYS = ["team", "why", "urgent"]


def _writes(seen: Any) -> Any:
    """Answer with the open field of the schema, as a chat model does that sees only this."""
    assert [*seen.json["response_format"]["json_schema"]["schema"]["properties"]] == ["why"]
    return answer(json.dumps({"why": f"because {seen.prompt.rpartition(' ')[2]}"}))


@pytest.fixture
def judge(upstreams: Any) -> Any:
    """The endpoint of the model that decides."""
    return upstreams(decides())


@pytest.fixture
def both(bench: Any, judge: Any) -> Any:
    """A bench with two models; `run` adds the configuration of the second."""
    bench.upstream.reply = choose(_writes)
    bench.judge = judge
    return bench


def models(bench: Any, concurrency: int = 8, **more: Any) -> list[str]:
    deciding = {
        "concurrency": concurrency,
        "base_url": bench.judge.url,
        "dialect": "systemone",
        "model_name": "jev-1.14.0",
        "max_delay": 0.01,
    }
    named = {"judge": {"openai": {"api_key": "sk-other", "retries": 2, **deciding}, **more}}
    return ["--set", f"models={json.dumps(named)}"]


def table(bench: Any, rows: int = 6) -> None:
    bench.input = bench.path / "in.csv"
    with bench.input.open("w", newline="") as file:
        csv.writer(file).writerows([["mail"], *([f"m{at}"] for at in range(rows))])


def test_a_row_is_two_requests_and_one_answer_in_the_order_of_the_schema(both):
    table(both)
    found = both.succeed(*ASKED, *FIELDS, *models(both))
    assert len(both.upstream.seen) == len(both.judge.seen) == 6
    assert found["requests"] == 12
    assert found["done"] == found["total"] == 6
    for at, row in enumerate(both.answers()):
        chances = shares(["billing", "tech"], f"m{at}", "team")
        assert [*row["answer"]] == KEYS
        assert row["answer"]["team"] == likeliest(chances)
        assert row["answer"]["why"] == f"because m{at}"
        assert row["probabilities"]["team"] == chances
        assert row["error"] is None
    asked = both.judge.seen[0].json
    assert [*asked["questions"]] == ["team", "urgent"]
    assert "Read this mail" in asked["questions"]["team"]["instructions"]
    words = sum(len(seen.prompt.split()) + 2 for seen in both.upstream.seen)
    assert found["prompt_tokens"] + found["completion_tokens"] >= words
    again = both.succeed(*ASKED, *FIELDS, *models(both))
    assert again["done"] == 6
    assert len(both.upstream.seen) + len(both.judge.seen) == 12


@pytest.mark.thorough
def test_a_failure_of_either_model_keeps_the_part_of_the_other(both):
    table(both, 2)
    both.judge.reply = choose(lambda seen: status(400, "no") if seen.json["state"] == "m0" else decides())
    done = both.run(*ASKED, *FIELDS, *models(both))
    assert done.returncode == 1
    failed, fine = both.answers()
    assert failed["error"]["code"] == "bad_request"
    assert failed["answer"] == {"why": "because m0"}
    assert [*fine["answer"]] == KEYS
    both.judge.reply = decides()
    both.upstream.reply = choose(lambda seen: status(400, "no"))
    assert both.run(*ASKED, *FIELDS, *models(both), "--again", "all").returncode == 1
    for row in both.answers():
        assert [*row["answer"]] == ["team", "urgent"]
        assert row["error"]["code"] == "bad_request"
    both.upstream.reply = choose(_writes)
    both.succeed(*ASKED, *FIELDS, *models(both), "--again", "failed")
    assert all([*row["answer"]] == KEYS for row in both.answers())


def test_a_declined_question_keeps_the_others_of_both_models(both):
    both.judge.reply = decides(lambda body: body | {"answers": {"urgent": body["answers"]["urgent"]}})
    table(both, 1)
    assert both.run(*ASKED, *FIELDS, *models(both)).returncode == 1
    (row,) = both.answers()
    assert [*row["answer"]] == ["why", "urgent"]
    assert "`team`" in row["error"]["message"]
    assert len(both.judge.seen) == 1


@pytest.mark.thorough
@pytest.mark.parametrize("point", ["after-write:6", "before-write:9"])
def test_a_killed_job_goes_on_where_it_was(both, point):
    table(both, 30)
    first = both.run(*ASKED, *FIELDS, *models(both, 2), killed_at=point, concurrency=2)
    assert first.returncode != 0
    found = both.succeed(*ASKED, *FIELDS, *models(both, 2))
    assert found["done"] == 30
    assert all([*row["answer"]] == KEYS for row in both.answers())
    sent_again = len(both.upstream.seen) + len(both.judge.seen) - 60
    assert 0 <= sent_again <= 2 * 16, "the two requests of the rows in flight"


def test_costs_of_both_are_summed_and_limited(both):
    table(both)
    price = ("--set", "price={input: 1000000, output: 0}", "--set", "sampling_params.max_tokens=50")
    dear = models(both, price={"input": 1_000_000, "output": 0})
    found = both.succeed(*ASKED, *FIELDS, *dear, *price, "--max-cost", "100000")
    of_judge = sum(len(seen.raw) // 4 for seen in both.judge.seen)
    assert found["cost"] == pytest.approx(sum(len(seen.prompt.split()) for seen in both.upstream.seen) + of_judge)
    done = both.run(*ASKED, *FIELDS, *dear, *price, "--again", "all", "--max-cost", str(found["cost"] + 200))
    assert done.returncode != 0
    assert both.status()["cost"] <= found["cost"] + 200
    assert all([*row["answer"]] == KEYS for row in both.answers() if not row["error"])


def test_a_dry_run_counts_the_requests_of_both_and_sends_none(both):
    table(both)
    done = both.run(*ASKED, *FIELDS, *models(both), "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["rows"], found["answers"], found["requests"]) == (6, 6, 12)
    assert any("none of team means none of these" in note for note in found["notes"])
    assert both.upstream.seen == both.judge.seen == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--fields", "why,who"), "has nothing to decide: why, who may have any value"),
        (("--fields", "team:a|b,urgent:boolean"), "leaves nothing to write: team, urgent"),
        ((), "--decide needs --fields or --schema"),
        (("--choices", "a,b"), "--decide cannot be used with --choices"),
        ((*FIELDS, "--batch"), "--decide cannot be used with --batch"),
        ((*FIELDS, "--together", "3"), "--decide cannot be used with --together"),
        ((*FIELDS, "--model", "judge"), "--decide cannot be used with the same model; one model answers all fields"),
        ((*FIELDS, "--sure", "other"), "cannot be used with"),
        ((*FIELDS, "--split", "500"), "cannot be used with"),
        ((*FIELDS, "--quote"), "--decide cannot be used with --quote"),
        ((*FIELDS, "--set", "sampling_params.n=2"), "needs one answer to a row"),
        (("--schema", '{"type":"object","properties":{"a":{},"b":{"type":"boolean"}},"anyOf":[{}]}'), "anyOf"),
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_what_two_models_cannot_divide_is_refused_before_the_first_request(both, options, words, *, dry):
    table(both)
    said = both.fail(*ASKED, *options, *models(both), *(["--dry-run"] if dry else []))
    assert words in said, said
    assert both.upstream.seen == both.judge.seen == []


def test_another_model_needs_a_new_output_or_all_rows_again(both):
    table(both, 2)
    both.succeed(*ASKED, *FIELDS, *models(both))
    other = models(both)[1].replace('"judge"', '"chief"')
    said = both.fail(*ASKED[:-1], "chief", *FIELDS, "--set", other)
    assert "begun with --decide judge" in said
    both.succeed(*ASKED[:-1], "chief", *FIELDS, "--set", other, "--again", "all")
    assert len(both.judge.seen) == 4


def test_the_same_endpoint_may_have_the_second_model(bench):
    def replied(seen):
        fields = seen.json["response_format"]["json_schema"]["schema"]["properties"]
        assert [*fields] == (["team", "urgent"] if seen.json["model"] == "judge" else ["why"])
        values = {"team": "tech", "why": "x", "urgent": True}
        return answer(json.dumps({name: values[name] for name in fields}))

    bench.upstream.reply = choose(replied)
    table(bench, 3)
    found = bench.succeed(*ASKED, *FIELDS)
    assert sorted(seen.json["model"] for seen in bench.upstream.seen) == ["judge"] * 3 + ["test-model"] * 3
    assert found["requests"] == 6
    assert all(row["answer"] == {"team": "tech", "why": "x", "urgent": True} for row in bench.answers())


def test_each_model_sees_the_system_prompt_and_the_names_of_its_own_fields(both):
    table(both, 1)
    both.succeed(*ASKED, *FIELDS, *models(both), "--system", "Be kind.")
    (written,), (decided,) = both.upstream.seen, both.judge.seen
    system = written.json["messages"][0]["content"]
    assert system.startswith("Be kind.")
    assert "why" in system
    assert "urgent" not in system
    assert "Be kind." in decided.json["questions"]["urgent"]["instructions"]
    assert "The fields" not in decided.json["questions"]["urgent"]["instructions"]
    assert decided.json["state"] == "m0"


def test_a_configured_dedupe_mixes_no_answers_of_both(both):
    both.input = both.path / "in.csv"
    both.input.write_text("mail\nm0\nm0\nm0\n")
    both.succeed(*ASKED, *FIELDS, *models(both), "--temperature", "0", dedupe=True)
    assert all([*row["answer"]] == KEYS for row in both.answers())


def test_reasoning_that_stays_in_front_of_an_answer_stays_there(both):
    table(both, 1)
    both.upstream.reply = answer('<think>hm</think>{"why": "x"}')
    both.succeed(*ASKED, *FIELDS, *models(both), *INLINE)
    (record,) = both.records()
    assert record.text.startswith('<think>hm</think>{"team":')
    (row,) = both.answers()
    assert [*row["answer"]] == KEYS


def test_a_program_gets_the_rows_of_both(both):
    rows = [{"mail": "m1"}]
    config = both.path / "config.yaml"
    deciding = {"base_url": both.judge.url, "dialect": "systemone", "model_name": "jev-1.14.0", "api_key": "sk-other"}
    own = {"base_url": both.upstream.url, **both.settings}
    models_ = {"judge": {"openai": deciding}}
    config.write_text(json.dumps({"backend": "openai", "backend_configs": {"openai": own}, "models": models_}))
    found = promptmill.bulk(
        rows,
        prompt="Read this mail: {{mail}}",
        fields={"team": "billing|tech", "why": str, "urgent": bool},
        decide="judge",
        config=str(config),
    )
    (row,) = found.answers
    assert row["why"] == "because m1"
    assert row["team"] in {"billing", "tech", None}


@pytest.mark.thorough
async def test_a_call_gets_both_models_if_it_may_use_them(both, tools):
    both.write([{"mail": "m1"}, {"mail": "m2"}])
    known = openai_configuration(both.upstream.url)._raw
    deciding = {"base_url": both.judge.url, "dialect": "systemone", "model_name": "jev-1.14.0", "api_key": "sk-other"}
    service = Service(Configuration({**known, "models": {"judge": {"openai": deciding}}}))
    fields = {"type": "object", "properties": {"team": {"enum": ["a", "b"]}, "why": {"type": "string"}}}
    files = {"input_file": "in.jsonl", "output_file": "out.jsonl", "prompt": "Read: {{mail}}"}
    async with tools(service) as call:
        job = await call("bulk_generate", **files, schema=fields | {"required": ["team", "why"]}, decide="judge")
        while (await call("bulk_status", job_id=job["job_id"]))["state"] != "finished":
            await asyncio.sleep(0.02)
    assert len(both.judge.seen) == 2
    assert [*both.answers()[0]["answer"]] == ["team", "why"]


@pytest.mark.thorough
def test_the_costs_of_a_killed_run_count(both):
    """What was lost in flight is estimated from the answer that its row gets later."""
    table(both, 30)
    price = ("--set", "price={input: 1000000, output: 0}", "--set", "sampling_params.max_tokens=50")
    dear = models(both, 2, price={"input": 1_000_000, "output": 0})
    first = both.run(*ASKED, *FIELDS, *dear, *price, killed_at="after-write:6", concurrency=2)
    assert first.returncode != 0
    found = both.succeed(*ASKED, *FIELDS, *dear, *price)
    sent = [len(seen.prompt.split()) for seen in both.upstream.seen]
    sent += [len(seen.raw) // 4 for seen in both.judge.seen]
    assert found["cost"] == pytest.approx(sum(sent), rel=0.05)


def test_a_model_that_decides_and_was_redefined_is_found_out(both):
    table(both, 4)
    both.succeed(*ASKED, *FIELDS, *models(both), "--limit", "2")
    now = [models(both)[0], models(both)[1].replace("jev-1.14.0", "jev-1.15.0")]
    said = both.fail(*ASKED, *FIELDS, *now)
    assert "models.judge" in said
    assert len(both.judge.seen) == 2
    both.succeed(*ASKED, *FIELDS, *now, "--keep")
    assert [row.get("changed") for row in both.answers()] == [None, None, ["models.judge"], ["models.judge"]]
