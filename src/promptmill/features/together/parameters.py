"""The parameter for several rows in one request."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from promptmill.core.parameter import APPLIED, OF_FIELDS, OF_OPERATOR, Parameters

MOST_ROWS = 256


def _none_for_one(value: int | None) -> int | None:
    return None if value == 1 else value


class Together(Parameters):
    """How many rows share a request."""

    together: Annotated[int | None, AfterValidator(_none_for_one), APPLIED, OF_FIELDS, OF_OPERATOR] = Field(
        None, ge=1, le=MOST_ROWS, description="The most rows in one request; 1: each row alone."
    )
