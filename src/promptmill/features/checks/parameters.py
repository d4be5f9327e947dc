"""The parameters of checks."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from promptmill.core.parameter import APPLIED, Parameters


def _a_pattern(value: str | None) -> str | None:
    try:
        re.compile(value or "")
    except re.error as error:
        raise PydanticCustomError("pattern", "is no regular expression: {why}", {"why": str(error)}) from None
    return value


class Wanted(Parameters):
    """What an answer must satisfy, apart from a schema."""

    max_words: Annotated[int | None, APPLIED] = Field(
        None, ge=1, description="Most words of an answer; a longer one is requested again, `schema_retries` times."
    )
    match: Annotated[str | None, AfterValidator(_a_pattern), APPLIED] = Field(
        None, max_length=1000, description="A regular expression that the whole answer must match, likewise."
    )
