"""The parameter for quotes."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from promptmill.core.parameter import APPLIED, OF_FIELDS, SOURCED, Parameters


def _none_for_false(value: bool | None) -> bool | None:  # noqa: FBT001 (pydantic passes it)
    return value or None


class Quoted(Parameters):
    """Whether each value has a quote."""

    quote: Annotated[bool | None, AfterValidator(_none_for_false), APPLIED, OF_FIELDS, SOURCED] = Field(
        None, description="Ask for the words of the text that say each value, and look them up in it."
    )
