"""Sampling parameters under OpenAI's names; each backend maps them to its own."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

BESIDE = frozenset({"tools", "tool_choice", "parallel_tool_calls", "logprobs", "top_logprobs"})
"""OpenAI parameters that a call may put into `sampling_params`, and that are sent with `extra_params`."""

_MOST_CHOICES = 1000


def _list_of_stops(value: object) -> object:
    if not isinstance(value, str | list | tuple | None):
        raise PydanticCustomError("stops", "should be a text or a list of texts")
    return [value] if isinstance(value, str) else value


def list_of_choices(value: object) -> object:
    """Return the texts of a list, or of a text with commas (one with a comma itself in double quotes).

    Raises `ValueError`.
    """
    if value is None:
        return None
    if isinstance(value, str):
        value = next(csv.reader([value], skipinitialspace=True), [])
    if not isinstance(value, list | tuple) or not all(type(one) in {str, int} for one in value):
        raise PydanticCustomError("choices", "should be a list of texts (in YAML, put yes and no into quotes)")
    choices = [str(one).strip() for one in value]
    if len(choices) < 2 or not all(choices) or len(set(choices)) < len(choices):
        raise PydanticCustomError("choices", "should be at least two different texts")
    if len(choices) > _MOST_CHOICES:
        raise PydanticCustomError("choices", "should be at most {most} texts", {"most": _MOST_CHOICES})
    return choices


def _none_for_one(value: int | None) -> int | None:
    return None if value == 1 else value


def replacing_choices(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `changes` to parameters; a `response_format` among them also takes the place of earlier `choices`."""
    return ({} if changes.get("response_format") is None else {"choices": None}) | dict(changes)


class Sampling(BaseModel):
    """Parameters for choosing tokens. The engine or endpoint decides those that are not set.

    Names follow OpenAI's chat completions; `top_k`, `min_p` and `repetition_penalty` follow vLLM.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    temperature: float | None = Field(None, ge=0, description="Randomness; 0 always takes the likeliest token.")
    top_p: float | None = Field(
        None, gt=0, le=1, description="Choose among the likeliest tokens of this joint probability."
    )
    max_tokens: int | None = Field(None, ge=1, description="Longest answer, in tokens.")
    stop: Annotated[list[str] | None, BeforeValidator(_list_of_stops)] = Field(
        None, description="End the answer before any of these texts."
    )
    n: Annotated[int | None, AfterValidator(_none_for_one)] = Field(
        None, ge=1, le=128, description="Number of answers to each prompt; `answers` holds all of them."
    )
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Makes random choices repeatable, item by item.")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="Make tokens that occurred less likely.")
    frequency_penalty: float | None = Field(
        None, ge=-2, le=2, description="Make tokens less likely, in proportion to their occurrences."
    )
    response_format: dict[str, Any] | None = Field(
        None, description="OpenAI's `response_format`: JSON mode or a schema."
    )
    choices: Annotated[list[str] | None, BeforeValidator(list_of_choices)] = Field(
        None, description="The answer is one of these texts; takes the place of `response_format`."
    )
    reasoning_effort: str | None = Field(
        None, description="How long a reasoning model thinks: `low`, `medium`, `high`, …"
    )
    top_k: int | None = Field(None, ge=-1, description="Choose among this many likeliest tokens; 0 or -1 for all.")
    min_p: float | None = Field(None, ge=0, le=1, description="Leave out tokens below this share of the likeliest one.")
    repetition_penalty: float | None = Field(
        None, gt=0, description="Divide the score of tokens that occurred; 1 is off."
    )
    enable_thinking: bool | None = Field(None, description="Whether a model that can reason does so before its answer.")
    reasoning: Literal["separate", "inline"] | None = Field(
        None, description="Like the key `reasoning` of the configuration, which it overrides."
    )

    def given(self) -> dict[str, Any]:
        """Return the parameters that are set, by name."""
        return {name: value for name, value in self if value is not None}
