"""Rows that cover the texts: random rows, and those rows of a larger pool that differ most from them and each other.

    random rows and pool ─▶ vectors, by an encoder of this machine ─▶ the row farthest from all others so far ─▶ …

A topic of few rows is seldom in the sample, but often in a chosen row, whose text is unlike the texts of other topics.
The vectors come from a job that stores them, so a repeated search chooses the same rows. The vectors cost no request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.feature import features
from promptmill.core.wording import counted
from promptmill.features.topics.drawn import Drawn, DrawnRow
from promptmill.features.verbs.job_series import JobSeries
from promptmill.jobs.manage.bulk_call import step_model
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.progress import Watch
from promptmill.jobs.store.rounds import ANSWERED

_SHARE = 2  # random rows for each chosen row
_LONGEST = 300  # a vector is made from this many characters of a text, which show the topic and take little time
_TINY = 1e-6  # the least divisor: the length of a vector is 0 if all texts are equal


def chosen_rows(drawn: Drawn) -> int:
    """Return the number of rows to choose: half the size of the sample, at most half the pool; 0 without an encoder."""
    has_encoder = False
    if "embeddings" in features():
        from promptmill.features.embeddings.local import encoders  # imported on use: the feature may be missing

        has_encoder = bool(encoders.installed())
    return min(len(drawn.sample), len(drawn.pool)) // _SHARE if has_encoder else 0


def with_chosen(drawn: Drawn, numbers: Sequence[int]) -> Drawn:
    """Return `drawn` without its pool, and with the pool's rows at the positions `numbers` as `chosen` rows."""
    covered = len(drawn.sample) + len(drawn.pool)
    return replace(drawn, chosen=[drawn.pool[at] for at in numbers], pool=(), covered=covered)


def farthest(vectors: Any, count: int, more: int) -> list[int]:
    """Choose `more` further unit vectors besides the first `count` ones, and return their positions. Each is the vector
    whose nearest neighbour among the first vectors and the vectors already chosen is farthest away.

    >>> import numpy as np
    >>> farthest(np.array([[1, 0], [0.8, 0.6], [0, 1], [-1, 0]]), 1, 2)
    [3, 2]
    """
    import numpy as np

    nearest: Any = np.max(vectors @ vectors[:count].T, axis=1)  # the largest cosine is the smallest distance
    found: list[int] = []
    for _ in range(more):
        nearest[found[-1:]] = nearest[:count] = np.inf
        found.append(int(np.argmin(nearest)))
        nearest = np.maximum(nearest, vectors @ vectors[found[-1]])
    return found


@dataclass(frozen=True)
class Covering:
    """The choice of rows by an encoder of this machine."""

    folders: JobFolders
    config: ModelConfig
    """The configuration of the search, which may have settings of the encoder."""
    config_path: str | Path | None
    """The configuration file that the call names."""
    watch: Watch | None = None
    notes: list[str] = field(default_factory=list)
    """Remarks for the user: if the encoder made no vectors, the reason."""

    def of(self, drawn: Drawn, tell: Callable[[str], object] = lambda _: None) -> Drawn:
        """Return the drawn rows with chosen rows added; if there are no vectors, return the drawn rows unchanged.
        `tell` is called with a text about the step. Raises `PromptmillError` if the job of the vectors was stopped."""
        more, rows = chosen_rows(drawn), [*drawn.sample, *drawn.pool]
        if not more:
            return drawn
        import numpy as np  # numpy is installed, because the encoders need it

        tell(f"vectors of {counted(len(rows), 'row')} on this machine")
        try:
            found = self._vectors(rows)
        except PromptmillError as error:
            if error.code is Code.SHUTDOWN:
                raise
            self.notes.append(f"topics are found in random rows only: {error.message.rstrip('.')}")
            return drawn
        known: Any = np.array([np.frombuffer(vector, "<f4") for vector in found.values()])
        known -= known.mean(axis=0)  # all vectors of an encoder have a large part in common, which is removed
        known /= np.maximum(np.linalg.norm(known, axis=1, keepdims=True), _TINY)
        places, count = [*found], len(drawn.sample)
        of_sample = sum(at < count for at in places)
        return with_chosen(drawn, sorted(places[at] - count for at in farthest(known, of_sample, more)))

    def _vectors(self, rows: Sequence[DrawnRow]) -> Mapping[int, bytes]:
        """Return the vectors of rows by their positions, as 32-bit floats. Raises `PromptmillError`."""
        from promptmill.features.embeddings.local import encoders

        settings = {
            "backend_configs.encoder": encoders.settings_in(self.config).model_dump(),
            "sampling_params": {"embed": True},
            "extra_params": {},
            "price": None,
            "max_cost": None,
        }
        model = step_model({"config": self.config_path, "backend": "encoder", "settings": settings}, self.watch)
        texts = ({"text": "\n".join(row.texts)[:_LONGEST]} for row in rows)
        series = JobSeries(self.folders, "topics")  # a separate series: the search does not count vectors as requests
        folder = series.run("topics-vectors", texts, {"prompt": "{{text}}"}, model)
        with folder.reading() as store:
            return {record.row: record.vector for record in store.records(where=ANSWERED) if record.vector}
