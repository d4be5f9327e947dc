"""The state of one endpoint: its requests and their limit, its health, and the time of its next request."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urljoin

from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.failures import FailureKind, RetryDecision, backoff_s, longest_wait_s
from promptmill.backends.openai.limit.adaptive_limit import AdaptiveLimit, ThroughputSearch, waiting_in
from promptmill.backends.openai.limit.pace import Pace
from promptmill.backends.openai.request_body import RequestEncoder
from promptmill.backends.openai.transport import LoopThrottle, Pool
from promptmill.config.settings import OpenAISettings
from promptmill.core.errors import Code, PromptmillError

# From this number of consecutive refusals on, the cause is the endpoint, not single items. A filter that refuses a
# third of all prompts refuses this many in a row once in 40 million.
SEVERAL = 16
_FADING = 0.1
# Answers within this time before an item was first sent show that the endpoint was working.
_NEIGHBOURS_S = 60.0
_LOAD_PERIOD_S, _PAGE_S = 1.0, 1.0
# The upper bound of requests in flight to an operator's own server, if `concurrency` is not set.
_MOST_OWN = 1024


class Permit:
    """The right to send one request to `endpoint_state`, given at the time `at`."""

    __slots__ = ("at", "endpoint_state", "idle_s", "round_number", "sent_as", "serial")

    def __init__(
        self, endpoint_state: EndpointState, at: float, serial: int, sent_as: int, *, round_number: int, idle_s: float
    ) -> None:
        self.endpoint_state = endpoint_state
        self.at = at
        self.serial = serial
        """The number of the request at this endpoint, from 1."""
        self.sent_as = sent_as
        """The number of requests in flight when the request was sent, including itself."""
        self.round_number = round_number
        """The round of the request, which `AdaptiveLimit.taken` returned."""
        self.idle_s = idle_s
        """The idle time before the request, which `LoopThrottle.idle_s` returned."""


@dataclass(slots=True)
class Load:
    """The requests at an endpoint, and their limit."""

    limit: AdaptiveLimit
    search: ThroughputSearch | None
    """The search that sets the bound of `limit` for an operator's own server; None for other endpoints."""
    in_flight: int = 0
    sent: int = 0
    """The number of requests so far, which is the serial of the newest request."""
    rejections: int = 0
    """The number of requests that were refused because of load so far."""
    answer_s: float = 0.0
    """The moving average of the time to an answer; 0 if there is no answer yet."""
    watched: bool = False
    """Whether a check is scheduled that raises the limit if all places stay taken without a refusal."""


class Trouble(NamedTuple):
    """The failures since the last success."""

    since: float
    last: RetryDecision


@dataclass(slots=True)
class Health:
    """Whether an endpoint is usable."""

    successes: int = 0
    succeeded_at: int = 0
    """The value of `Load.sent` at the last success."""
    answered_at: float = -math.inf
    """The time of the last success."""
    newest_success: int = 0
    """The highest serial of a successful request."""
    has_listened: bool = False
    """Whether the endpoint has ever accepted a connection."""
    losses: int = 0
    """The number of lost connections since the last success."""
    refusals: int = 0
    """The number of consecutive refusals that would concern all items, with the code `refused_as`."""
    refused_as: Code | None = None
    blocked: PromptmillError | None = None
    """The error because of which this endpoint is no longer used."""
    suspected: PromptmillError | None = None
    """An error that may block the endpoint: the endpoint has not answered yet, and other requests are in flight."""
    trouble: Trouble | None = None


@dataclass(slots=True)
class Pause:
    """The pause of an endpoint, after strikes or because the endpoint requested a wait."""

    until: float = 0.0
    used_up_until: float = 0.0
    """The end of the wait that an answer's headers requested. An answer to a request that was sent after the last
    strike shortens the pause to this time; otherwise, the pause of a call that has ended would delay the next call.
    """
    strikes: int = 0
    """The number of consecutive strikes. After a strike, one request at a time probes the endpoint."""
    struck_at: int = 0
    """The value of `Load.sent` at the last strike."""
    probe: Permit | None = None


class EndpointState:
    """An endpoint with its load, health and pause. Times are seconds of the limiter's clock.

    After a *strike* (a failure without any success since the request was sent) the endpoint is paused, then probed by
    one request at a time until one succeeds.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        encoder: RequestEncoder,
        settings: OpenAISettings,
        clock: Callable[[], float],
        rng: random.Random | None = None,
        *,
        throttle: LoopThrottle | None = None,
    ) -> None:
        """While `throttle` shows that this process, not the endpoint, limits the rate, the limit does not grow."""
        self.endpoint = endpoint
        self.encoder = encoder
        limit = AdaptiveLimit(settings.concurrency, adaptive=settings.adaptive)
        self.load = Load(limit, ThroughputSearch(limit, _MOST_OWN) if _is_searched(settings, endpoint) else None)
        self.health = Health()
        self.pause = Pause()
        self.pace = Pace(limit.restore, adaptive=settings.adaptive)
        self._settings = settings
        self._clock = clock
        self._throttle = throttle or LoopThrottle(clock)
        self._rng = rng or random.SystemRandom()

    def room(self, now: float) -> int:
        """Return how many more requests may be sent at `now`."""
        health, pause = self.health, self.pause
        if health.blocked or health.suspected or now < pause.until:
            return 0
        if pause.strikes:
            return 0 if pause.probe else 1
        load, pace = self.load, self.pace
        free = load.limit.size - load.in_flight
        if not pace.is_counting:
            return max(0, free)
        if free <= 0:
            return pace.beyond(load.in_flight, load.limit.size, now)
        return 0 if pace.holds_back(now) else free

    def opens_at(self, now: float) -> float:
        """Return the time at which the pause ends, or at which the pace or a probe may allow the next request."""
        return self.pause.until if self.pause.strikes else max(self.pause.until, self.pace.next_at(now))

    @property
    def may_be_probed(self) -> bool:
        """Whether a call that has not sent any request may try the endpoint during a pause that other calls caused."""
        return self.pause.strikes > 0 and not (self.pause.probe or self.health.blocked or self.health.suspected)

    def enter(self, now: float) -> Permit:
        """Take a place for one request, and return its permit."""
        load = self.load
        load.in_flight = in_flight = load.in_flight + 1
        load.sent = serial = load.sent + 1
        is_down = self.pause.strikes > 0
        if self.pace.is_counting or in_flight == 1:
            self.pace.taken(serial, load.limit.size, now, is_idle=in_flight == 1 and not is_down)
        permit = Permit(
            self,
            now,
            serial,
            in_flight,
            round_number=load.limit.taken(in_flight),
            idle_s=self._throttle.idle_s(now),
        )
        if is_down:
            self.pause.probe = permit
        elif in_flight > load.limit.size:
            self.pace.tried(serial, load.limit.size, now)
        return permit

    def leave(self, permit: Permit) -> None:
        """Free the place of the request with `permit`."""
        self.load.in_flight -= 1
        if self.pause.probe is permit:
            self.pause.probe = None
        health = self.health
        if health.suspected and not self.load.in_flight:  # no request in flight succeeded
            health.blocked, health.suspected = health.suspected, None

    def succeeded(self, permit: Permit, tokens: int = 0) -> float:
        """Count a response that shows that the endpoint works. `tokens`: the answer's length. Call it before `leave`.

        Return the present time.
        """
        load, health = self.load, self.health
        health.successes += 1
        health.succeeded_at = load.sent
        health.newest_success = max(health.newest_success, permit.serial)
        if health.trouble is not None or health.losses or self.pause.strikes:
            self._recovered(permit)
        health.answered_at = now = self._clock()
        answer_s = now - permit.at
        load.answer_s += _FADING * (answer_s - load.answer_s) if load.answer_s else answer_s
        if self.pace.is_counting:
            self.pace.answered(permit.sent_as, now)
        limit, search = load.limit, load.search
        may_grow = search is not None or limit.may_grow
        if may_grow and self._throttle.is_limit(permit.at, permit.idle_s, now):
            may_grow = False  # this process, not the endpoint, limits the rate
        if search is not None and may_grow:
            search.answered(permit.round_number, load.in_flight, answer_s, tokens)
        limit.accepted(permit.round_number, may_grow=may_grow)
        return now

    def _recovered(self, permit: Permit) -> None:
        health, pause = self.health, self.pause
        if pause.strikes and health.trouble is not None and health.trouble.last.kind is FailureKind.LOAD:
            now = self._clock()
            self.pace.resumed(self.load.sent, now - health.trouble.since, now)
        health.losses = health.refusals = 0
        health.suspected = health.trouble = None
        if pause.strikes and permit.serial > pause.struck_at:
            pause.until = pause.used_up_until
        pause.strikes = 0
        pause.probe = None  # allows another probe, even if this one hangs

    async def watch_load(self, pool: Pool) -> None:
        """Once a second, report the server's waiting requests to the search, while the server publishes them."""
        url = urljoin(self.endpoint.url, "/metrics")
        while self.load.search is not None:
            await asyncio.sleep(_LOAD_PERIOD_S)
            page = await pool.get(url, _PAGE_S)
            if page is None or (waiting := waiting_in(page)) is None:
                return
            self.load.search.waits(waiting, self.load.in_flight)

    def failed(self, permit: Permit, decision: RetryDecision, failed_before: int | None) -> bool:
        """Count a failure. Return whether the endpoint caused it. If so, the failure does not count against the item.

        `failed_before`: the value of `Load.sent` at the item's previous failure at this endpoint.
        """
        trouble = self.health.trouble
        self.health.trouble = Trouble(self._clock() if trouble is None else trouble.since, decision)
        match decision.kind:
            case FailureKind.ENDPOINT:
                self._refused(decision.error)
                return True
            case FailureKind.LOAD:
                self._overloaded(permit, decision, failed_before)
                return True
            case FailureKind.LOST:
                is_forgiven = self._lost(permit, decision, failed_before)
                return is_forgiven and not decision.is_cut  # a response that a proxy cut is billed, so it counts
        return False

    def _nothing_succeeded(self, permit: Permit, failed_before: int | None) -> bool:
        """Return whether no request has succeeded since `permit` was given.

        If the item has failed before, only answers to requests sent after its previous failure count, because an
        endpoint that shuts down still answers older requests for a while.
        """
        if failed_before is None:
            return self.health.succeeded_at < permit.serial
        return self.health.newest_success <= failed_before

    def _refused(self, error: PromptmillError) -> None:
        """Count a refusal that would concern all items.

        An endpoint that has never answered is suspected; after many consecutive refusals, any endpoint is blocked.
        """
        health = self.health
        health.refusals = health.refusals + 1 if error.code is health.refused_as else 1
        health.refused_as = error.code
        if health.refusals >= SEVERAL:
            health.blocked, health.suspected = error, None
        elif not health.successes:
            health.suspected = error

    def _overloaded(self, permit: Permit, decision: RetryDecision, failed_before: int | None) -> None:
        """Lower the limit after a refusal because of load. Pause the endpoint if it accepts no requests at all."""
        self.health.has_listened = True
        load, limit, now = self.load, self.load.limit, self._clock()
        load.rejections += 1
        if self.pace.refused(permit.serial, permit.sent_as, permit.at, newest=load.sent, size=limit.size, now=now):
            limit.refused(permit.round_number)
        # not while another request is in flight, because it may show that the endpoint accepts some requests
        if load.in_flight <= 1 and self._nothing_succeeded(permit, failed_before):
            lasted_s = 0.0 if self.health.trouble is None else now - self.health.trouble.since
            longest_s = min(self._settings.max_delay, max(self._settings.base_delay, lasted_s / 4))
            self._strike(permit, decision, self.pause.strikes + 1, longest_s)

    def _lost(self, permit: Permit, decision: RetryDecision, failed_before: int | None) -> bool:
        """Pause the endpoint after a lost or refused connection, if no request has succeeded meanwhile.

        Return whether the endpoint caused the failure. If so, the failure does not count against the item.
        """
        health = self.health
        health.losses += 1
        if not self._nothing_succeeded(permit, failed_before):
            # several losses without a success are due to the endpoint, even if it has just answered another item
            return health.losses > 1 and health.successes > 0
        refused = decision.error.code in {Code.UNREACHABLE, Code.NAME_RESOLUTION}
        health.has_listened = health.has_listened or not refused
        # the first probe is immediate, because a connection that was closed between requests is not an outage
        # later waits are short: a probe of a lost endpoint costs almost nothing, but a longer wait would delay the run
        self._strike(permit, decision, self.pause.strikes, min(self._settings.max_delay, 5.0))
        return health.successes > 0 or (refused and health.has_listened)

    def _strike(self, permit: Permit, decision: RetryDecision, failures: int, longest_s: float) -> None:
        """Pause the endpoint. Of the requests that were in flight together, only the first to fail has an effect."""
        pause = self.pause
        if pause.struck_at >= permit.serial:
            return
        pause.strikes += 1
        pause.struck_at = self.load.sent
        pause_s = backoff_s(failures, self._settings.base_delay, longest_s, self._rng) if failures else 0.0
        pause.until = self._clock() + max(pause_s, self.honoured_wait_s(decision))

    def used_up(self, wait_s: float) -> None:
        """Pause the endpoint for `wait_s` seconds, because an answer reported that the limit per minute is used up."""
        # A limit per minute resets after a minute, so a header with a longer wait refers to a limit per day. It is
        # ignored: only a refusal may request a longer wait.
        if wait_s <= min(60.0, longest_wait_s(self._settings)):
            self.pause.used_up_until = self._clock() + wait_s
            self.pause.until = max(self.pause.until, self.pause.used_up_until)

    def answered_about(self, since: float) -> bool:
        """Return whether a request was answered in the minute before `since`, or later."""
        return self.health.answered_at >= since - _NEIGHBOURS_S

    @property
    def is_down(self) -> bool:
        """Whether the endpoint is probed or blocked."""
        return self.pause.strikes > 0 or self.health.blocked is not None

    def is_unavailable(self, now: float) -> bool:
        """Return whether the endpoint is down, or has requested a pause that no answer to a later request has ended."""
        return self.is_down or now < self.pause.until

    def honoured_wait_s(self, decision: RetryDecision) -> float:
        """Return the wait in seconds that the endpoint requested, at most `longest_wait_s`."""
        return min(decision.wait_s or 0.0, longest_wait_s(self._settings))

    @property
    def longest_silence_s(self) -> float:
        """The seconds of silence after which an attempt fails."""
        return self._settings.timeout[1]

    def unusable(self) -> PromptmillError | None:
        """Return the error because of which this endpoint is unusable, or None."""
        health = self.health
        if health.blocked or health.trouble is None:
            return health.blocked
        never = self.has_never_listened and self.pause.strikes >= self._settings.retries
        return health.trouble.last.error if never or self.patience_s < 0 else None

    @property
    def has_never_listened(self) -> bool:
        """Whether the endpoint has never accepted a connection."""
        return not (self.health.successes or self.health.has_listened)

    @property
    def patience_s(self) -> float:
        """The seconds without a success after which the endpoint becomes unusable."""
        trouble = self.health.trouble
        return self._settings.patience - (0.0 if trouble is None else self._clock() - trouble.since)

    def forgive(self) -> None:
        """Reset the endpoint's health, for a new call."""
        health, pause = self.health, self.pause
        health.blocked = health.suspected = health.trouble = None
        health.refusals = pause.strikes = 0
        pause.until = pause.used_up_until = 0.0


def _is_searched(settings: OpenAISettings, endpoint: Endpoint) -> bool:
    return endpoint.own and settings.adaptive and "concurrency" not in settings.model_fields_set


def most_in_flight(settings: OpenAISettings, endpoints: Sequence[Endpoint]) -> int:
    """Return the limit of requests in flight to all `endpoints` together."""
    if any(_is_searched(settings, endpoint) for endpoint in endpoints):
        return max(settings.concurrency, _MOST_OWN)
    return settings.concurrency


def endpoint_states(
    endpoints: Sequence[Endpoint],
    model: str,
    settings: OpenAISettings,
    clock: Callable[[], float],
    throttle: LoopThrottle | None = None,
) -> list[EndpointState]:
    """Return the state of each of `endpoints`."""
    return [
        EndpointState(
            endpoint,
            RequestEncoder(endpoint, model, enable_thinking=settings.enable_thinking, stream=settings.stream),
            settings,
            clock,
            throttle=throttle,
        )
        for endpoint in endpoints
    ]
