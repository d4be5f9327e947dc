"""The parameters of embeddings."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from promptmill.core.parameter import APPLIED, OF_OPERATOR, REPEATABLE, Parameters

PictureApi: TypeAlias = Literal["doubao", "jina", "voyage", "cohere"]


def _is_wanted(value: object) -> object:
    """Return True for a text, because the option `embed` sets this parameter to the text that is embedded."""
    return True if isinstance(value, str) and value else value


class Embedded(Parameters):
    """Whether a vector is wanted instead of an answer, and the length of the vector."""

    embed: Annotated[bool | None, BeforeValidator(_is_wanted), APPLIED, REPEATABLE] = Field(
        None, description="Whether the rows of a job get vectors."
    )
    dimensions: Annotated[int | None, APPLIED] = Field(
        None, ge=1, description="The numbers of a vector, for models that shorten theirs."
    )
    picture_api: Annotated[PictureApi | None, APPLIED, OF_OPERATOR] = Field(
        None, description="The API of the endpoint for vectors of pictures, if its address does not show it."
    )
