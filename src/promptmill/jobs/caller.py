"""The client of a call, and the call's models and items, as jobs use them."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from promptmill.config.model_config import ModelConfig
from promptmill.service.list_call import ModelPart


class Caller(NamedTuple):
    """A client of the server: its session, and the owner of its jobs. Later sessions may have the same owner."""

    session: str = ""
    """The id of the session, if several clients share the server. A list of jobs shows the jobs of this session."""
    owner: str = ""
    """The owner of jobs: a digest of the token (over HTTP), or `""` for this user (over stdio). If the rows of a job
    came in a call, only the owner may see, read and end the job."""
    is_alone: bool = True
    """Whether no other client has this session. In a protocol without sessions, clients at one address share a session:
    limits hold for all of them together, no list shows their jobs, and equal rows of two calls become two jobs."""

    @property
    def of_rows(self) -> str:
        """The owner of a call's rows. Two clients have different owners, so that their equal rows become two jobs."""
        return self.session if self.is_alone else secrets.token_hex(16)


USER = Caller()
"""The user of this machine, over stdio."""


@dataclass(frozen=True, slots=True)
class CallModels:
    """The models that a call may use. Their configurations include the sampling parameters of the call."""

    config: ModelConfig
    configs: Mapping[str, ModelConfig] = field(default_factory=dict)

    @property
    def names(self) -> Collection[str]:
        """The names by which variants may select models."""
        return self.configs.keys()

    def config_of(self, name: str) -> ModelConfig:
        """Return the configuration of a model in `names`."""
        return self.configs[name]


class CallTask(NamedTuple):
    """The task that a call becomes after `limit_s` seconds. Each part of the call is then a job, with an id."""

    job_id: str
    limit_s: float
    is_required: bool
    """Whether the client accepts only a task's handle, and no result."""
    note: Mapping[str, object]
    """The data of the task, which each of its jobs stores."""


@dataclass(slots=True)
class CallWork(ModelPart):
    """A part of a client's call."""

    caller: Caller = USER
    task: CallTask | None = None
    job_id: str | None = None
    """The job that has the answers, or continues with the items that are left to it, if any."""


def new_job_id() -> str:
    """Return the id for a job of a call. It is random, so that no client with the same token guesses it."""
    return f"call-{secrets.token_hex(8)}"
