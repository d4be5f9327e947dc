"""From our sampling parameters and `extra_params` to vLLM's `SamplingParams`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pydantic
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind, SamplingParams

from promptmill.answers.schema import schema_of
from promptmill.backends.engines.request_options import (
    DEFAULT_MAX_TOKENS,
    LONGEST,
    longest_answer,
    special_tokens,
    split_stops,
)
from promptmill.core.errors import PromptmillError, input_error
from promptmill.core.wording import shape

SAME_NAME = (
    *("temperature", "top_p", "top_k", "min_p", "seed"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "max_tokens"),
)
# What a request may set in vLLM: not what changes the number or form of its answers, or is vLLM's own affair.
PARAMETERS = frozenset(
    {
        *SAME_NAME,
        *("stop", "stop_token_ids", "ignore_eos", "min_tokens", "bad_words", "include_stop_str_in_output"),
        *("skip_special_tokens", "spaces_between_special_tokens", "structured_outputs", "logit_bias"),
        *("allowed_token_ids", "extra_args", "thinking_token_budget", "repetition_detection", "watermarking"),
    }
)
_GUIDED = {f"guided_{name}": name for name in ("json", "regex", "choice", "grammar")}
"""vLLM's older names for structured outputs, which many programs still send."""

_ADAPTER: pydantic.TypeAdapter[SamplingParams] = pydantic.TypeAdapter(SamplingParams)


class SamplingMap:
    """Makes `SamplingParams` of requests to one model."""

    def __init__(self, tokenizer: Any, defaults: Mapping[str, Any]) -> None:
        """`defaults` are the model's own generation defaults, under vLLM's names."""
        self._defaults = dict(defaults)
        self._special = special_tokens(tokenizer)

    def params(
        self, sampling: Mapping[str, Any], extra: Mapping[str, Any], room: int, left_out: list[str], warnings: list[str]
    ) -> SamplingParams:
        """Return the parameters of one request, whose answer has `room` tokens at most.

        `left_out` gets the names of what vLLM does not know. Raises `PromptmillError` (`invalid_input`).
        """
        given = {name: value for name, value in extra.items() if name in PARAMETERS and value is not None}
        values = self._defaults | given
        values |= {name: sampling[name] for name in SAME_NAME if name in sampling}
        stops = sampling.get("stop") or _stops(given.get("stop"))
        if structure := _structure(sampling.get("response_format"), extra, left_out):
            values["structured_outputs"] = structure
        longest = longest_answer(sampling, extra) or self._defaults.get("max_tokens") or DEFAULT_MAX_TOKENS
        values["max_tokens"] = min(longest, room)
        # vLLM strips special tokens from the text in which it looks for stop strings
        values["stop"], ends = split_stops(stops, self._special, warnings)
        try:
            values["stop_token_ids"] = [*(values.get("stop_token_ids") or ()), *ends]
            params = _ADAPTER.validate_python(values)
        except (pydantic.ValidationError, VLLMValidationError, TypeError, ValueError) as error:
            raise _refused(error) from None
        params.output_kind = RequestOutputKind.FINAL_ONLY
        return params


def _stops(given: object) -> list[str]:
    """Return the stop strings of `extra_params`: a text or a list of texts, as in OpenAI's `stop`."""
    stops = [given] if isinstance(given, str) else given or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise input_error(f"extra_params.stop is {shape(given)}; send a text or a list of texts.")
    return stops


def _structure(wanted: Mapping[str, Any] | None, extra: Mapping[str, Any], left_out: list[str]) -> Any:
    """Return vLLM's `structured_outputs` for OpenAI's `response_format`, or for an older name of it."""
    given = {new: extra[old] for old, new in _GUIDED.items() if extra.get(old) is not None}
    kind = (wanted or {}).get("type")
    if wanted is None or kind == "text":
        return given or None
    if kind == "json_object":
        return given | {"json_object": True}
    if kind == "structural_tag":
        return given | {"structural_tag": json.dumps(wanted)}
    if (schema := schema_of(wanted)) is not None:
        return given | {"json": schema}
    left_out.append("response_format")
    return given or None


def known_names() -> frozenset[str]:
    """Return the names in `extra_params` that go into `SamplingParams`."""
    return PARAMETERS | frozenset(_GUIDED) | frozenset(LONGEST)


def _refused(error: Exception) -> PromptmillError:
    """Return the error of a value that vLLM does not take, without quoting the value."""
    if isinstance(error, pydantic.ValidationError):
        found = error.errors(include_url=False, include_context=False)
        # one of them is always that the value is not the finished thing
        first = next((problem for problem in found if problem["type"] != "is_instance_of"), found[0])
        place = ".".join(str(part) for part in first["loc"] if not re.search(r"[\[(]", str(part)))
        said = str(first["msg"]).removeprefix("Value error, ")
        if first["type"].endswith(("_type", "_parsing")):
            said = f"{said.removeprefix('Input ')}, not {shape(first['input'])}"
        return input_error(f"vLLM does not take {place or 'a sampling parameter'}: {said.rstrip('.')}.")
    text = (error.args[0] if error.args else "") if isinstance(error, VLLMValidationError) else str(error)
    return input_error(f"vLLM does not take a sampling parameter: {str(text).splitlines()[0][:200].rstrip('.')}.")
