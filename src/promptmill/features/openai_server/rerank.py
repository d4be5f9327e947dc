"""`/v1/rerank`: documents in the order of their relevance to a query.

| model | scores |
|---|---|
| a reranker of an endpoint (`rerank` in its name, or `sampling_params.rerank`) | of the endpoint's own rerank API |
| any other | the cosines of vectors of texts with the model's prefixes, see `search_prefixes` |
"""

from __future__ import annotations

import math
import operator
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from promptmill.backends.protocol import Completion
from promptmill.config.model_config import ModelConfig
from promptmill.core.request import Conversation, Request, Sampling
from promptmill.core.values import JsonDict, JsonObject
from promptmill.features.openai_server.api_errors import ApiError, unsupported, wrong_type
from promptmill.features.openai_server.choices import NOTED
from promptmill.features.openai_server.parameters import Reranking
from promptmill.features.openai_server.search_prefixes import Prefixes, prefixes_of

RERANK = "/v1/rerank"
_MOST = 1000  # documents; Cohere advises against more in a request
_FIELDS = frozenset({"model", "query", "documents", "top_n", "return_documents"})
PLAIN = "plain"
_RERANKER = re.compile(r"re-?rank|llama-rank", re.IGNORECASE)


class RerankApi(NamedTuple):
    """An endpoint's rerank API: its path behind the base URL, and the names of two fields."""

    path: str = "/rerank"
    documents: str = "documents"
    top_n: str = "top_n"


_APIS: Mapping[str, RerankApi] = {
    "api.voyageai.com": RerankApi(top_n="top_k"),  # docs.voyageai.com/reference/reranker-api
    "api.mixedbread.com": RerankApi("/reranking", "input", "top_k"),  # mixedbread.com/api-reference/endpoints/reranking
    "api.mixedbread.ai": RerankApi("/reranking", "input", "top_k"),
}
"""The APIs that differ from Jina's, by host. Cohere, Together, SiliconFlow, vLLM and llama.cpp have Jina's fields."""


def api_of(config: ModelConfig) -> RerankApi | None:
    """Return the rerank API of a model's endpoint; None if documents are ranked by vectors."""
    chosen = config.settings.sampling_params
    assert isinstance(chosen, Reranking)
    if not config.record.needs_endpoint or chosen.rerank in {"vectors", PLAIN}:
        return None
    first = next(iter(config.settings.backend_configs.openai.base_url), "")
    api = _APIS.get(urlsplit(first).hostname or "", RerankApi())
    if chosen.rerank is not None:
        return api._replace(path=chosen.rerank)
    return api if _RERANKER.search(config.model or "") else None


class Ranking(NamedTuple):
    """A query, and documents to rank."""

    query: str
    documents: list[str]
    top_n: int
    returns_documents: bool

    @classmethod
    def of(cls, body: JsonObject) -> Ranking:
        """Read a body of Cohere's or Jina's API. Raises `ApiError`."""
        if unknown := body.keys() - _FIELDS - NOTED:
            raise unsupported(min(unknown))
        query, documents, returned = body.get("query"), body.get("documents"), body.get("return_documents", False)
        if not isinstance(query, str):
            raise wrong_type("query", query, "a text")
        if not isinstance(documents, list) or not 1 <= len(documents) <= _MOST:
            raise wrong_type("documents", documents, f"a list of 1 to {_MOST:,} texts")
        if not isinstance(returned, bool):
            raise wrong_type("return_documents", returned, "true or false")
        top_n = body.get("top_n")
        if top_n is not None and (type(top_n) is not int or top_n < 1):
            raise ApiError(400, "`top_n` is a whole number from 1.", "top_n")
        return cls(query, [*map(_text_of, documents)], top_n or len(documents), returned)

    def embedded(self, body: JsonObject, config: ModelConfig) -> JsonDict:
        """Return the body of a request for the vectors of the query and of each document, with the prefixes of the
        model."""
        chosen = config.settings.sampling_params
        assert isinstance(chosen, Reranking)
        prefixes = Prefixes() if chosen.rerank == PLAIN else prefixes_of(config.model or config.backend)
        texts = prefixes.of_query(self.query), *map(prefixes.of_document, self.documents)
        return {"model": body.get("model"), "input": [*texts]}

    def request(self, api: RerankApi) -> Request:
        """Return the request to an endpoint's rerank API."""
        top_n = min(self.top_n, len(self.documents))
        body = {"query": self.query, api.documents: self.documents, api.top_n: top_n}
        # `max_tokens` is set only because `max_cost` needs a limit; it is not sent, as a ranking has no answer tokens
        return Request(0, Conversation(()), Sampling(max_tokens=1), body, path=api.path)

    def read(self, answer: Completion, model: str) -> JsonDict:
        """Return the client's reply from the endpoint's reply. Raises `ApiError` unless the results have scores, and
        numbers of different documents. llama.cpp does not sort the results, and some servers ignore `top_n`."""
        payload: JsonObject = (answer.details or {}).get("payload") or {}
        results = payload.get("results", payload.get("data"))
        listed = [one for one in results if isinstance(one, dict)] if isinstance(results, list) else []
        scores: dict[Any, Any] = {one.get("index"): one.get("relevance_score", one.get("score")) for one in listed}
        known, count = range(len(self.documents)), min(self.top_n, len(self.documents))
        is_whole = len(scores) == len(listed) == len(results or ()) and len(scores) in {count, len(self.documents)}
        sound = [type(at) is int and at in known and _is_score(score) for at, score in scores.items()]
        if not (is_whole and all(sound)):
            problem = f"The reply of the endpoint does not hold one score for each of {count} documents."
            raise ApiError(502, problem, None, "bad_response")
        ranked: dict[int, float] = {at: scores[at] for at in sorted(scores, key=lambda at: (-scores[at], at))}
        usage = {"prompt_tokens": answer.usage.prompt_tokens, "total_tokens": answer.usage.prompt_tokens}
        meta = {"meta": payload["meta"]} if isinstance(payload.get("meta"), dict) else {}
        return self._reply(ranked, model, usage) | meta

    def reply(self, vectors: JsonObject) -> JsonDict:
        """Return the reply, scored by cosines. `vectors`: the reply with the vectors of the query and the documents."""
        query, *documents = (row["embedding"] for row in vectors["data"])
        scores = [_cosine(query, document) for document in documents]
        best = sorted(range(len(scores)), key=lambda index: -scores[index])
        return self._reply({index: scores[index] for index in best}, vectors["model"], vectors["usage"])

    def _reply(self, ranked: Mapping[int, float], model: str, usage: JsonObject) -> JsonDict:
        """Return the reply. `ranked`: the score of each document by its number, the best first."""
        results = [
            {"index": index, "relevance_score": score}
            | ({"document": {"text": self.documents[index]}} if self.returns_documents else {})
            for index, score in [*ranked.items()][: self.top_n]
        ]
        return {"id": f"rerank-{secrets.token_hex(14)}", "model": model, "results": results, "usage": usage}


def _is_score(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text_of(document: object) -> str:
    text = document.get("text") if isinstance(document, dict) else document
    if not isinstance(text, str):
        raise wrong_type("documents", [document], 'a list of texts, or of objects such as {"text": "…"}')
    return text


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the cosine of two vectors; 0 for a vector of zeros.

    >>> _cosine([3.0, 4.0], [6.0, 8.0])
    1.0
    """
    lengths = math.hypot(*one) * math.hypot(*other)
    return sum(map(operator.mul, one, other)) / lengths if lengths else 0.0
