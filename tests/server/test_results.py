"""What a client could not take in one message comes as its first answers and a job, and nothing of it is lost."""

from __future__ import annotations

import json

import pytest

from fakes import openai_configuration
from promptmill.config.loading import Configuration
from replies import by_prompt, raw
from served import Served, messages, written
from talk import serving, text

LONG = 'line "one"\n' * 1000


def _body(answer):
    return json.dumps({"choices": [{"message": {"content": answer}, "finish_reason": "stop"}]}).encode()


@pytest.fixture
def configuration(upstream, tmp_path, monkeypatch):
    """A limit of 200,000 bytes, so that 30 answers of 11,000 are too many."""
    monkeypatch.setenv("PROMPTMILL_STATE", str(tmp_path / "state"))
    upstream.reply = raw(_body(LONG))
    return Configuration({**openai_configuration(upstream.url)._raw, "max_result_bytes": 200_000})


async def _read_all(talk, uri):
    rows = []
    while uri:
        (contents,) = await talk.client.read_resource(uri)
        assert len(contents.text) < 200_000
        read = json.loads(contents.text)
        rows += read["rows"]
        uri = read["next"]
    return rows


async def test_a_result_that_is_too_large_comes_as_its_first_answers_a_link_and_a_job(configuration):
    prompts = [f"prompt {number}" for number in range(30)]
    async with serving(configuration) as talk:
        result = await talk("generate", prompt_ls=prompts)
        link = result.content[-1]
        page = await talk("bulk_results", job_id=result.structured_content["kept_job_id"], limit=1000)
        rows = await _read_all(talk, str(link.uri))
    structured = result.structured_content
    kept = len(structured["ans_ls"])
    assert 0 < kept < 30
    assert structured["omitted"] == 30 - kept
    assert structured["ans_ls"] == [LONG] * kept
    assert json.loads(text(result)) == structured
    assert structured["kept_job_id"] in result.content[1].text
    assert link.type == "resource_link"
    assert str(link.uri) == f"promptmill://jobs/{structured['kept_job_id']}/answers"
    assert [(row["index"], row["answer"]) for row in rows] == [(number, LONG) for number in range(30)]
    assert page.structured_content["state"] == "finished"
    assert page.structured_content["next_offset"] == len(page.structured_content["rows"]) < 30
    assert len(json.dumps(page.structured_content)) < 200_000


async def test_a_result_that_fits_comes_whole(configuration):
    async with serving(configuration) as talk:
        result = await talk("generate", prompt_ls=["a", "b"])
    assert result.structured_content == {"ans_ls": [LONG, LONG]}
    assert len(result.content) == 1


async def test_failures_and_invalid_prompts_keep_their_places(configuration, upstream):
    upstream.reply = by_prompt({"bad": raw(b'{"error": {"message": "no"}}', code=400)}, raw(_body(LONG)))
    async with serving(configuration) as talk:
        result = await talk("generate", prompt_ls=["bad", *["good"] * 30, "bad"])
        rows = await _read_all(talk, str(result.content[-1].uri))
    assert [error["index"] for error in result.structured_content["errors"]] == [0]
    assert result.structured_content["ans_ls"][:2] == ["", LONG]
    assert [row["index"] for row in rows] == list(range(32))
    assert [row["index"] for row in rows if row["error"]] == [0, 31]


@pytest.mark.parametrize("limit", [0, 50 << 20])
async def test_the_operator_may_raise_or_lift_the_limit(configuration, limit):
    configuration = Configuration({**configuration._raw, "max_result_bytes": limit})
    async with serving(configuration) as talk:
        result = await talk("generate", prompt_ls=["x"] * 30)
    assert result.structured_content["ans_ls"] == [LONG] * 30


async def test_a_pipelines_own_client_gets_everything(configuration):
    configuration = Configuration(configuration._raw, trust_client=True)
    async with serving(configuration) as talk:
        result = await talk("generate", prompt_ls=["x"] * 30)
    assert len(result.structured_content["ans_ls"]) == 30


@pytest.mark.parametrize("agent", ["anything", "python-httpx2/2.16"])
def test_over_http_no_event_is_larger_than_a_megabyte_whoever_asks(upstream, tmp_path, agent):
    upstream.reply = raw(_body("x" * 100_000))
    environ = {"PROMPTMILL_STATE": str(tmp_path / "state")}
    with Served(written(tmp_path, upstream.url), environ=environ) as server:
        session = server.session({"User-Agent": agent})

        def call(progress, *prompts):
            meta = {"_meta": {"progressToken": 1}} if progress else {}
            params = {"name": "generate", "arguments": {"prompt_ls": list(prompts)}, **meta}
            return session.post({"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": params})

        few = call(True, *"abcdefghijkl")
        assert max(map(len, few.body.split(b"\n"))) < 1 << 20
        (result,) = [message["result"] for message in messages(few.body) if message.get("id") == 9]
        assert result["structuredContent"]["omitted"] > 0
        rows = session.call("bulk_results", job_id=result["structuredContent"]["kept_job_id"])["structuredContent"]
        assert rows["rows"][0]["answer"] == "x" * 100_000
        many = call(False, *(f"{'long prompt ' * 40}{number}" for number in range(12)))
        assert many.headers["content-type"] == "application/json"
        assert len(many.json["result"]["structuredContent"]["ans_ls"]) == 12
