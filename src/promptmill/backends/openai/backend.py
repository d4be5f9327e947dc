"""The `openai` backend: answers requests over HTTP, through one pool of connections.

`OpenAIBackend` has the pool and the limiter that all calls share. `Attempts` answers the requests of one call. For each
request, it runs a loop: get a permit, make an attempt, classify the result, wait, repeat.

An attempt needs a permit, which the limiter gives when the endpoint can take a request. A failed attempt may concern
only the item (the item fails), only this attempt (it is repeated, and counts against `retries`), or the endpoint (it is
repeated when the endpoint can take it, and counts only if other items are answered). An item fails after `retries`
counted attempts, or after five times as many attempts, counted or not.

If a prompt crashes its server, other requests in flight lose their connections, too. An item that has lost its
connection `retries` times is a *suspect*. Suspects are sent one at a time, so that those with harmless prompts are
answered. An item fails after `2 * retries` losses if other items were answered meanwhile.

A refusal that may concern every item, such as a refused key, is held until other items show whether it does: see
`_Attribution`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

from promptmill.backends.openai.endpoint import endpoints, file_limits_of, image_types_of
from promptmill.backends.openai.exchanged import ExchangedAnswers
from promptmill.backends.openai.failures import FailureKind, RetryDecision, backoff_s, longest_wait_s
from promptmill.backends.openai.hedge import Hedge
from promptmill.backends.openai.limit.endpoint_state import (
    SEVERAL,
    EndpointState,
    Permit,
    endpoint_states,
    most_in_flight,
)
from promptmill.backends.openai.limit.limiter import CallFlow, ConcurrencyShare, Limiter
from promptmill.backends.openai.refusals import with_key_hint, with_scheme_hint, with_wait_hint
from promptmill.backends.openai.request_body import ImageEncoder, RequestEncoder
from promptmill.backends.openai.route import proxy_of
from promptmill.backends.openai.sender import NOTHING, Billed, Item, Sender
from promptmill.backends.openai.transport import LoopThrottle, Pool, room_for_connections
from promptmill.backends.protocol import Call, Completion, Exchange, Failure, KeyHolder, Outcome
from promptmill.config.model_config import ModelConfig
from promptmill.config.settings import OpenAISettings
from promptmill.core.errors import Code, PromptmillError, config_error, internal_error
from promptmill.core.request import Request
from promptmill.images.files import UNLIMITED
from promptmill.images.load import ImageRules, WebImages

# An item fails after this multiple of `retries` attempts, even if most of the attempts were not counted.
_HARD_CAP = 5
# An item fails after this multiple of `retries` losses if other items were answered meanwhile.
_LOSS_CAP = 2
# After `retries` losses or more, an item waits up to this many seconds, so that it outlasts an outage of 10 s.
_LOST_WAIT_S = 5.0
_NOTHING_BEHIND = 502  # the status of a proxy whose server is down
# Failures with these codes are caused by the item's content, even if many items have them.
_OWN = frozenset(
    {
        *(Code.CONTENT_FILTER, Code.CONTEXT_LENGTH, Code.REQUEST_TOO_LARGE),
        *(Code.EMPTY_ANSWER, Code.OPEN_REASONING, Code.TRUNCATED),
    }
)
_LOG = logging.getLogger(__name__)


_Result: TypeAlias = Completion | RetryDecision


def create(config: ModelConfig) -> OpenAIBackend:
    """Return the backend of `config`. Raises `PromptmillError` (`invalid_config`) for settings that cannot work."""
    return OpenAIBackend(config)


class OpenAIBackend:
    """Answers requests over HTTP. All calls share one pool and one limiter, so `concurrency` limits them together."""

    def __init__(self, config: ModelConfig) -> None:
        """`config` chooses endpoints, keys and limits. No connection is opened yet."""
        self._config = config
        self._settings = config.settings.backend_configs.openai
        if not self._settings.model_name:
            raise config_error("backend_configs.openai.model_name", "is missing; name the endpoint's model.")
        self._endpoints = endpoints(config)
        for endpoint in self._endpoints:
            proxy_of(endpoint.url, trust_env=self._settings.trust_env)  # checked early: raises if the proxy is unusable
        self._pool: Pool | None = None
        """The pool; None before loading and after closing."""
        self._fetcher = WebImages() if config.settings.fetch_images else None
        self._limiter: Limiter | None = None
        self._calls: dict[Call, Attempts | ExchangedAnswers] = {}
        self._watches: list[asyncio.Task[None]] = []
        self._concurrency = self._settings.concurrency

    @cached_property
    def _rules(self) -> ImageRules:
        """The rules for images, created for the first image. All calls share the rules and their memory limit."""
        settings = self._config.settings
        types = image_types_of(self._endpoints)
        known = file_limits_of(((each.profile, each.dialect) for each in self._endpoints), self._settings.files)
        rule, pixels, memory = self._config.file_rule, settings.max_image_pixels, settings.max_image_memory
        # other endpoints drop recordings without an error, so a model answers about nothing
        limits = {"pdf": UNLIMITED["pdf"], **known}
        return ImageRules.of(rule, pixels, memory, types=types, limits=limits)

    async def load(self, report: Callable[[str], None]) -> None:
        """Create the pool. No request is sent."""
        settings, model = self._settings, self._settings.model_name or ""
        report(f"using {model} at {', '.join(endpoint.name for endpoint in self._endpoints)}")
        wanted = most_in_flight(settings, self._endpoints)
        self._concurrency = min(wanted, room_for_connections(wanted))
        throttle = LoopThrottle(time.monotonic)
        states = endpoint_states(self._endpoints, model, settings, time.monotonic, throttle)
        self._limiter = Limiter(states, self._concurrency, time.monotonic, rpm=settings.rpm, tpm=settings.tpm)
        self._pool = Pool(settings, self._concurrency, throttle)

    @property
    def key(self) -> KeyHolder | None:
        """The renewed key of the endpoints; None if the endpoints' keys do not change."""
        return next((endpoint.renewed for endpoint in self._endpoints if endpoint.renewed is not None), None)

    @property
    def most(self) -> int:
        """The limit of requests in flight, in this and other processes together."""
        return self._concurrency

    async def lease(self, most: int, rates: float) -> None:
        """From now on, use only a part of `concurrency`, `rpm` and `tpm`: see `Leased`. The backend must be loaded."""
        assert self._limiter is not None
        await self._limiter.lease(most, rates)

    def widen(self, most: int) -> None:
        """From now on, allow `most` requests in flight, if this raises the limit."""
        if self._limiter is None or self._pool is None or most <= self._concurrency:
            return
        self._concurrency = max(self._concurrency, min(most, room_for_connections(most)))
        self._limiter.widen(self._concurrency)
        self._pool.widen(self._concurrency)
        for attempts in self._calls.values():
            if isinstance(attempts, Attempts):
                attempts.widen(self._concurrency)

    def enter(self, call: Call) -> Attempts | ExchangedAnswers:
        """Return the object that answers a call's requests. Raises `PromptmillError` (`shutdown`) without a pool."""
        if self._pool is None or self._limiter is None:
            raise PromptmillError(Code.SHUTDOWN, "The connections are closed.")
        if call.exchange is not None:
            answers = self._calls[call] = self._exchanged(call, call.exchange)
            return answers
        if call.facts.has_answered:
            for state in self._limiter.endpoint_states:
                state.health.successes = max(1, state.health.successes)
        if self._concurrency < self._settings.concurrency:
            call.warn(
                f"concurrency is {self._concurrency} instead of {self._settings.concurrency}: "
                "this process may not open more connections."
            )
        sender = Sender(
            self._pool,
            ImageEncoder(lambda: self._rules, self._fetcher, call.facts.kept_image_bytes),
            call,
            unsupported_is_error=self._config.settings.unsupported == "error",
        )
        attempts = self._calls[call] = Attempts(
            call, settings=self._settings, concurrency=self._concurrency, limiter=self._limiter, sender=sender
        )
        if not self._watches:
            searched = [state for state in self._limiter.endpoint_states if state.load.search is not None]
            self._watches = [asyncio.create_task(state.watch_load(self._pool)) for state in searched]
        return attempts

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Answer one request. A failure affects only this request."""
        return self._calls[call].answer(request)

    async def leave(self, call: Call) -> None:
        """Record that a call has ended."""
        attempts = self._calls.pop(call)
        if not self._calls:
            for watch in self._watches:
                watch.cancel()
            self._watches.clear()
        attempts.close()

    def _exchanged(self, call: Call, exchange: Exchange) -> ExchangedAnswers:
        settings, endpoint = self._settings, self._endpoints[0]
        return ExchangedAnswers(
            call,
            exchange,
            endpoint,
            RequestEncoder(endpoint, settings.model_name or "", enable_thinking=settings.enable_thinking, stream=False),
            ImageEncoder(lambda: self._rules, self._fetcher),
            unsupported_is_error=self._config.settings.unsupported == "error",
        )

    async def aclose(self) -> None:
        """Close all connections."""
        pool, self._pool = self._pool, None
        for resource in (pool, self._fetcher):
            if resource is not None:
                await resource.aclose()


class Attempts(ConcurrencyShare):
    """The requests of one call at one pool of endpoints. `answer` repeats one request until it has an outcome."""

    def __init__(
        self,
        call: Call,
        *,
        settings: OpenAISettings,
        concurrency: int,
        limiter: Limiter,
        sender: Sender,
    ) -> None:
        super().__init__(limiter.shares, call, concurrency)
        self._limiter = limiter
        self._settings, self._sender = settings, sender
        self._rng = random.SystemRandom()
        self._take = Hedge(self._answer).answer if settings.hedge else self._answer
        self._item_timeout = settings.item_timeout
        self._plain = not settings.hedge and settings.item_timeout is None
        """Whether an attempt is always one request without a time limit."""
        self._attribution: _Attribution | None = None
        """It is created at the call's first failure."""
        self._answered = call.facts.has_answered
        self._began = time.monotonic()
        limiter.open(self)
        if call.flow is None:
            call.flow = self

    def widen(self, most: int) -> None:
        """Use `most` requests in flight."""
        self.cap = most
        self._limiter.shares.divide()

    def close(self) -> None:
        """Free the call's resources. No answer may be in flight."""
        if self.call.flow is self:
            self.call.flow = None
        self._limiter.close(self)
        self._sender.close()

    @property
    def limit(self) -> int:
        """The limit of requests in flight to the endpoints, for all calls together."""
        return self._limiter.room

    @property
    def pace(self) -> float:
        """The limit of requests per second that was set after refusals, for all calls together; 0 if there is none."""
        return self._limiter.pace

    @property
    def where(self) -> str:
        """The names of the endpoints that have requests in flight."""
        busy = [state.endpoint.name for state in self._limiter.endpoint_states if state.load.in_flight]
        return ", ".join(dict.fromkeys(busy))

    def waiting(self) -> str:
        """Return why the call is stalled, and when the stall ends; `""` while the call makes progress."""
        return self._flow.waiting()

    @cached_property
    def _flow(self) -> CallFlow:
        return CallFlow(self._limiter, self.call, time.monotonic, self._began)

    def idle(self) -> None:
        """Decide on the held failures, because no other item remains that could show whether they concern all items."""
        if self._attribution is not None:
            self._attribution.release()

    def answer(self, request: Request) -> Awaitable[Outcome]:
        """Send the request repeatedly until it has an outcome."""
        return self._take(Item(request))

    async def _answer(self, item: Item) -> Outcome:
        try:
            preparing = self._sender.prepare(item.request)
            prepared = NOTHING if preparing is None else await preparing
            item.tokens = _estimated_tokens(item.request) if self._limiter.counts_tokens else 0
        except PromptmillError as error:
            return _failure(item, error)
        except Exception as error:  # noqa: BLE001 (one item must never end the others)
            return _failure(item, internal_error("The request could not be prepared", error))
        return await self._repeat(item, prepared)

    async def _repeat(self, item: Item, prepared: Mapping[str, bytes]) -> Outcome:
        limiter = self._limiter
        while True:
            if self._attribution is not None and self._attribution.ended:
                return _failure(item, self._attribution.ended, concerns_all=True)
            try:
                permit = limiter.enter_now(self, item.tokens, item.failed_at)
                if permit is None:
                    permit = await limiter.enter(self, item.tokens, item.failed_at)
            except PromptmillError as error:
                return _failure(item, error, concerns_all=True)
            item.permit = permit
            try:
                result = await self._attempt(item, permit, prepared)
                if isinstance(result, Completion):
                    now = permit.endpoint_state.succeeded(permit, result.usage.completion_tokens)
                else:
                    result = self._explained(result, permit.endpoint_state)
                    counts = self._counts(item, permit, result)
            except PromptmillError as error:
                return _failure(item, error)
            finally:
                limiter.leave(permit, self)
            if isinstance(result, Completion):
                return self._completed(item, result, permit, now)
            failure = await self._after_failure(item, permit, result, counts=counts)
            if failure is not None:
                return failure
            if item.losses >= self._settings.retries and not (item.is_suspect or result.status):
                return await self._answer_alone(item, prepared)

    async def _answer_alone(self, item: Item, prepared: Mapping[str, bytes]) -> Outcome:
        """Answer a suspect while no other suspect is sent."""
        with self.call.park():
            await self._limiter.suspects.acquire()
        item.is_suspect = True
        try:
            return await self._repeat(item, prepared)
        finally:
            self._limiter.suspects.release()

    def _attempt(self, item: Item, permit: Permit, prepared: Mapping[str, bytes]) -> Awaitable[_Result]:
        """Return the result of an attempt. Raises `PromptmillError` for an error in the item itself."""
        limit_s = self._item_timeout
        if not item.since:
            item.since = permit.at
        if limit_s is not None and time.monotonic() >= item.since + limit_s:
            raise _too_slow(limit_s)
        self.sent += 1
        if self._plain:
            return self._sender.send(item, permit.endpoint_state, prepared)
        return self._send_bounded(item, permit, prepared)

    def _completed(self, item: Item, answer: Completion, permit: Permit, now: float) -> Completion:
        """Return `answer`, which arrived at `now`, with the attempts, the time and the usage of its item."""
        if self._limiter.counts_tokens:
            self._limiter.charge_tokens(answer.usage.prompt_tokens + answer.usage.completion_tokens - item.tokens)
        self._answered = True
        if self._attribution is not None:
            self._attribution.answered(permit)
        if (billed := item.billed) is not None:
            answer.unmetered = billed.unmetered + (not answer.is_metered)
            own = [(answer.usage, answer.tier)] if answer.is_metered else []
            answer.usage, answer.spent = answer.usage + billed.usage, (*billed.spent, *own)
        answer.attempts = item.attempts
        answer.latency_s = int((now - item.since) * 10_000 + 0.5) / 10_000  # `round` takes five times as long
        return answer

    async def _send_bounded(self, item: Item, permit: Permit, prepared: Mapping[str, bytes]) -> _Result:
        """Send the item once, within `item_timeout`. If it is hedged, the first answered request cancels the other."""
        limit_s, before = self._item_timeout, item.attempts
        left_s = None if limit_s is None else item.since + limit_s - time.monotonic()
        try:
            async with asyncio.timeout(left_s):
                return await self._sender.send(item, permit.endpoint_state, prepared)
        except (TimeoutError, asyncio.CancelledError) as error:
            if item.attempts > before:
                item.charge(None)
            if isinstance(error, TimeoutError):
                raise _too_slow(limit_s or 0) from None
            raise

    def _counts(self, item: Item, permit: Permit, decision: RetryDecision) -> bool:
        """Report a failure to the endpoint's state. Return whether the failure counts against the item's `retries`."""
        endpoint_state = permit.endpoint_state
        if decision.kind is FailureKind.ITEM:
            endpoint_state.succeeded(permit)  # the endpoint answered: the response concerns only this item
            return True
        self.call.counts.refused += decision.kind is FailureKind.LOAD
        before = item.failed_serial if item.failed_at is endpoint_state else None
        item.failed_serial = endpoint_state.load.sent
        forgiven = endpoint_state.failed(permit, decision, before)
        item.losses += decision.is_loss
        if decision.kind is FailureKind.LOAD:
            return not item.is_refused_for_load(endpoint_state)
        return not forgiven

    def _explained(self, decision: RetryDecision, endpoint_state: EndpointState) -> RetryDecision:
        """Return `decision` with a hint on the key that was sent, the URL's scheme, or an excessive wait."""
        if decision.error.code is Code.UNAUTHORIZED:
            return replace(decision, error=with_key_hint(endpoint_state.endpoint, decision.error, decision.status))
        if decision.error.code is Code.CONNECTION_LOST and not endpoint_state.health.successes:
            return replace(decision, error=with_scheme_hint(endpoint_state.endpoint, decision.error))
        limited = decision.kind is FailureKind.LOAD and (decision.wait_s or 0) > longest_wait_s(self._settings)
        if limited or (decision.kind is FailureKind.ENDPOINT and decision.wait_s):
            return with_wait_hint(decision, time.time())
        return decision

    async def _after_failure(
        self, item: Item, permit: Permit, decision: RetryDecision, *, counts: bool
    ) -> Failure | None:
        """Return the failure of an item; None if the item was put back to be sent again."""
        error, endpoint_state = decision.error, permit.endpoint_state
        settings = self._settings
        if not decision.may_be_billed:
            self.call.ledger.not_billed(item.request)
        if self._attribution is None:
            self._attribution = _Attribution(answered=self._answered)
        attribution = self._attribution
        item.failed_at, item.stale = endpoint_state, decision.stale
        item.counted += counts
        final = decision.kind is FailureKind.ITEM or (
            decision.kind is FailureKind.ENDPOINT and self._limiter.only(endpoint_state)
        )
        if (
            final
            or item.counted >= settings.retries
            or (item.losses >= _LOSS_CAP * settings.retries and endpoint_state.answered_about(item.since))
            or item.attempts - item.request.attempts >= _HARD_CAP * settings.retries
        ):
            refused = False
            if attribution.takes(decision):
                verdict = attribution.hold(permit, decision)
                if attribution.ended:
                    self._limiter.serve()
                with self.call.hold():
                    refused = await verdict
            concerns_all = refused or self._is_gone(item, endpoint_state, decision)
            return _failure(item, error, decision, concerns_all=concerns_all)
        if attribution.is_ended_by(decision):
            return _failure(item, error, decision, concerns_all=True)
        item.charge(decision)
        wait_s = self._wait_s(item, endpoint_state, decision, counts=counts)
        item.refusals += decision.kind is FailureKind.LOAD
        what = f"{decision.status} {error.code}" if decision.status else error.code
        _LOG.debug("%s: %s, again in %.1f s", endpoint_state.endpoint.name, what, wait_s)
        if settings.item_timeout is not None and item.since + settings.item_timeout <= time.monotonic() + wait_s:
            return _failure(item, _too_slow(settings.item_timeout))
        account = item.request.account
        if account is not None and decision.may_be_billed and not await account.reserve_again():
            return _failure(item, PromptmillError(Code.BUDGET, "The budget has no room for another attempt."))
        self._flow.put_back(endpoint_state, decision, wait_s, self._attempts_of(item, endpoint_state, decision))
        if wait_s > 0:
            with self.call.park():
                await asyncio.sleep(wait_s)
        return None

    def _attempts_of(self, item: Item, endpoint_state: EndpointState, decision: RetryDecision) -> str:
        """Return a text with the number of an item's next attempt, and the largest number of attempts; `""` before the
        second failure, or if the setting `patience` ends the attempts instead."""
        retries = self._settings.retries
        if decision.is_loss and endpoint_state.answered_about(item.since):
            failed, most, setting = item.losses, _LOSS_CAP * retries, "twice the setting `retries`"
        elif decision.kind is FailureKind.TRANSIENT:
            failed, most, setting = item.counted, retries, "the setting `retries`"
        else:
            return ""
        return f"attempt {failed + 1} of at most {most} ({setting})" if failed > 1 else ""

    def _is_gone(self, item: Item, endpoint_state: EndpointState, decision: RetryDecision) -> bool:
        """Return whether a final failure shows that no endpoint is left. The call may have no other items to send.

        If an endpoint has answered before, a timeout may be due to the item, so only a lost connection is proof. If
        none has answered, one lost connection is proof, and so is one response of a proxy whose server is down: a long
        call ends after `SEVERAL` of these failures, and a short call must end, too. An item that failed in an earlier
        run proves nothing: perhaps it is the only remaining item because its prompt always breaks the connection.
        """
        is_lost = decision.kind is FailureKind.LOST
        has_answered = any(state.health.successes for state in self._limiter.endpoint_states)
        if (is_lost or decision.status == _NOTHING_BEHIND) and not (has_answered or item.request.attempts):
            return True
        if decision.kind is FailureKind.ITEM or self._limiter.unusable() is None:
            return False
        return is_lost or not endpoint_state.health.successes

    def _wait_s(self, item: Item, endpoint_state: EndpointState, decision: RetryDecision, *, counts: bool) -> float:
        """Return the seconds to wait before an item is sent again. A pause of the endpoint may prolong the wait."""
        settings = self._settings
        wait_s = 0.0
        if decision.kind is FailureKind.LOAD:
            if item.refusals:  # not at the first refusal: the lowered limit delays the item enough
                base_s = min(settings.base_delay, endpoint_state.load.answer_s or settings.base_delay)
                wait_s = backoff_s(item.refusals, base_s, settings.max_delay, self._rng)
        elif counts and not endpoint_state.is_down and not decision.stale:
            # the item waits only while the endpoint is up: when it is down, the pause between probes is delay enough
            wait_s = backoff_s(item.counted, settings.base_delay, settings.max_delay, self._rng)
        if item.losses >= settings.retries:
            wait_s = max(wait_s, min(settings.base_delay * 2**item.losses, settings.max_delay, _LOST_WAIT_S))
        if not self._limiter.elsewhere(endpoint_state):  # no other endpoint can take the next attempt
            wait_s = max(wait_s, endpoint_state.honoured_wait_s(decision))
        return wait_s


def _estimated_tokens(request: Request) -> int:
    """Return a rough estimate of the prompt's tokens, for `tpm`. The actual tokens are charged after the answer."""
    return sum(len(m.content) for m in request.conversation.messages if isinstance(m.content, str)) // 4


def _failure(
    item: Item, error: PromptmillError, last: RetryDecision | None = None, *, concerns_all: bool = False
) -> Failure:
    """Return the failure of an item. `last`: the last attempt's decision, if that attempt is not yet charged."""
    if last is not None:
        item.charge(last)
    age_s = round(time.monotonic() - item.since, 4) if item.since else 0.0
    billed = item.billed or Billed()
    return Failure(
        error,
        item.attempts,
        age_s,
        billed.usage,
        concerns_all=concerns_all,
        unmetered=billed.unmetered,
        spent=billed.spent,
        reasoning="" if last is None else last.reasoning,
        part="" if last is None else last.part,
        probabilities=None if last is None else last.probabilities,
    )


def _too_slow(limit_s: float) -> PromptmillError:
    return PromptmillError(Code.ITEM_TIMEOUT, f"The item took longer than `item_timeout` ({limit_s:g} s).")


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    permit: Permit
    decision: RetryDecision
    verdict: asyncio.Future[bool]
    """The future's result: whether the refusal concerns all items."""


class _Attribution:
    """Determines whether the items or the endpoint caused the final failures of a call.

    A refusal because of the key or the model is held until a request that was sent later is answered: this shows that
    the item caused the refusal. An answer to a request that was sent earlier shows nothing about the present key.

    While the call has no answers, its final failures are compared, because an unsupported parameter makes every item
    fail. `SEVERAL` failures with the same code end the call.
    """

    def __init__(self, *, answered: bool) -> None:
        """`answered`: whether an item of the call has already been answered."""
        self._held: list[_Held] = []
        self._answered = answered
        self._pages = 0
        self.ended: PromptmillError | None = None
        """The error that ends the call: no further request is sent."""

    def takes(self, decision: RetryDecision) -> bool:
        """Return whether a final failure must be held."""
        if decision.kind is FailureKind.ENDPOINT:
            return True
        return not self._answered and not decision.part and decision.error.code not in _OWN

    def is_ended_by(self, decision: RetryDecision) -> bool:
        """Count a retryable failure. Return whether the failure ends the call.

        A single web page may come from a portal or proxy, and the next request may succeed. `SEVERAL` pages without an
        answer mean that the address is a web site.
        """
        if self._answered or decision.error.code is not Code.BAD_RESPONSE or decision.status != 200:
            return False
        self._pages += 1
        if self._pages >= SEVERAL:
            self.ended = decision.error
            self.release()
        return self.ended is not None

    def hold(self, permit: Permit, decision: RetryDecision) -> asyncio.Future[bool]:
        """Hold the final failure of a request. Return a future that tells whether the failure concerns all items."""
        held = _Held(permit, decision, asyncio.get_running_loop().create_future())
        self._held = [one for one in self._held if not one.verdict.done()]  # drops failures of cancelled items
        self._held.append(held)
        if permit.endpoint_state.health.blocked:
            self.ended = permit.endpoint_state.health.blocked
        elif (
            not self._answered and sum(one.decision.error.code is decision.error.code for one in self._held) >= SEVERAL
        ):
            self.ended = decision.error
        if self.ended:
            self.release()
        return held.verdict

    def answered(self, permit: Permit) -> None:
        """Record an answer to the request with `permit`. It shows that some held failures concern only their items."""
        self._answered = True
        if not self._held:
            return
        own = [held for held in self._held if _was_its_own(held, permit)]
        self._held = [held for held in self._held if not _was_its_own(held, permit)]
        for held in own:
            _decide(held, concerns_all=False)

    def release(self) -> None:
        """Decide on all held failures. They concern all items if they ended the call or blocked the endpoint."""
        held_requests, self._held = self._held, []
        for held in held_requests:
            health = held.permit.endpoint_state.health
            _decide(held, concerns_all=bool(self.ended or health.blocked or health.suspected))


def _decide(held: _Held, *, concerns_all: bool) -> None:
    if not held.verdict.done():
        held.verdict.set_result(concerns_all)


def _was_its_own(held: _Held, answered: Permit) -> bool:
    if held.decision.kind is not FailureKind.ENDPOINT:
        return True
    refused = held.permit
    return refused.endpoint_state is answered.endpoint_state and refused.serial < answered.serial
