"""`promptmill generate`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import orjson

from promptmill.backends.protocol import CallStats
from promptmill.cli.live_answer import LiveAnswer
from promptmill.cli.options import stdin_text
from promptmill.cli.terminal import say
from promptmill.config.loading import Configuration
from promptmill.core.conversation import conversation_from_prompt
from promptmill.core.errors import Code, PromptmillError, config_error
from promptmill.core.outcome import Completion, Failure, Outcome
from promptmill.service import call_report
from promptmill.service.lists import ListSink
from promptmill.service.service import Service
from promptmill.system import runtime

_PAUSE_S = 0.2
_TELL_EVERY_S = 10.0


def read_prompts(given: Sequence[str], *, lines: bool) -> list[str]:
    """Return the prompts: `given`, where `-` or none at all stands for stdin; with `lines` each line of it is one."""
    for prompt in given:
        if any("\udc80" <= character <= "\udcff" for character in prompt):  # how Python passes other bytes on
            raise config_error(
                "", "a prompt on the command line is not UTF-8 text; convert it first, such as with iconv."
            )
    if given and "-" not in given:
        return list(given)
    if not given and sys.stdin.isatty():
        raise config_error("", "say what to answer: `promptmill generate PROMPT`, or pipe a text into it.")
    text = stdin_text()
    read = (
        [line.rstrip("\r\n") for line in text.splitlines() if line.strip()]
        if lines
        else [text.strip()] * bool(text.strip())
    )
    return [prompt for word in given or ["-"] for prompt in (read if word == "-" else [word])]


def prompt_with_images(prompt: str, images: Sequence[str]) -> object:
    """Return a prompt item, its images behind the text."""
    if not images:
        return prompt
    parts = [{"type": "image_url", "image_url": {"url": source}} for source in images]
    return {"role": "user", "content": [{"type": "text", "text": prompt}, *parts]}


def generate(
    configuration: Configuration,
    prompts: Sequence[object],
    *,
    system_prompt: str,
    as_json: bool,
    output: Path | None = None,
) -> int:
    """Answer `prompts` and print the answers in order, or write them to `output`.

    Returns 0 when all are answered, else 1; 130 after Ctrl-C, with what was answered until then.
    """
    stats = CallStats(total=len(prompts))
    live = None
    if len(prompts) == 1 and not as_json and output is None and sys.stdout.isatty():
        live = LiveAnswer(sys.stdout)
        if configuration.plan.settings.sampling_params.response_format is None:  # such an answer may be corrected
            stats.preview = live.show
    outcomes, interrupted = runtime.run(_answers(configuration, prompts, system_prompt, stats, live))
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(output.open("w", encoding="utf-8")) if output else sys.stdout
        if as_json:
            found: dict[str, Any] = {"ans_ls": call_report.answers(outcomes)}  # as over MCP
            if several := call_report.several(outcomes):
                found["answers"] = several
            if errors := call_report.errors(outcomes):
                found["errors"] = errors
            meta = call_report.totals(stats) | call_report.columns(outcomes)
            say(orjson.dumps(found | {"_meta": meta}).decode(), target)
        elif live is not None:
            live.end(outcomes[0].text if isinstance(outcomes[0], Completion) else None)
        else:
            _print_answers(outcomes, target)
    if not as_json:
        for warning in (*stats.warnings, *_cut(outcomes)):
            say(f"promptmill: {warning}", sys.stderr, wrap=True)
        if failed := call_report.summary(outcomes):
            say(f"promptmill: {failed}", sys.stderr, wrap=True)
    if interrupted:
        return 130
    return int(any(isinstance(outcome, Failure) for outcome in outcomes))


def _print_answers(outcomes: Sequence[Outcome], target: TextIO) -> None:
    """Print the answers; on a terminal several are told apart by their numbers."""
    numbered = len(outcomes) > 1 and target.isatty()
    for number, outcome in enumerate(outcomes, 1):
        if numbered:
            say(f"{'' if number == 1 else chr(10)}[{number}]", target)
        say(outcome.text if isinstance(outcome, Completion) else "", target)


def _cut(outcomes: Sequence[Outcome]) -> list[str]:
    """Return a note about answers that their length limit has cut; empty when there are none."""
    cut = [
        number
        for number, outcome in enumerate(outcomes, 1)
        if isinstance(outcome, Completion) and outcome.finish_reason == "length"
    ]
    if not cut:
        return []
    which = "the answer was" if len(outcomes) == 1 else f"{len(cut)} answers were (the first is {cut[0]})"
    return [f"{which} cut at the length limit; --max-tokens N allows longer ones."]


async def _answers(
    configuration: Configuration,
    prompts: Sequence[object],
    system_prompt: str,
    stats: CallStats,
    live: LiveAnswer | None,
) -> tuple[list[Outcome], bool]:
    """Return the outcomes, and whether Ctrl-C ended the work."""
    service = Service(configuration)
    items = [conversation_from_prompt(prompt, f"prompt {number}") for number, prompt in enumerate(prompts, 1)]
    sink = ListSink(len(items))
    work = asyncio.ensure_future(service.generate(items, stats, system_prompt=system_prompt, sink=sink))
    try:
        if sys.stderr.isatty():
            await _show_progress(work, service, stats, live)
        else:
            await _tell_waits(work, stats)
        return await work, False
    except asyncio.CancelledError:  # Ctrl-C: asyncio's runner cancels the main task
        work.cancel()
        await asyncio.wait({work})
        return sink.result(PromptmillError(Code.SHUTDOWN, "It was interrupted.")), True
    finally:
        await service.aclose()


async def _tell_waits(work: asyncio.Future[Any], stats: CallStats) -> None:
    """Where no progress is shown, say now and then why nothing goes on."""
    while not work.done():
        await asyncio.wait({work}, timeout=_TELL_EVERY_S)
        if not work.done() and (waiting := stats.waiting):
            say(f"promptmill: {waiting}", sys.stderr)


async def _show_progress(
    work: asyncio.Future[Any], service: Service, stats: CallStats, live: LiveAnswer | None
) -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    console = Console(stderr=True)
    doing = TextColumn("{task.description}")
    looks: tuple[ProgressColumn, ...] = (doing, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    if stats.total == 1:
        looks = (SpinnerColumn(), doing, TimeElapsedColumn())
    with Progress(*looks, console=console, transient=True) as progress:
        if live is not None:
            live.begins = progress.stop
        bar = progress.add_task("answering", total=stats.total)
        while not work.done():
            await asyncio.wait({work}, timeout=_PAUSE_S)
            doing_what = ("" if stats.done else service.activity) or stats.waiting or "answering"
            progress.update(bar, total=stats.total, completed=stats.done, description=doing_what)
