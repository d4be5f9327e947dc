"""Embeddings from vLLM: lines of a Batch file in, OpenAI's responses out, on a small model made here."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

import promptmill
from promptmill.config.backends import BACKENDS
from promptmill.jobs.rows import row_lines

pytestmark = pytest.mark.engine


def request(number: int, **body: Any) -> Any:
    line = {"custom_id": f"{number}", "method": "POST", "url": "/v1/embeddings", "body": {"model": "e", **body}}
    reader = row_lines.RowReader(
        "batch", limits=row_lines.RowLimits(only_model="e", paths=BACKENDS["vllm"].other_paths)
    )
    return reader.request(number, json.dumps(line).encode())


@pytest.fixture(scope="session")
def embedder(start: Any, small: Any) -> Any:
    return start(small, dtype="float32", runner="pooling", max_model_len=64)


def expected(small: Any, text: str) -> Any:
    """Return transformers' embeddings: the last token's state, normalized, as vLLM pools a decoder."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(small, dtype=torch.float32).eval()
    with torch.no_grad():
        state = model(**AutoTokenizer.from_pretrained(small)([text], return_tensors="pt")).last_hidden_state[0, -1]
    return torch.nn.functional.normalize(state, dim=0)


def test_each_line_gets_the_embeddings_of_its_inputs(desk, embedder, small):
    import numpy as np

    one, several, tokens = desk.answer(
        embedder,
        [
            request(0, input="abc", user="somebody"),
            request(1, input=["abc", "something else"], encoding_format="base64"),
            request(2, input=[5, 6, 7]),
        ],
    )
    payload = one.details["payload"]
    assert (payload["object"], payload["usage"]["total_tokens"]) == ("list", one.usage.prompt_tokens)
    vector = payload["data"][0]["embedding"]
    assert np.allclose(vector, expected(small, "abc").numpy(), atol=1e-4)
    first, second = (np.frombuffer(base64.b64decode(x["embedding"]), "<f4") for x in several.details["payload"]["data"])
    assert np.allclose(first, vector, atol=1e-5)
    assert np.allclose(second, expected(small, "something else").numpy(), atol=1e-4)
    assert tokens.usage.prompt_tokens == 3
    assert [np.frombuffer(one, "<f4").tolist() for one in several.vectors] == [first.tolist(), second.tolist()]
    assert desk.last_call.warnings == {}


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ({"input": 3}, "invalid_input", "body.input should be"),
        ({"input": "a", "dimensions": 0}, "invalid_input", "body.dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "invalid_input", "float or base64"),
        ({"input": "long" * 100}, "context_length", "the model takes 64"),
        ({"input": "a", "dimensions": 4}, "invalid_input", "atryoshka"),
    ],
)
def test_what_cannot_be_embedded_fails_alone(desk, embedder, body, code, said):
    bad, good = desk.answer(embedder, [request(0, **body), request(1, input="a")])
    assert bad.error.code == code
    assert said in bad.error.message
    assert good.details


def test_a_model_for_chats_says_what_to_do(desk, vllm):
    (outcome,) = desk.answer(vllm, [request(0, input="a")])
    assert outcome.error.code == "unsupported"
    assert "runner: pooling" in outcome.error.hint


def test_a_model_that_embeds_says_so_to_a_chat(desk, embedder):
    (outcome,) = desk.ask(embedder, ["Hi"], max_tokens=2)
    assert outcome.error.code == "unsupported"
    assert "/v1/embeddings" in outcome.error.message


@pytest.mark.features("embeddings")
def test_a_job_has_the_vectors_of_its_rows(small, tmp_path):
    import numpy as np

    keys = {"model_name_or_path": str(small), "dtype": "float32", "runner": "pooling", "max_model_len": 64}
    texts = [f"text {at}" for at in range(300)]
    rows = [{"text": "long" * 100 if at == 7 else text} for at, text in enumerate(texts)]
    found = promptmill.bulk(
        rows,
        embed="{{text}}",
        backend="vllm",
        settings={f"backend_configs.vllm.{name}": value for name, value in keys.items()},
        state=tmp_path,
        progress=False,
        max_failures=1,
    )
    assert [row["error"]["code"] for row in found.rows if row["error"]] == ["context_length"]
    assert np.isnan(found.vectors[7]).all()
    for at in (0, 6, 8, 255, 256, 299):
        assert np.allclose(found.vectors[at], expected(small, texts[at]).numpy(), atol=1e-4)
    assert found.status["requests"] < 30, "the request with the long text is halved, the other one is not"
