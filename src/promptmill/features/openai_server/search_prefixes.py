"""The beginnings of queries and documents with which models for vectors were trained, by the names of the models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple


class Prefixes(NamedTuple):
    """The beginnings of a query and of a document."""

    query: str = ""
    document: str = ""

    def of_query(self, text: str) -> str:
        """Return a query with its prefix. A text that already begins with a prefix is unchanged.

        >>> Prefixes("query: ", "passage: ").of_query("What is red?")
        'query: What is red?'
        """
        return text if self._has_one(text) else self.query + text

    def of_document(self, text: str) -> str:
        """Return a document with its prefix, see `of_query`."""
        return text if self._has_one(text) else self.document + text

    def _has_one(self, text: str) -> bool:
        return any(prefix and text.startswith(prefix) for prefix in self)


_E5 = Prefixes("query: ", "passage: ")
_FOR_PASSAGES = Prefixes("Represent this sentence for searching relevant passages: ")
_TASK = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
_BY_NAME: Sequence[tuple[str, Prefixes]] = [
    (r"\be5-.*instruct|e5-mistral", Prefixes(f"{_TASK} ")),  # huggingface.co/intfloat/multilingual-e5-large-instruct
    (r"\be5(?!-?v\b|\d)|^encoder$", _E5),  # huggingface.co/intfloat/multilingual-e5-small; the encoder here is E5
    (r"\bbge-(small|base|large)-zh", Prefixes("为这个句子生成表示以用于检索相关文章\uff1a")),
    (r"\bbge-(small|base|large)", _FOR_PASSAGES),  # github.com/FlagOpen/FlagEmbedding; bge-m3 has none
    (r"mxbai-embed-large", _FOR_PASSAGES),  # huggingface.co/mixedbread-ai/mxbai-embed-large-v1
    (r"arctic-embed2|arctic-embed-.*v2", Prefixes("query: ")),  # huggingface.co/Snowflake/snowflake-arctic-embed-l-v2.0
    (r"arctic-embed", _FOR_PASSAGES),  # huggingface.co/Snowflake/snowflake-arctic-embed-m-v1.5
    (r"nomic-embed-text", Prefixes("search_query: ", "search_document: ")),  # of nomic-ai/nomic-embed-text-v1.5
    (r"embeddinggemma|embedding-gemma", Prefixes("task: search result | query: ", "title: none | text: ")),
    (r"qwen3-embedding", Prefixes(_TASK)),  # github.com/QwenLM/Qwen3-Embedding
]
"""Patterns of names, with the prefixes of the model's card. The first pattern that is found decides."""


def prefixes_of(model: str) -> Prefixes:
    """Return the prefixes of a model; empty ones for a model that is unknown or has none.

    >>> prefixes_of("nomic-embed-text:latest").document
    'search_document: '
    """
    name = model.lower()
    return next((prefixes for pattern, prefixes in _BY_NAME if re.search(pattern, name)), Prefixes())
