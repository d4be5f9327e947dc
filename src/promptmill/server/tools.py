"""The tools that answer prompts (`generate`, …), and those that load and unload the server's model."""

from __future__ import annotations

import asyncio
import importlib
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from fastmcp import Context, FastMCP
from fastmcp.tools import ToolResult
from mcp_types import TextContent, ToolAnnotations

from promptmill.answers.response_format import with_schema
from promptmill.backends import registry
from promptmill.backends.protocol import Call, Facts, Ledger, Outcome
from promptmill.config.backends import AUTO, is_named
from promptmill.config.configuration import Overrides
from promptmill.config.model_config import ModelConfig
from promptmill.core.bounds import MOST_SHARED, MOST_VARIANTS
from promptmill.core.errors import Code, PromptmillError, config_error, input_error
from promptmill.core.money import Budget
from promptmill.core.request import Conversation, Request, is_longer
from promptmill.core.values import JsonObject
from promptmill.jobs.caller import CallWork
from promptmill.server import arguments, tasks
from promptmill.server.elicitation import UserQuestions
from promptmill.server.results import ANSWERS, ANSWERS_IN_SHORT, INLINE, result_of, side_by_side
from promptmill.server.tool_calls import caller_of, tool, with_progress
from promptmill.server.tool_socket import ToolSocket
from promptmill.service.list_call import answer_all
from promptmill.service.service import Service
from promptmill.steps.chain import sending
from promptmill.steps.costs import cost_of

if TYPE_CHECKING:
    from promptmill.jobs.manage.deferred_call import DeadlineCall
    from promptmill.jobs.manage.server_jobs import ServerJobs

_Items: TypeAlias = Sequence[Conversation | PromptmillError]
_SHORT_SETTINGS = 2000  # settings of so many characters are parsed on the event loop, in less than a millisecond
_JOBS = "promptmill.jobs.manage.deferred_call"  # imported in a thread, and only if needed: it takes 0.4 s
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
        model: arguments.ModelNames = None,
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
        settings = _Settings(model, system_prompt, max_cost, (schema, sampling_params, choices))
        return await answers.of(ctx, len(prompt_ls), lambda _: arguments.conversations(prompt_ls), settings)

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
        model: arguments.ModelNames = None,
        sampling_params: arguments.CallSampling = None,
        schema: arguments.AnswerSchema = None,
        choices: arguments.Choices = None,
        max_cost: arguments.MaxCost = None,
    ) -> ToolResult:
        """Answer prompts about images, with a model that reads images. Returns the same as `generate`."""
        items_of = partial(arguments.conversations_with_images, prompt_ls, multimodal_path, image_tag)
        settings = _Settings(model, system_prompt, max_cost, (schema, sampling_params, choices))
        return await answers.of(ctx, len(prompt_ls), items_of, settings)

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
        model: arguments.ModelNames = None,
        sampling_params: arguments.CallSampling = None,
        schema: arguments.AnswerSchema = None,
        choices: arguments.Choices = None,
        max_cost: arguments.MaxCost = None,
    ) -> ToolResult:
        """Answer one conversation; the server keeps no history. Returns the same as `generate`."""
        settings = _Settings(model, system_prompt, max_cost, (schema, sampling_params, choices))
        return await answers.of(ctx, 1, lambda _: arguments.conversation(messages), settings)


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
            await with_progress(ctx, service, [Call()], service.init(overrides))
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
    """For a call that names no backend, return the backend of its only block or, if it has no block, the backend in
    use.

    (A trusted client gets the tool's default instead.) Raises `PromptmillError` (`invalid_config`) for several blocks,
    or if there is no block and an earlier call chose another backend.
    """
    blocks, running, configured = _blocks(backend_configs), service.config.backend, service.configured_backend
    if len(blocks) == 1:
        return blocks[0]
    if blocks:
        raise config_error("backend", f"is missing: choose {' or '.join(map(_named, blocks))}.")
    if configured not in {running, AUTO} and not any(backend_configs.values()):  # unknown blocks are refused later
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
    """Return `error`. If a backend is missing and the call's only block is for another one, add the block's name."""
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


class _Settings(NamedTuple):
    """The arguments that the answer tools share. `changes`: `schema`, `sampling_params` and `choices`."""

    model: str | list[str] | None
    system_prompt: str
    max_cost: float | None
    changes: tuple[JsonObject | None, JsonObject | None, list[str] | None]


class _Answers:
    """The common part of the three answer tools: answers a list of conversations, and builds the result."""

    def __init__(self, service: Service, server_jobs: Callable[[], ServerJobs], questions: UserQuestions) -> None:
        self._service = service
        self._server_jobs = server_jobs
        self._questions = questions

    async def of(
        self, ctx: Context, total: int, items_of: Callable[[ModelConfig], Awaitable[_Items]], settings: _Settings
    ) -> ToolResult:
        """Answer the `total` items. Work that takes longer than `max_call_s` becomes a job, or a task of the client.

        If `model` is a list, its models answer at the same time, each with an equal part of `max_cost`, and each
        failure is in the result of its model. Raises `PromptmillError`.
        """
        service, model, parts = self._service, settings.model, list[CallWork]()
        names, several = (model, True) if isinstance(model, list) else ([model], False)
        if not 0 < len({*names}) == len(names) <= MOST_VARIANTS:
            raise input_error(f"A list in `model` has 1 to {MOST_VARIANTS} names, each once.")
        # The size of a system prompt is limited, because 128 requests of a call may each hold it.
        requests, characters = total * len(names), len(settings.system_prompt)
        if (most := MOST_SHARED // max(1, min(requests, 128))) < characters:
            raise input_error(
                f"system_prompt has {characters:,} characters, and each of {requests:,} requests repeats it; send at "
                f"most {most:,}, or fewer prompts in a call."
            )
        limit, caller = settings.max_cost and settings.max_cost / len(names), caller_of(ctx, service)
        for name in names:
            call = Call(Facts(total=total), ledger=Ledger(None if limit is None else Budget(limit)))
            config = await config_of_call(service, await service.call_config(name), *settings.changes)
            prompt, listed = settings.system_prompt or config.settings.system_prompt, str(name) if several else ""
            parts.append(CallWork(await items_of(config), call, prompt, config, listed, caller=caller))
        configs = [part.config for part in parts]
        if (question := self._questions.cost(ctx, configs, settings.max_cost, "This call")) is not None:
            costs = await asyncio.to_thread(_costs, parts)
            question.unpriced = costs[2]
            await question.approve(*costs[:2])
        tasks.offer(ctx, parts)
        calls = [part.call for part in parts]
        rests: list[DeadlineCall] = []
        try:
            await with_progress(ctx, service, calls, answer_all(parts, partial(self._outcomes, rests)))
            if (task := parts[0].task) is not None and rests:
                for part in parts:
                    part.job_id = part.job_id or await self._keep(part, part.outcomes)
            while rests:
                rests.pop().go_on()
        finally:
            await asyncio.gather(*(rest.abandon() for rest in rests))
            if question is not None and not any(part.job_id for part in parts):  # a job would still spend more
                question.charge(sum(call.counts.cost or 0.0 for call in calls))
        if task is not None and parts[0].job_id is not None:
            return await tasks.started(self._server_jobs(), task)
        results = {
            part.name: await result_of(ctx, part, partial(self._keep, replace(part, task=None)), len(parts))
            for part in parts
        }
        return side_by_side(results) if several else results[""]

    async def _outcomes(self, rests: list[DeadlineCall], part: CallWork) -> Sequence[Outcome]:
        """Return the outcomes of a part; add it to `rests` if items are left to a job. Raises `PromptmillError`."""
        service, task_s = self._service, math.inf if part.task is None else part.task.limit_s
        if (limit_s := min(task_s, part.config.settings.max_call_s or math.inf)) == math.inf:
            return await service.generate_part(part)
        await asyncio.to_thread(importlib.import_module, _JOBS)
        from promptmill.jobs.manage.deferred_call import DeadlineCall

        part.config = await service.resolved_config(part.config)  # because a job stores its backend and model
        bounded = DeadlineCall(service, self._server_jobs(), part, limit_s)
        try:
            return await bounded.outcomes()
        finally:
            if part.job_id is None:
                await bounded.abandon()
            else:
                rests.append(bounded)

    async def _keep(self, part: CallWork, outcomes: Sequence[Outcome]) -> str:
        """Store the outcomes of a part as a job. Return the job's id. Raises `PromptmillError`."""
        await asyncio.to_thread(importlib.import_module, _JOBS)
        from promptmill.jobs.manage import deferred_call

        return await deferred_call.keep(self._server_jobs(), part, outcomes)


def _costs(parts: Sequence[CallWork]) -> tuple[float | None, float | None, list[str]]:
    """Return the estimated and the highest cost of a call's models (None: unknown), and the models without a price.

    The estimated cost leaves out the models without a price. Blocks.
    """
    costs = []
    for part in parts:
        settings, shown, sent = part.config.settings, registry.shown_by(part.config), sending(part.config)
        asked = (item.composed(part.system_prompt, shown) for item in part.items if isinstance(item, Conversation))
        requests = (Request(0, item, settings.sampling_params, settings.extra_params) for item in asked)
        costs.append(cost_of(part.config, (sent(request).request for request in requests)))
    known = [estimated for estimated, _ in costs if estimated is not None]
    highest = [most for _, most in costs if most is not None]
    unpriced = [part.name for part, (estimated, _) in zip(parts, costs, strict=True) if estimated is None]
    return sum(known) if known else None, sum(highest) if len(highest) == len(costs) else None, unpriced
