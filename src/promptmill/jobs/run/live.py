"""A live round: a source reads open rows, a service answers them, and a sink records the outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from promptmill.backends.protocol import Call
from promptmill.config.model_config import ModelConfig
from promptmill.jobs.run.open_rows import OpenRows
from promptmill.jobs.run.row_source import RowSource
from promptmill.jobs.run.store_sink import StoreSink
from promptmill.service.service import Service
from promptmill.steps.step import Step


async def answer_rows(
    service: Service,
    rows: OpenRows,
    sink: StoreSink,
    call: Call,
    config: ModelConfig,
    *,
    steps: Sequence[Step] = (),
) -> None:
    """Answer every open row of a round. The model of `config` answers rows that name no model. `steps`: see
    `PlanWork.steps`.

    Raises the `PromptmillError` that ends the run, and `DamagedError`.
    """
    commits = sink.commits
    syncing = asyncio.ensure_future(commits.keep_synced())
    source = RowSource(rows, sink, call)
    try:
        has_images = await source.has_images()
        call.facts = replace(
            call.facts,
            keep_raw=rows.requests[0].reader.keep_raw,
            has_images=has_images,
            checks=rows.checks,
            vector_bytes=await asyncio.to_thread(rows.vector_bytes),
        )
        answering = asyncio.ensure_future(service.run(source, sink, call, config, steps=steps))
        commits.on_error = answering.cancel
        await answering
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if commits.error is None or (task is not None and task.cancelling()):
            raise
    finally:
        await source.aclose()
        syncing.cancel()
        try:
            await commits.aclose()
        finally:
            await asyncio.wait({syncing})
    if commits.error is not None:
        raise commits.error
