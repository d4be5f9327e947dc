"""The body and the reply of `/v1/rerank`: documents in the order of their similarity to a query."""

from __future__ import annotations

import math
import operator
import secrets
from collections.abc import Sequence
from typing import NamedTuple

from promptmill.core.values import JsonDict, JsonObject
from promptmill.features.openai_server.api_errors import ApiError, unsupported, wrong_type

RERANK = "/v1/rerank"
_MOST = 1000  # documents; Cohere advises no more in a request
_FIELDS = frozenset({"model", "query", "documents", "top_n", "return_documents"})


class Ranking(NamedTuple):
    """A query, and documents to rank."""

    query: str
    documents: list[str]
    top_n: int
    returns_documents: bool

    @classmethod
    def of(cls, body: JsonObject) -> Ranking:
        """Read a body of Cohere's or Jina's API. Raises `ApiError`."""
        if unknown := body.keys() - _FIELDS:
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

    def embedded(self, body: JsonObject) -> JsonDict:
        """Return the body of a request for the vectors of the query and of each document."""
        return {"model": body.get("model"), "input": [self.query, *self.documents]}

    def reply(self, vectors: JsonObject) -> JsonDict:
        """Return the reply, given that of the request for vectors: a score is the cosine of query and document."""
        query, *documents = (row["embedding"] for row in vectors["data"])
        scores = [_cosine(query, document) for document in documents]
        best = sorted(range(len(scores)), key=lambda index: -scores[index])[: self.top_n]
        results = [
            {"index": index, "relevance_score": scores[index]}
            | ({"document": {"text": self.documents[index]}} if self.returns_documents else {})
            for index in best
        ]
        head = {"id": f"rerank-{secrets.token_hex(14)}", "model": vectors["model"]}
        return {**head, "results": results, "usage": vectors["usage"]}


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
