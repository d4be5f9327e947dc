"""The step that gathers items: it sends several items as one request, and gives each item a separate outcome.

    items     a ─┐ held             one request           ┌▶ a   its part of the reply, of the usage and of the cost
              b ─┤ held      ─▶     of a, b and c    ─▶   ├▶ b   the same
              c ─┘ sends it                              └▶ c   nothing in the reply: sent alone

Items of one kind wait in a pack. A pack is sent when it is full, or when no further items come (`Waits.starved`),
because the source has ended or waits for answers, or the driver holds as many items as it may. The item that completes
a pack sends it. The driver and the endpoint's limits count only this item: the other items only wait.

A pack may fail as a whole, because it is too long or has an item that the endpoint refuses. It is then halved, down to
single items. Packs also fail if a server is down, which must not get twice as many requests as there are items:

    a pack fails; another request was answered since the pack was sent     the pack is halved
    a pack fails; no request was                                           up to eight of its items are sent alone:
        an item is answered                                                the rest is sent once more, then halved
        all of these items fail                                            the rest of the pack fails unsent

Packs in this case take turns. As long as no request is answered, only the first, second, fourth, eighth … of these
packs sends items alone: the first pack up to eight items, each other pack two. All other packs fail at once. So for a
hundred packs, a server that is down gets 20 additional requests.

In a batch, a pack is a line of the batch's file. Later, each item reads its own part of the reply by the name that was
stored with the item, so the items of a pack need not come together again. A failed item gets a separate line.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Awaitable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import NamedTuple

from promptmill.backends.protocol import Call, Came, Completion, Failure, Outcome, Share, Totals, Usage
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Portion, Request
from promptmill.steps.step import Loading, Place, Step

_OF_ITEMS = frozenset(
    {Code.CONTEXT_LENGTH, Code.REQUEST_TOO_LARGE, Code.BUDGET, Code.INVALID_INPUT, Code.BAD_REQUEST}
    | {Code.CONTENT_FILTER, Code.TRUNCATED, Code.UNAUTHORIZED}
)
"""Failures that may disappear in a request for fewer items. (Some gateways answer 403 because of one item's text. If a
refusal is really about the key, the halves are refused, too.)"""
_OF_SERVER = frozenset(
    {Code.SERVER_ERROR, Code.BAD_RESPONSE, Code.TIMEOUT, Code.CONNECTION_LOST, Code.OUT_OF_MEMORY}
    | {Code.EMPTY_ANSWER, Code.OPEN_REASONING, Code.INVALID_ANSWER}
)
"""Failures that may be caused by one item or by the size of a request, or that may occur in all requests."""
_OF_REPLY = ("usage", "cost", "shared", "attempts", "latency_s", "warnings", "came")
"""The fields that an item's answer takes from the outcome of its line in the batch."""
_ENOUGH = 8
"""The most items that are sent alone to find out whether the endpoint answers any item: an endpoint that refuses every
text is likelier than eight random texts that all happen to be refused. After eight packs in a row without an answer,
items are no longer gathered: if half of all replies are right, this happens in 1 of 256 cases."""
_LATER = 2
"""The number of items of each further pack that are sent alone: enough to find a server that is up again, or good items
among bad ones, at a quarter of the cost."""
_GIVEN_UP = (
    f"{_ENOUGH} replies to several rows, one after the other, had no answer that could be read: from then on, rows are "
    "sent alone, not together."
)
_OUTPUT = 4
"""About how many prompt tokens cost as much as one answer token."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most items in a request, and the largest sum of their sizes."""

    items: int
    size: int


class ReplyPart(NamedTuple):
    """An item's part of a reply."""

    answer: Completion | None
    """The answer to the item; None if the reply has no answer to it. The item is then sent alone."""
    prompt: int = 1
    """The size of the item in the prompt, in any unit."""
    said: int = 0
    """The size of the item's answer."""


class _Gathered(NamedTuple):
    """The result of a pack for one of its items."""

    outcome: Outcome | None
    """The outcome; None if the item is sent alone: `spent` is then added to the outcome of the new request."""
    spent: Totals = Totals()
    attempts: int = 0
    """The number of requests for the item so far, including earlier runs."""


@dataclass(slots=True, eq=False)
class _Pack:
    requests: list[Request] = field(default_factory=list)
    waiting: list[asyncio.Future[_Gathered | None]] = field(default_factory=list)
    """A future for each item except the last, which completes the pack. An item that gets None sends the pack."""
    size: int = 0


class Gathering(Step):
    """Answers several items by one request. A subclass chooses the items, and divides the reply."""

    place = Place.GATHERED
    packs_batches = False
    """Whether a line of a batch may be for several items. If so, `named` gives each item its portion."""

    def __init__(self, loading: Loading) -> None:
        self._shares = loading.shares
        self._calls: dict[Call, _Packs] = {}

    @classmethod
    async def of(cls, loading: Loading) -> Step | None:
        """Return the step of a model."""
        return cls(loading)

    def kind(self, request: Request, call: Call) -> Hashable | None:
        """Return the key that the items of a request share; None for an item that is sent alone."""
        raise NotImplementedError

    def bounds(self, request: Request) -> Bounds:
        """Return the bounds of a request for items of the same kind as `request`."""
        raise NotImplementedError

    def size(self, request: Request) -> int:
        """Return the size of an item, in the unit of `Bounds.size`."""
        raise NotImplementedError

    def named(self, requests: Sequence[Request]) -> Sequence[Request]:
        """Give several items their names in a request, if `joined` and `divided` use names."""
        return requests

    def joined(self, requests: Sequence[Request]) -> Request:
        """Return the request for several items that `named` returned, or for one item. Raises `PromptmillError` for an
        item that cannot be sent."""
        raise NotImplementedError

    def send(self, joined: Request, call: Call) -> Awaitable[Outcome]:
        """Answer a request that `joined` returned. A reply without an answer to any item is a failure."""
        return self.following(joined, call)

    def divided(self, requests: Sequence[Request], reply: Completion) -> Sequence[ReplyPart]:
        """Divide a reply: return the part for each item, in order. `requests`: the same as for `joined`."""
        raise NotImplementedError

    def read(self, request: Request, name: str, reply: Completion) -> ReplyPart:
        """Return the part of a batch's reply that is for the item `name`. `request`: the item's own request."""
        raise NotImplementedError

    async def answer(self, request: Request, call: Call) -> Outcome:
        """Answer an item together with others."""
        if call.portion_of is not None and (portion := call.portion_of(request)) is not None:
            return await self._from_batch(request, portion, call)
        may_share = call.exchange is None or (self.packs_batches and call.portion_of is None and not request.attempts)
        if not may_share or (kind := self.kind(request, call)) is None:
            return await self._alone(request, call)
        packs, share = self._calls.get(call), self._shares[call]
        if packs is None or packs.share is not share:  # a job's next round enters the model again, with a new share
            for left in self._calls.keys() - self._shares.keys():
                del self._calls[left]
            packs = self._calls[call] = _Packs(share, call)
        if packs.unread >= _ENOUGH:
            call.warn(_GIVEN_UP)
            return await self._alone(request, call)
        is_first = request.choice == 0  # an item with several answers is counted once
        call.waits.inside += is_first
        try:
            gathered = await self._gathered(request, kind, packs, call)
            if gathered.outcome is not None:
                return gathered.outcome
            alone = await self._alone(request.changed(attempts=gathered.attempts), call)
        finally:
            call.waits.inside -= is_first
        return gathered.spent.and_(alone).on(alone)

    async def _from_batch(self, request: Request, portion: Portion, call: Call) -> Outcome:
        """Return the outcome of an item from a batch's reply to several items."""
        outcome = await self.send(self.joined([request]).changed(portion=portion), call)
        if isinstance(outcome, Failure):
            if outcome.concerns_all or outcome.error.code not in _OF_ITEMS:
                return outcome
            answer = None
        else:
            answer = self.read(request, portion.name, outcome).answer
        if answer is not None:
            spent = {name: getattr(outcome, name) for name in _OF_REPLY}
            return replace(answer, **spent)
        alone = await self._alone(request.changed(attempts=outcome.attempts), call)
        return Totals().and_(outcome).and_(alone).on(alone)

    async def _alone(self, request: Request, call: Call) -> Outcome:
        item = _Items([request], call, self._calls.get(call))
        await self._request(item, [0])
        (gathered,) = item.found
        assert gathered.outcome is not None
        return gathered.outcome

    async def _gathered(self, request: Request, kind: Hashable, packs: _Packs, call: Call) -> _Gathered:
        bounds, size = self.bounds(request), self.size(request)
        most = min(bounds.items, packs.most_items)
        if (pack := packs.open.get(kind)) is not None and pack.size + size > bounds.size:
            packs.send(kind)
            pack = None
        if pack is None:
            pack = packs.opened(kind)
        pack.requests.append(request)
        pack.size += size
        if len(pack.requests) < most:
            gathered = await packs.wait(pack, kind, request)
            if gathered is not None:
                return gathered
        else:
            packs.closed(kind)
        return await self._send(pack, packs, call)

    async def _send(self, pack: _Pack, packs: _Packs, call: Call) -> _Gathered:
        """Send a pack. Return the result of its last item, and give each other item its result."""
        others = len(pack.waiting)
        call.waits.held -= others  # the others now wait for this request, not for items
        call.waits.forked -= others
        items = _Items(pack.requests, call, packs)
        try:
            await self._answer_part(items, range(len(items.requests)), packs)
        except BaseException as error:
            for future in pack.waiting:
                if not future.done() and isinstance(error, PromptmillError):
                    future.set_exception(error)
                else:
                    future.cancel()
            raise
        finally:
            packs.share.gathered -= others
            call.waits.forked += others
        for future, one in zip(pack.waiting, items.found, strict=False):
            if not future.done():
                future.set_result(one)
        return items.found[-1]

    async def _answer_part(self, items: _Items, part: Sequence[int], packs: _Packs, *, is_again: bool = False) -> None:
        """Answer a part of a pack by one request; if that fails as a whole, by requests for fewer items. `is_again`: an
        earlier request for these items has failed, too."""
        if len(part) > packs.most_items:
            for first in range(0, len(part), packs.most_items):
                await self._answer_part(items, part[first : first + packs.most_items], packs)
            return
        before = packs.answered
        failure = await self._request(items, part)
        if failure is None:
            return
        left = await self._left(items, part, failure, packs, before)
        if len(left) < len(part) and failure.error.code in _OF_SERVER and not is_again:
            size = len(part)  # perhaps the endpoint was down, and is up again
        else:
            size = -(-len(left) // 2)
        for first in range(0, len(left), max(1, size)):
            await self._answer_part(items, left[first : first + size], packs, is_again=True)
        if left and size < len(part) and all(isinstance(items.found[at].outcome, Completion) for at in left):
            packs.was_halved(size, failure.error.code)

    async def _request(self, items: _Items, part: Sequence[int]) -> Failure | None:
        """Send one request for a part of a pack. Return its failure if requests for fewer items may succeed."""
        requests = [items.requests[at] for at in part]
        members = requests if len(requests) == 1 else self.named(requests)
        try:
            joined = self.joined(members)
        except PromptmillError as error:
            items.put(part, [_Gathered(Failure(error, one.attempts)) for one in requests])
            return None
        if len(members) > 1:
            joined = joined.changed(members=tuple(members), portion=None)
        outcome = await self.send(joined, items.call)
        if isinstance(outcome, Completion):
            parts = self.divided(members, outcome)
            if items.packs is not None:
                items.packs.count(members, has_answers=any(each.answer is not None for each in parts))
            items.put(part, _divided(requests, parts, outcome))
            return None
        failed = _divided(requests, [ReplyPart(None)] * len(requests), outcome)
        if len(requests) > 1 and not outcome.concerns_all and outcome.error.code in _OF_ITEMS | _OF_SERVER:
            items.spend(part, failed)
            return outcome
        came: Came = "shared" if len(requests) > 1 else outcome.came
        items.put(part, [_failed(outcome, one, came) for one in failed])
        return None

    async def _left(
        self, items: _Items, part: Sequence[int], failure: Failure, packs: _Packs, before: int
    ) -> Sequence[int]:
        """Return the items of a failed part that are to be sent in halves. If nothing shows that the endpoint answers
        requests, some items are sent alone first. `before`: the value of `answered` when the part was sent."""
        code = failure.error.code
        if code is Code.BAD_REQUEST:
            return part if packs.answered else await self._tried(items, part, failure, packs)
        if code not in _OF_SERVER or packs.answered > before:
            return part
        with items.call.hold():
            await packs.line.acquire()
        try:
            if packs.answered > before:
                return part
            packs.in_vain += 1
            if packs.in_vain.bit_count() > 1:
                items.fail(part, failure.error)
                return ()
            return await self._tried(items, part, failure, packs, most=_ENOUGH if packs.in_vain == 1 else _LATER)
        finally:
            packs.line.release()

    async def _tried(
        self, items: _Items, part: Sequence[int], failure: Failure, packs: _Packs, *, most: int = _ENOUGH
    ) -> Sequence[int]:
        """Send up to `most` items of a part alone, until a request is answered. Return the items that were not sent; if
        all items that were sent have failed like the part, the others fail, too."""
        before, tried = packs.answered, list[int]()
        for at in random.Random(0).sample(part, min(len(part), most)):  # noqa: S311 (any items)
            if packs.answered > before:
                break
            await self._request(items, [at])
            tried.append(at)
        left = [at for at in part if at not in tried]
        error = _alike([items.found[at].outcome for at in tried], failure)
        if packs.answered > before or error is None:
            return left
        items.fail(left, error)
        return ()


class _Items:
    """The items of a pack, by position, each with its cost so far and its result."""

    def __init__(self, requests: Sequence[Request], call: Call, packs: _Packs | None) -> None:
        self.requests, self.call, self.packs = [*requests], call, packs
        self.found = [_Gathered(None)] * len(requests)
        self._spent = [Totals()] * len(requests)

    def put(self, part: Sequence[int], found: Sequence[_Gathered]) -> None:
        """Set the results of the items in `part`, and add the cost of their earlier requests."""
        for at, one in zip(part, found, strict=True):
            self.found[at] = _with(self._spent[at], one)

    def spend(self, part: Sequence[int], found: Sequence[_Gathered]) -> None:
        """Add the cost of a failed request to its items."""
        for at, one in zip(part, found, strict=True):
            self._spent[at] = self._spent[at].joined(one.spent)
            self.requests[at] = self.requests[at].changed(attempts=one.attempts)

    def fail(self, part: Sequence[int], error: PromptmillError) -> None:
        """Set an error as the result of each item of a part, without a further request."""
        self.put(part, [_Gathered(Failure(error, self.requests[at].attempts)) for at in part])


class _Packs:
    """The packs of a call that are not sent yet."""

    def __init__(self, share: Share, call: Call) -> None:
        self.share, self._call = share, call
        self.open: dict[Hashable, _Pack] = {}
        self.answered = 0
        """The number of answered requests."""
        self.in_vain = 0
        """The number of packs that have failed since a request was last answered."""
        self.line = asyncio.Lock()
        """The lock that a pack holds while it finds out whether the endpoint answers any request."""
        self.most_items = sys.maxsize
        """The size of the largest pack that was answered after a larger pack was refused."""
        self._halved = self._half = 0
        self.unread = 0
        """The number of consecutive packs, up to the newest, whose replies had no answer to any item."""

    def count(self, members: Sequence[Request], *, has_answers: bool) -> None:
        """Count a reply to some items."""
        if has_answers:
            self.answered += 1
            self.in_vain = 0
            self._halved *= len(members) <= self._half
        if len(members) > 1:
            self.unread = 0 if has_answers else self.unread + 1

    def was_halved(self, half: int, code: Code) -> None:
        """Record that items were answered in halves after a failure with this code. If the server failed, perhaps by
        chance, packs become smaller only after a second failure, if no larger pack was answered in between."""
        self._halved += 1
        self._half = half
        if code not in _OF_SERVER or self._halved > 1:
            self.most_items = min(self.most_items, half)

    def opened(self, kind: Hashable) -> _Pack:
        """Return a new pack that waits for items."""
        pack = self.open[kind] = _Pack()
        self._call.waits.starved.add(self.send_all)
        return pack

    def closed(self, kind: Hashable) -> _Pack:
        """End the waiting of a pack for items, and return the pack."""
        pack = self.open.pop(kind)
        if not self.open:
            self._call.waits.starved.discard(self.send_all)
        return pack

    def send_all(self) -> None:
        """Send all packs as they are."""
        for kind in tuple(self.open):
            self.send(kind)

    def send(self, kind: Hashable) -> None:
        """Let the last waiting item of a pack send the pack."""
        self._released()
        self.closed(kind).waiting.pop().set_result(None)

    async def wait(self, pack: _Pack, kind: Hashable, request: Request) -> _Gathered | None:
        """Wait until the pack is sent. Return the result for the item; None if the caller must send the pack."""
        future: asyncio.Future[_Gathered | None] = asyncio.get_running_loop().create_future()
        pack.waiting.append(future)
        self._call.waits.held += 1
        self.share.gathered += 1
        self.share.grown()  # another item may use the place
        try:
            return await future
        except asyncio.CancelledError:
            if self.open.get(kind) is pack:
                self._released()
                pack.waiting.remove(future)
                pack.requests.remove(request)
                if not pack.requests:
                    self.closed(kind)
            elif future not in pack.waiting:  # this item was chosen to send the pack; now another item sends it
                pack.requests.remove(request)
                if pack.waiting:
                    self._released()
                    pack.waiting.pop().set_result(None)
            raise

    def _released(self) -> None:
        self._call.waits.held -= 1
        self.share.gathered -= 1


def _alike(outcomes: Sequence[Outcome | None], failure: Failure) -> PromptmillError | None:
    """If each item alone has failed like the request for all items, return one of these errors; otherwise None."""
    errors = [outcome.error for outcome in outcomes if isinstance(outcome, Failure)]
    if len(errors) < len(outcomes):
        return None
    if failure.error.code in _OF_SERVER:
        is_alike = all(error.code in _OF_SERVER for error in errors)
    else:
        is_alike = len({(error.code, str(error)) for error in errors}) == 1 and errors[0].code is failure.error.code
    return errors[0] if is_alike else None


def _failed(failure: Failure, gathered: _Gathered, came: Came) -> _Gathered:
    """Return the failure of a whole request as the failure of one of its items."""
    outcome = replace(failure, attempts=gathered.attempts, unmetered=0, spent=(), came=came)
    return gathered._replace(outcome=gathered.spent.on(outcome))


def _with(spent: Totals, gathered: _Gathered) -> _Gathered:
    """Return a result with the sums of the item's earlier requests added."""
    if (outcome := gathered.outcome) is not None:
        return gathered._replace(outcome=spent.and_(outcome).on(outcome))
    return gathered._replace(spent=spent.joined(gathered.spent))


def _divided(requests: Sequence[Request], parts: Sequence[ReplyPart], reply: Outcome) -> list[_Gathered]:
    """Divide the usage and cost of a request among its items, with sums that exactly equal the request's."""
    usage, count, sent = reply.usage, len(requests), reply.attempts - requests[0].attempts
    asked = [part.prompt for part in parts]
    said = [part.said + 1 for part in parts]
    prompt, cached, written, hour, searches = (
        _portions(total, asked)
        for total in (
            *(usage.prompt_tokens, usage.cached_tokens, usage.written_tokens, usage.hour_written_tokens),
            usage.searches,
        )
    )
    completion, reasoning = (_portions(total, said) for total in (usage.completion_tokens, usage.reasoning_tokens))
    carrier = next((at for at, part in enumerate(parts) if part.answer is not None), 0)  # counts the request
    costs: list[float | None] = [None] * count
    if reply.cost is not None:
        weights = [one + _OUTPUT * other for one, other in zip(asked, completion, strict=True)]
        each = [reply.cost * one / sum(weights) for one in weights[:-1]]
        costs = [*each, reply.cost - sum(each)]
    found: list[_Gathered] = []
    for at, (request, part) in enumerate(zip(requests, parts, strict=True)):
        own = Usage(prompt[at], completion[at], cached[at], reasoning[at], written[at], hour[at], searches[at])
        shared = (reply.shared if count == 1 else 0) if at == carrier else sent
        attempts = request.attempts + sent
        spent = Totals(own, costs[at], shared)
        if (answer := part.answer) is not None:
            answer.usage, answer.cost, answer.shared, answer.attempts = own, costs[at], shared, attempts
            answer.latency_s, answer.warnings = reply.latency_s, getattr(reply, "warnings", ())
            answer.came = "shared" if count > 1 else reply.came
        found.append(_Gathered(answer, spent, attempts))
    return found


def _portions(total: int, weights: Sequence[int]) -> list[int]:
    """Divide a whole number in proportion to weights, without a remainder.

    >>> _portions(10, [1, 1, 1])
    [3, 3, 4]
    """
    if not total:
        return [0] * len(weights)
    whole = sum(weights)
    ends = [total * so_far // whole for so_far in accumulate(weights, initial=0)]
    return [following - end for end, following in pairwise(ends)]
