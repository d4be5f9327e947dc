"""The types of the fields of a status and a course: a job's folder may come from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from promptmill.core.errors import Code

_MOST = 10**15
_LAST_TIME = 10**11  # the year 5138
_Number: TypeAlias = Annotated[int, Field(ge=-_MOST, le=_MOST)] | Annotated[float, Field(ge=-_MOST, le=_MOST)]


class _Results(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, _Number] = Field(init=False)

    values: dict[str, int] = {}
    fields_: dict[str, dict[str, _Number | dict[str, int]]] = Field({}, alias="fields")


class StatusRecord(BaseModel):
    """The kinds of the fields of a status: those that are not listed here are numbers."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, _Number | None] = Field(init=False)

    state: str = ""
    reason: str = ""
    activity: str = ""
    waiting: str = ""
    round: str = ""
    paused: bool = False
    code: Annotated[Code, Field(strict=False)] = Code.INTERNAL
    errors: dict[str, int] = {}
    latency_s: dict[str, _Number | None] = {}
    results: _Results = Field(default_factory=_Results)
    columns: dict[str, str] = {}
    warnings: list[str] = []
    updated: Annotated[float, Field(ge=0, le=_LAST_TIME)] = 0.0


class _Run(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    at: _Number
    began: Annotated[int, Field(ge=0, le=_LAST_TIME)]
    version: str


class CourseRecord(BaseModel):
    """The kinds of the fields of a course."""

    model_config = ConfigDict(strict=True)

    runs: list[_Run] = []
    samples: list[Annotated[list[_Number | None], Field(min_length=7, max_length=7)]] = []
    every_s: Annotated[float, Field(gt=0, le=_MOST)] = 1.0


def sound(found: Mapping[str, Any], kinds: type[BaseModel]) -> dict[str, Any]:
    """Return the fields of `found` that are of their kinds. A job's folder may come from anywhere."""
    try:
        kinds.model_validate(found)
    except ValidationError as error:
        wrong = {problem["loc"][0] for problem in error.errors(include_url=False, include_input=False)}
        return {name: value for name, value in found.items() if name not in wrong}
    return dict(found)
