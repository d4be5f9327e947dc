"""The answers of pieces, stored in the job's database: after a kill or a failure, only the others are sent."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from promptmill.backends.protocol import NO_USAGE, Completion, Usage
from promptmill.core.wording import mended
from promptmill.jobs.store.database import JobDatabase


class StoredPieces:
    """The stored answers, each under the name of its question, as values of the table `job`. The methods block."""

    def __init__(self, store: JobDatabase) -> None:
        self._store = store

    def get(self, asked: str, *, is_lost: bool) -> Completion | None:
        """Return a stored answer; None if there is none.

        Its cost was charged when it was sent. Its tokens count only if no record has them: `is_lost`.
        """
        if (found := self._store.get(asked)) is None:
            return None
        usage = Usage(*found["usage"]) if is_lost else NO_USAGE
        return Completion(found["text"], found["finish_reason"], usage, attempts=0)

    def put(self, asked: str, answer: Completion) -> None:
        """Store an answer."""
        usage = answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.cached_tokens
        self._store.put(**{asked: {"text": mended(answer.text), "finish_reason": answer.finish_reason, "usage": usage}})


def name_of(*asked: Any) -> str:
    """Return the name of a stored answer: the same for the same question to the same model, with the same settings."""
    text = json.dumps(asked, sort_keys=True, default=str)
    return f"piece {hashlib.sha256(text.encode()).hexdigest()[:32]}"
