"""The arguments of the tools: their types, with the schemas and descriptions in `tools/list`, and their conversion.

    a client's arguments ─▶ PlainArguments: as they are meant, names and kinds checked ─▶ pydantic ─▶ conversations

Pydantic does not check the lists of prompts, images and turns, because it would check every item and quote all invalid
items in its error. The functions below convert lists to conversations and stop at the first invalid item. Long lists
and long texts are converted in a thread, while the event loop serves other calls: half a million items take a second.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from fastmcp.exceptions import ResourceError, ValidationError
from fastmcp.prompts.base import PromptResult
from fastmcp.resources import ResourceResult
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools import Tool, ToolResult
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    GetPromptRequestParams,
    ListToolsRequest,
    ReadResourceRequestParams,
)
from pydantic import AfterValidator, Field, WithJsonSchema
from pydantic import ValidationError as PydanticValidationError

from promptmill.backends.registry import check_name
from promptmill.config import settings
from promptmill.config.backends import AUTO, BACKENDS
from promptmill.config.explain import explain
from promptmill.config.model_config import ModelConfig
from promptmill.core.bounds import MOST_VALUES
from promptmill.core.errors import PromptmillError, input_error, redact
from promptmill.core.request import (
    BESIDE,
    Conversation,
    ImagePosition,
    Sampling,
    conversation_from_messages,
    conversation_from_prompt,
    is_longer,
)
from promptmill.core.values import JsonDict, JsonObject, read_json
from promptmill.core.wording import close_matches, shape, synonym
from promptmill.jobs.inputs.short_forms import labels_of, schema_of_fields
from promptmill.options import table
from promptmill.server.listed_tools import OPTIONS, listed, unpacked
from promptmill.server.tool_calls import CodedToolError

T = TypeVar("T")
_SHORT = 20_000  # prompts with at most so many characters or values are converted on the event loop, in a millisecond
_IMAGES = frozenset({"image", "images", "image_path", "image_paths", "image_url", "image_urls", "pictures"})
# Older releases of n8n add the fields of their chat trigger to the arguments of each tool (n8n#21500, #21716). Other
# programs add the last two names.
_NOT_OURS = frozenset({"sessionId", "action", "chatInput", "toolCallId", "tool", "_meta", "kwargs"})
_WORDS = {
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
}
_FORMS = frozenset({"choices", "schema", "fields"})
_OF_SCHEMAS = frozenset({"type", "properties", "$ref", "$schema", "title", "description", "format", "pattern"})
_NEVER_CONVERTED = frozenset({"array", "object", "boolean"})  # pydantic quotes lists in errors, and reads `true` as 1
_TURN = {
    "type": "object",
    "properties": {"role": {"type": "string", "enum": ["system", "developer", "user", "assistant", "tool"]}},
    "required": ["role"],
}


def a_list(*, of: dict[str, Any], description: str) -> WithJsonSchema:
    """Return the schema of a list that pydantic passes on unchecked."""
    return WithJsonSchema({"type": "array", "items": of, "description": description})


Prompts = Annotated[
    Any,  # a prompt may also be messages, but strict function calling refuses a schema with `anyOf`
    a_list(of={"type": "string"}, description="The prompts; each gets one answer."),
]
SystemPrompt = Annotated[str, Field(description="System prompt of every prompt.")]
ModelNames = Annotated[
    str | list[str] | None,
    Field(description="A name from promptmill://models, or any model of the endpoint; a list: each answers."),
]
MaxCost = Annotated[
    float | None,
    Field(ge=0, description=f"Most US dollars; {table.NEEDS_OF_A_BUDGET}."),
]
CallSampling = Annotated[
    dict[str, Any] | None,
    Field(
        description="Rarely needed: temperature, max_tokens, stop, seed, tools, logprobs, …; top_choices: 3 gives "
        "probabilities."
    ),
]
Choices = Annotated[list[str] | None, Field(description="Every answer is exactly one of these.")]
AnswerSchema = Annotated[
    dict[str, Any] | None, Field(description="JSON Schema of every answer, which is then a JSON text.")
]
Images = Annotated[
    Any,
    a_list(
        of={"type": "array", "items": {"type": "string"}},
        description="For each prompt, in their order, the list of its images, [] for none: paths on the server's "
        "machine, http(s): or data: URLs.",
    ),
]
ImageTag = Annotated[
    str | None,
    Field(description="A placeholder in the prompts, <image>: each becomes the next image. Without it they follow."),
]
Messages = Annotated[
    Any,
    a_list(of=_TURN, description="All turns, oldest first; the last is answered. `content`: a text or OpenAI's parts."),
]
BackendConfigs = Annotated[
    dict[str, Any],
    Field(
        description="Settings by backend, over the configured ones; {} changes none. `openai`: model_name, base_url "
        "(gets no text of files unless configured), api_key_env (the key's variable), concurrency, rpm, tpm, "
        "…; `hf`, `openvino`, `vllm`: model_name_or_path and engine arguments."
    ),
]
SamplingParams = Annotated[
    dict[str, Any],
    Field(
        description="{} keeps the configured ones, any other object replaces all: temperature, top_p, seed, "
        "max_tokens, stop, n, choices, response_format, reasoning_effort, …; see skill://promptmill/SKILL.md."
    ),
]
ExtraParams = Annotated[dict[str, Any] | None, Field(description="Passed unchanged to the engine or endpoint.")]


class SentName(str):
    """A backend's name that the client sent. The type distinguishes a sent name from an equal default."""

    __slots__ = ()


DEFAULT_BACKEND = "vllm"
BackendName = Annotated[
    str,
    AfterValidator(lambda name: SentName(name) if name else DEFAULT_BACKEND),
    Field(
        description="Default: that of the block in `backend_configs`, else the configured one. "
        "`openai`: an endpoint; others run on the server's machine.",
        json_schema_extra={"enum": sorted(BACKENDS)},
    ),
]


async def conversations(prompts: Sequence[Any]) -> list[Conversation]:
    """Return one conversation for each prompt. Raises `PromptmillError`."""
    return await _read(
        prompts, lambda: [conversation_from_prompt(item, f"prompt_ls[{index}]") for index, item in enumerate(prompts)]
    )


async def conversations_with_images(
    prompts: Sequence[Any], images: Sequence[Any], tag: str | None, config: ModelConfig
) -> list[Conversation | PromptmillError]:
    """Return a conversation for each prompt. Its images replace `tag` (by default, `config`'s tag) in the text.

    Raises `PromptmillError` for an invalid list.
    """
    tag, position = tag or config.settings.image_tag, config.settings.image_position

    def read() -> list[Conversation | PromptmillError]:
        sources: list[list[str]] = []
        left = MOST_VALUES
        for index, item in enumerate(images):
            sources.append(_sources(item, f"multimodal_path[{index}]"))
            left -= len(sources[-1])
            if left < 0:
                raise input_error(f"multimodal_path holds more than {MOST_VALUES:,} images; send fewer at once.")
        if len(sources) != len(prompts):
            raise input_error(
                f"multimodal_path has {len(sources)} entries but prompt_ls has {len(prompts)}; "
                "send one list of images per prompt, [] for none."
            )
        return [
            _with_images(conversation_from_prompt(item, f"prompt_ls[{index}]"), sources[index], tag, position)
            for index, item in enumerate(prompts)
        ]

    return await _read([prompts, images], read)


async def conversation(messages: Sequence[Any]) -> list[Conversation]:
    """Return one conversation with all turns. Raises `PromptmillError`."""
    return await _read(messages, lambda: [conversation_from_messages(messages, "messages")])


async def _read(items: Sequence[Any], read: Callable[[], T]) -> T:
    return await asyncio.to_thread(read) if is_longer(items, _SHORT) else read()


def _sources(item: object, where: str) -> list[str]:
    """Return the images of one prompt. A single image becomes a list."""
    if isinstance(item, str):
        return [item]
    if isinstance(item, list) and all(isinstance(source, str) for source in item):
        return item
    raise input_error(f"{where} is {shape(item)}; send a list of texts: the images of one prompt.")


def _with_images(
    conversation: Conversation, sources: Sequence[str], tag: str | None, position: ImagePosition
) -> Conversation | PromptmillError:
    try:
        return conversation.with_images(sources, tag, position)
    except PromptmillError as error:
        return error


class PlainArguments(Middleware):
    """Reports invalid arguments of tools, prompts and resources in plain words, without tracebacks and values.

    It checks names and types before pydantic does, because pydantic's errors quote all arguments: ten megabytes of
    arguments would block the event loop for half a second.
    """

    def __init__(self) -> None:
        self._schemas: dict[str, JsonDict] = {}
        self._listed: dict[str, JsonDict] = {}

    async def on_list_tools(
        self, context: MiddlewareContext[ListToolsRequest], call_next: CallNext[ListToolsRequest, Sequence[Tool]]
    ) -> Sequence[Tool]:
        """Return the tools with their short schemas."""
        tools = await call_next(context)
        if self._listed.keys() != {tool.name for tool in tools}:
            self._listed = listed({tool.name: tool.parameters for tool in tools})
        return [tool.model_copy(update={"parameters": self._listed[tool.name]}) for tool in tools]

    async def on_call_tool(
        self, context: MiddlewareContext[CallToolRequestParams], call_next: CallNext[CallToolRequestParams, ToolResult]
    ) -> ToolResult:
        arguments = context.message.arguments or {}
        # A call with many arguments is refused as a whole, because each unknown argument would add an error.
        if len(arguments) > 50:
            raise CodedToolError(f"The call has {len(arguments)} arguments; see the tool's input schema.")
        schema = await self._schema(context)
        if OPTIONS in arguments:
            arguments = _unpacked(arguments, schema)
        backend = arguments.get("backend")
        name = backend.strip().lower() if isinstance(backend, str) else AUTO
        if name != AUTO and "backend" in schema.get("properties", {}):
            try:  # checked first, because a call that was written for another program also lacks several arguments
                check_name(name)
            except PromptmillError as error:
                raise CodedToolError(redact(str(error)), error.code) from None
        properties = {} if "chatInput" in arguments else schema.get("properties", {})
        foreign = [name for name in arguments if name in _NOT_OURS - properties.keys()]
        arguments = _as_meant({name: arguments[name] for name in arguments if name not in foreign}, schema)
        if wrong := _wrong_names_and_kinds(arguments, schema):
            raise CodedToolError(wrong)
        try:
            result = await call_next(context.copy(message=context.message.model_copy(update={"arguments": arguments})))
        except ValidationError as error:
            cause = error.__cause__
            raise CodedToolError(explain(cause) if isinstance(cause, PydanticValidationError) else "") from None
        if foreign:
            meta = result.meta or {}
            left_out = f"Arguments of the client's own were left out: {', '.join(foreign)}."
            result.meta = {**meta, "warnings": [*meta.get("warnings", ()), left_out]}
        return result

    async def on_read_resource(
        self,
        context: MiddlewareContext[ReadResourceRequestParams],
        call_next: CallNext[ReadResourceRequestParams, ResourceResult],
    ) -> ResourceResult:
        """Refuse a long URI, which FastMCP would match against templates for seconds; report an invalid `offset`."""
        uri = str(context.message.uri)
        if len(uri) > 2000:
            raise ResourceError(f"The URI has {len(uri):,} characters; no resource has such a long one.")
        for offset in parse_qs(urlsplit(uri).query, keep_blank_values=True).get("offset", ()):
            if not re.fullmatch("[0-9]{1,18}", offset):  # otherwise FastMCP would log a stack trace, and answer -32603
                raise MCPError(INVALID_PARAMS, f"`offset` is {offset[:40]!r}; it is the number of rows to skip.")
        return await call_next(context)

    async def on_get_prompt(
        self,
        context: MiddlewareContext[GetPromptRequestParams],
        call_next: CallNext[GetPromptRequestParams, PromptResult],
    ) -> PromptResult:
        """Report missing arguments, for which FastMCP would log a stack trace and answer -32603."""
        server, given = context.fastmcp_context, context.message.arguments or {}
        prompt = None if server is None else await server.fastmcp.get_prompt(context.message.name)
        required = [] if prompt is None else [one.name for one in prompt.arguments or () if one.required]
        if missing := [f"`{name}`" for name in required if name not in given]:
            raise MCPError(INVALID_PARAMS, f"The prompt {context.message.name} needs {' and '.join(missing)}.")
        return await call_next(context)

    async def _schema(self, context: MiddlewareContext[CallToolRequestParams]) -> JsonDict:
        """Return the input schema of the called tool. Tools never change while the server runs."""
        name = context.message.name
        if name not in self._schemas:
            server = context.fastmcp_context
            tool = None if server is None else await server.fastmcp.get_tool(name)
            if server is not None and tool is None:
                known = ", ".join(other.name for other in await server.fastmcp.list_tools())
                raise CodedToolError(f"Unknown tool: {name[:100]!r}; tools here: {known}.")
            if tool is None:
                return {}
            self._schemas[name] = tool.parameters
        return self._schemas[name]


def _unpacked(arguments: JsonObject, schema: JsonObject) -> JsonDict:
    """Move the keys of `options` (an object or its JSON text) to the top level. Raises `CodedToolError`."""
    if isinstance(options := arguments[OPTIONS], str):
        arguments = {**arguments, OPTIONS: _parsed(OPTIONS, options, ["object"])}
    try:
        return unpacked(arguments, schema)
    except PromptmillError as error:
        raise CodedToolError(str(error), error.code) from None


def _as_meant(arguments: JsonObject, schema: JsonObject) -> JsonDict:
    """Return the arguments as language models mean them: `null` means an optional argument's default.

    Models may send a list or an object as JSON text, a single text or object in place of a list, and the forms of
    answers in every way in which an option of a job takes them (see `_answer_forms`).

    Raises `CodedToolError` for a text that may hold more than 300,000 values: parsing 60 MB of text would take 2 GB of
    memory and 15 seconds.
    """
    properties, required = schema.get("properties", {}), schema.get("required", ())
    meant: JsonDict = {}
    for name, value_ in arguments.items():
        value, kinds = value_, _kinds(properties.get(name, {})) or (["array", "object"] if name in _FORMS else [])
        if value is None and name in properties and name not in required:
            continue
        if isinstance(value, str) and value.lstrip()[:1] in {"[", "{"} and kinds:
            value = _parsed(name, value, kinds)
        if name == "choices" and isinstance(value, str):
            value = [text.strip() for text in re.split("[,;\n]", value) if text.strip()]
        meant[name] = value if name in _FORMS else _in_list(value, kinds)
    return meant if _FORMS.isdisjoint(meant) else _answer_forms(meant, properties)


def _answer_forms(arguments: JsonDict, properties: JsonObject) -> JsonDict:
    """Return the arguments with the form of answers as the tool takes it.

    Names of fields may be a text, a list or an object of names and types, in `fields` or in `schema`. `choices` may be
    an object of labels and definitions. Raises `CodedToolError`.
    """
    meant, choices = {**arguments}, arguments.get("choices")
    named = [name for name in ("fields", "schema") if "schema" in properties and meant.get(name) not in (None, True)]
    try:
        for name in named if len(named) == 1 else ():  # of two, neither may replace the other
            if text := _fields_in(name, meant[name]):
                del meant[name]
                meant |= {"fields": text} if "fields" in properties else {"schema": schema_of_fields(text)}
            elif name == "fields" and isinstance(meant[name], dict):
                meant["schema"] = meant.pop(name)
        if choices and isinstance(choices, dict) and "object" not in _kinds(properties.get("choices", {})):
            meant["choices"] = [*(labels := labels_of(choices)).texts]
            if labels.definitions and isinstance(given := meant.get("sampling_params", {}), dict):
                meant["sampling_params"] = {**given, "definitions": {**labels.definitions}}
    except PromptmillError as error:
        raise CodedToolError(str(error), error.code) from None
    return meant


def _fields_in(name: str, value: object) -> str:
    """Return names and types of fields as one text; `""` if the value of the argument `name` has none.

    >>> _fields_in("schema", ["name", "age:integer"]), _fields_in("schema", {"type": "string"})
    ('name,age:integer', '')
    """
    texts = [*value.values()] if isinstance(value, dict) else value
    if isinstance(texts, str) or not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return texts.strip() if isinstance(texts, str) else ""
    if not isinstance(value, dict):
        return ",".join(texts)
    text = ",".join(f"{field}:{kind}" for field, kind in value.items())
    if name == "schema":  # an object of texts may be a JSON Schema, too
        try:
            schema_of_fields(text)
        except PromptmillError:
            return ""
        return "" if value.keys() <= _OF_SCHEMAS else text
    return text


def _in_list(value: Any, kinds: Collection[str]) -> Any:
    """Return `[value]` if `value` is a text or an object, but the argument can only be a list; otherwise `value`."""
    kind = "string" if isinstance(value, str) else "object" if isinstance(value, dict) else ""
    return [value] if kind and "array" in kinds and kind not in kinds else value


def _parsed(name: str, text: str, kinds: Collection[str]) -> Any:
    """Return the list or object in a JSON text; return the text itself if it is not JSON, or was meant as a text.
    Raises `CodedToolError`, see `_as_meant`.

    If the argument may be a text, only a list of texts is parsed: `["a", "b"]` names two models. An object stays a
    text: `{"task": "classify", "text": "{{text}}"}` is a prompt.
    """
    if len(text) > MOST_VALUES and sum(map(text.count, "[{,")) > MOST_VALUES:
        if "string" in kinds:
            return text
        many = f"{name} is a text that may hold more than {MOST_VALUES:,} values; send a list or an object."
        raise CodedToolError(many)
    try:
        parsed = read_json(text)
    except json.JSONDecodeError:
        return text
    if "string" not in kinds:
        return parsed
    is_list = "array" in kinds and isinstance(parsed, list)
    return parsed if is_list and all(isinstance(each, str) for each in parsed) else text


def _wrong_names_and_kinds(arguments: JsonObject, schema: JsonObject) -> str:
    if not schema:
        return ""  # the tool is missing, which FastMCP reports
    properties: JsonDict = schema.get("properties", {})
    lines = []
    for name in schema.get("required", ()):
        if name not in arguments:
            kinds = _kinds(properties[name])
            kept = "; {} keeps what is set" if kinds == ["object"] else ""
            lines.append(f"{name} is missing; send {_WORDS.get(kinds[0], 'it') if kinds else 'it'}{kept}.")
    for name, value in arguments.items():
        kinds, given = _kinds(properties.get(name, {})), _json_types(value)
        wanted = [kind for kind in kinds if kind != "null"]
        is_checked = given & _NEVER_CONVERTED or len({*wanted}) > 1 or wanted == ["array"]
        if name not in properties:
            lines.append(f"{name:.100} is not an argument of this tool{_where(name, properties)}")
        elif wanted and is_checked and given.isdisjoint(kinds):
            lines.append(f"{name} is {shape(value)}; send {' or '.join(_WORDS.get(kind, kind) for kind in wanted)}.")
    more = [f"And {len(lines) - 5} more."] if len(lines) > 5 else []
    return " ".join([*lines[:5], *more])


def _json_types(value: object) -> set[str]:
    match value:
        case bool():
            return {"boolean"}
        case int():
            return {"integer", "number"}
        case float():
            return {"number"}
        case str():
            return {"string"}
        case list():
            return {"array"}
        case None:
            return {"null"}
    return {"object"}


def _kinds(argument: JsonObject) -> list[str]:
    """Return the JSON types that an argument accepts."""
    return [kind["type"] for kind in (argument, *argument.get("anyOf", ())) if "type" in kind]


def _where(name: str, properties: JsonObject) -> str:
    """Return the end of an error about an unknown argument: where it belongs, or which argument was meant."""
    if "output_file" in properties and (needs := table.needs_hidden(name, "argument")):
        return f": it {needs}."
    if meant := synonym(name, properties):
        return f"; did you mean {meant}?"
    if name == "concurrency" and "output_file" in properties:
        return ": bulk_status sets it for a job that runs."
    inner = {*Sampling.model_fields, *BESIDE} - properties.keys() if "sampling_params" in properties else set[str]()
    if sampling := name if name in inner else synonym(name, inner):
        return f': it goes into sampling_params, {{"{sampling}": …}}.'
    if "backend_configs" in properties and any(
        name in block.annotation.model_fields
        for block in settings.BackendConfigs.model_fields.values()
        if isinstance(block.annotation, type)
    ):
        return f': it goes into backend_configs, below the backend\'s name, {{"{name}": …}}.'
    if name in _IMAGES and "multimodal_path" in properties:
        return (
            ': images go into multimodal_path, a list of them for each prompt: {"prompt_ls": ["…"], '
            '"multimodal_path": [["a.png"]]}.'
        )
    if name in _IMAGES and "prompt_ls" in properties:
        return ": multimodal_generate takes images."
    if name == "messages" and "prompt_ls" in properties:
        return ": multiturn_generate takes messages."
    if faces := table.other_faces(name):
        return f": {faces}."
    near = next(iter(close_matches(name, [*properties, *sorted(inner)], 1)), "")
    if near in inner:
        return f'; did you mean {near}? It goes into sampling_params, {{"{near}": …}}.'
    return f"; did you mean {near}?" if near else f"; it takes {', '.join(properties) or 'none'}."
