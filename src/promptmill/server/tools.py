"""The tools that answer prompts (`generate`, …), and those that load and unload the server's model."""

from __future__ import annotations

import asyncio
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastmcp import Context, FastMCP
from fastmcp.tools import ToolResult
from mcp_types import TextContent, ToolAnnotations

from promptmill.answers.response_format import with_schema
from promptmill.backends import registry
from promptmill.backends.protocol import Call, Facts, Ledger, Outcome
from promptmill.config.backends import AUTO, is_named
from promptmill.config.configuration import Overrides
from promptmill.config.model_config import ModelConfig
from promptmill.core.bounds import MOST_SHARED
from promptmill.core.errors import Code, PromptmillError, config_error, input_error
from promptmill.core.money import Budget
from promptmill.core.request import Conversation, Request, is_longer
from promptmill.core.values import JsonObject
from promptmill.jobs.caller import CallWork
from promptmill.server import arguments, tasks
from promptmill.server.elicitation import UserQuestions
from promptmill.server.results import ANSWERS, ANSWERS_IN_SHORT, INLINE, result_of
from promptmill.server.tool_calls import caller_of, tool, with_progress
from promptmill.server.tool_socket import ToolSocket
from promptmill.service.service import Service
from promptmill.steps.chain import sending
from promptmill.steps.costs import cost_of

if TYPE_CHECKING:
    from promptmill.jobs.manage.server_jobs import ServerJobs

_SHORT_SETTINGS = 2000  # characters of settings that are parsed on the event loop, in less than a millisecond
_UNNAMED = "The backend is `{}`; `backend` chooses another."


def add_answer_tools(socket: ToolSocket) -> None:
    """Add the three answer tools to the app. Jobs continue items that are unanswered at the time limit."""
    mcp, service = socket.mcp, socket.service
    answers = _Answers(service, socket.server_jobs, socket.questions)

    @tool(
        mcp,
        output_schema=ANSWERS,
        meta=INLINE,
        task=True,
        annotations=ToolAnnotations(title="Answer prompts", readOnlyHint=True, openWorldHint=True),
    )
    async def generate(
        ctx: Context,
        prompt_ls: arguments.Prompts,
        *,
        system_prompt: arguments.SystemPrompt = "",
        model: arguments.ModelName = None,
        sampling_params: arguments.CallSampling = None,
        schema: arguments.AnswerSchema = None,
        choices: arguments.Choices = None,
        max_cost: arguments.MaxCost = None,
    ) -> ToolResult:
        """Answer independent prompts now, all of them in one call.

        Returns `ans_ls` in the order of the prompts; a failed one is "" and has an entry in `errors`. With a `job_id`,
        the others continue in the background: read them with bulk_status. For images, use multimodal_generate; for a
        conversation, multiturn_generate; for a file, bulk_generate.
        """
        call = _call(len(prompt_ls), max_cost)
        config = await config_of_call(service, await service.call_config(model), schema, sampling_params, choices)
        items = await arguments.conversations(prompt_ls)
        return await answers.of(ctx, items, call, system_prompt, config)

    @tool(
        mcp,
        output_schema=ANSWERS_IN_SHORT,
        meta=INLINE,
        task=True,
        annotations=ToolAnnotations(
            title="Answer prompts about images", readOnlyHint=False, destructiveHint=False, openWorldHint=True
        ),
    )
    async def multimodal_generate(
        ctx: Context,
        multimodal_path: arguments.Images,
        prompt_ls: arguments.Prompts,
        *,
        system_prompt: arguments.SystemPrompt = "",
        image_tag: arguments.ImageTag = None,
        model: arguments.ModelName = None,
        sampling_params: arguments.CallSampling = None,
        schema: arguments.AnswerSchema = None,
        choices: arguments.Choices = None,
        max_cost: arguments.MaxCost = None,
    ) -> ToolResult:
        """Answer prompts about images, with a model that reads images. Returns the same as `generate`."""
        call = _call(len(prompt_ls), max_cost)
        config = await config_of_call(service, await service.call_config(model), schema, sampling_params, choices)
        settings = config.settings
        tag, position = image_tag or settings.image_tag, settings.image_position
        items = await arguments.conversations_with_images(prompt_ls, multimodal_path, tag, position)
        return await answers.of(ctx, items, call, system_prompt, config)

    @tool(
        mcp,
        output_schema=ANSWERS_IN_SHORT,
        task=True,
        annotations=ToolAnnotations(title="Continue a conversation", readOnlyHint=True, openWorldHint=True),
    )
    async def multiturn_generate(
        ctx: Context,
        messages: arguments.Messages,
        *,
        system_prompt: arguments.SystemPrompt = "",
        model: arguments.ModelName = None,
        sampling_params: arguments.CallSampling = None,
        schema: arguments.AnswerSchema = None,
        choices: arguments.Choices = None,
        max_cost: arguments.MaxCost = None,
    ) -> ToolResult:
        """Answer one conversation; the server keeps no history. Returns the same as `generate`."""
        conversation = await arguments.conversation(messages)
        config = await config_of_call(service, await service.call_config(model), schema, sampling_params, choices)
        return await answers.of(ctx, [conversation], _call(1, max_cost), system_prompt, config)


def add_engine_tools(mcp: FastMCP, service: Service) -> None:
    """Add `generation_init` and `vllm_shutdown` to the app."""

    @tool(
        mcp,
        output_schema=None,
        annotations=ToolAnnotations(
            title="Choose model and settings", readOnlyHint=False, destructiveHint=False, idempotentHint=True
        ),
    )
    async def generation_init(
        ctx: Context,
        backend_configs: arguments.BackendConfigs,
        sampling_params: arguments.SamplingParams,
        extra_params: arguments.ExtraParams = None,
        backend: arguments.BackendName = arguments.DEFAULT_BACKEND,
    ) -> ToolResult:
        """Choose backend, model and settings for all later calls, and load the model. The other tools work without it.

        Returns nothing once the model is ready, which may take minutes. If it fails, the earlier model stays.
        """
        unnamed = not isinstance(backend, arguments.SentName) and not service.config.trust_client
        chosen = _backend_of(service, backend_configs) if unnamed else str(backend)
        overrides = Overrides(chosen, backend_configs, sampling_params, extra_params or {})
        try:
            await with_progress(ctx, service, Call(), service.init(overrides))
        except PromptmillError as error:
            raise _naming_the_block(error, chosen, _blocks(backend_configs)) from None
        named = [TextContent(type="text", text=_UNNAMED.format(service.config.backend))]
        return ToolResult(content=named if unnamed else [])

    @tool(
        mcp,
        output_schema=None,
        annotations=ToolAnnotations(
            title="Free the engine's memory", readOnlyHint=False, destructiveHint=False, idempotentHint=True
        ),
    )
    async def vllm_shutdown() -> None:
        """Unload the model that runs on the server's machine; a later call loads it again. Returns nothing."""
        await service.shutdown_engine()


def _backend_of(service: Service, backend_configs: JsonObject) -> str:
    """Return the backend of a call that names none: the backend of its only block, or without a block the configured
    backend.

    (A trusted client gets the tool's default instead, as from its own server.) Raises `PromptmillError`
    (`invalid_config`) for several blocks, and without a block if an earlier call chose another backend.
    """
    blocks, running, configured = _blocks(backend_configs), service.config.backend, service.configured_backend
    if len(blocks) == 1:
        return blocks[0]
    if blocks:
        raise config_error("backend", f"is missing: choose {' or '.join(map(_named, blocks))}.")
    if configured not in {running, AUTO} and not any(backend_configs.values()):  # whose keys are then refused by name
        raise config_error(
            "backend",
            f"is missing, and an earlier call chose {running}. {_named(configured)} chooses the configured one; a "
            "block in `backend_configs` chooses its own.",
        )
    return running


def _blocks(backend_configs: JsonObject) -> list[str]:
    """Return the backends for which a call has settings."""
    return [name for name, block in backend_configs.items() if block and is_named(name)]


def _named(backend: str) -> str:
    return f'`backend: "{backend}"`'


def _naming_the_block(error: PromptmillError, chosen: str, blocks: Sequence[str]) -> PromptmillError:
    """Return the error of a backend that is not installed, with the backend of the call's only block, if another."""
    if error.code is not Code.MISSING_DEPENDENCY or len(blocks) != 1 or chosen in blocks:
        return error
    return PromptmillError(error.code, error.parts, (*error.remedy, f" The call has a block for {_named(blocks[0])}."))


async def config_of_call(
    service: Service,
    config: ModelConfig,
    schema: Mapping[str, Any] | None,
    sampling_params: Mapping[str, Any] | None,
    choices: Sequence[str] | None = None,
) -> ModelConfig:
    """Return the configuration of a call. `config`: the configuration of the call's model.

    Raises `PromptmillError` (`invalid_input`, `invalid_config`) for an invalid schema, invalid parameters, or values
    above the operator's limits.
    """
    if not sampling_params and schema is None and not choices:
        return config.capped

    def changed() -> ModelConfig:
        changes = sampling_of_call(schema, sampling_params, choices)
        try:
            return config.with_sampling(changes).within_limits(changes)
        except PromptmillError as error:
            if not choices:
                raise
            named = error.message.replace("sampling_params.choices", "choices")
            raise PromptmillError(error.code, named, error.hint) from None

    if not is_longer([sampling_params, schema, choices], _SHORT_SETTINGS):
        return changed()
    async with service.planning:
        return await asyncio.to_thread(changed)


def sampling_of_call(
    schema: Mapping[str, Any] | None, sampling_params: Mapping[str, Any] | None, choices: Sequence[str] | None
) -> Mapping[str, Any]:
    """Return the sampling parameters that a call sets. Raises `PromptmillError`."""
    return with_schema(dict(sampling_params or {}) | ({"choices": choices} if choices else {}), schema)


def _import_jobs() -> None:
    """Import the code that continues long calls as jobs, for few servers. It would block the event loop for 0.4 s."""
    importlib.import_module("promptmill.jobs.manage.deferred_call")


def _call(total: int, max_cost: float | None) -> Call:
    return Call(Facts(total=total), ledger=Ledger(None if max_cost is None else Budget(max_cost)))


class _Answers:
    """The common part of the three answer tools: answers a list of conversations, and builds the result."""

    def __init__(self, service: Service, server_jobs: Callable[[], ServerJobs], questions: UserQuestions) -> None:
        self._service = service
        self._server_jobs = server_jobs
        self._questions = questions

    async def of(
        self,
        ctx: Context,
        items: Sequence[Conversation | PromptmillError],
        call: Call,
        system_prompt: str,
        config: ModelConfig,
    ) -> ToolResult:
        """Answer `items` with `config`. Work beyond `max_call_s` becomes a job, or the client's task.

        Raises `PromptmillError`.
        """
        service = self._service
        # One system prompt has a bound, because 128 requests of a call may each hold it.
        if (most := MOST_SHARED // max(1, min(len(items), 128))) < len(system_prompt):
            raise input_error(
                f"system_prompt has {len(system_prompt):,} characters, and each of {len(items):,} requests repeats it; "
                f"send at most {most:,}, or fewer prompts in a call."
            )

        caller = caller_of(ctx, service)
        budget = call.ledger.budget
        cost = self._questions.cost(ctx, config, None if budget is None else budget.limit, "This call")
        if cost is not None:
            await cost.approve(*await asyncio.to_thread(_costs, items, system_prompt, config))
        job_id = None
        try:
            work = CallWork(items, call, system_prompt or config.settings.system_prompt, config, caller)
            result, job_id = await self._answered(ctx, work)
        finally:
            if cost is not None and job_id is None:  # with a job, the job spends the rest
                cost.charge(call.counts.cost or 0.0)
        return result

    async def _answered(self, ctx: Context, work: CallWork) -> tuple[ToolResult, str | None]:
        """Return the result, and the id of the job that continues the call, if any."""
        service, call, config = self._service, work.call, work.config

        async def keep(outcomes: Sequence[Outcome]) -> str:
            await asyncio.to_thread(_import_jobs)
            from promptmill.jobs.manage import deferred_call

            return await deferred_call.keep(self._server_jobs(), replace(work, config=config), outcomes)

        limit_s, task_s = config.settings.max_call_s, tasks.limit_s(ctx, len(work.items))
        if task_s is not None:
            limit_s = min(task_s, limit_s or math.inf)
        if limit_s is None:
            answering = service.generate(work.items, call, system_prompt=work.system_prompt, config=config)
            outcomes: Sequence[Outcome] = await with_progress(ctx, service, call, answering)
            return await result_of(ctx, outcomes, call, config, keep), None
        await asyncio.to_thread(_import_jobs)
        from promptmill.jobs.manage.deferred_call import DeadlineCall

        config = await service.resolved_config(config)  # resolved, because a job stores its backend and model
        task = None if task_s is None else tasks.task_of(ctx, len(work.items), config)
        bounded = DeadlineCall(service, self._server_jobs(), replace(work, config=config), limit_s, task)
        try:
            outcomes = await with_progress(ctx, service, call, bounded.outcomes())
            job_id, spent = bounded.go_on()
        finally:
            await bounded.abandon()
        if task is not None and job_id is not None:
            return await tasks.started(ctx, self._server_jobs(), job_id), job_id
        return await result_of(ctx, outcomes, spent, config, keep, job_id=job_id), job_id


def _costs(
    items: Sequence[Conversation | PromptmillError], system_prompt: str, config: ModelConfig
) -> tuple[float | None, float | None]:
    """Return the estimated and the highest cost of a call; None if unknown. Blocks."""
    settings = config.settings
    system = system_prompt or settings.system_prompt
    shown = registry.shown_by(config)
    asked = (item.composed(system, shown) for item in items if isinstance(item, Conversation))
    sent = sending(config)
    requests = (Request(0, item, settings.sampling_params, settings.extra_params) for item in asked)
    return cost_of(config, (sent(request).request for request in requests))
