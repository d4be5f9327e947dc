"""Nothing personal is in the requests of other features: of each model, step and job that a command has."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import pytest

import labellers
import prompt_writers
import promptmill
import web_searches
from embedding import embeddings
from hidden_topics import models as topic_models
from hidden_topics import table
from likely_choices import by_choices
from openai_clients import client_of, ended, line, results, started, text_of
from pdf_files import pdf_of_texts
from promptmill.core.errors import PromptmillError
from promptmill.core.feature import WITHOUT
from promptmill.jobs.store.database import JobDatabase
from replies import answer, choose, status
from served import TOKEN, ServedHere
from server_process import written

MASK = re.compile(r"\[EMAIL_[0-9A-Z]{8}\]")
MASKED = ("--set", "sampling_params.mask=email")


def mail(n: int) -> str:
    return f"jane{n}@example.com"


def assert_masked(upstream: Any, *, least: int = 1) -> None:
    """Assert that no request has an address, and that at least so many have a mask."""
    sent = [seen.raw.decode() for seen in upstream.seen]
    assert [text for text in sent if "@example.com" in text] == []
    assert sum(MASK.search(text) is not None for text in sent) >= least


def run(bench: Any, command: str, *arguments: str) -> Any:
    done = bench.here(bench.command(*arguments, *MASKED, command=command)[1:])
    assert done.returncode == 0, done.stderr + done.stdout
    return done


def test_models_that_take_over_have_masks(bench, upstream):
    upstream.reply = choose(lambda seen: status(500) if seen.json["model"] == "gone" else answer(f"to {seen.prompt}"))
    block = {"base_url": upstream.url, "retries": 1, "base_delay": 0.01}
    named = {name: {"openai": {**block, "model_name": name}} for name in ("gone", "fast")}
    named["gone"]["fallback"] = ["fast"]  # type: ignore[assignment]
    bench.write([{"text": mail(n)} for n in range(8)])
    bench.succeed("--prompt", "{{text}}", "--model", "gone", "--set", f"models={json.dumps(named)}", "--mask", "email")
    assert {seen.json["model"] for seen in upstream.seen} == {"gone", "fast"}
    assert_masked(upstream, least=9)
    assert [row["answer"] for row in bench.answers()] == [f"to {mail(n)}" for n in range(8)]


@pytest.mark.features("labels")
@pytest.mark.parametrize("how", [("--sure", "strong", "--model", "small"), ("--votes", "3")])
def test_labels_of_several_models_have_masks(bench, upstream, how):
    upstream.reply = labellers.labellers()
    upstream.other_posts = embeddings()
    bench.write([{"text": f"{mail(n)}: review {n}"} for n in range(300)])
    bench.succeed(
        *("--prompt", "Is it positive? {{text}}", "--choices", ",".join(labellers.LABELS), "--mask", "email"),
        *(*how, *labellers.named(bench), *(() if "--sure" in how else ("--model", "small"))),
    )
    assert_masked(upstream, least=300)


@pytest.mark.features("compare")
def test_a_judge_sees_masks(bench, upstream):
    upstream.reply = answer("first")
    for name in "ab":
        rows = [{"text": mail(n), "answer": f"{name}: {mail(n)}"} for n in range(6)]
        (bench.path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [str(bench.path / f"{name}.jsonl") for name in "ab"]
    run(bench, "compare", *files, "--judge", "good", "--criterion", f"names {mail(1)}")
    assert_masked(upstream, least=12)


@pytest.mark.features("compare")
def test_a_judge_gets_no_answers_of_a_job_with_masks_unless_it_has_them(bench, upstream):
    upstream.reply = choose(lambda seen: answer(f"{seen.number}: {seen.prompt}"))
    bench.write([{"text": mail(n)} for n in range(3)])
    for name in "ab":
        bench.output = bench.path / f"{name}.jsonl"
        bench.succeed("--prompt", "{{text}}", "--mask", "email")
    upstream.seen.clear()
    upstream.reply = answer("first")
    asked = (*(str(bench.path / f"{name}.jsonl") for name in "ab"), "--judge", "good", "--criterion", "is longer")
    refused = bench.here(bench.command(*asked, command="compare")[1:])
    assert refused.returncode == 2
    assert "the answers are from a job that masks email" in refused.stderr
    assert "sampling_params.mask: the answers" in refused.stderr
    assert "Set it to email." in refused.stderr
    assert not upstream.seen
    with pytest.raises(PromptmillError, match="a job that masks email"):
        promptmill.compare([*asked[:2]], judge="good", criterion="is longer", base_url=upstream.url, api_key="k")
    run(bench, "compare", *asked)
    assert_masked(upstream, least=6)


@pytest.mark.features("improve")
def test_a_search_for_a_better_prompt_has_masks(bench, upstream):
    upstream.reply = prompt_writers.models()
    bench.write([{"text": f"{mail(n)}: review {n}", "label": prompt_writers.truth(n)} for n in range(200)])
    asked = ("--prompt", "Is it positive? {{text}}", "--choices", ",".join(prompt_writers.LABELS))
    run(bench, "improve", str(bench.input), "--gold", "label", *asked, "--strong", "strong")
    assert_masked(upstream, least=200)
    strong = [seen.prompt for seen in upstream.seen if seen.json["model"] == "strong"]
    assert any(MASK.search(prompt) for prompt in strong), "examples of rows are shown to the strong model"


@pytest.mark.features("topics")
def test_a_search_for_topics_has_masks(bench, upstream, monkeypatch):
    monkeypatch.setenv(WITHOUT, "embeddings")
    upstream.reply = topic_models()
    upstream.other_posts = embeddings()
    bench.write([{**row, "text": f"{row['text']}, {mail(n)}"} for n, row in enumerate(table(400))])
    asked = ("--prompt", "What do guests complain about? {{text}}", "--sample", "60", "--held-out", "60")
    run(bench, "topics", str(bench.input), str(bench.path / "topics.csv"), *asked)
    assert_masked(upstream, least=60)


@pytest.fixture
def server(upstream, tmp_path):
    """A server whose operator has addresses masked."""
    config = written(tmp_path, upstream.url, {"sampling_params": {"mask": "email"}})
    environ = {"PROMPTMILL_HTTP_TOKEN": TOKEN, "PROMPTMILL_STATE": str(tmp_path / "state")}
    with ServedHere(config, environ=environ) as served:
        yield served


@pytest.mark.http
@pytest.mark.features("openai_server")
def test_the_lines_of_a_batch_of_openais_api_have_masks(server, upstream):
    upstream.reply = answer()
    with contextlib.closing(client_of(server)) as client:
        batch = ended(client, started(client, [line(f"r{n}", f"hi {mail(n)}") for n in range(5)]))
        found = {own: text_of(each) for own, each in results(client, batch.output_file_id).items()}
    assert found == {f"r{n}": f"echo: hi {mail(n)}" for n in range(5)}
    assert_masked(upstream, least=5)


@pytest.mark.http
@pytest.mark.features("decisions")
def test_the_evidence_of_decisions_has_masks(server, upstream):
    upstream.reply = by_choices({"yes": 0.75, "no": 0.25})
    question = {"type": "predicate", "name": "dup", "instructions": f"Is it {mail(1)}?"}
    given = [
        {"role": "user", "content": [{"type": "input_json", "data": {"mail": mail(2)}}]},
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": json.dumps({"who": mail(3)})},
        {"type": "function_call_output", "call_id": "c", "output": f"two of {mail(4)}"},
    ]
    with contextlib.closing(client_of(server)) as client:
        (found,) = client.decisions.create(model="m", input=given, questions=[question]).answers
    assert found.probability == 0.75
    assert_masked(upstream)
    assert len({*MASK.findall(upstream.seen[0].raw.decode())}) == 4


@pytest.mark.features("sources")
def test_the_sources_of_a_web_search_have_values(tmp_path, upstream):
    def reply(seen: Any) -> Any:
        said = json.dumps(web_searches.chat()).replace("Line 15", MASK.findall(seen.prompt)[0])
        return web_searches.sends(json.loads(said))

    upstream.reply = choose(reply)
    given: dict[str, Any] = {"base_url": upstream.url, "api_key": "k", "model": "gpt-4o-search-preview"}
    given |= {"provider": "openai", "settings": {"price": {"input": 1, "output": 10}}, "progress": False}
    found = promptmill.bulk(
        [{"who": mail(1)}], prompt="Who is {{who}}?", mask="email", web=True, state=tmp_path / "jobs", **given
    )
    assert_masked(upstream)
    (row,) = found.rows
    assert row["answer"].startswith(f"{mail(1)} opens on Friday")
    assert row["sources"][0]["title"] == mail(1)


@pytest.mark.features("documents")
def test_the_text_of_a_pdf_has_masks(bench, upstream):
    upstream.reply = answer()
    pdf_of_texts(bench.path / "one.pdf", [f"A letter of {mail(1)} to you."])
    bench.input = bench.path / "one.pdf"
    bench.succeed("--prompt", "Who writes? {{content}}", "--mask", "email")
    assert_masked(upstream)
    assert mail(1) in bench.answers()[0]["answer"]


def test_only_a_job_with_masks_has_a_secret(bench, upstream):
    upstream.reply = answer()
    bench.write([{"text": mail(1)}])
    for more, has_secret in (((), False), (("--mask", "email", "--again", "all"), True)):
        bench.succeed("--prompt", "{{text}}", *more)
        with contextlib.closing(JobDatabase(bench.folder.database)) as store:
            assert (store.get("secret") is not None) == has_secret
