"""Embeddings: a vector for each row, from a model that turns texts into vectors."""

from promptmill.core.feature import Feature

FEATURE = Feature(
    words="a vector for each row: for search, for groups of similar texts, for a classifier of your own",
    needs=("packs",),
    options="promptmill.features.embeddings.options:OPTIONS",
    sampling="promptmill.features.embeddings.parameters:Embedded",
    answers=("promptmill.features.embeddings.embedding:Embedding",),
    embedded="promptmill.features.embeddings.local.embedded_labels",
    backends={"encoder": "promptmill.features.embeddings.local.backend:BACKEND"},
)
