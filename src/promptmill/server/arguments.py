"""The types of the tools' arguments, as a client that knows nothing else reads them in `tools/list`."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from pydantic import BeforeValidator, Field


def _as_list_or_object(value: object) -> object:
    """Read a list or object that arrives as a JSON string, as language models like to send it."""
    if isinstance(value, str) and value.lstrip()[:1] in {"[", "{"}:
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


Loose = BeforeValidator(_as_list_or_object)
Prompts = Annotated[
    list[str | dict[str, Any]],
    Loose,
    Field(
        description="Independent prompts, each answered on its own: strings, or chat messages with `content`.",
        examples=[["What is the capital of France?", {"role": "user", "content": "Name three colours."}]],
    ),
]
SystemPrompt = Annotated[str, Field(description="Instruction above every prompt; empty: the configured one.")]
