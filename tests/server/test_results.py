"""What a client cannot take in one message comes as its first answers and a job; nothing is lost or looks complete."""

import json
import re
from contextlib import aclosing

import pytest
from fastmcp import Client
from mcp_types import Implementation

from fakes import FakeBackend, openai_configuration
from promptmill.backends.protocol import Completion, Failure
from promptmill.config.backends import EMBEDDED
from promptmill.config.configuration import Configuration
from promptmill.core.errors import Code, PromptmillError
from promptmill.server import tool_calls
from promptmill.server.mcp_app import create_server
from promptmill.service.model import TOY
from promptmill.service.service import Service
from replies import by_prompt, late, raw, status
from served import ServedHere, messages
from server_process import written
from talk import Talk, serving, text
from waiting import PATIENCE_S

LONG = 'line "one"\n' * 1000


def _body(answer):
    return json.dumps({"choices": [{"message": {"content": answer}, "finish_reason": "stop"}]}).encode()


@pytest.fixture
def configuration(upstream, tmp_path, monkeypatch):
    """A limit of 200,000 bytes, so that 30 answers of 11,000 are too many."""
    monkeypatch.setenv("PROMPTMILL_STATE", str(tmp_path / "state"))
    upstream.reply = raw(_body(LONG))
    return Configuration({**openai_configuration(upstream.url)._raw, "max_result_bytes": 200_000})


async def _read_all(talk, uri, most=200_000):
    rows = []
    while uri:
        (contents,) = await talk.client.read_resource(uri)
        assert len(contents.text) < most
        read = json.loads(contents.text)
        rows += read["rows"]
        uri = read["next"]
    return rows


@pytest.mark.thorough
async def test_a_result_that_is_too_large_comes_as_its_first_answers_a_link_and_a_job(configuration):
    prompts = [f"prompt {number}" for number in range(30)]
    async with serving(configuration) as talk:
        result = await talk("generate", prompt_ls=prompts)
        link = result.content[-1]
        page = await talk("bulk_status", read="all", job_id=result.structured_content["kept_job_id"], limit=1000)
        (hint,) = map(json.loads, re.findall(r"bulk_status and (\{.*?\})", text(result)))
        longer = await talk("bulk_status", **hint)
        rows = await _read_all(talk, str(link.uri))
    structured = result.structured_content
    (omitted,) = structured["errors"]
    kept = omitted["index"]
    assert (omitted["code"], omitted["last"], omitted["retryable"]) == ("omitted", 29, False)
    assert structured["ans_ls"] == [LONG] * kept + [""] * (30 - kept)
    assert len(json.dumps(structured)) + len(json.dumps(result.meta)) > 200_000 - 2 * len(LONG), "it is filled up"
    assert f"{kept} to 29 of 30 are left out" in text(result)
    assert structured["kept_job_id"] in text(result)
    assert not result.is_error
    assert link.type == "resource_link"
    assert str(link.uri) == f"promptmill://jobs/{structured['kept_job_id']}/answers"
    assert [(row["index"], row["answer"]) for row in rows] == [(number, LONG) for number in range(30)]
    assert page.structured_content["state"] == "finished"
    assert len(longer.structured_content["rows"]) > 2 * len(page.structured_content["rows"]), "as long as a result"
    assert hint["offset"] == longer.structured_content["rows"][0]["index"] == kept
    assert page.structured_content["next_offset"] == len(page.structured_content["rows"]) < 30
    assert len(json.dumps(page.structured_content)) < 200_000


async def test_a_failure_is_kept_as_it_is_and_not_sent_again(configuration, upstream):
    upstream.reply = by_prompt({"prompt 7": status(503, "busy")}, raw(_body(LONG)))
    async with serving(configuration) as talk:
        result = await talk("generate", prompt_ls=[f"prompt {number}" for number in range(30)])
        sent = len(upstream.seen)
        job_id = result.structured_content["kept_job_id"]
        page = await talk("bulk_status", read="all", job_id=job_id, offset=7, limit=1)
    (row,) = page.structured_content["rows"]
    assert (row["error"]["code"], row["error"]["retryable"]) == ("server_error", True)
    assert page.structured_content["state"] == "finished"
    assert len(upstream.seen) == sent == 29 + row["error"]["attempts"]


async def test_the_text_goes_before_any_answer_does(configuration):
    async with serving(configuration) as talk:
        result = await talk("generate", prompt_ls=["x"] * 12)
    assert result.structured_content == {"ans_ls": [LONG] * 12}
    assert "The answers are in the structured content" in text(result)


@pytest.mark.parametrize("answers", [1, 2])
async def test_no_result_without_an_answer_in_it_looks_like_a_success(configuration, upstream, answers):
    upstream.reply = raw(_body("x" * 300_000))
    async with serving(configuration) as talk:
        result = await talk("generate", prompt_ls=["x"] * answers)
        (row, *_) = await _read_all(talk, str(result.content[-1].uri), most=400_000)
    assert result.is_error
    assert result.structured_content["ans_ls"] == [""] * answers
    assert "are left out" in text(result)
    assert row["answer"] == "x" * 300_000


@pytest.mark.thorough
async def test_where_every_failure_is_an_error_so_is_an_answer_that_is_left_out(configuration):
    configuration = Configuration({**configuration._raw, "on_error": "raise"})
    async with serving(configuration) as talk:
        result = await talk("generate", prompt_ls=["x"] * 30)
    assert result.is_error
    assert result.structured_content["ans_ls"][0] == LONG


@pytest.mark.thorough
async def test_reasoning_and_many_small_answers_are_counted(configuration, upstream):
    message = {"content": "yes", "reasoning_content": LONG}
    upstream.reply = raw(json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode())
    async with serving(configuration) as talk:
        result = await talk("generate", prompt_ls=["x"] * 30)
        assert 10 < result.structured_content["errors"][0]["index"] < 20
        assert result.meta["reasoning"][0] == LONG
        upstream.reply = raw(_body("yes"))
        many = await talk("generate", prompt_ls=["x"] * 40_000)
    assert len(many.structured_content["ans_ls"]) == 40_000
    size = len(json.dumps(many.structured_content, separators=(",", ":")))
    assert 190_000 < size < 200_000


async def test_failures_and_invalid_prompts_keep_their_places(configuration, upstream):
    upstream.reply = by_prompt({"bad": raw(b'{"error": {"message": "no"}}', code=400)}, raw(_body(LONG)))
    async with serving(configuration) as talk:
        result = await talk("generate", prompt_ls=["bad", *["good"] * 30, "bad"])
        rows = await _read_all(talk, str(result.content[-1].uri))
    errors = [(error["index"], error["code"]) for error in result.structured_content["errors"]]
    assert errors == [(0, "bad_request"), (result.structured_content["errors"][1]["index"], "omitted")]
    assert result.structured_content["ans_ls"][:2] == ["", LONG]
    assert [row["index"] for row in rows] == list(range(32))
    assert [row["index"] for row in rows if row["error"]] == [0, 31]


@pytest.mark.thorough
@pytest.mark.parametrize("limit", [0, 50 << 20])
async def test_the_operator_may_raise_or_lift_the_limit(configuration, limit):
    configuration = Configuration({**configuration._raw, "max_result_bytes": limit})
    async with serving(configuration) as talk:
        result = await talk("generate", prompt_ls=["x"] * 30)
    assert result.structured_content["ans_ls"] == [LONG] * 30


@pytest.mark.thorough
async def test_a_pipelines_own_client_gets_everything(configuration):
    configuration = Configuration(configuration._raw, trust_client=True)
    async with serving(configuration) as talk:
        result = await talk("generate", prompt_ls=["x"] * 30)
    assert len(result.structured_content["ans_ls"]) == 30


async def test_an_invalid_prompt_among_those_that_are_left_out_is_a_failed_row_of_the_job(configuration):
    image = [["data:image/png;base64,AAAA"], *[[]] * 30]
    prompts = ["x"] * 31
    async with serving(configuration) as talk:
        result = await talk("multimodal_generate", multimodal_path=image[::-1], prompt_ls=prompts, image_tag="<i>")
        rows = await _read_all(talk, str(result.content[-1].uri))
    assert [row["index"] for row in rows] == list(range(31))
    assert rows[30]["error"]["code"] == "invalid_input"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "whole"),
    [("mcp", True), ("fastmcp", True), ("mcp-use", True), ("ai-sdk-mcp-client", True), ("claude-ai", False)],
)
@pytest.mark.parametrize("limit", [None, 200_000])
async def test_over_stdio_only_clients_that_name_themselves_have_a_limit(configuration, upstream, name, whole, limit):
    upstream.reply = raw(_body("x" * 1_000_000))
    configuration = Configuration({**configuration._raw, "max_result_bytes": limit})
    async with serving(configuration, client_info=Implementation(name=name, version="1")) as talk:
        result = await talk("generate", prompt_ls=["x"] * 12)
    answers = result.structured_content["ans_ls"]
    assert len(answers) == 12
    assert answers.count("") == (12 if limit else 0 if whole else 3)


def _over_http(session, number, *prompts, progress):
    meta = {"_meta": {"progressToken": 1}} if progress else {}
    params = {"name": "generate", "arguments": {"prompt_ls": list(prompts)}, **meta}
    response = session.post({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params})
    (result,) = [message["result"] for message in messages(response.body) if message.get("id") == number]
    return response, result


@pytest.fixture
def served(upstream, tmp_path):
    upstream.reply = raw(_body("x" * 100_000))
    with ServedHere(written(tmp_path, upstream.url), environ={"PROMPTMILL_STATE": str(tmp_path / "state")}) as server:
        yield server


FEW = "abcdefghijkl"
ALL = ["x" * 100_000] * 12


@pytest.mark.thorough
def test_over_http_a_fast_call_or_one_without_progress_has_no_limit(served, monkeypatch):
    monkeypatch.setattr(tool_calls, "_FAST_S", PATIENCE_S)  # however busy the machine is
    many = [f"{'long prompt ' * 40}{number}" for number in range(12)]
    session = served.session({"User-Agent": "python-httpx2/2.16"})
    for number, (prompts, progress) in enumerate([(FEW, False), (FEW, True), (many, False), (many, True)]):
        response, result = _over_http(session, 10 + number, *prompts, progress=progress)
        assert response.headers["content-type"] == "application/json"
        assert result["structuredContent"] == {"ans_ls": ALL}
        assert json.loads(result["content"][0]["text"]) == result["structuredContent"]
    for agent, kind in (("anything", "application/json"), ("node", "text/event-stream")):
        other = served.session({"User-Agent": agent})
        for number, progress in enumerate([False, True]):
            response, result = _over_http(other, 30 + number, *FEW, progress=progress)
            assert response.headers["content-type"] == kind
            assert result["structuredContent"] == {"ans_ls": ALL}


@pytest.mark.thorough
@pytest.mark.parametrize("agent", ["python-httpx2/2.16", "anything"])
def test_over_http_only_an_event_of_a_slow_call_has_a_limit(served, upstream, agent):
    upstream.reply = late(2.3, upstream.reply)
    session = served.session({"User-Agent": agent})
    response, result = _over_http(session, 20, *FEW, progress=True)
    assert response.headers["content-type"] == "text/event-stream"
    assert max(map(len, response.body.split(b"\n"))) < 1 << 20
    assert result["structuredContent"]["ans_ls"] == [*ALL[:9], "", "", ""]
    job = result["structuredContent"]["kept_job_id"]
    rows = session.call("bulk_status", read="all", job_id=job, offset=9)["structuredContent"]
    assert rows["rows"][0]["answer"] == "x" * 100_000
    response, result = _over_http(session, 21, *FEW[:9], progress=True)
    assert result["structuredContent"] == {"ans_ls": ALL[:9]}


@pytest.mark.parametrize(
    ("name", "version", "has_copy"),
    [
        ("claude-code", "2.1.280", False),
        ("claude-code", "2.0.22", True),
        ("codex-mcp-client", "0.169.0", False),
        ("claude-ai", "9.9", True),
        ("mcp", "9.9", True),
    ],
)
async def test_only_clients_whose_models_get_the_structured_content_receive_no_copy_of_it(
    upstream, monkeypatch, tmp_path, name, version, has_copy
):
    monkeypatch.setenv("PROMPTMILL_STATE", str(tmp_path / "state"))
    upstream.reply = raw(_body("yes"))
    client = Implementation(name=name, version=version)
    async with serving(openai_configuration(upstream.url), client_info=client) as talk:
        result = await talk("generate", prompt_ls=["x"])
    assert result.structured_content == {"ans_ls": ["yes"]}
    assert (text(result) == '{"ans_ls":["yes"]}') is has_copy


class _Toy(FakeBackend):
    async def answer(self, request, call):
        if request.conversation.messages[-1].content == "fail":
            return Failure(PromptmillError(Code.BAD_REQUEST, "no"), attempts=1)
        return Completion("yes")


@pytest.fixture
async def toy(tmp_path, monkeypatch):
    """A server on the embedded model, which says yes to everything but "fail"."""
    monkeypatch.setenv("PROMPTMILL_STATE", str(tmp_path / "state"))

    async def create(_config):
        return _Toy()

    block = {"model_name_or_path": EMBEDDED}
    configuration = Configuration({"backend": "openvino", "backend_configs": {"openvino": block}})
    async with aclosing(Service(configuration, create=create)) as service, Client(create_server(service)) as client:
        yield Talk(client)


@pytest.mark.parametrize(
    ("tool", "arguments", "answers"),
    [
        ("generate", {"prompt_ls": ["a", "fail"]}, ["yes", ""]),
        ("multiturn_generate", {"messages": [{"role": "user", "content": "a"}]}, ["yes"]),
        ("multimodal_generate", {"prompt_ls": ["a"], "multimodal_path": [[]]}, ["yes"]),
    ],
)
async def test_a_text_below_the_answers_of_the_embedded_model_says_that_it_is_a_toy(toy, tool, arguments, answers):
    result = await toy(tool, **arguments)
    copy, note = (block.text for block in result.content)
    assert json.loads(copy) == result.structured_content, "the first block stays what pipelines parse"
    assert (result.structured_content["ans_ls"], note) == (answers, TOY)


async def test_a_call_without_answers_says_nothing_of_the_model(toy):
    result = await toy("generate", prompt_ls=["fail"])
    assert result.is_error
    assert len(result.content) == 1


async def test_the_job_of_the_embedded_model_says_so_at_its_start_and_in_its_status(toy):
    for validate in (True, False):
        started = (await toy("bulk_generate", prompts=["a"], validate=validate)).structured_content
        assert started["message"].endswith(f". {TOY}")
    assert (await toy.ended(started["job_id"]))["warnings"] == [TOY]
