"""The parameters of the HTTP API."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from promptmill.core.parameter import APPLIED, OF_OPERATOR, Parameters


class Reranking(Parameters):
    """The rerank API of a model's endpoint."""

    rerank: Annotated[str | None, APPLIED, OF_OPERATOR] = Field(
        None,
        pattern=r"^(/[\w/-]+|vectors|plain)$",
        description="Path of the endpoint's rerank API for `/v1/rerank`, by default `/rerank` of a model with `rerank` "
        "in its name; `vectors`: rank by vectors; `plain`: by vectors of texts without the model's prefixes.",
    )
