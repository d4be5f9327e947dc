"""The client of a call, and the call, as jobs know them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
class CallWork:
    """The items of a call, their settings and their counts."""

    items: Sequence[Conversation | PromptmillError]
    stats: Call
    system_prompt: str
    plan: ResolvedConfig
    caller: Caller
