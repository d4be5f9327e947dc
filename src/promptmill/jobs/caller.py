"""The client of a call, and the call, as jobs know them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from promptmill.backends.protocol import Call
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import PromptmillError
from promptmill.core.request import Conversation


class Caller(NamedTuple):
    """A client: its session, and its owner, which later sessions share."""

    session: str = ""
    """The session, if several clients share the server. A list of jobs has its session's jobs."""
    owner: str = ""
    """Over HTTP a digest of the token, over stdio `""` for this user. Only the owner of a job on rows that came in a
    call may see, read and end it."""


USER = Caller()
"""The user of this machine, over stdio."""


@dataclass(frozen=True, slots=True)
class CallModels:
    """The models of a call, whose plans have the call's sampling."""

    plan: ResolvedConfig
    plans: Mapping[str, ResolvedConfig] = field(default_factory=dict)

    @property
    def names(self) -> Collection[str]:
        """The names of models that variants may have."""
        return self.plans.keys()

    def plan_of(self, name: str) -> ResolvedConfig:
        """Return the plan of one of `names`."""
        return self.plans[name]


@dataclass(frozen=True, slots=True)
class CallWork:
    """The items of a call, their settings and their counts."""

    items: Sequence[Conversation | PromptmillError]
    stats: Call
    system_prompt: str
    plan: ResolvedConfig
    caller: Caller
