"""The parameters of sources."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from promptmill.core.parameter import APPLIED, OF_FIELDS, OF_OPERATOR, SOURCED, Parameters


def _none_for_false(value: bool | None) -> bool | None:  # noqa: FBT001 (pydantic passes it)
    return value or None


class Sourced(Parameters):
    """Whether each value has a quote, and whether the provider searches the web."""

    quote: Annotated[bool | None, AfterValidator(_none_for_false), APPLIED, OF_FIELDS, SOURCED] = Field(
        None, description="Ask for the words of the text that say each value, and look them up in it."
    )
    web: Annotated[bool | None, APPLIED, OF_OPERATOR, SOURCED] = Field(
        None, description="Whether the provider searches the web for each answer, at a price of its own."
    )
