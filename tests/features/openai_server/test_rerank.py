"""`/v1/rerank`: documents in the order of their similarity to a query, by vectors."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest
from openai import APIStatusError

from fakes import openai_config, openai_configuration
from openai_clients import client_of
from promptmill.backends.openai.endpoint import elsewhere, endpoints
from promptmill.backends.protocol import Completion
from promptmill.config.configuration import Configuration
from promptmill.features.openai_server import endpoints as endpoints_of_api
from promptmill.features.openai_server.api_errors import ApiError
from promptmill.features.openai_server.bodies import reply_body
from promptmill.features.openai_server.rerank import Ranking, RerankApi, api_of
from promptmill.features.openai_server.search_prefixes import prefixes_of
from replies import attempts, raw, status
from served import TOKEN, ServedHere
from server_process import written

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


def test_the_numbers_of_vectors_are_written_outside_of_the_event_loop(client, upstream, monkeypatch):
    """Nine hundred vectors of a usual model take a second."""
    in_loop = []

    def written_there(*given):
        with contextlib.suppress(RuntimeError):
            in_loop.append(asyncio.get_running_loop())
        return reply_body(*given)

    monkeypatch.setattr(endpoints_of_api, "reply_body", written_there)
    upstream.other_posts = raw(json.dumps(vectors([1.0], [2.0])).encode())
    asked = {"model": "org/name", "query": "a", "documents": ["b"]}
    assert client.post("/rerank", cast_to=dict[str, Any], body=asked)["results"]
    assert client.embeddings.create(model="org/name", input=["a", "b"]).data
    assert not in_loop


@pytest.mark.parametrize(
    ("model", "query", "document"),
    [
        ("intfloat/multilingual-e5-large", "query: ", "passage: "),
        ("e5", "query: ", "passage: "),
        ("intfloat/multilingual-e5-large-instruct", "Instruct: ", ""),
        ("royalpha/e5-v", "", ""),
        ("nomic-embed-text:latest", "search_query: ", "search_document: "),
        ("BAAI/bge-small-en-v1.5", "Represent this sentence", ""),
        ("bge-large-zh-v1.5", "为这个句子", ""),
        ("bge-m3", "", ""),
        ("mxbai-embed-large", "Represent this sentence", ""),
        ("snowflake-arctic-embed2", "query: ", ""),
        ("Snowflake/snowflake-arctic-embed-m-v1.5", "Represent this sentence", ""),
        ("embeddinggemma:300m", "task: search result | query: ", "title: none | text: "),
        ("Qwen/Qwen3-Embedding-0.6B", "Instruct: ", ""),
        ("text-embedding-3-small", "", ""),
    ],
)
def test_a_model_has_the_prefixes_of_its_name(model, query, document):
    found = prefixes_of(model)
    assert found.query.startswith(query)
    assert (bool(found.query), found.document) == (bool(query), document)


@pytest.mark.parametrize(
    ("block", "texts"),
    [
        ({"model_name": "multilingual-e5-small"}, ["query: What?", "passage: a", "query: b"]),
        ({"model_name": "multilingual-e5-small", "plain": True}, ["What?", "a", "query: b"]),
        ({"model_name": "my-model"}, ["What?", "a", "query: b"]),
    ],
)
def test_query_and_documents_get_the_prefixes_of_the_model(block, texts):
    is_plain = block.pop("plain", False)
    config = openai_config("http://127.0.0.1:9/v1", **block).with_sampling({"rerank": "plain"} if is_plain else {})
    ranking = Ranking.of({"query": "What?", "documents": ["a", "query: b"]})
    assert api_of(config) is None
    assert ranking.embedded({"model": "m"}, config) == {"model": "m", "input": texts}


def test_a_field_that_changes_no_ranking_has_a_note(client, upstream):
    upstream.other_posts = raw(json.dumps(vectors(*VECTORS[:3])).encode())
    body = {"query": "a", "documents": ["b", "c"], "keep_alive": "5m", "session_id": "s"}
    reply = client.post("/rerank", body=body, cast_to=dict[str, Any])
    assert reply["x_note"] == "Left out, because no answer depends on it: keep_alive, session_id."


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


def results(*pairs, names=("results", "relevance_score"), **fields):
    """Return the reply of an endpoint's rerank API."""
    listed = [{"index": index, names[1]: score} for index, score in pairs]
    return raw(json.dumps({names[0]: listed, **fields}).encode())


@pytest.fixture(scope="module")
def ranking_server(lasting, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranking")
    top = {
        "models": {"ranker": {"openai": {"base_url": lasting.url, "model_name": "bge-reranker", "base_delay": 0.01}}}
    }
    environ = {"PROMPTMILL_HTTP_TOKEN": TOKEN, "PROMPTMILL_STATE": str(folder / "state")}
    with ServedHere(written(folder, lasting.url, top), environ=environ) as served:
        yield served


@pytest.fixture
def ranker(ranking_server, upstream):
    with contextlib.closing(client_of(ranking_server)) as client:
        yield client


RANKED = {"model": "ranker", "query": "What is red?", "documents": ["the sea", {"text": "a poppy"}, "blood"]}


def test_a_reranker_of_an_endpoint_ranks_by_its_own_api(ranker, upstream):
    ranked = results((0, -8.5), (1, 0.5), (2, 0.7), usage={"total_tokens": 12}, meta={"billed_units": {}})
    upstream.other_posts = attempts(status(503, "overloaded"), ranked)  # llama.cpp: all of them, not in order
    found = ranker.post("/rerank", cast_to=dict[str, Any], body={**RANKED, "top_n": 2, "return_documents": True})
    assert [(one["index"], one["relevance_score"]) for one in found["results"]] == [(2, 0.7), (1, 0.5)]
    assert [one["document"]["text"] for one in found["results"]] == ["blood", "a poppy"]
    assert (found["model"], found["usage"], found["meta"]) == (
        "ranker",
        {"prompt_tokens": 12, "total_tokens": 12},
        {"billed_units": {}},
    )
    body = {"model": "bge-reranker", "query": "What is red?", "documents": ["the sea", "a poppy", "blood"], "top_n": 2}
    assert [(seen.target, seen.json) for seen in upstream.seen] == [("/v1/rerank", body)] * 2


@pytest.mark.thorough
@pytest.mark.parametrize(
    "reply",
    [
        results((0, 1), (1, 1)),
        results((0, 1), (1, 1), (1, 1)),
        results((0, 1), (1, 1), (3, 1)),
        results((0, 1), (1, 1), (True, 1)),
        results((0, 1), (1, 1), (2, None)),
        raw(b'{"results": [1, 2, 3]}'),
        raw(b"{}"),
    ],
    ids=["too few", "twice", "no such document", "no number", "no score", "no objects", "no results"],
)
def test_a_reply_that_does_not_rank_the_documents_is_an_error(ranker, upstream, reply):
    upstream.other_posts = reply
    with pytest.raises(APIStatusError, match="does not hold one score for each of 3 documents") as raised:
        ranker.post("/rerank", cast_to=dict[str, Any], body=RANKED)
    assert raised.value.status_code == 502


@pytest.mark.thorough
def test_a_refused_key_is_the_error_of_the_request(ranker, upstream):
    upstream.other_posts = status(401, "no such key")
    with pytest.raises(APIStatusError, match="answered 401"):
        ranker.post("/rerank", cast_to=dict[str, Any], body=RANKED)


@pytest.mark.parametrize(
    ("block", "api"),
    [
        ({"model_name": "text-embedding-3-small"}, None),
        ({"model_name": "jina-reranker-v2-base-multilingual"}, RerankApi()),
        ({"model_name": "Salesforce/Llama-Rank-V1"}, RerankApi()),
        ({"model_name": "rerank-3", "base_url": "https://api.voyageai.com/v1"}, RerankApi(top_n="top_k")),
        (
            {"model_name": "mixedbread-ai/mxbai-rerank-large-v2", "base_url": "https://api.mixedbread.com/v1"},
            RerankApi("/reranking", "input", "top_k"),
        ),
        ({"model_name": "rerank-v3.5", "provider": "cohere", "base_url": []}, RerankApi()),
        ({"model_name": "rerank-v3.5", "base_url": "https://api.cohere.com/v2"}, RerankApi()),
    ],
)
def test_the_rerank_api_of_an_endpoint_follows_from_its_model_and_host(block, api):
    assert api_of(openai_config(**{"base_url": "http://127.0.0.1:9/v1", **block})) == api


@pytest.mark.parametrize(("stated", "api"), [("/v3/score", RerankApi("/v3/score")), ("vectors", None)])
def test_the_configuration_states_the_path_of_a_rerank_api(stated, api):
    configuration = openai_configuration("http://127.0.0.1:9/v1", model_name="m-rerank")
    config = Configuration({**configuration._raw, "sampling_params": {"rerank": stated}}).config
    assert api_of(config) == api


def test_other_names_of_fields_are_sent_and_read():
    ranking = Ranking.of({"query": "q", "documents": ["a", "b"], "top_n": 5})
    assert ranking.request(RerankApi("/reranking", "input", "top_k")).extra == {
        "query": "q",
        "input": ["a", "b"],
        "top_k": 2,
    }
    payload = {"data": [{"index": 1, "score": 0.9}, {"index": 0, "score": 0.1}]}
    found = ranking.read(Completion("", details={"payload": payload}), "m")["results"]
    assert [(one["index"], one["relevance_score"]) for one in found] == [(1, 0.9), (0, 0.1)]


def test_coheres_rerank_api_is_beside_its_chats():
    (endpoint,) = endpoints(openai_config([], provider="cohere"), {})
    assert elsewhere(endpoint, "/rerank").url == "https://api.cohere.ai/v2/rerank"
    assert elsewhere(endpoint, "/embed").url == "https://api.cohere.ai/v2/embed"
    assert elsewhere(endpoint, "/embeddings").url == "https://api.cohere.ai/compatibility/v1/embeddings"
