"""One task of a run on its way, with its ledger of attempts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from promptmill.backends.openai.endpoint_state import EndpointState
from promptmill.core.outcome import NO_USAGE, Usage

# An item that is refused for load while so many others are answered for each one refused is itself what is refused:
# by chance that would happen to one in a million items, five times in a row.
_SUCCESSES_PER_REFUSAL = 10


class Task(Protocol):
    """What is to be done: a `Request`, or a reference to one."""

    @property
    def key(self) -> int:
        """The caller's key for it."""
        ...

    @property
    def attempts(self) -> int:
        """How often it was sent by an earlier run."""
        ...


TaskT = TypeVar("TaskT", bound=Task)


@dataclass(slots=True, eq=False)
class Item(Generic[TaskT]):
    """A task on its way, with its one ledger of attempts: `attempts` sent in all, `counted` against `retries`."""

    task: TaskT
    attempts: int
    counted: int = 0
    refusals: int = 0
    first_refusal: tuple[int, int] = (0, 0)
    """`successes` and `rejections` of the endpoint when it first refused the item for load."""
    failed_at: EndpointState | None = None
    failed_serial: int = 0
    stale: bool = False
    usage: Usage = NO_USAGE
    """Of its requests whose replies were no answer."""
    unmetered: int = 0
    """Its requests that may be billed although no usage was reported for them."""
    since: float = 0.0
    """When it was first given a place at an endpoint; 0: not yet."""

    def charge(self, usage: Usage, unmetered: int) -> None:
        """Note what a request took whose reply was no answer."""
        self.usage += usage
        self.unmetered += unmetered

    def is_refused_for_load(self, endpoint_state: EndpointState) -> bool:
        """Return whether a refusal for load is one: not when others are answered and hardly any of them is refused."""
        if not self.refusals or self.failed_at is not endpoint_state:
            self.refusals = 0
            self.first_refusal = endpoint_state.successes, endpoint_state.rejections
            return True
        successes, rejections = self.first_refusal
        others = endpoint_state.rejections - rejections - self.refusals
        return endpoint_state.successes - successes <= _SUCCESSES_PER_REFUSAL * others
