"""`/v1/rerank`: documents in the order of their similarity to a query, by vectors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from promptmill.features.openai_server.api_errors import ApiError
from promptmill.features.openai_server.rerank import Ranking
from replies import raw

VECTORS = [[1.0, 0.0], [0.0, 3.0], [4.0, 4.0], [2.0, 0.0]]


def vectors(*numbers: list[float]) -> dict[str, object]:
    """Return the reply of an endpoint with these vectors."""
    data = [{"object": "embedding", "index": index, "embedding": each} for index, each in enumerate(numbers)]
    return {"object": "list", "model": "m", "data": data, "usage": {"prompt_tokens": 9, "total_tokens": 9}}


def test_documents_are_ranked_by_one_request_for_vectors(client, upstream):
    upstream.other_posts = raw(json.dumps(vectors(*VECTORS)).encode())
    body = {
        "model": "org/name",
        "query": "What is red?",
        "documents": ["the sea", {"text": "a poppy"}, "blood"],
        "top_n": 2,
        "return_documents": True,
    }
    found = client.post("/rerank", cast_to=dict[str, Any], body=body)
    assert [(each["index"], round(each["relevance_score"], 3)) for each in found["results"]] == [(2, 1.0), (1, 0.707)]
    assert [each["document"] for each in found["results"]] == [{"text": "blood"}, {"text": "a poppy"}]
    assert (found["model"], found["usage"]["total_tokens"]) == ("org/name", 9)
    assert upstream.seen[-1].json == {"model": "small", "input": ["What is red?", "the sea", "a poppy", "blood"]}


def test_without_options_all_documents_come_back_as_numbers():
    ranking = Ranking.of({"query": "q", "documents": ["a", "b", "c"]})
    results = ranking.reply(vectors([1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0]))["results"]
    assert [each["index"] for each in results] == [1, 2, 0], "equal scores in the order of the documents"
    assert all(each.keys() == {"index", "relevance_score"} for each in results)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"query": None}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": ["x"] * 1001}, "documents"),
        ({"documents": [{"title": "x"}]}, "documents"),
        ({"top_n": 0}, "top_n"),
        ({"top_n": True}, "top_n"),
        ({"return_documents": "yes"}, "return_documents"),
        ({"max_tokens_per_doc": 5}, "max_tokens_per_doc"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, object], param: str):
    with pytest.raises(ApiError) as raised:
        Ranking.of({"query": "q", "documents": ["a"], **changes})
    assert (raised.value.status, raised.value.param) == (400, param)
