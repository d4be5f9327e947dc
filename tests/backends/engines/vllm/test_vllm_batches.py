"""`/v1/batches` on vLLM, and the files of its own `vllm run-batch`."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest

import engine_batches
from openai_clients import client_of, ended, line, results, servers, started

pytestmark = [pytest.mark.http, pytest.mark.engine]
BLOCK: dict[str, Any] = {"dtype": "float32", "max_num_seqs": 4, "max_model_len": 2048}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    with servers(folder, "http://127.0.0.1:1") as start:
        yield engine_batches.killed(folder, lambda: start(engine_batches.configured("vllm", **BLOCK)))


def test_after_a_kill_answers_are_kept_and_the_other_rows_are_answered(killed):
    engine_batches.check_resumed(killed)


def test_each_line_has_its_own_settings_and_fails_alone(killed):
    engine_batches.check_chats(client_of(killed.server))


def test_lines_of_the_responses_api_have_their_form(killed):
    engine_batches.check_responses(client_of(killed.server))


def test_a_cancelled_batch_leaves_its_engine_to_others(killed):
    engine_batches.check_cancellation(client_of(killed.server))


@pytest.mark.parametrize("is_whole", [False, True], ids=["what was set", "all fields"])
def test_a_file_that_the_classes_of_run_batch_write_runs_here_and_they_read_the_results(killed, is_whole, monkeypatch):
    monkeypatch.setenv("SETUPTOOLS_USE_DISTUTILS", "stdlib")  # another test may have imported that one
    from vllm.entrypoints.launchers.run_batch import BatchRequestInput, BatchRequestOutput

    chat = line("a", "Hi!", model=engine_batches.MODEL, max_completion_tokens=4, logprobs=True, top_logprobs=1)
    both = [chat, line("b", "Hello!", model=engine_batches.MODEL, temperature=0.5, stop=["x"], seed=1)]
    lines = [
        BatchRequestInput.model_validate(each).model_dump_json(exclude_unset=not is_whole, warnings=False)
        for each in both
    ]
    client = client_of(killed.server)
    batch = ended(client, started(client, lines))
    assert batch.request_counts.completed == 2, client.files.content(batch.error_file_id).text
    found = [BatchRequestOutput.model_validate(each) for each in results(client, batch.output_file_id).values()]
    assert [(each.custom_id, each.error, each.response.status_code) for each in found] == [
        ("a", None, 200),
        ("b", None, 200),
    ]
    assert type(found[0].response.body).__name__ == "ChatCompletionResponse"
    assert len(found[0].response.body.choices[0].logprobs.content) == 4


def test_embeddings_have_the_form_that_each_line_asks_for(small, tmp_path):
    url = "/v1/embeddings"
    block = {"dtype": "float32", "runner": "pooling", "max_model_len": 64}
    lines = [
        line("floats", "abc", url),
        line("text", "abc", url, encoding_format="base64"),
        line("long", "x" * 99, url),
    ]
    lines.append(line("several", "", url, input=["abc", "something else"]))
    lines.append(line("vLLM's defaults", "abc", url, embed_dtype="float32", endianness="native", request_id="1"))
    for each in lines:
        each["body"].pop("model")
    with servers(tmp_path, "http://127.0.0.1:1") as start:
        client = client_of(start(engine_batches.configured("vllm", str(small), **block)))
        batch = ended(client, started(client, lines, endpoint=url))
        assert batch.request_counts.to_dict() == {"total": 5, "completed": 4, "failed": 1}
        bodies = {own: each["response"]["body"] for own, each in results(client, batch.output_file_id).items()}
        vectors = {own: [each["embedding"] for each in body["data"]] for own, body in bodies.items()}
        floats = vectors["floats"][0]
        assert struct.unpack(f"<{len(floats)}f", base64.b64decode(vectors["text"][0])) == pytest.approx(floats)
        assert vectors["several"][0] == pytest.approx(floats, abs=1e-5)
        assert bodies["several"]["usage"]["prompt_tokens"] > bodies["floats"]["usage"]["prompt_tokens"]
        (error,) = results(client, batch.error_file_id).values()
        assert error["response"]["body"]["error"]["code"] == "context_length_exceeded"
