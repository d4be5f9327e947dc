"""The parameter for further looks at a list."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from promptmill.core.parameter import APPLIED, Parameters

MOST_PASSES = 5


def _none_for_one(value: int | None) -> int | None:
    return None if value == 1 else value


class Passes(Parameters):
    """How often a model looks for the items of a list."""

    passes: Annotated[int | None, AfterValidator(_none_for_one), APPLIED] = Field(
        None, ge=1, le=MOST_PASSES, description="The most requests for the items of a list; each asks for missed ones."
    )
