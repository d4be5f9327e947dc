"""Definitions of labels: data until a request is made, then the end of its system prompt."""

from __future__ import annotations

import json
from typing import Any

import pytest

import promptmill
from promptmill.config.configuration import Configuration
from promptmill.core.request import Conversation, Message, Request, Sampling
from promptmill.jobs.store.fingerprint import fingerprint
from promptmill.steps.flights import request_digest
from replies import answer

WORDS = "The labels:\n- billing: Money, invoices.\n- tech: It is broken.\n- other"
DEFINED = {"billing": "Money, invoices.", "tech": "It is broken.", "other": ""}
ASKED = ("--prompt", "Which? {{text}}", "--choices", "labels.csv")
# The body that versions sent whose definitions were a part of the system prompt.
_BODY = (
    '{"model":"test-model","response_format":{"type":"json_schema","json_schema":{"name":"answer","schema":{"type":'
    '"object","properties":{"answer":{"type":"string","enum":["billing","tech","other"]}},"required":["answer"],'
    '"additionalProperties":false},"strict":true}},"messages":[{"role":"system","content":"The labels:\\n- billing: '
    'Money, invoices.\\n- tech: It is broken.\\n- other"},{"role":"user","content":"Which? one"}]}'
)


@pytest.fixture
def labelled(bench):
    """A job about one row, with a file of labels."""
    (bench.path / "labels.csv").write_text('label,definition\nbilling,"Money, invoices."\ntech,It is broken.\nother,\n')
    bench.write([{"text": "one"}])
    bench.upstream.reply = answer("billing")
    return bench


def systems(bench: Any) -> list[str]:
    """The system prompts that were sent; `""` for a request without one."""
    first = [seen.json["messages"][0] for seen in bench.upstream.seen]
    return [message["content"] if message["role"] == "system" else "" for message in first]


@pytest.mark.thorough
def test_the_body_of_a_request_is_the_same_as_ever(labelled):
    labelled.succeed(*ASKED)
    (seen,) = labelled.upstream.seen
    assert seen.json == json.loads(_BODY)


@pytest.mark.parametrize(
    ("options", "above"),
    [
        ((), ""),
        (("--system", "Be brief."), "Be brief.\n\n"),
        (("--set", "system_prompt=Configured."), "Configured.\n\n"),
        (("--system", "Be brief.", "--set", "system_prompt=Configured."), "Be brief.\n\n"),
        (("--quote",), ""),
        (("--together", "4"), ""),
    ],
)
def test_definitions_follow_the_system_prompt(labelled, options, above):
    labelled.run(*ASKED, *options)
    assert systems(labelled)[0] == above + WORDS


def test_definitions_of_any_number_of_labels_follow_the_configured_system_prompt(labelled):
    labelled.upstream.reply = answer('{"labels": ["tech"]}')
    labelled.succeed(*ASKED, "--choices-many", "--set", "system_prompt=Configured.")
    assert systems(labelled) == [f"Configured.\n\n{WORDS}"]


def test_a_row_with_its_own_system_prompt_is_asked_with_the_definitions(labelled):
    own = [{"role": "system", "content": "Its own."}, {"role": "user", "content": "Which? two"}]
    labelled.write([{"prompt": "Which? one", "system_prompt": "Mine."}, {"messages": own}])
    labelled.succeed("--choices", "labels.csv", "--set", "system_prompt=")
    assert sorted(systems(labelled)) == [f"Its own.\n\n{WORDS}", f"Mine.\n\n{WORDS}"]


def test_a_dry_run_shows_and_counts_the_definitions(labelled):
    bare = "--prompt", "Which? {{text}}", "--choices", "a,b", "--dry-run", "--json"
    plain = json.loads(labelled.run(*bare, provider="openai").stdout)
    found = json.loads(labelled.run(*ASKED, "--dry-run", "--json").stdout)
    assert found["prompts"] == [f"{WORDS}\n\nWhich? one"]
    assert found["estimated_prompt_tokens"] - plain["estimated_prompt_tokens"] >= len(WORDS) // 5


@pytest.mark.thorough
def test_definitions_of_the_configuration_are_of_its_own_labels(labelled):
    labelled.command()
    block = json.loads((labelled.path / "config.yaml").read_text())
    block["sampling_params"] = {"choices": [*DEFINED], "definitions": DEFINED}
    block["backend_configs"]["openai"]["provider"] = "openai"
    (labelled.path / "own.yaml").write_text(json.dumps(block))
    asked = ("--config", "own.yaml", "--prompt", "Which? {{text}}")
    for reply, *options in (("billing",), ("good", "--choices", "good,bad"), ('{"name": "x"}', "--fields", "name")):
        labelled.upstream.reply, labelled.output = answer(reply), labelled.path / f"{len(options)}{reply[:1]}.jsonl"
        labelled.succeed(*asked, *options)
    assert systems(labelled) == [WORDS, "", ""]


def test_choices_of_a_program_may_define_the_labels(labelled):
    config = labelled.command()[labelled.command().index("--config") + 1]
    found = promptmill.bulk(["Which? one"], choices=DEFINED, system="Be brief.", config=config)
    assert (found.answers, systems(labelled)) == (["billing"], [f"Be brief.\n\n{WORDS}"])


def test_a_prompt_on_the_command_line_has_the_definitions(labelled):
    command = labelled.command("Which? one", "--choices", "labels.csv", command="generate")
    assert labelled.here(command).returncode == 0
    assert systems(labelled) == [WORDS]


def test_jobs_and_cached_answers_of_definitions_within_the_system_prompt_stay_theirs():
    """As data, definitions change neither the fingerprint of a job nor the key of an answer."""
    config = Configuration(
        {"backend": "openai", "backend_configs": {"openai": {"base_url": "http://127.0.0.1:1/v1"}}}
    ).config
    texts = config.with_sampling({"choices": [*DEFINED]})
    data = config.with_sampling({"choices": [*DEFINED], "definitions": DEFINED})
    assert fingerprint(data, "Be brief.", "csv") == fingerprint(texts, f"Be brief.\n\n{WORDS}", "csv")
    asked = Conversation((Message("system", WORDS), Message("user", "Which? one")))
    keys = {
        request_digest(Request(0, asked, Sampling(temperature=0, choices=[*DEFINED], definitions=given)))
        for given in (None, DEFINED)
    }
    assert len(keys) == 1
