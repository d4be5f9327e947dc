"""Batch API files: what stands in an answer, and what a line may not be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from replies import answer, attempts, choose, completion, raw, status

DETAILS = {
    "system_fingerprint": "fp_1",
    "service_tier": "default",
    "model": "model-a-2026-01-01",
    "usage": {
        "prompt_tokens": 7,
        "completion_tokens": 9,
        "total_tokens": 16,
        "completion_tokens_details": {"reasoning_tokens": 4},
        "prompt_tokens_details": {"cached_tokens": 5},
    },
}


def batch(*prompts: str, **body: Any) -> list[dict[str, Any]]:
    """Return a line of a Batch file per prompt."""
    line = {"method": "POST", "url": "/v1/chat/completions"}
    return [
        {"custom_id": f"id-{at}", **line, "body": {"messages": [{"role": "user", "content": prompt}], **body}}
        for at, prompt in enumerate(prompts)
    ]


def detailed(message: Mapping[str, Any]) -> Any:
    """Answer with much beside the text."""

    async def reply(exchange: Any) -> None:
        choice = {"content_filter_results": {"hate": "safe"}, "stop_reason": 7}
        whole = completion(exchange.seen, "fine", message, choice)
        await exchange.respond(200, {}, json.dumps(whole | DETAILS).encode())

    return reply


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("dedupe", [False, True])
def test_a_batch_answer_is_the_endpoints_with_all_its_details(bench, workers, dedupe):
    bench.upstream.reply = detailed({"annotations": [{"type": "url_citation"}], "reasoning": "hm"})
    bench.write(batch("a", model="model-a", temperature=0))
    bench.succeed(*(["--dedupe"] if dedupe else []), num_workers=workers, **({"bulk_threshold": 1} if dedupe else {}))
    (row,) = bench.answers()
    body = row["response"]["body"]
    assert {name: body[name] for name in DETAILS} == DETAILS
    assert (body["id"], body["created"], body["object"]) == ("chatcmpl-1", 1_700_000_000, "chat.completion")
    (choice,) = body["choices"]
    assert choice == {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": "fine",
            "refusal": None,
            "annotations": [{"type": "url_citation"}],
            "reasoning_content": "hm",
        },
        "logprobs": None,
        "finish_reason": "stop",
        "content_filter_results": {"hate": "safe"},
        "stop_reason": 7,
    }


@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_refusal_in_a_batch_file_is_no_content(bench, stream):
    bench.upstream.reply = answer(None, message={"refusal": "I will not."})
    bench.write(batch("a"))
    bench.succeed("--set", f"backend_configs.openai.stream={stream}")
    message = bench.answers()[0]["response"]["body"]["choices"][0]["message"]
    assert (message["content"], message["refusal"]) == (None, "I will not.")


def test_a_copied_batch_answer_costs_nothing(bench):
    bench.upstream.reply = detailed({})
    bench.write(batch("a", "a", temperature=0))
    bench.succeed("--dedupe")
    first, second = (row["response"]["body"] for row in bench.answers())
    assert first["usage"] == DETAILS["usage"]
    assert second["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert second["system_fingerprint"] == "fp_1"


def test_a_custom_id_that_stands_there_twice_is_told(bench):
    lines = batch("a", "b", "c", "d")
    lines[2]["custom_id"] = lines[3]["custom_id"] = "id-0"
    bench.write(lines)
    result = bench.run("--dry-run", "--json")
    assert result.returncode == 1
    assert json.loads(result.stdout)["problems"] == [
        f"line {at} has the custom_id of line 1; give each line its own." for at in (3, 4)
    ]
    found = bench.succeed()
    said = "2 line(s) repeat the `custom_id` of an earlier one, line 3 that of line 1 first"
    assert found["warnings"] == [f"{said}: only the order of their answers tells them apart."]
    assert [row["response"]["body"]["choices"][0]["message"]["content"] for row in bench.answers()] == [
        f"echo: {prompt}" for prompt in "abcd"
    ]


@pytest.mark.parametrize(
    ("method", "url"),
    [("POST", "/v1/files"), ("POST", "/v1/audio/speech"), ("GET", None)],
)
def test_a_batch_line_for_another_endpoint_fails_alone_in_words(bench, method, url):
    lines = batch("a", "b")
    lines[0] |= {"method": method, "url": url or lines[0]["url"]}
    bench.write(lines)
    bench.fail(code=1)
    first, second = bench.answers()
    assert (first["custom_id"], first["response"], first["error"]["code"]) == ("id-0", None, "unsupported")
    assert first["error"]["message"].startswith("line 1: only POST to /v1/chat/completions, /v1/completions, ")
    assert second["error"] is None
    assert len(bench.upstream.seen) == 1


async def other_paths(exchange: Any) -> None:
    """Answer embeddings, completions and responses; refuse a score."""
    path, body = exchange.seen.target, exchange.seen.json
    found: dict[str, Any] = {"id": "x", "model": body["model"]}
    if path.endswith("/v1/embeddings"):
        found |= {"data": [{"index": 0, "embedding": [0.5]}], "usage": {"prompt_tokens": 3, "total_tokens": 3}}
    elif path.endswith("/v1/completions"):
        found |= {"choices": [{"text": " blue"}], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}
    elif path.endswith("/v1/responses"):
        found |= {"output": [{"type": "message", "content": [{"type": "output_text", "text": "hi"}]}]}
    else:
        error = {"message": "no such route", "type": "not_found_error", "param": "url", "code": 404}
        await exchange.respond(422, {}, json.dumps({"error": error}).encode())
        return
    await exchange.respond(200, {}, json.dumps(found).encode())


@pytest.mark.parametrize("workers", [1, 2])
def test_a_response_that_no_file_can_hold_fails_its_line_and_is_charged(bench, workers):
    deep = b'{"data": [], "x": %b, "usage": {"prompt_tokens": 2, "total_tokens": 2}}' % (b"[" * 400 + b"]" * 400)
    bench.upstream.other_posts = choose(lambda seen: raw(deep) if "bad" in seen.json["input"] else other_paths)
    words = ["bad", *map(str, range(9))]
    bench.write(
        [
            {
                "custom_id": word,
                "method": "POST",
                "url": "/v1/embeddings",
                "body": {"model": "test-model", "input": [word]},
            }
            for word in words
        ]
    )
    price = ("--set", "price={input: 10000, output: 0}", "--max-cost", "100")
    assert bench.run(*price, num_workers=workers, retries=2).returncode == 1
    first, *others = bench.answers()
    assert first["error"]["code"] == "bad_response"
    assert all(line["error"] is None for line in others)
    assert bench.status()["requests"] == len(bench.upstream.seen)
    assert bench.status()["cost"] > 9 * 0.03 + 2 * 0.1, "each attempt at the line may have been billed"


@pytest.mark.thorough
@pytest.mark.parametrize("workers", [1, 2])
def test_other_requests_than_chats_go_through_and_a_failed_line_says_what_the_endpoint_said(bench, workers):
    bench.upstream.other_posts = other_paths
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("embeddings", {"model": "e", "input": ["a"]}),
        ("completions", {"model": "c", "prompt": "The sky is", "n": 2}),
        ("responses", {"model": "r", "input": "Hello"}),
        ("score", {"model": "s", "text_1": "a", "text_2": "b"}),
    ]
    lines = [{"custom_id": path, "method": "POST", "url": f"/v1/{path}", "body": body} for path, body in bodies]
    bench.write(lines)
    bench.fail(code=1, num_workers=workers, **({"bulk_threshold": 1} if workers > 1 else {}))
    sent = {seen.target.rpartition("/v1/")[2]: seen.json for seen in bench.upstream.seen}
    assert sent == dict(bodies)
    embedding, completion_, response, score = bench.answers()
    assert embedding["response"]["body"]["data"] == [{"index": 0, "embedding": [0.5]}]
    assert completion_["response"]["body"]["choices"] == [{"text": " blue"}]
    assert response["response"]["status_code"] == 200
    assert score["response"]["status_code"] == 422
    assert score["response"]["body"]["error"] == {
        "message": "no such route",
        "type": "not_found_error",
        "param": "url",
        "code": 404,
    }
    assert score["error"]["code"]
    assert [record.text for record in bench.records()][:3] == ["", " blue", "hi"]


@pytest.mark.thorough
def test_a_line_that_asks_for_several_answers_gets_all_of_them(bench):
    """All are paid for: a Batch endpoint writes each as a choice of one response."""
    bench.upstream.reply = choose(lambda seen: answer(f"answer {seen.number}", logprobs={"content": [seen.number]}))
    bench.write(batch("a", n=3))
    found = bench.succeed(concurrency=1)
    body = bench.answers()[0]["response"]["body"]
    assert [(one["index"], one["message"]["content"]) for one in body["choices"]] == [
        (0, "answer 1"),
        (1, "answer 2"),
        (2, "answer 3"),
    ]
    assert [one["logprobs"] for one in body["choices"]] == [{"content": [at]} for at in (1, 2, 3)]
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
    assert body["id"] == "chatcmpl-1"
    assert (found["requests"], found["retries"], len(bench.upstream.seen)) == (3, 0, 3)


def test_a_retry_among_several_answers_is_counted_as_one(bench):
    bench.upstream.reply = attempts(status(500), answer())
    bench.write(batch("a", n=3))
    found = bench.succeed(concurrency=1)
    assert (found["requests"], found["retries"], len(bench.upstream.seen)) == (4, 1, 4)
    assert len(bench.answers()[0]["response"]["body"]["choices"]) == 3


def test_requests_that_failed_before_are_counted_once_for_several_answers(bench):
    bench.upstream.reply = status(500)
    bench.write([*batch("a", n=2), *batch("b")])
    assert bench.run("--json", concurrency=1, retries=2).returncode == 1
    seen = len(bench.upstream.seen)
    bench.upstream.reply = answer()
    found = bench.succeed("--again", "failed", concurrency=1, retries=2)
    assert found["requests"] == len(bench.upstream.seen) == seen + 3
