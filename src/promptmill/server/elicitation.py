"""Questions to a client's user (MCP elicitation), asked before a call costs much, or sends or replaces files.

An agent writes a call's arguments, so they cannot prove that the user agrees; the client program asks the user itself.

In the 2025 protocol, the server sends its question while the call waits. In the protocol of 2026-07-28, the call ends
with the question (`UnansweredQuestion`), and the client repeats the call with the answer.

For a client without elicitation, `ask_above_cost` has no effect, because the operator can limit costs by `max_cost`.
But such a client may not replace files, or send their text to an endpoint of its choice: nothing else protects files.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastmcp import Context
from mcp_types import ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from promptmill.backends import registry
from promptmill.config.model_config import ModelConfig
from promptmill.config.settings import OF_ACCOUNT
from promptmill.core.bounds import MOST_SESSIONS
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.money import dollars
from promptmill.files.databases import Stamp
from promptmill.http.json_response_workaround import RESPONSE, EitherResponse
from promptmill.jobs.caller import CallModels
from promptmill.server.tool_calls import UnansweredQuestion, session_of
from promptmill.steps.prices import price_of
from promptmill.system.call_files import FileRule

_COST, _FILES, _REPLACES = "cost", "files", "overwrite"
_ANSWER = "agree"


async def is_agreed(ctx: Context, name: str, question: str, title: str) -> bool:
    """Return whether the user agrees. The client must support questions. `title`: the label of the answer's checkbox.

    `name` distinguishes the questions of a call. Raises `UnansweredQuestion`.
    """
    name = f"{name}-{hashlib.sha256(question.encode()).hexdigest()[:16]}"  # answers to other questions do not count
    session, request = ctx.session, None if ctx.request_context is None else ctx.request_context.request
    form = {"type": "object", "properties": {_ANSWER: {"type": "boolean", "title": title, "default": True}}}
    asked = ElicitRequestFormParams(message=question, requested_schema={**form, "required": [_ANSWER]})
    response: EitherResponse | None = None if request is None else request.scope.get(RESPONSE)
    if session.protocol_version not in MODERN_PROTOCOL_VERSIONS:
        if response is not None:
            response.stream()
        answer = await session.elicit_form(asked.message, asked.requested_schema, ctx.request_id)
    elif (given := (ctx.input_responses or {}).get(name)) is None:
        raise UnansweredQuestion(InputRequiredResult(input_requests={name: ElicitRequest(params=asked)}))
    else:
        answer = ElicitResult.model_validate(given, from_attributes=True)
    return answer.action == "accept" and bool((answer.content or {}).get(_ANSWER))


def is_able_to_ask(ctx: Context) -> bool:
    """Return whether the client can show a question to its user."""
    capabilities = ctx.session.client_capabilities
    able = None if capabilities is None else capabilities.elicitation
    return able is not None and not (able.form is None and able.url is not None)


class UserQuestions:
    """The answers of the clients' users, and the cost of calls that ran without a question."""

    def __init__(self) -> None:
        self._unasked: OrderedDict[str, float] = OrderedDict()
        """For each session: what all calls since its last question may cost together at most, in US dollars."""
        self._agreed: list[tuple[object, ...]] = []
        """What users agreed to: endpoints (with key and headers) that may get texts of files, and files to replace."""

    async def for_files(self, ctx: Context, models: CallModels, *, asks: bool = True) -> CallModels:
        """Ask the user before the text of local files is sent to an endpoint that a call chose. Return `models` for the
        job, whose rows then go to no other endpoint of a call.

        Raises `PromptmillError` (`invalid_input`) unless the user agrees. The answer is valid while the server runs. If
        `asks` is false, nobody is asked: the method raises only if the client cannot ask.
        """
        chosen = [await self._asked(ctx, each, asks=asks) for each in (models.config, *models.configs.values())]
        return replace(models, config=replace(models.config, files_to=frozenset().union(*chosen)))

    async def _asked(self, ctx: Context, config: ModelConfig, *, asks: bool) -> list[str]:
        """Ask about one model, see `for_files`. Return its endpoints that a call chose."""
        chosen, block = registry.endpoints_of_call(config), config.block
        account = () if block is None else tuple(getattr(block, name) for name in sorted(block.marked(OF_ACCOUNT)))
        agreement = (chosen, account)
        if not chosen or agreement in self._agreed:
            return chosen
        where = ", ".join(chosen)
        remedy = (
            "The operator may start the server with `promptmill serve --base-url URL -m MODEL`, list it in "
            "`allowed_endpoints` of the configuration, or name it there as `base_url` with its key and headers"
        )
        if not is_able_to_ask(ctx):
            raise input_error(
                f"The endpoint {where}, or the key or headers for it, came with a call of generation_init, and it gets "
                f"no text of local files. {remedy}; `prompts` sends texts of the call."
            )
        if not asks:
            return chosen
        question = (
            f"A call chose the endpoint {where}, or the key or headers for it; the configuration does not name them. "
            "Send the text of files of this machine there, now and until the server ends?"
        )
        if not await is_agreed(ctx, _FILES, question, "Send the text of files there"):
            raise input_error(f"The user did not agree to send the text of files to {where}. {remedy}.")
        self._agreed.append(agreement)
        return chosen

    async def check_replacing(
        self, ctx: Context, rule: FileRule, output: Path, there: Stamp, *, asks: bool = True
    ) -> None:
        """Ask the user before a job replaces a file that it did not make. `there`: the file's stamp.

        Raises `PromptmillError` (`invalid_input`) unless the user agrees. If `asks` is false, nobody is asked: the
        method raises only if the client cannot ask.
        """
        if (agreement := (output, there)) in self._agreed:
            return
        exists = rule.below_roots(f"{output} exists and is not this job's own output")
        if not is_able_to_ask(ctx):
            raise input_error(f"{exists}. This client cannot ask its user about `overwrite`; name another file.")
        if not asks:
            return
        question = f"{exists}. Replace it with the answers?"
        if not await is_agreed(ctx, _REPLACES, question, "Replace the file"):
            raise input_error(f"{exists}, and the user did not agree to `overwrite`; name another file.")
        self._agreed.append(agreement)

    def cost(
        self, ctx: Context, configs: Collection[ModelConfig], max_cost: float | None, what: str
    ) -> CostQuestion | None:
        """Return the question about the cost of a call; None without `ask_above_cost`, or if the client cannot ask.

        `configs`: the configurations of the call's models. The question is about one with an endpoint, if there is one:
        an engine has no price.
        """
        config = min(configs, key=lambda each: each.record.is_engine)
        if config.settings.ask_above_cost is None or not is_able_to_ask(ctx):
            return None
        limits = [limit for limit in (max_cost, config.settings.max_cost) if limit is not None]
        return CostQuestion(self, ctx, config, what, min(limits, default=None), session_of(ctx))

    def add(self, session: str, amount: float) -> float:
        """Add `amount` to the cost of a session's calls that ran without a question, and return the sum."""
        total = self._unasked[session] = max(0.0, self._unasked.pop(session, 0.0) + amount)
        if len(self._unasked) > MOST_SESSIONS:
            self._unasked.popitem(last=False)
        return total


@dataclass(slots=True)
class CostQuestion:
    """The question about the cost of one call, and the amount that the call has added to its session's sum."""

    questions: UserQuestions
    ctx: Context
    config: ModelConfig
    what: str
    limit: float | None
    """The limit from `max_cost`."""
    session: str
    counted: float = 0.0
    unpriced: Sequence[str] = ()
    """The models without a known price, of several."""

    async def approve(
        self,
        estimated: float | None,
        most: float | None,
        sample: float | None = None,
        others: Sequence[ModelConfig] = (),
    ) -> None:
        """Ask the user whether this call and earlier calls without a question may together exceed `ask_above_cost`.

        `most`: the highest cost; None if unknown. `sample`: the cost of the job's sample, if it has one; the sample
        shows the real cost. `estimated`: None if the price is unknown. If it is None, the user is asked only if the
        price of the operator's model, or of one of the `others` that rows name, is known. Raises `PromptmillError`
        (`budget`) unless the user agrees.
        """
        amount = self.config.settings.ask_above_cost
        if amount is None or (estimated is None and not await asyncio.to_thread(_has_price, (self.config, *others))):
            return
        most = self.limit if most is None else most if self.limit is None else min(most, self.limit)
        before = self.questions.add(self.session, 0.0)
        if most is not None and before + most <= amount:
            self.questions.add(self.session, most)
            self.counted = most
            return
        cost = _words(estimated, most, self.unpriced) if sample is None else _words_of_sample(sample, most)
        earlier = f" Earlier calls without a question cost at most {dollars(before)}." if before else ""
        if not await is_agreed(self.ctx, _COST, f"{self.what} costs {cost}.{earlier} Start it?", "Start it"):
            raise PromptmillError(
                Code.BUDGET,
                f"The user did not agree to this call, which costs {cost}; nothing was sent.",
                "Ask the user what to change: fewer prompts or rows, a cheaper `model`, or `max_cost`.",
            )
        self.questions.add(self.session, -before)

    def charge(self, cost: float) -> None:
        """In the session's sum, replace the call's highest cost by its real cost."""
        if self.counted:
            self.questions.add(self.session, cost - self.counted)
            self.counted = 0.0


def _has_price(configs: Sequence[ModelConfig]) -> bool:
    return any(price_of(replace(config, settings=config.operator)) is not None for config in configs)


def _words_of_sample(sample: float, most: float | None) -> str:
    highest = "an unknown amount, because `max_tokens` is not set" if most is None else dollars(most)
    return f"about {dollars(sample)} for a sample, then at most {highest}; `bulk_status` then reports the expected cost"


def _words(estimated: float | None, most: float | None, unpriced: Sequence[str]) -> str:
    if estimated is None:
        return "an unknown amount, because its price is not known" if most is None else f"at most {dollars(most)}"
    without = f" without {' and '.join(unpriced)}, whose price is not known" if unpriced else ""
    if most is not None:
        return f"about {dollars(estimated)}{without}, at most {dollars(most)}"
    unknown = "" if without else ", and at most an unknown amount, because `max_tokens` is not set"
    return f"about {dollars(estimated)}{without}{unknown}"
