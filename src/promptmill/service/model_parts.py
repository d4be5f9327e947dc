"""A call of one model, or of several that answer the same items at the same time: each model has its part."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from promptmill.backends.protocol import Call, Counts, Facts, Failure, Outcome
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import PromptmillError
from promptmill.core.request import Conversation
from promptmill.service.list_call import ListSink
from promptmill.service.service import Service

P = TypeVar("P", bound="ModelPart")


@dataclass(slots=True)
class ModelPart:
    """One model's part of a call: the items with their settings, and the `call` itself, which counts the outcomes."""

    items: Sequence[Conversation | PromptmillError]
    call: Call
    system_prompt: str
    config: ModelConfig
    name: str = ""
    """The model's name in a list of models; `""` if the call has no such list."""
    outcomes: Sequence[Outcome] = ()

    async def answered(self, service: Service, sink: ListSink | None = None) -> Sequence[Outcome]:
        """Return the outcomes of all items. `sink`, and the errors: see `Service.generate`."""
        prompt, config = self.system_prompt, self.config
        return await service.generate(self.items, self.call, system_prompt=prompt, config=config, sink=sink)


async def answer_all(parts: Sequence[P], answer: Callable[[P], Awaitable[Sequence[Outcome]]]) -> None:
    """Set the outcomes of all parts to those that `answer` returns, for all parts at the same time.

    If `answer` raises `PromptmillError` for a model of a list, each item of this part fails with the error.
    """

    async def set_outcomes(part: P) -> None:
        try:
            part.outcomes = await answer(part)
        except PromptmillError as error:
            if not part.name:
                raise
            part.outcomes = [Failure(error)] * len(part.items)

    await asyncio.gather(*map(set_outcomes, parts))


def sum_of_calls(calls: Sequence[Call]) -> Call:
    """Return the only call, or a call with the present sums of several, and the wait of one of them."""
    if len(calls) == 1:
        return calls[0]
    total, counts = sum(call.facts.total or 0 for call in calls), sum((call.counts for call in calls), Counts())
    waits = max(calls, key=lambda call: (bool(call.waiting), call.pace))
    return Call(Facts(total=total), counts, flow=waits.flow, started=calls[0].started)
