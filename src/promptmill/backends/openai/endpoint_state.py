"""Per-endpoint state: concurrency limit, health, pauses."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence

from promptmill.backends.openai.adaptive_limit import AdaptiveLimit
from promptmill.backends.openai.asked_wait import exhausted_s
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.loop_throttle import LoopThrottle
from promptmill.backends.openai.request import RequestEncoder
from promptmill.backends.openai.retry import FailureKind, RetryDecision, backoff_s
from promptmill.backends.openai.throughput_search import Pages, ThroughputSearch, waiting_at
from promptmill.config.settings import OpenAISettings
from promptmill.core.errors import Code, PromptmillError

# Probing an endpoint that is gone costs next to nothing, and waiting longer would cost the run.
_LONGEST_PROBE_PAUSE_S = 5.0
# A minute's limit is whole again after one; headers that name a longer wait are about days, and not believed unasked.
_LONGEST_HEADER_WAIT_S = 60.0
# So many refusals in a row without a success are not the single items' affair. A filter that refuses a third of all
# prompts does so once in 40 million.
SEVERAL = 16
_FADING = 0.1
_LOAD_PERIOD_S = 1.0
# What a server of one's own may be given to compute together, where no `concurrency` was set.
_MOST_OWN = 1024


class Permit:
    """The right to send one request to `endpoint_state`, with a snapshot of its counters."""

    __slots__ = ("at", "endpoint_state", "idle_s", "outage", "round_number", "serial", "successes")

    def __init__(self, endpoint_state: EndpointState, at: float, idle_s: float) -> None:
        self.endpoint_state = endpoint_state
        self.at = at
        self.idle_s = idle_s
        self.serial = endpoint_state.serial
        self.round_number = endpoint_state.limit.taken(endpoint_state.in_flight)
        self.outage = endpoint_state.outage
        self.successes = endpoint_state.successes


class EndpointState:
    """An endpoint with its bookkeeping. Times are seconds of the limiter's clock.

    After a *strike* (a failure without any success since it was sent) the endpoint is paused, then probed by one
    request at a time until one succeeds.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        encoder: RequestEncoder,
        settings: OpenAISettings,
        throttle: LoopThrottle,
        rng: random.Random | None = None,
        *,
        number: int = 0,
    ) -> None:
        """`number` is the endpoint's place in `base_url`, by which processes refer to it."""
        self.number = number
        self.endpoint = endpoint
        self.encoder = encoder
        self.limit = AdaptiveLimit(settings.concurrency, adaptive=settings.adaptive)
        self.search = ThroughputSearch(self.limit, _MOST_OWN) if _is_searched(settings, endpoint) else None
        self.in_flight = 0
        self.watched = False
        """Whether a check is scheduled that raises the limit if it is reached without a refusal."""
        self.answer_s = 0.0
        """Moving average of the time to an answer; 0: none yet."""
        self.answered = False
        self.successes = 0
        self.serial = 0
        """Requests sent so far."""
        self.newest_success = 0
        """The highest serial of a request that was answered."""
        self.rejections = 0
        """How many requests were refused for load so far."""
        self.outage = 0
        self.paused_until = 0.0
        self.blocked: PromptmillError | None = None
        self.suspected: PromptmillError | None = None
        """Why it may have to be blocked: refused before it ever answered, while others are still on their way."""
        self._settings = settings
        self._clock = throttle.clock
        self._rng = rng or random.Random()  # noqa: S311 (jitter)
        self._throttle = throttle
        self._strikes = 0
        self._losses = 0  # lost connections since the last success
        self._refusals = 0  # strikes without anybody listening
        self._listened = False
        self._refused_in_row = 0
        self._refused_as: Code | None = None
        self._probe: Permit | None = None
        self.trouble_since: float | None = None
        """When the first failure since the last success was."""
        self.last_failure: RetryDecision | None = None

    def room(self, now: float) -> int:
        """Return how many more requests may be sent at `now`."""
        if self.blocked or self.suspected or now < self.paused_until:
            return 0
        if self._strikes:
            return 0 if self._probe else 1
        return self.limit.size - self.in_flight

    @property
    def may_be_probed(self) -> bool:
        """Whether a call that has sent nothing yet may try it during a pause that others have brought about."""
        return self._strikes > 0 and not (self._probe or self.blocked or self.suspected)

    def enter(self, now: float) -> Permit:
        """Take a place for one request."""
        self.in_flight += 1
        self.serial += 1
        permit = Permit(self, now, self._throttle.idle_s(now))
        if self._strikes:
            self._probe = permit
        return permit

    def leave(self, permit: Permit) -> None:
        """Give the place back."""
        self.in_flight -= 1
        if self._probe is permit:
            self._probe = None
        if self.suspected and not self.in_flight:  # nobody who was on the way found it better
            self.blocked, self.suspected = self.suspected, None

    def succeeded(self, permit: Permit, tokens: int = 0) -> float:
        """Count a response that shows that the endpoint works; `tokens` is the length of its answer. Before `leave`.

        Returns when that was.
        """
        self.newest_success = max(self.newest_success, permit.serial)
        self.answered = True
        self.successes += 1
        self._strikes = self._losses = self._refused_in_row = 0
        self.suspected = None
        self._probe = None  # so that another can be sent while this one hangs
        self.trouble_since = None
        now = self._clock()
        answer_s = now - permit.at
        self.answer_s += _FADING * (answer_s - self.answer_s) if self.answer_s else answer_s
        if self.search is not None:
            self.search.answered(permit.round_number, self.in_flight, answer_s, tokens)
        limit = self.limit
        limit.accepted(
            permit.round_number,
            may_grow=limit.may_grow and not self._throttle.is_limit(permit.at, permit.idle_s),
        )
        return now

    async def watch_load(self, pages: Pages) -> None:
        """Tell the search once a second how many requests wait at the server, until it does not say so any more."""
        while self.search is not None:
            await asyncio.sleep(_LOAD_PERIOD_S)
            waiting = await waiting_at(pages, self.endpoint.url)
            if waiting is None:
                return
            self.search.waits(waiting, self.in_flight)

    def failed(self, permit: Permit, decision: RetryDecision, failed_before: int | None) -> bool:
        """Count a failure; return whether it is the endpoint's affair and does not count against the item.

        `failed_before` is `serial` at the item's previous failure here.
        """
        self.last_failure = decision
        if self.trouble_since is None:
            self.trouble_since = self._clock()
        match decision.kind:
            case FailureKind.ENDPOINT:
                self._refused(decision.error)
                return True
            case FailureKind.LOAD:
                self._overloaded(permit, decision, failed_before)
                return True
            case FailureKind.LOST:
                return self._lost(permit, decision, failed_before)
        return False

    def _nothing_succeeded(self, permit: Permit, failed_before: int | None) -> bool:
        """Return whether nothing was answered since `permit` was given.

        From the item's second failure here on, only answers to requests count that were sent after the first: an
        endpoint that drains before it goes still answers older ones for a while.
        """
        if failed_before is None:
            return self.successes == permit.successes
        return self.newest_success <= failed_before

    def _refused(self, error: PromptmillError) -> None:
        """Count a refusal that would concern all: believed where nothing was ever answered, or after many in a row."""
        self._refused_in_row = self._refused_in_row + 1 if error.code is self._refused_as else 1
        self._refused_as = error.code
        if self._refused_in_row >= SEVERAL:
            self.blocked, self.suspected = error, None
        elif not self.answered:
            self.suspected = error

    def _overloaded(self, permit: Permit, decision: RetryDecision, failed_before: int | None) -> None:
        """Lower the limit for a refusal for load; pause the endpoint if it takes nothing at all."""
        self.rejections += 1
        self.limit.refused(permit.round_number)
        if (
            self._nothing_succeeded(permit, failed_before)
            and permit.outage == self.outage
            and self.in_flight <= 1  # else those that it works on show that it is not all too much
        ):
            base, cap = self._settings.base_delay, self._settings.max_delay
            self._strike(decision, backoff_s(self._strikes + 1, base, cap, self._rng))

    def _lost(self, permit: Permit, decision: RetryDecision, failed_before: int | None) -> bool:
        """Pause the endpoint for a lost or refused connection, if nothing was answered meanwhile.

        Returns whether it does not count against the item.
        """
        self._losses += 1
        if not self._nothing_succeeded(permit, failed_before):
            # several lost without a success between are the endpoint's loss, whoever was answered just before
            return self._losses > 1 and self.answered
        refused = decision.error.code in {Code.UNREACHABLE, Code.NAME_RESOLUTION}
        self._listened = self._listened or not refused
        if permit.outage == self.outage:
            self._refusals = self._refusals + 1 if refused else 0
            # the first probe goes at once: a connection closed between requests is not an outage
            base, cap = self._settings.base_delay, min(self._settings.max_delay, _LONGEST_PROBE_PAUSE_S)
            self._strike(decision, backoff_s(self._strikes, base, cap, self._rng) if self._strikes else 0.0)
        return self.answered or (refused and self._listened)

    def _strike(self, decision: RetryDecision, pause_s: float) -> None:
        self._strikes += 1
        self.outage += 1
        self.paused_until = self._clock() + max(pause_s, self.honoured_wait_s(decision))

    def note_headers(self, headers: Mapping[str, str]) -> None:
        """Send nothing while the headers of an answer say that the minute's limit is used up, before it is refused."""
        wait_s = exhausted_s(headers)
        if wait_s and wait_s <= min(_LONGEST_HEADER_WAIT_S, self.longest_wait_s):
            self.paused_until = max(self.paused_until, self._clock() + wait_s)

    @property
    def is_down(self) -> bool:
        """Whether the endpoint is being probed, or blocked."""
        return self._strikes > 0 or self.blocked is not None

    def is_unavailable(self, now: float) -> bool:
        """Return whether it is down, or asked for a pause that an answer to an earlier request did not take back."""
        return self.is_down or now < self.paused_until

    def honoured_wait_s(self, decision: RetryDecision) -> float:
        """Return the wait that the endpoint asked for, as far as it is honoured, in seconds."""
        return min(decision.wait_s or 0.0, self.longest_wait_s)

    @property
    def longest_wait_s(self) -> float:
        """The longest wait that is honoured; an endpoint that asks for a longer one is given up."""
        return 10 * self._settings.max_delay

    @property
    def longest_silence_s(self) -> float:
        """How long it may be silent before an attempt is given up."""
        return self._settings.timeout[1]

    def unusable(self) -> PromptmillError | None:
        """Return the error that makes this endpoint unusable, or None."""
        if self.blocked or self.trouble_since is None or self.last_failure is None:
            return self.blocked
        never = not self.answered and not self._listened and self._refusals >= self._settings.retries
        if never or self._clock() - self.trouble_since > self._settings.patience:
            return self.last_failure.error
        return None

    def forgive(self) -> None:
        """Give the endpoint a new chance, as a new call does."""
        self.blocked = self.suspected = None
        self._strikes = self._refusals = self._refused_in_row = 0
        self.trouble_since = None
        self.paused_until = 0.0


def _is_searched(settings: OpenAISettings, endpoint: Endpoint) -> bool:
    return endpoint.own and settings.adaptive and "concurrency" not in settings.model_fields_set


def most_in_flight(settings: OpenAISettings, endpoints: Sequence[Endpoint]) -> int:
    """Return the most requests that there can be in flight to all `endpoints` together."""
    if any(_is_searched(settings, endpoint) for endpoint in endpoints):
        return max(settings.concurrency, _MOST_OWN)
    return settings.concurrency


def endpoint_states(
    endpoints: Sequence[Endpoint], model: str, settings: OpenAISettings, throttle: LoopThrottle
) -> list[EndpointState]:
    """Return the state of each of `endpoints`, by whose place in the list processes name it to each other."""
    return [
        EndpointState(
            endpoint,
            RequestEncoder(endpoint, model, enable_thinking=settings.enable_thinking, stream=settings.stream),
            settings,
            throttle,
            number=number,
        )
        for number, endpoint in enumerate(endpoints)
    ]
