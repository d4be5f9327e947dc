"""Additions to the server of a UltraRAG pipeline: calls in the form of UltraRAG's own server, and the tool `build`.

The client uses only the answers of a result, so failures, warnings and progress go to stderr. A tool error ends the
client's whole run, and the answers of earlier steps are lost. So a call without answers becomes an error only if the
cause affects all items.

The source of the arguments is OpenBMB/UltraRAG, `servers/generation/src/generation.py` (0.3.0).
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO

import orjson
import yaml
from fastmcp import FastMCP
from fastmcp.exceptions import ToolError
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools import Tool, ToolResult
from mcp_types import CallToolRequestParams, ListToolsRequest, TextContent, ToolAnnotations
from pydantic import Field

from promptmill.config.parameter_file import FILE_NAME, read
from promptmill.core.errors import Code, PromptmillError, input_error, redact, without_controls
from promptmill.core.request import message_from
from promptmill.core.wording import shape
from promptmill.features.ultrarag.parameters import as_ultrarag
from promptmill.server.tool_calls import CodedToolError, tool
from promptmill.service.service import Service

_LINE_EVERY_S = 5.0
_CONFIGURING = frozenset({"build", "generation_init"})
_ANSWERING = frozenset({"generate", "multimodal_generate", "multiturn_generate"})
# Errors of key, endpoint, model, configuration or engine, with which the next item would fail too.
_AFFECTS_ALL = frozenset(
    {
        *(Code.INVALID_CONFIG, Code.UNSUPPORTED, Code.MISSING_DEPENDENCY, Code.ENGINE_LOAD_FAILED, Code.ENGINE_DIED),
        *(Code.UNAUTHORIZED, Code.INSUFFICIENT_QUOTA, Code.BUDGET, Code.NOT_FOUND, Code.RATE_LIMITED),
        *(Code.UNREACHABLE, Code.TLS, Code.NAME_RESOLUTION, Code.NO_FILE_DESCRIPTORS, Code.STORAGE),
        *(Code.DEADLINE, Code.REPLACED, Code.SHUTDOWN, Code.INTERNAL),
    }
)
# Before the first answer under a configuration, these errors concern the configuration (a refused parameter, a wrong
# address); afterwards, they concern the item.
_AFFECTS_ALL_AT_FIRST = _AFFECTS_ALL | {Code.BAD_REQUEST, Code.BAD_RESPONSE, Code.TIMEOUT, Code.CONNECTION_LOST}

_ROLES = frozenset({"user", "assistant", "system"})
# For each tool, the parameters that a pipeline passes; promptmill's other parameters keep their defaults.
_TOOLS = {
    "generation_init": ("backend_configs", "sampling_params", "extra_params", "backend"),
    "generate": ("prompt_ls", "system_prompt"),
    "multimodal_generate": ("multimodal_path", "prompt_ls", "system_prompt", "image_tag"),
    "multiturn_generate": ("messages", "system_prompt"),
    "vllm_shutdown": (),
}


class PipelineCalls(Middleware):
    """Adapts arguments and results, and reports failures, warnings and progress on stderr, because the client does not
    show them. Each warning is reported only once."""

    def __init__(self, service: Service, stream: TextIO | None = None, every_s: float = _LINE_EVERY_S) -> None:
        self._service = service
        self._stream = stream or sys.stderr
        self._every_s = every_s
        self._warned: set[str] = set()
        self._has_answered = False
        """Whether a call has received an answer since the last `generation_init`."""

    async def on_call_tool(
        self, context: MiddlewareContext[CallToolRequestParams], call_next: CallNext[CallToolRequestParams, ToolResult]
    ) -> ToolResult:
        """Answer one call."""
        name = context.message.name
        try:
            arguments, notes = _adapted(name, context.message.arguments or {})
        except PromptmillError as error:
            raise CodedToolError(redact(str(error)), error.code) from None
        self._warn(name, notes)
        if arguments is None:
            answers: dict[str, Any] = {"ans_ls": []}
            return ToolResult([TextContent(type="text", text='{"ans_ls":[]}')], answers)
        adapted = context.copy(message=context.message.model_copy(update={"arguments": arguments}))
        if name not in _ANSWERING:
            self._has_answered = self._has_answered and name not in _CONFIGURING
            result = await call_next(adapted)
            self._warn(name, self._service.config.warnings if name in _CONFIGURING else ())
            return result
        async with self._progress_lines(name):
            result = await call_next(adapted)
        self._warn(name, (result.meta or {}).get("warnings", ()))
        if line := _failures(result.structured_content or {}):
            self._write(f"{name}: {line}")
        return self._for_a_run(result)

    def _for_a_run(self, result: ToolResult) -> ToolResult:
        """Return the result. A result without answers is an error only if a failure affects all items."""
        structured = result.structured_content or {}
        codes = {error["code"] for error in structured.get("errors", ())}
        if "models" in structured:  # the result for a list of models; a pipeline's run sends no such list
            return result
        if not result.is_error:
            self._has_answered = self._has_answered or len(structured.get("errors", ())) < len(structured["ans_ls"])
            return result
        affects_all = _AFFECTS_ALL if self._has_answered else _AFFECTS_ALL_AT_FIRST
        if self._service.config.settings.on_error == "raise" or codes & affects_all:
            return result
        return ToolResult([TextContent(type="text", text=orjson.dumps(structured).decode())], structured, result.meta)

    def _warn(self, name: str, warnings: Iterable[str]) -> None:
        for warning in warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                self._write(f"{name}: {warning}")

    @contextlib.asynccontextmanager
    async def _progress_lines(self, name: str) -> AsyncIterator[None]:
        showing = asyncio.ensure_future(self._show(name))
        try:
            yield
        finally:
            showing.cancel()

    async def _show(self, name: str) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            calls = self._service.calls.in_progress()
            if not calls:
                continue
            sums = {key: sum(call[key] or 0 for call in calls) for key in ("done", "total", "failed")}
            activity = "" if sums["done"] else self._service.activity
            self._write(f"{name}: {activity or _progress(sums, max(call['seconds'] for call in calls))}")

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a closed stderr must not end a call
            self._stream.write(f"generation: {without_controls(line)}\n")
            self._stream.flush()


def _adapted(name: str, arguments: Mapping[str, Any]) -> tuple[dict[str, Any] | None, list[str]]:
    match name:
        case "generation_init":
            return as_ultrarag(arguments)
        case "generate":
            return _prompt_arguments(arguments), []
        case "multimodal_generate":
            return _image_arguments(arguments)
        case "multiturn_generate":
            return _turn_arguments(arguments)
    return dict(arguments), []


def _failures(structured: Mapping[str, Any]) -> str:
    """Return one line about the failed items, the most common reason first; `""` if there are none."""
    errors = structured.get("errors") or []
    if not errors:
        return ""
    by_code = Counter(error["code"] for error in errors).most_common()
    parts = []
    for code, count in by_code:
        first = next(error for error in errors if error["code"] == code)
        reason = " ".join(str(first["message"]).split())
        parts.append(f"{code} x{count} (item {first['index']}: {reason:.200})")
    return f"{len(errors)} of {len(structured.get('ans_ls', ()))} not answered: {'; '.join(parts)}"


def _progress(sums: Mapping[str, int], seconds: float) -> str:
    done, total = sums["done"], sums["total"]
    failed = f", {sums['failed']} failed" if sums["failed"] else ""
    rate = done / seconds if seconds else 0.0
    left = f", {(total - done) / rate:,.0f} s left" if rate and total > done else ""
    return f"{done} of {total} done{failed}, {rate:.1f}/s{left}"


def _prompt_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `generate`, with each prompt stripped and turned into a user's turn."""
    return {**arguments, "prompt_ls": _prompts(arguments), "system_prompt": _stripped(arguments.get("system_prompt"))}


def _image_arguments(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments of `multimodal_generate` as complete messages; also return notes about changes.

    Images are placed before the text, or at their tags. Empty names are ignored, missing lists count as empty, and
    surplus lists are dropped. Raises `PromptmillError` if a prompt's numbers of tags and images differ.
    """
    prompts, lists, notes = _prompts(arguments), arguments.get("multimodal_path") or [], []
    tag = _stripped(arguments.get("image_tag"))
    if not isinstance(lists, list):
        return dict(arguments), []  # unchanged: the tool refuses them
    if len(lists) != len(prompts):
        rest = "prompts without one have no image" if len(lists) < len(prompts) else "the rest was left out"
        notes.append(f"multimodal_path has {len(lists)} lists for {len(prompts)} prompts; {rest}.")
    messages = []
    for index, prompt in enumerate(prompts):
        names = _names(lists[index] if index < len(lists) else [])
        parts = _at_tags(prompt, names, tag, index) if tag else [*_images(names), _text(prompt)]
        # an empty text, because a turn needs at least one part
        messages.append({"role": "user", "content": parts or [_text("")]})
    adapted = {
        "prompt_ls": messages,
        "multimodal_path": [[] for _ in messages],
        "system_prompt": _stripped(arguments.get("system_prompt")),
    }
    return {**arguments, **adapted, "image_tag": None}, notes


def _turn_arguments(arguments: Mapping[str, Any]) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the arguments of `multiturn_generate`; None if no turn is to be answered. Also return notes about changes.

    Empty turns and turns with unknown roles are left out, but tool calls and their results stay; `system_prompt`
    precedes the conversation's turns. Raises `PromptmillError` for a turn of another form, such as one with null.
    """
    turns = arguments.get("messages")
    if not isinstance(turns, list):
        return dict(arguments), []
    system, notes = _stripped(arguments.get("system_prompt")), list[str]()
    kept: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    has_calls = False
    for index, turn in enumerate(turns):
        where = f"messages[{index}]"
        if not isinstance(turn, Mapping):
            raise input_error(f'{where} is {shape(turn)}. Send {{"role": "user", "content": "…"}}.')
        role, content = turn.get("role", "user"), turn.get("content", "")
        is_call = role == "assistant" and bool(turn.get("tool_calls"))
        has_calls = has_calls or is_call
        if not isinstance(role, str) or (content is None and not is_call):
            name, value = ("role", role) if not isinstance(role, str) else ("content", content)
            raise input_error(f"{where}.{name} is {shape(value)}. Send a text.")
        if is_call or (has_calls and role == "tool"):
            kept.append(dict(turn))
        elif role in _ROLES and content != "":
            shaped = isinstance(content, str | list | Mapping)
            kept.append({"role": role, "content": content if shaped else str(content)})
        else:
            notes.append(f"{where} {'is empty' if role in _ROLES else f'has the role {role:.40}'}; it was left out.")
            continue
        message_from(kept[-1], where)  # checked here, because the tool would number only the turns that are left
    if all(turn["role"] == "system" for turn in kept):
        return None, notes
    return {**arguments, "messages": kept, "system_prompt": ""}, notes


def _prompts(arguments: Mapping[str, Any]) -> list[str]:
    items = arguments.get("prompt_ls")
    items = [items] if isinstance(items, str) else items
    if not isinstance(items, list):
        raise input_error(f"prompt_ls is {shape(items)}; send a list of prompts.")
    return [str(_prompt(item, index)).strip() for index, item in enumerate(items)]


def _prompt(item: object, index: int) -> object:
    if isinstance(item, str):
        return item
    if isinstance(item, Mapping):
        content = item.get("content")
        given = (content.get("text") if isinstance(content, Mapping) else content, item.get("text"))
        texts = [text for text in given if isinstance(text, str | int | float)]
        if texts:
            return texts[0]
    raise input_error(f'prompt_ls[{index}] is {shape(item)}. Send a text, {{"content": "…"}} or {{"text": "…"}}.')


def _names(entry: object) -> list[str]:
    entry = [entry] if isinstance(entry, str) else entry
    return [str(name).strip() for name in entry] if isinstance(entry, list) else []


def _at_tags(prompt: str, names: Sequence[str], tag: str, index: int) -> list[dict[str, Any]]:
    texts_between = prompt.split(tag)
    if len(texts_between) - 1 != len(names):
        raise input_error(
            f"prompt_ls[{index}] contains the image tag {len(texts_between) - 1} time(s) but has {len(names)} "
            "image(s); send one image per tag."
        )
    parts: list[dict[str, Any]] = []
    for number, text in enumerate(texts_between):
        if text.strip():
            parts.append(_text(text))
        parts += _images(names[number : number + 1])
    return parts


def _images(names: Sequence[str]) -> list[dict[str, Any]]:
    return [{"type": "image_url", "image_url": {"url": name}} for name in names if name]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _stripped(value: object) -> str:
    return str(value or "").strip()


def add_build(server: FastMCP) -> None:
    """Add the tool `build`."""

    @tool(
        server,
        output_schema=None,
        annotations=ToolAnnotations(
            title="Describe this server to a pipeline", readOnlyHint=False, destructiveHint=False, idempotentHint=True
        ),
    )
    async def build(
        parameter_file: Annotated[
            str, Field(description=f"The server's {FILE_NAME}.", examples=["servers/generation/parameter.yaml"])
        ],
    ) -> None:
        """Write `server.yaml` next to the parameter file: each tool's inputs with their sources, and its outputs."""
        by_name = {tool.name: tool for tool in await server.list_tools()}
        tools = [by_name[name] for name in _TOOLS if name in by_name]
        try:
            await asyncio.to_thread(_write, parameter_file, tools)
        except OSError as error:
            raise ToolError(f"server.yaml cannot be written next to {parameter_file}: {error.strerror}.") from None


def with_plain_results(server: FastMCP) -> None:
    """Describe results as objects without naming their fields, so that FastMCP's client returns a dict, not a class.

    Programs that call tools through UltraRAG's `ToolCall` read answers by key.
    """
    server.add_middleware(_PlainResults())


class _PlainResults(Middleware):
    async def on_list_tools(
        self, context: MiddlewareContext[ListToolsRequest], call_next: CallNext[ListToolsRequest, Sequence[Tool]]
    ) -> Sequence[Tool]:
        return [
            tool.model_copy(update={"output_schema": _plain(tool.output_schema)}) if tool.output_schema else tool
            for tool in await call_next(context)
        ]


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    # a run sends no list of models, so each of its results has answers
    outputs = ["ans_ls"] if "ans_ls" in schema.get("properties", ()) else []
    return {"type": "object", "required": outputs, "additionalProperties": True}


def _write(parameter_file: str, tools: Sequence[Tool]) -> None:
    file = Path(parameter_file)
    parameters = read(file, []) if file.exists() else {}
    path = str(parameters.get("path", file.parent / "src" / f"{file.parent.name}.py"))
    if not Path(path).exists():
        raise FileNotFoundError(0, f"there is no {path}")
    described = {
        "path": path,
        "parameter": parameter_file,
        "tools": {tool.name: _entry(tool, parameters) for tool in tools},
        "prompts": {},
    }
    text = yaml.safe_dump(described, allow_unicode=True, sort_keys=False)
    (file.parent / "server.yaml").write_text(text, encoding="utf-8")


def _entry(tool: Tool, parameters: Collection[str]) -> dict[str, Any]:
    """Return the input map and output list of a tool. `$name` means the value of this key in the parameter file."""

    def source(name: str) -> str:
        return f"${name}" if name in parameters else name

    entry: dict[str, Any] = {"input": {name: source(name) for name in _TOOLS[tool.name]}}
    if outputs := (tool.output_schema or {}).get("required"):
        entry["output"] = [source(name) for name in outputs]
    return entry
