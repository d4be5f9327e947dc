"""Shared memory limits: several holders share a number of bytes, in any threads and event loops."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import NamedTuple, Self


class Memory:
    """The `limit` bytes that holders share. They wait for room in order, so that no small holder overtakes a large one.

    A holder that needs more than the limit waits until it is alone. With `one_beyond`, one holder at a time may exceed
    the limit instead; otherwise bodies that arrive in pieces would all wait for each other.
    """

    def __init__(self, limit: int, *, one_beyond: bool = False) -> None:
        self.held = 0
        self._limit, self._one_beyond = limit, one_beyond
        self._beyond = 0  # the `id` of the holder beyond the limit; a reference would keep it alive
        self._waiting: deque[_Waiting] = deque()
        self._lock = threading.RLock()  # reentrant, because a holder may be freed while another is counted

    def hold(self, size: int = 0) -> Held:
        """Return a holder. Blocks until there is room for its first `size` bytes."""
        held = Held(self)
        if size:
            held.grow(size).result()
        return held

    def _go_on(self) -> None:
        """Give waiting holders their bytes, as far as there is room."""
        while self._waiting:
            first = self._waiting[0]
            if self.held and self.held + first.size > self._limit:
                if not self._one_beyond or self._beyond not in {0, id(first.holder)}:
                    return
                self._beyond = id(first.holder)
            self._give(self._waiting.popleft())

    def _give(self, waiting: _Waiting) -> None:
        self.held += waiting.size
        waiting.holder.size += waiting.size
        waiting.room.set_result(None)


class Held:
    """The bytes of one holder. They are freed by `free`, after all `with` blocks of this object, or at its deletion."""

    def __init__(self, memory: Memory) -> None:
        self.size = 0
        self._memory = memory
        self._users = 0

    def grow(self, size: int) -> Future[None]:
        """Request `size` more bytes. The returned future is done when there is room."""
        memory, waiting = self._memory, _Waiting(self, size, Future())
        with memory._lock:
            if memory._beyond == id(self):
                memory._give(waiting)
            else:
                memory._waiting.append(waiting)
                memory._go_on()
        return waiting.room

    def stop_waiting(self) -> None:
        """Withdraw all requests that wait for room."""
        with self._memory._lock:
            self._memory._waiting = deque(one for one in self._memory._waiting if one.holder is not self)
            self._memory._go_on()

    def free(self) -> None:
        """Return all bytes, and withdraw all requests."""
        with self._memory._lock:
            self._memory.held -= self.size
            self.size = 0
            if self._memory._beyond == id(self):
                self._memory._beyond = 0
            self.stop_waiting()

    __del__ = free

    def __enter__(self) -> Self:
        self._users += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        if not self._users:
            self.free()


class _Waiting(NamedTuple):
    holder: Held
    size: int
    room: Future[None]
