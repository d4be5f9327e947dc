"""`promptmill generate` and `promptmill check`."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Any

import orjson

from promptmill.backends.protocol import CallStats
from promptmill.cli.terminal import say
from promptmill.config.loading import Configuration
from promptmill.core.conversation import conversation_from_prompt
from promptmill.core.errors import PromptmillError, config_error, redact
from promptmill.core.outcome import Completion, Failure, Outcome
from promptmill.service import call_report
from promptmill.service.service import Service
from promptmill.system import runtime

_PAUSE_S = 0.2


def generate(configuration: Configuration, *, prompts: Sequence[str], system_prompt: str, as_json: bool) -> int:
    """Answer `prompts` and print the answers in order. Returns 0 when all are answered, else 1."""
    stats = CallStats(total=len(prompts))
    outcomes = runtime.run(_answers(configuration, prompts, system_prompt, stats))
    if as_json:
        found: dict[str, Any] = {"ans_ls": call_report.answers(outcomes)}  # as over MCP
        if errors := call_report.errors(outcomes):
            found["errors"] = errors
        say(orjson.dumps(found | {"_meta": call_report.totals(stats) | call_report.columns(outcomes)}).decode())
    else:
        for outcome in outcomes:
            say(outcome.text if isinstance(outcome, Completion) else "")
        for warning in stats.warnings:
            say(f"promptmill: {warning}", sys.stderr)
        if failed := call_report.summary(outcomes):
            say(f"promptmill: {failed}", sys.stderr)
    return int(any(isinstance(outcome, Failure) for outcome in outcomes))


async def _answers(
    configuration: Configuration, prompts: Sequence[str], system_prompt: str, stats: CallStats
) -> list[Outcome]:
    service = Service(configuration)
    items = [conversation_from_prompt(prompt, f"prompt {number}") for number, prompt in enumerate(prompts, 1)]
    try:
        work = asyncio.ensure_future(service.generate(items, stats, system_prompt=system_prompt))
        if sys.stderr.isatty():
            await _show_progress(work, service, stats)
        return await work
    finally:
        await service.aclose()


async def _show_progress(work: asyncio.Future[list[Outcome]], service: Service, stats: CallStats) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    looks = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*looks, console=console, transient=True) as progress:
        bar = progress.add_task("answering", total=stats.total)
        while not work.done():
            await asyncio.wait({work}, timeout=_PAUSE_S)
            activity = "" if stats.done else service.activity
            progress.update(bar, total=stats.total, completed=stats.done, description=activity or "answering")


def check(configuration: Configuration, *, as_json: bool) -> int:
    """Try what the configuration says, with a one-token call at the end. Returns 0, or 2 when something fails."""
    steps: list[dict[str, Any]] = [{"step": "configuration", "ok": True, "detail": configuration.origin}]
    try:
        runtime.run(_try(configuration, steps))
    except PromptmillError as error:
        steps.append({"step": "problem", "ok": False, "code": str(error.code), "detail": redact(str(error))})
    if as_json:
        say(orjson.dumps({"ok": all(step["ok"] for step in steps), "steps": steps}).decode())
    else:
        for step in steps:
            say(f"{'ok  ' if step['ok'] else 'FAIL'}  {step['step']}: {step['detail']}")
    return 0 if all(step["ok"] for step in steps) else 2


async def _try(configuration: Configuration, steps: list[dict[str, Any]]) -> None:
    plan = configuration.plan
    block = getattr(plan.settings.backend_configs, plan.backend, None)
    if block is None:
        raise config_error("backend", "unknown backend.")
    model = getattr(block, "model_name", None) or getattr(block, "model_name_or_path", None) or "no model named"
    steps.append({"step": "backend", "ok": True, "detail": f"{plan.backend}, {model}"})
    short = plan.settings.model_copy(
        update={"sampling_params": plan.settings.sampling_params.model_copy(update={"max_tokens": 1})}
    )
    service = Service(configuration)
    service.plan = type(plan)(short, plan.operator, plan.from_call, plan.trust_client)
    try:
        started = time.monotonic()
        stats = CallStats(total=1)
        (outcome,) = await service.generate([conversation_from_prompt("Say yes.", "the trial prompt")], stats)
        if isinstance(outcome, Failure):
            raise outcome.error
        seconds = time.monotonic() - started
        detail = f"{outcome.usage.completion_tokens} token(s) in {seconds:.1f} s, {stats.requests} request(s)"
        steps.append({"step": "answer", "ok": True, "detail": detail})
        steps.extend({"step": "warning", "ok": True, "detail": warning} for warning in stats.warnings)
    finally:
        await service.aclose()
