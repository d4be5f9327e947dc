"""Several rows in one request, from each face: a client of the server may not choose it, the operator may."""

from __future__ import annotations

import json

import pytest
from fastmcp.exceptions import ToolError

import promptmill
from fakes import openai_configuration
from packs import LABELS, Packs, label, right
from promptmill.config.configuration import Configuration
from promptmill.service.service import Service

JOB = {"input_file": "in.jsonl", "output_file": "out.jsonl", "prompt": "What is this about? {{text}}"}
OPERATOR = {"sampling_params": {"together": 4}}
TEXTS = [f"text {at}" for at in range(9)]
PROMPTS = [f"What is this about? {text}" for text in TEXTS]


@pytest.fixture
def packs(upstream):
    upstream.reply = Packs()
    return upstream.reply


def service(upstream, top=(), **options):
    return Service(Configuration({**openai_configuration(upstream.url)._raw, **dict(top)}, **options))


@pytest.mark.thorough
@pytest.mark.parametrize("way", ["call", "init", "job"])
async def test_a_client_may_not_choose_it(bench, upstream, tools, packs, way):
    bench.write([{"text": text} for text in TEXTS])
    asked = {"choices": [*LABELS], "sampling_params": {"together": 4}}
    calls = {
        "call": ("generate", {"prompt_ls": PROMPTS, **asked}),
        "init": ("generation_init", {"backend": "openai", "backend_configs": {}, "sampling_params": {"together": 4}}),
        "job": ("bulk_generate", {**JOB, **asked}),
    }
    tool, arguments = calls[way]
    async with tools() as call:
        with pytest.raises(ToolError, match=r"sampling_params.together: this server takes it only from its operator"):
            await call(tool, **arguments)
    assert not packs.sizes


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["operator", "trusted"])
async def test_the_operator_may_choose_it_for_all_calls(bench, upstream, tools, packs, how):
    bench.write([{"text": text} for text in TEXTS])
    chosen = service(upstream, OPERATOR) if how == "operator" else service(upstream, trust_client=True)
    own = {} if how == "operator" else {"sampling_params": {"together": 4}}
    async with tools(chosen) as call:
        found = await call("generate", prompt_ls=PROMPTS, choices=[*LABELS], **own)
        assert found["ans_ls"] == [label(text) for text in TEXTS]
        assert sorted(packs.sizes) == [1, 4, 4]
        started = await call("bulk_generate", **JOB, choices=[*LABELS], **own)
        status = await call("bulk_status", job_id=started["job_id"], wait_s=30)
    assert right(bench.answers())
    assert status["together"]["requests"] == 2, "the ninth row is alone"


def test_a_program_may_choose_it(upstream, packs, tmp_path):
    given = {"base_url": upstream.url, "model": "m", "api_key": "k", "choices": [*LABELS], "progress": False}
    assert [*promptmill.bulk(PROMPTS, together=4, state=tmp_path / "1", **given).answers] == [*map(label, TEXTS)]
    rows = [{"text": text} for text in TEXTS]
    found = promptmill.bulk(rows, prompt="What is this about? {{text}}", together=3, state=tmp_path / "2", **given)
    assert [*found.answers] == [*map(label, TEXTS)]
    assert sorted(packs.sizes) == [1, 3, 3, 3, 4, 4]


def test_the_command_of_a_single_call_has_it_too(bench, upstream, packs):
    arguments = (*PROMPTS[:4], "--choices", ",".join(LABELS), "--set", "sampling_params.together=4")
    said = bench.here(bench.command(*arguments, command="generate"))
    assert said.returncode == 0, said.stderr
    assert packs.sizes == [4]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--together", "0"), "must be at least 1"),
        (("--together", "300"), "together: should be at most 256"),
        (("--together", "many"), "--together"),
        pytest.param(
            ("--together", "5", "--embed", "{{text}}"), "--together", marks=pytest.mark.features("embeddings")
        ),
        (("--together", "5", "--image-column", "text"), "a request for several rows has no images"),
    ],
)
def test_what_it_cannot_do_is_said(bench, packs, arguments, said):
    bench.write([{"text": text} for text in TEXTS])
    prompt = () if "--embed" in arguments else ("--prompt", "What is this about? {{text}}")
    assert said in bench.fail(*prompt, *arguments)
    assert not packs.sizes


@pytest.mark.thorough
def test_a_model_has_its_own_number(bench, upstream, packs):
    bench.write([{"text": text, "model": "one" if at % 2 else "four"} for at, text in enumerate(TEXTS)])
    block = {"base_url": upstream.url, "model_name": "m", "api_key": "k"}
    models = {"four": {"openai": block, "sampling_params": {"together": 4}}, "one": {"openai": block}}
    asked = ("--prompt", "What is this about? {{text}}", "--choices", ",".join(LABELS), "--row-settings")
    bench.succeed(*asked, "--set", f"models={json.dumps(models)}", "-m", "four")
    assert right(bench.answers())
    assert sorted(packs.sizes) == [1, 1, 1, 1, 1, 4]
