"""The chain of a loaded model: its backend, and the functions around `answer` that every backend gets.

    request ─▶ cached ─▶ same requests ─▶ several ─▶ structured ─▶ priced ─▶ screened ─▶ warmed ─▶ backend
    outcome ◀────────────────────────────────────────────────────────────────────────────────────────┘

A function passes on requests that do not use its feature. The cache is the outermost function, so that it keeps only
answers that match their schema, and hits cost nothing. If several clients share the process, the cache is the innermost
function instead, so that no report shows a hit (`cached.py`). Prices and budgets are next to the backend, so that they
see every request that is sent. `Chain` combines the functions, and loads and closes the backend; the shorter functions
follow in this module.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from promptmill.answering.cached import AnswerCache, CachedAnswers, SameRequests, path_of
from promptmill.answering.costs import BudgetedAnswers, unknown_batch_price, unknown_price
from promptmill.answering.prices import Price, price_of
from promptmill.answering.warmed import WarmedAnswers
from promptmill.answers.chances import chances_in
from promptmill.answers.checker import Checker
from promptmill.answers.reasoning import split_marked
from promptmill.answers.schema import AnswerSchema, Choices, SchemaCache, choices_of
from promptmill.backends import protocol, registry
from promptmill.config.backends import BACKENDS
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.bounds import LONGEST_ANSWER, MOST_KEPT
from promptmill.core.errors import Code, PromptmillError, internal_error
from promptmill.core.money import Budget
from promptmill.core.request import (
    TOP_CHOICES,
    Conversation,
    Message,
    Request,
    Sampling,
    check_left_out,
    top_choices_of,
)

T = TypeVar("T")
_OURS = frozenset({"reasoning", "choices"})  # promptmill itself applies these, for every backend
_TOOLS = frozenset({"tools", "functions"})
_TOP_LOGPROBS = 5  # all endpoints with `top_logprobs` support this number
_LONG = 1 << 16  # characters; a thread searches longer texts for reasoning marks


class Chain:
    """The backend of `plan`, with all functions around its `answer`."""

    def __init__(
        self, backend: protocol.Backend, plan: ResolvedConfig, budget: Budget | None, *, is_shared: bool
    ) -> None:
        """`budget`: the spending limit of the process. `is_shared`: several clients share the process."""
        self._backend, self._plan, self._budget, self._is_shared = backend, plan, budget, is_shared
        self._cached: CachedAnswers | None = None
        self._structured: _StructuredAnswers | None = None
        self._price: Price | None = None
        self.answer: protocol.Answer = backend.answer
        """Answers one request of an entered call. Complete after `load`."""

    async def load(self, report: Callable[[str], None]) -> None:
        """Build the chain and load the backend. `report` is called with short descriptions of the progress.

        Raises `PromptmillError`, for example for a budget without a price (`invalid_config`) or an unusable cache
        (`storage`).
        """
        plan = self._plan
        answer: protocol.Answer = self._backend.answer
        if registry.prompt_cache_of(plan):
            answer = WarmedAnswers(answer).answer
        if self._is_shared:
            answer = await self._with_cache(answer)
        if plan.backend not in BACKENDS or plan.record.sampling is not None or not plan.record.takes_images:
            answer = _ScreenedRequests(answer, plan).answer
        price = await asyncio.to_thread(price_of, plan)
        if price is not None:
            self._price = price
            answer = BudgetedAnswers(answer, plan, price, self._budget).answer
        elif self._budget is not None:
            raise unknown_price(plan)
        self._structured = _StructuredAnswers(answer, plan)
        answer = _SeveralAnswers(self._structured.answer, plain=answer).answer
        if plan.record.needs_endpoint and plan.settings.backend_configs.openai.dedupe:
            answer = SameRequests(answer).answer
        self.answer = answer if self._is_shared else await self._with_cache(answer)
        await self._backend.load(report)

    async def _with_cache(self, answer: protocol.Answer) -> protocol.Answer:
        """Wrap `answer` in the cache that the operator configured, if any."""
        plan = self._plan
        if not (wanted := plan.operator.cache):
            return answer
        cache = await asyncio.to_thread(AnswerCache, path_of(wanted))
        self._cached = CachedAnswers(answer, plan, cache, everything=wanted == "all", is_shared=self._is_shared)
        return self._cached.answer

    def enter(self, call: protocol.Call) -> protocol.Share:
        """Record that a call starts. Raises `PromptmillError` (`invalid_config` for a budget without a price)."""
        if call.ledger.budget is not None and self._price is None:
            raise unknown_price(self._plan)
        if call.exchange is not None and self._price is not None and self._price.batch is None:
            raise unknown_batch_price(self._plan)
        share = self._backend.enter(call)
        if self._price is not None:
            call.counts.cost = call.counts.cost or 0.0
        return share

    def widen(self, most: int) -> None:
        """Allow `most` requests in flight, if the backend is what limits them."""
        if isinstance(self._backend, protocol.Widening):
            self._backend.widen(most)

    async def leave(self, call: protocol.Call) -> None:
        """Record that a call has ended, with no answer in flight."""
        await self._backend.leave(call)
        if self._cached is not None:  # flushed, so that the next process finds the answers
            await asyncio.shield(self._cached.flush())

    async def aclose(self) -> None:
        """Free all resources, even during a load."""
        try:
            await self._backend.aclose()
        finally:
            if self._structured is not None:
                await self._structured.aclose()
            if self._cached is not None:
                await self._cached.aclose()


class _ScreenedRequests:
    """Removes parameters that the backend does not support, with a warning, and converts its exceptions to failures."""

    def __init__(self, following: protocol.Answer, plan: ResolvedConfig) -> None:
        self._following = following
        self._backend = plan.backend
        self._record = plan.record
        self._is_error = plan.settings.unsupported == "error"

    async def answer(self, request: Request, call: protocol.Call) -> protocol.Outcome:
        """Answer a request."""
        try:
            outcome = await self._following(self._supported(request, call), call)
        except PromptmillError as error:
            if error.code is Code.UNSUPPORTED:
                return protocol.Failure(error, request.attempts)
            raise
        except Exception as error:  # noqa: BLE001 (a mistake of another package fails only its item)
            return protocol.Failure(internal_error(f"The {self._backend} backend failed", error), request.attempts)
        if not isinstance(outcome, protocol.Completion | protocol.Failure):
            problem = f"The {self._backend} backend returned no outcome for this item; report it to its author."
            return protocol.Failure(PromptmillError(Code.INTERNAL, problem), request.attempts)
        return outcome

    def _supported(self, request: Request, call: protocol.Call) -> Request:
        if not self._record.takes_images and (request.conversation.images or request.conversation.has_audio):
            raise PromptmillError(
                Code.UNSUPPORTED, f"The prompt comes with images or audio, and the {self._backend} backend reads text."
            )
        takes = self._record.sampling
        left_out = [] if takes is None else sorted(request.sampling.given().keys() - takes - _OURS)
        if not left_out:
            return request
        check_left_out(left_out, left_out if self._is_error else request.required, f"the {self._backend} backend")
        call.warn(f"The {self._backend} backend cannot take {', '.join(left_out)}; left out.")
        return request.changed(sampling=request.sampling.model_copy(update=dict.fromkeys(left_out)))


class _SeveralAnswers:
    """For a request with `n`, sends n requests to any backend. Each answer is checked separately."""

    def __init__(self, following: protocol.Answer, *, plain: protocol.Answer) -> None:
        """`following` answers requests without `n`; `plain` answers those that also have no schema."""
        self._following, self._plain = following, plain
        self._passed: Sampling | None = None
        """The last parameters for `plain`. Most requests share them, and reading a field takes 500 instructions."""
        self._single: dict[tuple[int, int], tuple[Sampling, Sampling]] = {}

    def answer(self, request: Request, call: protocol.Call) -> Awaitable[protocol.Outcome]:
        """Answer a request. A request without `n` is passed on."""
        sampling = request.sampling
        if sampling is self._passed:
            return self._plain(request, call)
        if sampling.n is not None:
            return self._each(request, sampling.n, call)
        if sampling.choices is None and sampling.response_format is None:
            self._passed = sampling
        return self._following(request, call)

    async def _each(self, request: Request, n: int, call: protocol.Call) -> protocol.Outcome:
        def one(place: int) -> Awaitable[protocol.Outcome]:
            sampling = self._single_sampling(request.sampling, place)
            earlier = 0 if place else request.attempts  # the earlier attempts count once, in the sum
            return self._following(request.changed(sampling=sampling, attempts=earlier, choice=place), call)

        return _joined(await together([functools.partial(one, place) for place in range(n)], call), call)

    def _single_sampling(self, sampling: Sampling, place: int) -> Sampling:
        """Return the parameters for one answer."""
        seed = None if sampling.seed is None else sampling.seed + place
        changes = {"n": None, "seed": seed}
        return once(self._single, sampling, lambda: sampling.model_copy(update=changes), 0 if seed is None else place)


def once(
    made: dict[tuple[int, int], tuple[Sampling, T]], sampling: Sampling, make: Callable[[], T], place: int = 0
) -> T:
    """Return the cached result of `make` in `made`: one object for equal `sampling` and `place`."""
    if (id(sampling), place) not in made:
        if len(made) >= MOST_KEPT:  # cleared, because each row may have different parameters
            made.clear()
        made[id(sampling), place] = sampling, make()
    return made[id(sampling), place][1]


async def together(parts: Sequence[Callable[[], Awaitable[T]]], call: protocol.Call) -> list[T]:
    """Run the parts of one answer concurrently; return their results. Raises the first error, cancelling the rest."""

    async def one(part: Callable[[], Awaitable[T]]) -> T:
        try:
            return await part()
        finally:
            call.waits.forked -= 1
            call.waits.freed()

    call.waits.forked += len(parts) - 1  # one worker of the driver waits for all parts
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(part)) for part in parts]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        call.waits.forked += 1
    return [task.result() for task in tasks]


def _joined(found: Sequence[protocol.Outcome], call: protocol.Call) -> protocol.Outcome:
    """Return the first answer, with the texts of all answers in `answers`; a failed answer has the text `""`."""
    usage, cost = found[0].usage, found[0].cost
    for outcome in found[1:]:
        usage, cost = usage + outcome.usage, protocol.sum_of(cost, outcome.cost)
    attempts, latency_s = sum(one.attempts for one in found), max(one.latency_s for one in found)
    failed = [outcome for outcome in found if isinstance(outcome, protocol.Failure)]
    answers = [outcome for outcome in found if isinstance(outcome, protocol.Completion)]
    out_of_budget = next((outcome for outcome in failed if outcome.error.code is Code.BUDGET), None)
    if out_of_budget is not None or not answers:  # one failure for all: a larger budget sends the item again
        failure = out_of_budget or failed[0]
        return replace(failure, usage=usage, cost=cost, attempts=attempts, latency_s=latency_s, wanted=len(found))
    if failed:
        call.warn(f"{len(failed)} of {len(found)} answers to a prompt failed: {failed[0].error.message}")
    texts = tuple(outcome.text if isinstance(outcome, protocol.Completion) else "" for outcome in found)
    joined = replace(answers[0], answers=texts, usage=usage, cost=cost, attempts=attempts, latency_s=latency_s)
    return replace(joined, details=_details(found, answers[0])) if call.facts.keep_raw else joined


def _details(found: Sequence[protocol.Outcome], first: protocol.Completion) -> dict[str, Any]:
    """Return the details of several answers: `body` of the first without its usage, and `choices` of all."""
    body = {name: value for name, value in (first.details or {}).get("body", {}).items() if name != "usage"}
    choices = [
        {
            "index": index,
            "text": one.text,
            "finish_reason": one.finish_reason,
            "reasoning": one.reasoning,
            "tool_calls": one.tool_calls,
            "logprobs": one.logprobs,
            "details": {name: value for name, value in (one.details or {}).items() if name != "body"},
        }
        for index, one in enumerate(found)
        if isinstance(one, protocol.Completion)
    ]
    return {"body": body, "choices": choices}


class _StructuredAnswers:
    """Checks answers against their schema and repairs them. Requests an invalid answer again, up to `retries` times.

    A request whose last answer is still invalid fails with `invalid_answer`."""

    def __init__(self, following: protocol.Answer, plan: ResolvedConfig) -> None:
        self._following = following
        self._retries = plan.settings.schema_retries
        self._is_endpoint = plan.record.needs_endpoint
        self._checking: tuple[SchemaCache, Checker] | None = None  # made for the first request with a schema
        self._choices: dict[tuple[int, int], tuple[Sampling, tuple[Sampling, Choices]]] = {}

    async def aclose(self) -> None:
        """End the processes that check answers."""
        if self._checking is not None:
            await self._checking[1].aclose()

    def answer(self, request: Request, call: protocol.Call) -> Awaitable[protocol.Outcome]:
        """Answer a request. A request without a schema is passed on."""
        sampling = request.sampling
        if sampling.choices is not None:
            changed, choices = once(self._choices, sampling, lambda: _with_schema(sampling))
            request = request.changed(sampling=changed)
            if self._is_endpoint and TOP_CHOICES in request.extra:
                return self._with_chances(request, call, choices)
            return self._checked(request, call, choices)
        if sampling.response_format is None:
            return self._following(request, call)
        return self._checked(request, call)

    async def _with_chances(self, request: Request, call: protocol.Call, choices: Choices) -> protocol.Outcome:
        """Answer a request with `top_choices` from log probabilities, for an endpoint that does not support choices."""
        asked = {name: value for name, value in request.extra.items() if name != TOP_CHOICES}
        try:
            most = top_choices_of(request.extra)
        except PromptmillError as error:
            return protocol.Failure(error, request.attempts)
        extra = asked if most is None else {"top_logprobs": _TOP_LOGPROBS, **asked, "logprobs": True}
        outcome = await self._checked(request.changed(extra=extra), call, choices)
        if most is None or isinstance(outcome, protocol.Failure) or outcome.logprobs is None:
            return outcome
        found = chances_in(choices, outcome.logprobs, most)
        return replace(outcome, top_choices=found, logprobs=outcome.logprobs if asked.get("logprobs") else None)

    async def _checked(self, request: Request, call: protocol.Call, choices: Choices | None = None) -> protocol.Outcome:
        wanted = request.sampling.response_format
        assert wanted is not None
        schemas, checker = self._checking = self._checking or (SchemaCache(), Checker())
        try:
            schema = await schemas.of(wanted)
        except PromptmillError as error:
            return protocol.Failure(error, request.attempts)
        outcome = await self._following(request, call)
        if schema is None:
            return outcome
        usage, latency_s, cost = protocol.NO_USAGE, 0.0, None
        for again in range(self._retries + 1):
            usage, latency_s = usage + outcome.usage, round(latency_s + outcome.latency_s, 6)
            cost = protocol.sum_of(cost, outcome.cost)
            if isinstance(outcome, protocol.Completion):
                outcome = _as_text(outcome, request)
            if isinstance(outcome, protocol.Failure) or (outcome.tool_calls and not outcome.text):
                return replace(outcome, usage=usage, latency_s=latency_s, cost=cost)
            complete = outcome.finish_reason != "length"
            text, problem = await _check(checker, schema, request, outcome, call, choices=choices)
            if not problem:
                return replace(outcome, text=text, usage=usage, latency_s=latency_s, cost=cost)
            if not complete or again == self._retries:
                break
            conversation = _with_complaint(request.conversation, outcome.text, problem, again=again > 0)
            request = request.changed(conversation=conversation, attempts=outcome.attempts)
            call.counts.asked_again += 1
            outcome = await self._following(request, call)
        assert isinstance(outcome, protocol.Completion)
        wrong = f"does not satisfy its schema: {problem}" if choices is None else choices.why_none(outcome.text)
        invalid = _invalid(wrong, complete=complete, wanted="choices" if choices else str(wanted.get("type")))
        return protocol.Failure(invalid, outcome.attempts, latency_s, usage, outcome.text, cost=cost)


def _as_text(answer: protocol.Completion, request: Request) -> protocol.Outcome:
    """Return an answer whose text a schema can check: not a refusal, and not a call that the request has no tool for.

    The arguments of such a call are the answer: LiteLLM, for one, translates a schema to a tool.
    """
    if answer.is_refusal:
        error = PromptmillError(Code.CONTENT_FILTER, f"The model refused to answer: {answer.text[:400]}")
        return protocol.Failure(error, answer.attempts, answer.latency_s, answer.usage, answer.text)
    if not answer.tool_calls or answer.text or not _TOOLS.isdisjoint(request.extra):
        return answer
    function = answer.tool_calls[0].get("function")
    written = function.get("arguments") if isinstance(function, Mapping) and len(answer.tool_calls) == 1 else None
    finish = "stop" if answer.finish_reason == "tool_calls" else answer.finish_reason
    return replace(answer, text=written if isinstance(written, str) else "", tool_calls=(), finish_reason=finish)


def _with_schema(sampling: Sampling) -> tuple[Sampling, Choices]:
    """Return the parameters for one of the choices of `sampling`, with a schema added.

    An engine constrains its answer to `choices`; other backends use only `response_format`.
    """
    made = choices_of(tuple(sampling.choices or ()))
    return sampling.model_copy(update={"response_format": made.response_format}), made


async def _check(
    checker: Checker,
    schema: AnswerSchema,
    request: Request,
    outcome: protocol.Completion,
    call: protocol.Call,
    *,
    choices: Choices | None,
) -> tuple[str, str]:
    """Return the text of an answer, repaired if necessary, and its problem; `""` if it is valid.

    With `choices`, the text is the choice.
    """
    # inline reasoning stays in front of the answer, but the schema does not apply to it
    text = outcome.text
    answer = text
    if request.sampling.reasoning == "inline":
        answer = (await asyncio.to_thread(split_marked, text) if len(text) > _LONG else split_marked(text))[1]
    complete = outcome.finish_reason != "length"
    chosen = choices.chosen(answer, complete=complete) if choices is not None else ""
    is_valid = schema.is_soon_valid(answer)
    if chosen:
        call.counts.repaired += not is_valid
        return text[: max(text.rfind(answer), 0)] + chosen, ""
    if is_valid:
        return text, ""
    call.warn_of_marks(answer)
    checked = await checker.check(schema, answer, call, complete=complete)
    if checked.problem:
        return text, checked.problem
    right = checked.text if choices is None else choices.chosen(checked.text)
    if not right:  # the answer is valid but too long for `chosen`, for example padded with blanks
        return text, "it is too long"
    call.counts.repaired += checked.repaired
    return text[: max(text.rfind(answer), 0)] + right, ""


def _with_complaint(conversation: Conversation, answer: str, problem: str, *, again: bool) -> Conversation:
    """Return the conversation with the last invalid answer, and a turn that states its problem."""
    messages = conversation.messages[:-2] if again else conversation.messages
    complaint = (
        f"This answer does not satisfy the required JSON schema: {problem}. "
        "Answer again with the corrected JSON alone, without any other words."
    )
    return Conversation((*messages, Message("assistant", answer[:LONGEST_ANSWER]), Message("user", complaint)))


# A small model may fill a list or text endlessly until `max_tokens`.
_CUT_OFF = {"json_schema": "Raise `max_tokens`, or bound the schema's lists and texts with `maxItems` and `maxLength`."}
_WRONG = {"choices": "Name the choices in the prompt, raise `schema_retries`, or use a stronger model."}


def _invalid(wrong: str, *, complete: bool, wanted: str) -> PromptmillError:
    """Return the error for an invalid answer. `wanted`: `choices`, or the type of a `response_format`."""
    if complete:
        return PromptmillError(Code.INVALID_ANSWER, f"The answer {wrong}.", _WRONG.get(wanted))
    cut = f"The answer was cut off at `max_tokens` and {wrong}."
    return PromptmillError(Code.INVALID_ANSWER, cut, _CUT_OFF.get(wanted, "Raise `max_tokens`."))
