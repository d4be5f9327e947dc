"""A model whose server only constrains its answers is asked with the names of labels and fields."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest

from promptmill.backends import registry
from promptmill.config.configuration import Configuration
from promptmill.core.request import NOT_SHOWN
from promptmill.jobs.store.database import JobDatabase
from replies import answer

WORDS = "The labels:\n- billing\n- tech"
ASKED = ("--prompt", "Which? {{text}}", "--choices", "billing,tech")
# The body of versions that named no labels, which servers that show a schema still get.
_BODY = (
    '{"model":"test-model","response_format":{"type":"json_schema","json_schema":{"name":"answer","schema":{"type":'
    '"object","properties":{"answer":{"type":"string","enum":["billing","tech"]}},"required":["answer"],'
    '"additionalProperties":false},"strict":true}},"messages":[{"role":"user","content":"Which? one"}]}'
)


@pytest.fixture
def rows(bench):
    bench.write([{"text": "one"}])
    bench.upstream.reply = answer("billing")
    return bench


def asked(bench: Any) -> list[str]:
    """The system prompt of each request; `""` for a request without one."""
    first = [seen.json["messages"][0] for seen in bench.upstream.seen]
    return [message["content"] if message["role"] == "system" else "" for message in first]


def test_labels_are_named_to_a_server_that_may_only_constrain(rows):
    rows.succeed(*ASKED)
    assert asked(rows) == [WORDS]


@pytest.mark.thorough
@pytest.mark.parametrize("provider", ["openai", "mistral"])
def test_a_server_that_shows_the_schema_gets_the_same_body_as_ever(rows, provider):
    rows.succeed(*ASKED, provider=provider)
    (seen,) = rows.upstream.seen
    assert seen.json == json.loads(_BODY)


@pytest.mark.parametrize(
    ("options", "system"),
    [
        (("--prompt", "Billing or tech? {{text}}", "--choices", "billing,tech"), ""),
        ((*ASKED, "--system", "It is billing or tech."), "It is billing or tech."),
        ((*ASKED, "--system", "It is billing."), f"It is billing.\n\n{WORDS}"),
        ((*ASKED, "--quote"), WORDS),
        ((*ASKED, "--together", "4"), WORDS),
        (("--prompt", "Which? {{text}}", "--choices", "billing,tech", "--choices-many"),
         "The fields of the answer:\n- labels: any of billing, tech"),
        (("--prompt", "Which? {{text}}", "--fields", "team:billing|tech!,urgent:boolean"),
         "The fields of the answer:\n- team: one of billing, tech\n- urgent: true or false; or null"),
        (("--prompt", "Team (billing, tech), urgent? {{text}}", "--fields", "team:billing|tech!,urgent:boolean"), ""),
    ],
)  # fmt: skip
def test_what_a_prompt_names_is_not_named_again(rows, options, system):
    rows.run(*options)
    assert asked(rows)[0] == system


def test_a_cell_with_all_labels_names_none(rows):
    rows.write([{"text": "billing or tech"}])
    rows.succeed(*ASKED)
    assert asked(rows) == [WORDS]


def test_a_whole_prompt_that_names_them_is_left_alone(rows):
    rows.write([{"prompt": "Is it tech or billing?"}, {"prompt": "Which?"}])
    rows.succeed("--choices", "billing,tech")
    assert sorted(asked(rows)) == ["", WORDS]


def test_a_row_with_its_own_system_prompt_or_schema_has_its_own_words(rows):
    schema = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
    rows.write([{"prompt": "Which?", "system_prompt": "Tech, billing."}, {"prompt": "Which?", "answer_schema": schema}])
    rows.run("--choices", "billing,tech")
    assert {"Tech, billing.", "The fields of the answer:\n- mood: one of good, bad"} <= {*asked(rows)}


def test_a_line_of_a_batch_file_has_the_words_of_its_own_form(rows):
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "properties": {
        "mood": {"enum": ["good", "bad"]}}}}}  # fmt: skip
    body = {"model": "test-model", "messages": [{"role": "user", "content": "Which?"}], "response_format": form}
    rows.write([{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}])
    rows.upstream.reply = answer('{"mood": "good"}')
    rows.succeed()
    assert asked(rows) == ["The fields of the answer:\n- mood: one of good, bad"]


def test_a_dry_run_shows_and_counts_the_names(rows):
    found = json.loads(rows.run(*ASKED, "--dry-run", "--json").stdout)
    bare = json.loads(rows.run(*ASKED, "--dry-run", "--json", provider="openai").stdout)
    assert (found["prompts"], bare["prompts"]) == ([f"{WORDS}\n\nWhich? one"], ["Which? one"])
    assert found["estimated_prompt_tokens"] > bare["estimated_prompt_tokens"]


def test_a_prompt_on_the_command_line_has_them(rows):
    assert rows.here(rows.command("Which?", "--choices", "billing,tech", command="generate")).returncode == 0
    assert asked(rows) == [WORDS]


@pytest.mark.thorough
def test_a_job_that_an_older_version_began_resumes_as_it_began(rows):
    rows.write([{"text": "one"}, {"text": "two"}])
    rows.succeed(*ASKED, "--limit", "1")
    with contextlib.closing(JobDatabase(rows.folder.database, write=True)) as store:
        spec = store.get("spec") or {}
        assert spec.pop("names_form") is True
        store.put(spec=spec)
    rows.succeed(*ASKED)
    assert asked(rows) == [WORDS, ""]
    rows.succeed(*ASKED, "--again", "all")
    assert asked(rows)[2:] == [WORDS, WORDS]


@pytest.mark.parametrize(
    ("block", "is_named"),
    [
        ({"hf": {"model_name_or_path": "m"}}, True),
        ({"openvino": {"model_name_or_path": "m"}}, True),
        ({"vllm": {"model_name_or_path": "m"}}, True),
        *(({"openai": {"provider": name}}, True) for name in ("ollama", "lmstudio", "llama.cpp", "vllm", "fireworks")),
        *(({"openai": {"provider": name}}, False) for name in ("openai", "google", "anthropic", "mistral", "groq")),
        ({"openai": {"base_url": "https://gateway.example/v1"}}, True),
        ({"openai": {"base_url": ["https://api.openai.com/v1", "http://127.0.0.1:8000/v1"]}}, True),
        ({"openai": {"base_url": "http://127.0.0.1:9/v1", "dialect": "anthropic"}}, False),
        ({"openai": {}}, False),
    ],
)
def test_a_server_that_is_not_known_to_show_a_schema_is_named_the_labels(block, is_named):
    (backend,) = block
    config = Configuration({"backend": backend, "backend_configs": block}).config.with_sampling({"choices": ["a", "b"]})
    assert (registry.shown_by(config) != NOT_SHOWN) == is_named
