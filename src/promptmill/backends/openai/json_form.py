"""How an endpoint is asked for JSON: by the `response_format` that its provider supports, else in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import orjson

from promptmill.answers.schema import schema_of
from promptmill.answers.strict_schema import strict_form
from promptmill.core.conversation import Conversation, Message

JsonForm: TypeAlias = Literal["strict", "schema", "object", "words"]
"""`strict`: a schema in OpenAI's strict subset; `schema`: any; `object`: JSON mode; `words`: no `response_format`."""


def asked_of(form: JsonForm, wanted: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, str]:
    """Return `response_format` as a provider of this `form` takes it, and what to say in words beside it.

    Raises `PromptmillError` (`invalid_input`) for a `json_schema` without a schema.
    """
    schema = schema_of(wanted)
    if schema is None or form == "schema" or (form == "strict" and wanted["type"] == "json_object"):
        return wanted, ""
    if form == "strict":
        return _strictly(wanted), ""
    words = "Answer with JSON alone, without any other words or code fences."
    if wanted["type"] == "json_schema":
        words += f" It must satisfy this JSON schema:\n{orjson.dumps(schema).decode()}"
    return ({"type": "json_object"} if form == "object" else None), words


def _strictly(wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    block = wanted["json_schema"]
    if not block.get("strict"):
        return wanted
    schema = strict_form(block["schema"])
    # what strict mode cannot say goes as guidance; every answer is checked here anyway
    block = {**block, "strict": False} if schema is None else {**block, "schema": schema}
    return {**wanted, "json_schema": block}


def with_words(conversation: Conversation, words: str) -> Conversation:
    """Return the conversation with `words` at the end of its system turn."""
    first = conversation.messages[0] if conversation.messages else None
    if first is not None and first.role in {"system", "developer"} and isinstance(first.content, str):
        said = Message(first.role, f"{first.content}\n\n{words}", first.extra)
        return Conversation((said, *conversation.messages[1:]))
    return Conversation((Message("system", words), *conversation.messages))
