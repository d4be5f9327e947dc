"""The client of a call, as jobs know it."""

from __future__ import annotations

from typing import NamedTuple


class Caller(NamedTuple):
    """A client: its session, and its owner, which later sessions share."""

    session: str = ""
    """The session, if several clients share the server. A list of jobs has its session's jobs."""
    owner: str = ""
    """Over HTTP a digest of the token, over stdio `""` for this user. Only the owner of a job on rows that came in a
    call may see, read and end it."""


USER = Caller()
"""The user of this machine, over stdio."""
