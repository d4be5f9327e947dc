"""The file `control`, in which other processes give commands to a running job. (Only the runner writes the database.)

    cancel        end the run after the requests in flight
    at_once       with `cancel`: end the run without waiting for these requests
    paused        send no further rows
    concurrency   the most requests in flight
    max_cost      the most that all runs together may spend

All commands except `cancel` and `at_once` also apply to later runs.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from promptmill.files import disk

_NAME = "control"


class Control(BaseModel):
    """The commands for the runs of a job."""

    model_config = ConfigDict(frozen=True)

    cancel: bool = False
    at_once: bool = False
    paused: bool = False
    concurrency: int | None = Field(None, ge=1)
    max_cost: float | None = Field(None, ge=0)

    @property
    def most(self) -> int:
        """The limit of requests in flight."""
        return 0 if self.paused else sys.maxsize if self.concurrency is None else self.concurrency

    @classmethod
    def read(cls, folder: Path) -> Control:
        """Return the commands for the job in `folder`; a missing or damaged file means no commands."""
        try:
            return cls.model_validate(orjson.loads((folder / _NAME).read_bytes()))
        except (OSError, ValueError, ValidationError):
            return cls()

    def changed(self, **changes: Any) -> Control:
        """Return these commands with changes. Raises `ValidationError`."""
        return Control.model_validate({**self.model_dump(), **changes})

    def write(self, folder: Path) -> None:
        """Store the commands atomically. Raises `OSError`."""
        path = folder / _NAME
        if self == Control():
            path.unlink(missing_ok=True)
            return
        beside = folder / f"{_NAME}.{secrets.token_hex(4)}"
        with os.fdopen(disk.created(beside), "wb") as file:
            file.write(orjson.dumps(self.model_dump()))
        disk.replace(beside, path)
