"""A batch as clients request it and see it, and the order of its states."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

import orjson
from pydantic import BaseModel, Field, StringConstraints

from promptmill.core.values import JsonDict
from promptmill.features.openai_server.object_store import StoredObject
from promptmill.features.openai_server.stored_files import Expiry

_Name: TypeAlias = Annotated[str, StringConstraints(max_length=64)]
_Text: TypeAlias = Annotated[str, StringConstraints(max_length=512)]
State: TypeAlias = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
BEFORE: Mapping[State, frozenset[State]] = {
    "in_progress": frozenset({"validating"}),
    "failed": frozenset({"validating"}),
    "cancelling": frozenset({"validating", "in_progress"}),
    "finalizing": frozenset({"in_progress"}),
    "completed": frozenset({"finalizing"}),
    "expired": frozenset({"finalizing"}),
    "cancelled": frozenset({"cancelling"}),
}
"""For each state, the states that may precede it."""
_LAST = BEFORE.keys() - frozenset[State]().union(*BEFORE.values())


class LineCounts(BaseModel):
    """The numbers of lines of a batch."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchObject(BaseModel):
    """A batch as clients see it (platform.openai.com/docs/api-reference/batch/object)."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None = None
    errors: JsonDict | None = None
    input_file_id: str
    completion_window: str
    status: State = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: LineCounts = Field(default_factory=LineCounts)
    usage: JsonDict | None = None
    metadata: dict[str, str] | None = None
    output_expires_after: Expiry | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the state is final."""
        return self.status in _LAST

    def stored(self, owner: str, request: str) -> StoredObject:
        """Return the batch as the store keeps it. `request`: the digest of the client's request."""
        body = self.model_dump_json().encode()
        return StoredObject(self.id, "batch", owner, "", 0, None, not self.has_ended, request, body)


class BatchRequest(BaseModel):
    """The body of a POST request that creates a batch."""

    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/embeddings", "/v1/responses"]
    completion_window: Literal["24h"]
    metadata: dict[_Name, _Text] | None = Field(None, max_length=16)
    output_expires_after: Expiry | None = None

    def digest(self) -> str:
        """Return a digest of the request, by which a repeated request finds its batch."""
        return hashlib.sha256(orjson.dumps(self.model_dump(), option=orjson.OPT_SORT_KEYS)).hexdigest()
