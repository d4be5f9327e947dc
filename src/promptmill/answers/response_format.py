"""Makes the `response_format` of a request from a schema, and compiles the schema in a `response_format` once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from promptmill.answers.schema import MOST_SCHEMAS, AnswerSchema, compile_schema
from promptmill.answers.schema_mistakes import why_no_schema
from promptmill.core.errors import Named, input_error
from promptmill.core.values import JsonDict, JsonObject
from promptmill.core.wording import shape

if TYPE_CHECKING:
    from pydantic import BaseModel

AnswerType: TypeAlias = "JsonObject | type[BaseModel]"
"""A JSON Schema, or a pydantic class whose instances the answers become."""

# platform.openai.com/docs/guides/structured-outputs
_AN_OBJECT: JsonObject = {"type": "object"}
_FORM = '{"type": "json_schema", "json_schema": {"name": …, "schema": {…}}}'


def asking_for(schema: JsonObject) -> JsonDict:
    """Return a `response_format` that requests answers with this schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema), "strict": True}}


def with_schema(options: Mapping[str, Any], answer_schema: AnswerType | None) -> Mapping[str, Any]:
    """Return `options` with the `response_format` for `answer_schema` added. `{}` means no schema.

    Raises `PromptmillError`, for example if `choices` are also set.
    """
    if not answer_schema:
        return options
    if options.get("choices") is not None:
        raise input_error(Named("choices"), " and ", Named("schema"), " exclude each other; give one of them.")
    if isinstance(answer_schema, Mapping) and (wrong := why_no_schema(answer_schema)):
        raise input_error(Named("schema"), f" {wrong}")
    if not isinstance(answer_schema, Mapping) and not hasattr(answer_schema, "model_json_schema"):
        raise input_error(Named("schema"), f" is {shape(answer_schema)}; give a JSON Schema, or a class of pydantic.")
    schema = json_schema_of(answer_schema)
    compile_schema(schema)
    return {**options, "response_format": asking_for(schema)}


def json_schema_of(answer_schema: AnswerType) -> JsonObject:
    """Return the JSON Schema of a pydantic class. Other schemas stay unchanged."""
    return answer_schema.model_json_schema() if isinstance(answer_schema, type) else answer_schema


def schema_of(wanted: JsonObject | None) -> JsonObject | None:
    """Return the schema in the `response_format` `wanted`; None if it does not request JSON.

    JSON mode means any object. The engine or endpoint handles other kinds (`structural_tag`, …). Raises
    `PromptmillError` (`invalid_input`) for a `json_schema` without a schema.
    """
    if wanted is None:
        return None
    if (kind := wanted.get("type")) == "json_object":
        return _AN_OBJECT
    if kind != "json_schema":
        return None
    block = wanted.get("json_schema")
    if not isinstance(block, Mapping):
        raise input_error(f"response_format.json_schema is {shape(block)}; send {_FORM}.")
    schema = block.get("schema")
    if not isinstance(schema, Mapping):
        raise input_error(f"response_format.json_schema.schema is {shape(schema)}; send {_FORM}.")
    return schema


class SchemaCache:
    """Compiled schemas of `response_format` values. Each schema is compiled once."""

    def __init__(self) -> None:
        # The key is the object's id: a call's items share the object, which is kept alive so that its id is not reused.
        self._by_id: dict[int, tuple[JsonObject, asyncio.Task[AnswerSchema] | None]] = {}
        self._turn = asyncio.Lock()  # one compilation at a time: several in threads would slow the event loop

    async def of(self, wanted: JsonObject) -> AnswerSchema | None:
        """Return the compiled schema of `wanted`; None if it does not request JSON. Raises as `compile_schema` does."""
        known = self._by_id.get(id(wanted))
        if known is None:
            if len(self._by_id) >= MOST_SCHEMAS:  # cleared, because each row may have its own schema
                self._by_id.clear()
            schema = schema_of(wanted)
            compiling = None if schema is None else asyncio.ensure_future(self._compiled(schema))
            known = self._by_id[id(wanted)] = (wanted, compiling)
        return None if known[1] is None else await asyncio.shield(known[1])

    async def _compiled(self, schema: JsonObject) -> AnswerSchema:
        async with self._turn:
            return await asyncio.to_thread(compile_schema, schema, "response_format")
