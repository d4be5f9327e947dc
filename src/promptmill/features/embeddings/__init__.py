"""Vectors of texts, by which rows with similar meanings are near each other."""

from promptmill.core.feature import Feature

FEATURE = Feature(
    words="vectors of texts: an encoder that runs on this machine",
    backends={"encoder": "promptmill.features.embeddings.local.backend:BACKEND"},
)
