"""The FastMCP app. The wire's names (`prompt_ls`, `ans_ls`, …) live and die here."""

from __future__ import annotations

import os

# A `.env` in the working directory is the caller's, not FastMCP's: a bad value there would stop the import.
os.environ.setdefault("FASTMCP_ENV_FILE", os.devnull)
os.environ.setdefault("FASTMCP_ENABLE_RICH_LOGGING", "false")  # rich prints tracebacks with source lines
os.environ.setdefault("FASTMCP_LOG_LEVEL", "WARNING")

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, ParamSpec, TypeVar

import orjson
from fastmcp import Context, FastMCP
from fastmcp.exceptions import ToolError, ValidationError
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools import ToolResult
from mcp_types import CallToolRequestParams, TextContent, ToolAnnotations
from pydantic import BeforeValidator, Field
from pydantic import ValidationError as PydanticValidationError

from promptmill import __version__, report
from promptmill.backends.protocol import Scope
from promptmill.bulk_tools import add_bulk_tools
from promptmill.config import Overrides
from promptmill.conversation import Conversation, conversation_from_messages, conversation_from_prompt, shape
from promptmill.errors import PromptmillError, input_error, redact
from promptmill.outcome import Outcome
from promptmill.progress import with_progress
from promptmill.service import Service

T = TypeVar("T")
P = ParamSpec("P")
_PROGRESS_PAUSE_S = 0.5
_MOST_PROBLEMS = 5
_TICK = 1e-6
_PROMPTS_AT_ONCE = 500  # half a millisecond of work, after which others get their turn

INSTRUCTIONS = """\
promptmill answers prompts with a language model. Call `generate` with a list of independent prompts, \
`multimodal_generate` when images belong to them, `multiturn_generate` with one conversation. \
Answers come in `ans_ls`, in the order of the prompts; an item that failed is "" there and explained in `errors`. \
`generation_init` is optional: it chooses another backend, model or sampling. \
`vllm_shutdown` frees the engine's memory; a later call loads it again. \
For a file of many prompts call `bulk_generate` with an input and an output file; it works in the background.\
"""


def _as_list_or_object(value: object) -> object:
    """Read a list or object that arrives as a JSON string, as language models like to send it."""
    if isinstance(value, str) and value.lstrip()[:1] in {"[", "{"}:
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


_Loose = BeforeValidator(_as_list_or_object)
_Prompts = Annotated[
    list[str | dict[str, Any]],
    _Loose,
    Field(
        description="Independent prompts, each answered on its own: strings, or chat messages with `content`.",
        examples=[["What is the capital of France?", {"role": "user", "content": "Name three colours."}]],
    ),
]
_SystemPrompt = Annotated[str, Field(description="Instruction above every prompt; empty: the configured one.")]
_ANSWERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "ans_ls": {
            "type": "array",
            "items": {"type": "string"},
            "description": "The answers, in the order of the prompts.",
        },
        "errors": {
            "type": "array",
            "description": "One entry per failed item; absent when there is none.",
            "items": {
                "type": "object",
                "properties": {
                    "index": {"type": "integer"},
                    "code": {"type": "string"},
                    "message": {"type": "string"},
                    "retryable": {"type": "boolean"},
                    "attempts": {"type": "integer"},
                },
                "required": ["index", "code", "message", "retryable", "attempts"],
            },
        },
    },
    "required": ["ans_ls"],
}


def _hints(title: str, **hints: bool) -> ToolAnnotations:
    return ToolAnnotations(title=title, **hints)


def _said(tool: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Have `tool` raise our errors as FastMCP's own, which it neither masks nor logs with a traceback."""

    @functools.wraps(tool)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await tool(*args, **kwargs)
        except PromptmillError as error:
            raise ToolError(redact(str(error))) from None

    return wrapper


class _PlainArguments(Middleware):
    """Wrong arguments in words: no traceback, no quoted value."""

    async def on_call_tool(
        self, context: MiddlewareContext[CallToolRequestParams], call_next: CallNext[CallToolRequestParams, ToolResult]
    ) -> ToolResult:
        try:
            return await call_next(context)
        except ValidationError as error:
            cause = error.__cause__
            raise ToolError(_wrong_arguments(cause) if isinstance(cause, PydanticValidationError) else "") from None


def _wrong_arguments(error: PydanticValidationError) -> str:
    lines: dict[str, str] = {}
    for problem in error.errors(include_url=False, include_context=False):
        name, *inner = problem["loc"] or ("arguments",)
        place = str(name) + "".join(f"[{part}]" for part in inner if isinstance(part, int))
        match problem["type"]:
            case "missing_argument" | "missing":
                lines[place] = "is missing."
            case "unexpected_keyword_argument" | "extra_forbidden":
                lines[place] = "is no argument of this tool."
            case _:
                lines.setdefault(place, f"is {shape(problem['input'])}; {_expected(problem['type'], place)}")
    told = [f"{place:.100} {text}" for place, text in list(lines.items())[:_MOST_PROBLEMS]]
    more = len(lines) - len(told)
    return " ".join([*told, f"And {more} more."] if more else told)


def _expected(problem: str, place: str) -> str:
    if problem in {"list_type", "dict_type"}:
        return f"send a{' list' if problem == 'list_type' else 'n object'}."
    if place.startswith("prompt_ls["):
        return 'send a string, {"content": "…"}, {"text": "…"} or {"role": "user", "content": "…"}.'
    return "send a text." if problem == "string_type" else "see the tool's input schema."


def create_server(service: Service) -> FastMCP:
    """Return the app over `service`, which the caller made and closes."""
    mcp = FastMCP(
        "promptmill",
        version=__version__,
        instructions=INSTRUCTIONS,
        mask_error_details=True,
        middleware=[_PlainArguments()],
    )

    @mcp.tool(
        output_schema=None,
        annotations=_hints("Choose model and sampling", readOnlyHint=False, destructiveHint=False, idempotentHint=True),
    )
    @_said
    async def generation_init(
        ctx: Context,
        backend_configs: Annotated[
            dict[str, Any],
            _Loose,
            Field(
                description="Per backend name, its settings over the configured ones; {} keeps them.",
                examples=[{"openai": {"model_name": "Qwen/Qwen3-8B", "base_url": "http://localhost:8000/v1"}}],
            ),
        ],
        sampling_params: Annotated[
            dict[str, Any],
            _Loose,
            Field(
                description="`temperature`, `top_p`, `max_tokens`, `stop`, `seed`, …; {} keeps the configured ones.",
                examples=[{"temperature": 0, "max_tokens": 256}],
            ),
        ],
        extra_params: Annotated[
            dict[str, Any] | None,
            _Loose,
            Field(description="Goes through to the engine or into the request body, such as `chat_template_kwargs`."),
        ] = None,
        backend: Annotated[str, Field(description="`hf`, `openai` or `vllm`.")] = "vllm",
    ) -> None:
        """Choose the backend, its model and the sampling for the calls that follow, and load it.

        Optional: without it the first generating call loads what the server's configuration says. An unchanged engine
        stays loaded; changing the sampling alone costs nothing.
        """
        overrides = Overrides(backend, backend_configs, sampling_params, extra_params or {})
        await with_progress(ctx, service, Scope(), service.init(overrides))

    @mcp.tool(
        output_schema=_ANSWERS,
        annotations=_hints("Answer prompts", readOnlyHint=True, openWorldHint=True),
    )
    @_said
    async def generate(ctx: Context, prompt_ls: _Prompts, system_prompt: _SystemPrompt = "") -> ToolResult:
        """Answer a list of independent text prompts with the configured model, in one call.

        Returns `ans_ls`, one answer per prompt in the same order; send many prompts at once, they run concurrently.
        A prompt that fails has the answer "" and an entry in `errors`, and costs the others nothing.
        """
        items: list[Conversation | PromptmillError] = []
        for index, item in enumerate(prompt_ls):
            items.append(conversation_from_prompt(item, f"prompt_ls[{index}]"))
            if index % _PROMPTS_AT_ONCE == _PROMPTS_AT_ONCE - 1:
                await asyncio.sleep(0)
        return await _answer(ctx, service, items, system_prompt)

    @mcp.tool(
        output_schema=_ANSWERS,
        annotations=_hints("Answer prompts about images", readOnlyHint=True, openWorldHint=True),
    )
    @_said
    async def multimodal_generate(
        ctx: Context,
        multimodal_path: Annotated[
            list[Annotated[list[str], _Loose]],
            _Loose,
            Field(
                description="For each prompt the list of its images: local paths, or file, http(s) or data URLs. "
                "[] for a prompt without one.",
                examples=[[["chart.png"], ["https://example.com/a.jpg", "b.webp"]]],
            ),
        ],
        prompt_ls: _Prompts,
        system_prompt: _SystemPrompt = "",
        image_tag: Annotated[
            str | None,
            Field(description="Text such as <img> whose k-th occurrence in a prompt is replaced by its k-th image."),
        ] = None,
    ) -> ToolResult:
        """Answer prompts that come with images; `multimodal_path[i]` holds the images of `prompt_ls[i]`.

        Images follow the prompt's text in order, unless `image_tag` marks their places. Returns `ans_ls` as `generate`
        does.
        """
        if len(multimodal_path) != len(prompt_ls):
            raise input_error(
                f"multimodal_path has {len(multimodal_path)} entries but prompt_ls has {len(prompt_ls)}; "
                "send one list of images per prompt, [] for none."
            )
        tag = image_tag or service.plan.settings.image_tag
        items = [
            _with_images(conversation_from_prompt(item, f"prompt_ls[{index}]"), sources, tag)
            for index, (item, sources) in enumerate(zip(prompt_ls, multimodal_path, strict=True))
        ]
        return await _answer(ctx, service, items, system_prompt)

    @mcp.tool(
        output_schema=_ANSWERS,
        annotations=_hints("Continue a conversation", readOnlyHint=True, openWorldHint=True),
    )
    @_said
    async def multiturn_generate(
        ctx: Context,
        messages: Annotated[
            list[dict[str, Any]],
            _Loose,
            Field(
                description="One conversation, oldest turn first: objects with `role` (system, user, assistant, "
                "developer or tool) and `content`.",
                examples=[
                    [
                        {"role": "user", "content": "My name is Ada."},
                        {"role": "assistant", "content": "Hello, Ada!"},
                        {"role": "user", "content": "What is my name?"},
                    ]
                ],
            ),
        ],
        system_prompt: _SystemPrompt = "",
    ) -> ToolResult:
        """Answer the last turn of one conversation. Returns `ans_ls` with that one answer."""
        return await _answer(ctx, service, [conversation_from_messages(messages, "messages")], system_prompt)

    @mcp.tool(
        output_schema=None,
        annotations=_hints("Free the engine's memory", readOnlyHint=False, destructiveHint=False, idempotentHint=True),
    )
    @_said
    async def vllm_shutdown() -> None:
        """End the engine that runs here (vLLM or transformers) and free its memory; running calls end too.

        Does nothing on the openai backend. A later call loads the engine again.
        """
        await service.shutdown_engine()

    add_bulk_tools(mcp, service, _said)
    return mcp


def _with_images(conversation: Conversation, sources: Sequence[str], tag: str | None) -> Conversation | PromptmillError:
    try:
        return conversation.with_images(sources, tag)
    except PromptmillError as error:
        return error


async def _answer(
    ctx: Context, service: Service, items: Sequence[Conversation | PromptmillError], system_prompt: str
) -> ToolResult:
    scope = Scope(total=len(items))
    any_failure = service.plan.settings.on_error == "raise"
    outcomes = await with_progress(ctx, service, scope, service.generate(items, scope, system_prompt=system_prompt))
    return _result(outcomes, scope, any_failure=any_failure)


def _result(outcomes: Sequence[Outcome], scope: Scope, *, any_failure: bool) -> ToolResult:
    structured: dict[str, Any] = {"ans_ls": report.answers(outcomes)}
    if errors := report.errors(outcomes):
        structured["errors"] = errors
    failed = report.failed(outcomes, any_failure=any_failure)
    # the text block holds the same JSON, because existing pipelines parse it; an error's text is for people
    text = report.summary(outcomes) if failed else orjson.dumps(structured).decode()
    meta = report.totals(scope) | report.columns(outcomes)
    return ToolResult([TextContent(type="text", text=text)], structured, meta, is_error=failed)
