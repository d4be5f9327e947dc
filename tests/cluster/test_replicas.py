"""Replicas as one backend: what is lost is taken up again, whatever dies. tests/features/ray has them on Ray.

The replicas here are remote backends whose other end is in this process; `tests/cluster/test_engines.py` has engines.
"""

from __future__ import annotations

import asyncio
import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from driving import run
from fakes import FakeBackend
from promptmill import __version__
from promptmill.backends.protocol import Call, Completion, Facts, Failure, Outcome, Source, Usage
from promptmill.cluster import remote
from promptmill.cluster.remote import LostError, RemoteBackend, Replica
from promptmill.cluster.replicas import Replicas
from promptmill.config.configuration import Configuration
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Conversation, Message, Request, Sampling


class Echo(FakeBackend):
    """A backend that answers with the prompt, a few at a time; `on` is told each one first."""

    def __init__(self, on: Callable[[int], None], most: int) -> None:
        self.on, self.most = on, most
        self.in_flight = 0

    async def answer(self, request: Request, call: Call) -> Completion:
        text = str(request.conversation.messages[0].content)
        self.on(int(text))
        await asyncio.sleep(0)
        return Completion(text, "stop", Usage(1, 1))


class Here:
    """A link to a backend in this process; what goes over it is pickled. `die` loses it."""

    def __init__(self, on: Callable[[int, Here], None] = lambda _key, _link: None, *, most: int = 8) -> None:
        self.error: PromptmillError | None = None
        self.killed: list[bool] = []
        self.loads = 0
        self.mute = False
        self._on, self._most = on, most
        self._dead = asyncio.Event()
        self._end = Replica()

    def die(self) -> None:
        self._dead.set()

    async def call(self, method: str, *arguments: Any) -> Any:
        if method == "load":
            return await self._load()
        if method == "report":
            await self.before_report()
        task = asyncio.ensure_future(getattr(self._end, method)(*pickle.loads(pickle.dumps(arguments))))
        dead = asyncio.ensure_future(self._dead.wait())
        await asyncio.wait({task, dead}, return_when=asyncio.FIRST_COMPLETED)
        if dead.done():
            task.cancel()
            await self._end.aclose()  # as its process would
            raise LostError
        dead.cancel()
        return pickle.loads(pickle.dumps(await task))

    async def before_report(self) -> None:
        if self.mute:
            await asyncio.Event().wait()

    async def _load(self) -> PromptmillError | None:
        self.loads += 1
        if self.error is not None:
            return self.error
        await self._end.aclose()
        self._dead, self._end = asyncio.Event(), Replica()

        async def create(_: Any) -> Any:
            return Echo(lambda key: self._on(key, self), self._most)

        return await self._end.load(create, Configuration({}).config, {}, __version__)

    def kill(self, *, again: bool) -> None:
        self.killed.append(again)
        self.mute = False
        self.die()


class Rows(Source):
    """So many rows as a source, and the sink of their outcomes."""

    def __init__(self, count: int) -> None:
        self.left = list(range(count))
        self.outcomes: dict[int, Outcome] = {}

    async def take(self, n: int) -> list[Request]:
        keys, self.left = self.left[:n], self.left[n:]
        return [Request(key, Conversation((Message("user", f"{key}"),)), Sampling()) for key in keys]

    async def put(self, key: int, outcome: Outcome) -> None:
        assert key not in self.outcomes, "answered twice"
        self.outcomes[key] = outcome


def ran(links: Sequence[Here], count: int = 300) -> tuple[Rows, Call]:
    async def connect() -> Sequence[RemoteBackend]:
        return [RemoteBackend(link, ()) for link in links]

    rows, call = Rows(count), Call(Facts(total=count))

    async def work() -> None:
        backend = Replicas(connect)
        async with asyncio.timeout(60):
            try:
                await backend.load(lambda _: None)
                await run(backend, rows, rows, call)
            finally:
                await backend.aclose()

    asyncio.run(work())
    return rows, call


def answered(rows: Rows, count: int = 300) -> bool:
    return [getattr(rows.outcomes[key], "text", None) for key in range(count)] == [f"{key}" for key in range(count)]


def test_all_replicas_answer_and_each_row_once():
    seen: dict[int, Here] = {}
    links = [Here(seen.__setitem__) for _ in range(3)]
    rows, call = ran(links)
    assert answered(rows)
    assert {*seen.values()} == {*links}
    assert (call.counts.done, call.counts.requests, call.in_flight) == (300, 300, 0)
    assert [link.killed for link in links] == [[False]] * 3


@pytest.mark.parametrize(("most", "rows"), [(128, 128), (256, 64), (16, 300), (1, 7)])
def test_replicas_that_are_as_fast_answer_as_many_rows(most, rows):
    seen: dict[int, Here] = {}
    links = [Here(seen.__setitem__, most=most) for _ in range(2)]
    assert answered(ran(links, rows)[0], rows)
    counts = Counter(map(id, seen.values()))
    assert min(counts[id(link)] for link in links) >= rows // 2 - rows // 10 - 1


def test_a_slow_replica_does_not_hold_up_the_end():
    """It answers a row only when the other has answered ten."""
    seen: list[Here] = []

    class Slow(Here):
        async def before_report(self) -> None:
            before = len(seen)
            while len(seen) < min(200, before + 10):
                await asyncio.sleep(0)

    def on(_: int, link: Here) -> None:
        seen.append(link)

    fast, slow = Here(on, most=4), Slow(on, most=1)
    rows, _ = ran([fast, slow], 200)
    assert answered(rows, 200)
    assert seen.count(slow) < 60


def test_what_a_lost_replica_held_is_taken_up_and_it_comes_back():
    asked: list[int] = []

    def on(key: int, link: Here) -> None:
        asked.append(key)
        if len(asked) in {40, 90}:
            link.die()

    links = [Here(on) for _ in range(2)]
    rows, _ = ran(links)
    assert answered(rows)
    # what was in flight, and no more: 16 at the first loss; at the second, these had moved to the other 16
    assert len(asked) <= 300 + 16 + 32
    assert sum(link.loads for link in links) == 4


def test_a_row_that_loses_every_replica_fails_alone():
    def on(key: int, link: Here) -> None:
        if key == 150:
            link.die()

    rows, _ = ran([Here(on, most=1) for _ in range(2)])
    failure = rows.outcomes.pop(150)
    assert isinstance(failure, Failure)
    assert failure.error.code is Code.ENGINE_DIED
    assert failure.unmetered == failure.attempts > 1, "each replica may have been billed for it"
    assert all(isinstance(outcome, Completion) for outcome in rows.outcomes.values())
    assert len(rows.outcomes) == 299


def test_replicas_that_cannot_load_are_told_and_the_others_go_on():
    links = [Here() for _ in range(3)]
    links[0].error = PromptmillError(Code.ENGINE_LOAD_FAILED, "no such model")
    rows, call = ran(links)
    assert answered(rows)
    assert call.warnings == {"1 of 3 replicas could not be used: no such model": None}
    for link in links:
        link.error = links[0].error
    with pytest.raises(PromptmillError, match="no such model"):
        ran(links)


def test_a_replica_that_says_nothing_any_more_is_ended_and_replaced(monkeypatch):
    monkeypatch.setattr(remote, "_SILENCE_S", 0.05)

    def on(key: int, link: Here) -> None:
        link.mute = link.mute or (key == 20 and link.loads == 1)

    links = [Here(on)]
    rows, _ = ran(links)
    assert answered(rows)
    assert True in links[0].killed
