"""OpenAI's `response_format`: which JSON Schema it asks for, and the form that asks for one.

Format: platform.openai.com/docs/guides/structured-outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from promptmill.core.errors import input_error
from promptmill.core.wording import shape

_AN_OBJECT: Mapping[str, Any] = {"type": "object"}
_FORM = '{"type": "json_schema", "json_schema": {"name": …, "schema": {…}}}'


def asking_for(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `response_format` that asks for answers that satisfy `schema`."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema), "strict": True}}


def schema_of(wanted: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the schema that answers must satisfy, None where `wanted` asks for no JSON.

    JSON mode asks for any object. Forms of other kinds (`structural_tag`, …) are the engine's or endpoint's own.
    Raises `PromptmillError` (`invalid_input`) for a `json_schema` without a schema.
    """
    kind = (wanted or {}).get("type")
    if wanted is None or kind not in {"json_object", "json_schema"}:
        return None
    if kind == "json_object":
        return _AN_OBJECT
    block = wanted.get("json_schema")
    if not isinstance(block, Mapping):
        raise input_error(f"response_format.json_schema is {shape(block)}; send {_FORM}.")
    schema = block.get("schema")
    if not isinstance(schema, Mapping):
        raise input_error(f"response_format.json_schema.schema is {shape(schema)}; send {_FORM}.")
    return schema
