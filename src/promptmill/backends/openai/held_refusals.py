"""Refusals that are held back until it is known whether the items or the endpoint brought them about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from promptmill.backends.openai.endpoint_state import SEVERAL, Permit
from promptmill.backends.openai.retry import FailureKind, RetryDecision
from promptmill.core.errors import Code, PromptmillError

ItemT = TypeVar("ItemT")
# However many items are refused so, each is refused for what it holds.
_OWN = frozenset(
    {Code.CONTENT_FILTER, Code.CONTEXT_LENGTH, Code.REQUEST_TOO_LARGE, Code.EMPTY_ANSWER, Code.OPEN_REASONING}
)


class HeldRefusals(Generic[ItemT]):
    """An item refused because of the key or the model waits here until one that was sent later is answered.

    Then the refusal was its own. What was sent before it and is answered after it says nothing about the key now.

    So does any final failure while the call has no answer at all: a parameter that the endpoint does not take fails
    every item, whatever the words, and as many equal ones as `SEVERAL` end the call with them.
    """

    def __init__(self, *, answered: bool) -> None:
        """`answered`: something of the call was answered before."""
        self._held: list[tuple[ItemT, Permit, RetryDecision]] = []
        self._answered = answered
        self._pages = 0
        self.ended: PromptmillError | None = None
        """Why nothing more of this call is sent."""

    def __len__(self) -> int:
        return len(self._held)

    def takes(self, decision: RetryDecision) -> bool:
        """Return whether a final failure is to wait here."""
        if decision.kind is FailureKind.ENDPOINT:
            return True
        return not self._answered and decision.error.code not in _OWN

    def ended_by(self, decision: RetryDecision) -> bool:
        """Note a failure that is to be tried again; return whether it ends the call.

        One web page may be a portal's or a proxy's that is gone the next moment. As many as `SEVERAL`, and no answer,
        are what that address has.
        """
        if self._answered or decision.error.code is not Code.BAD_RESPONSE or decision.status != 200:
            return False
        self._pages += 1
        if self._pages >= SEVERAL:
            self.ended = decision.error
        return self.ended is not None

    def hold(self, item: ItemT, permit: Permit, decision: RetryDecision) -> bool:
        """Keep a failure of what `permit` sent; return whether it is now known what caused those kept."""
        self._held.append((item, permit, decision))
        if permit.endpoint_state.blocked:
            self.ended = permit.endpoint_state.blocked
        elif not self._answered and self._equal(decision.error.code) >= SEVERAL:
            self.ended = decision.error
        return self.ended is not None

    def answered(self, permit: Permit) -> Sequence[tuple[ItemT, RetryDecision]]:
        """Note that what `permit` sent was answered; return those kept that are now known to be the items' own."""
        self._answered = True
        if not self._held:
            return ()
        own = [held for held in self._held if _was_its_own(held, permit)]
        self._held = [held for held in self._held if not _was_its_own(held, permit)]
        return [(item, decision) for item, _, decision in own]

    def release(self) -> Sequence[tuple[ItemT, RetryDecision, bool]]:
        """Return what was kept, each with whether it concerns all; nothing is kept then."""
        held, self._held = self._held, []
        return [
            (item, decision, bool(self.ended or permit.endpoint_state.blocked or permit.endpoint_state.suspected))
            for item, permit, decision in held
        ]

    def _equal(self, code: Code) -> int:
        return sum(decision.error.code is code for _, _, decision in self._held)


def _was_its_own(held: tuple[object, Permit, RetryDecision], answered: Permit) -> bool:
    _, refused, decision = held
    if decision.kind is not FailureKind.ENDPOINT:
        return True
    return refused.endpoint_state is answered.endpoint_state and refused.serial < answered.serial
