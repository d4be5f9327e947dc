"""The step that continues a list that `max_tokens` cut: its complete items are kept, and the rest is asked for.

The step for quotes and the checks are outside of this step, so they see one whole reply.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

from promptmill.answers.reasoning import split_marked
from promptmill.backends.protocol import Call, Completion, Failure, Outcome, Totals
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Conversation, Message, Request, Sampling
from promptmill.core.wording import counted
from promptmill.features.passes.list_answer import ListAnswer, ListForm
from promptmill.steps.step import Place, Step

MOST_CONTINUED = 4
"""The most requests for the rest of an answer."""
GO_ON = (
    "The answer was cut off at its longest length; its complete items are above. Continue in the same form: write only "
    "the items that follow the last one, and repeat none of them."
)
_KEPT = (
    "Lists were cut by `max_tokens`: their complete items are kept, and the rest was asked for. A higher `max_tokens` "
    "needs fewer requests."
)


class ContinuedLists(Step):
    """Asks for the rest of a cut list, up to `MOST_CONTINUED` times, while each reply brings new items.

    If the rest does not come, the answer fails as `truncated`, and the failure has the complete items as its `part`.
    """

    place, wanted_by = Place.FORMED, ("response_format",)
    _last: tuple[Sampling | None, ListForm | None] = None, None
    """The parameters of the previous request, and their form."""

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Answer a request for JSON."""
        sampling, form = self._last
        if sampling is not request.sampling:
            self._last = request.sampling, (form := ListForm.of(request.sampling))
        return self.following(request, call) if form is None else self._whole(form, request, call)

    async def _whole(self, form: ListForm, request: Request, call: Call) -> Outcome:
        first = await self.following(request, call)
        if not _is_cut(first) or not isinstance(first, Completion) or call.facts.keep_raw or call.exchange is not None:
            return first
        own = own_text(first.text, request)
        found = form.read(own)
        if found is None or found.is_whole or not found.items:
            return first
        outcomes = list[Outcome]([first])
        found, problem = await self._continued(form, found, outcomes, request, call)
        answer = first.text[: len(first.text) - len(own)] + form.text(found)
        if not problem:
            whole = replace(first, text=answer, finish_reason="stop", logprobs=None, probabilities=None)
            return summed(whole, outcomes)
        kept = f"its {counted(len(found.items), 'complete item')} are kept as a part"
        error = PromptmillError(Code.TRUNCATED, f"The list was cut by `max_tokens`, and {problem.rstrip('.')}; {kept}.")
        return summed(Failure(error, text=first.text, part=answer), outcomes)

    async def _continued(
        self, form: ListForm, found: ListAnswer, outcomes: list[Outcome], request: Request, call: Call
    ) -> tuple[ListAnswer, str]:
        """Ask for the rest of `found`. Return the answer with the rest, and the reason why it is incomplete or `""`.

        The outcomes of the requests are added to `outcomes`.
        """
        if found.is_loop:
            return found, "the model repeats its items"
        while not form.is_complete(found):
            if len(outcomes) > MOST_CONTINUED:
                return found, f"{MOST_CONTINUED} requests for the rest were not enough"
            call.warn(_KEPT)
            asked = asking_again(request, form.text(found), GO_ON)
            outcomes.append(outcome := await self.following(asked, call))
            if isinstance(outcome, Failure):
                return found, f"the request for the rest failed: {outcome.error.message}"
            more = form.read(own_text(outcome.text, request))
            if more is None or not (more.is_whole or _is_cut(outcome)):
                return found, "the reply to the request for the rest is not in its form"
            before, found = found, found.followed_by(more)
            if found == before:
                return found, "the reply to the request for the rest has nothing new"
        return found, ""


def _is_cut(outcome: Outcome) -> bool:
    return isinstance(outcome, Completion) and outcome.finish_reason == "length" and bool(outcome.text)


def own_text(text: str, request: Request) -> str:
    """Return the text of an answer without the inline reasoning at its beginning, if any."""
    return split_marked(text)[1] if request.sampling.reasoning == "inline" else text


def asking_again(request: Request, found: str, words: str) -> Request:
    """Return the request with two more turns: the items that were `found`, as the model's answer, and `words`. It is
    another request of the item, and no retry."""
    turns = Message("assistant", found), Message("user", words)
    conversation = Conversation((*request.conversation.messages, *turns))
    return request.changed(conversation=conversation, corrections=request.corrections + len(turns), attempts=0)


def summed(joined: Outcome, outcomes: list[Outcome]) -> Outcome:
    """Return `joined` with the summed usage, cost and latency of `outcomes`. Their requests followed one another."""
    latency_s = round(sum(one.latency_s for one in outcomes), 6)
    attempts, unmetered = (sum(getattr(one, name) for one in outcomes) for name in ("attempts", "unmetered"))
    requests = max(1, sum(one.wanted for one in outcomes if one.attempts))
    counts: dict[str, Any] = {"wanted" if isinstance(joined, Failure) else "made_of": requests, "attempts": attempts}
    joined = replace(joined, latency_s=latency_s, unmetered=unmetered, spent=(), **counts)
    return Totals.of(outcomes).on(joined)
