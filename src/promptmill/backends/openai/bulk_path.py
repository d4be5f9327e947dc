"""The bulk path: a call answered by worker processes, and the job description they get."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.spool import MappedSource, Refs, Refuse, Spool
from promptmill.backends.openai.workers import FanOut
from promptmill.backends.protocol import CallStats, Request, Sink, Source
from promptmill.backends.rows import RowReader
from promptmill.config.models import ResolvedConfig
from promptmill.core.conversation import check_encodable
from promptmill.core.errors import PromptmillError, input_error
from promptmill.core.outcome import Failure
from promptmill.images.load import ImageRules

_FIRST = 64


class Bulk:
    """The bulk path of one backend."""

    def __init__(
        self, plan: ResolvedConfig, endpoints: list[Endpoint], rules: ImageRules, workers: int, concurrency: int
    ) -> None:
        """`concurrency` is the most in flight of all `workers` together."""
        self._plan = plan
        self._settings = plan.settings.backend_configs.openai.model_copy(update={"concurrency": concurrency})
        self._endpoints = endpoints
        self._rules = rules
        self._workers = workers

    @asynccontextmanager
    async def opened(self, source: Source, sink: Sink, stats: CallStats) -> AsyncIterator[tuple[Refs, FanOut]]:
        """Start the workers on `source`, which is written to a spool first if it is in memory."""
        spool = None
        if isinstance(source, MappedSource):
            mapped: MappedSource = source
        else:
            mapped = spool = Spool(source, await source.take(_FIRST), _refusal(sink, stats))
        try:
            per_worker = self._settings.worker_concurrency or max(1, -(-self._settings.concurrency // self._workers))
            async with FanOut(self._workers, per_worker, stats, self._job(mapped)) as fan_out:
                yield Refs(mapped), fan_out
        finally:
            if spool is not None:
                spool.close()

    def _job(self, source: MappedSource) -> Mapping[str, Any]:
        """Return all that a worker must know. Keys are in it: it goes through the pipe alone."""
        settings = self._plan.settings
        return {
            "settings": self._settings.model_dump(mode="json", exclude={"api_key", "api_key_env", "headers"}),
            "model": self._settings.model_name,
            "endpoints": [
                {
                    "url": endpoint.url,
                    "name": endpoint.name,
                    "headers": dict(endpoint.headers),
                    "secrets": endpoint.secrets,
                    "profile": endpoint.profile.name,
                    "key_note": endpoint.key_note,
                }
                for endpoint in self._endpoints
            ],
            "path": str(source.path),
            "held": source.held,
            "reading": _reading(source.reading),
            "allowed_roots": None if self._rules.allowed_roots is None else list(map(str, self._rules.allowed_roots)),
            "max_image_pixels": self._rules.max_pixels,
            "max_image_memory": self._rules.memory.limit // self._workers,
            "fetch_images": settings.fetch_images,
            "unsupported": settings.unsupported,
        }


def _reading(reading: RowReader) -> dict[str, Any]:
    return {
        "kind": reading.kind,
        "sampling": reading.sampling.given(),
        "extra": dict(reading.extra),
        "system_prompt": reading.system_prompt,
        "image_tag": reading.image_tag,
        "image_position": reading.image_position,
        "folder": reading.folder,
        "keep_raw": reading.keep_raw,
        "prompt_column": reading.prompt_column,
        "may_name": None if reading.may_name is None else sorted(reading.may_name),
        "most_tokens": reading.most_tokens,
    }


def _refusal(sink: Sink, stats: CallStats) -> Refuse:
    """Return what settles a request that cannot be written down."""

    async def refuse(request: Request) -> None:
        try:
            check_encodable(request.conversation)
            error = input_error("The request holds a value that JSON cannot carry, or is nested too deeply.")
        except PromptmillError as reason:
            error = reason
        failure = Failure(error)
        await sink.put(request.key, failure)
        stats.settle(failure)

    return refuse
