"""`promptmill check`: tries what the configuration says, stage by stage, each told as it happens."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable

import orjson

from promptmill.backends import registry
from promptmill.backends.protocol import Call, Step
from promptmill.cli.error_context import explained
from promptmill.cli.options import Parser, add_shared
from promptmill.cli.terminal import say, wrapped
from promptmill.config.backends import AUTO
from promptmill.config.loading import Configuration
from promptmill.core.conversation import conversation_from_prompt
from promptmill.core.errors import PromptmillError, redact, without_controls
from promptmill.core.outcome import Failure
from promptmill.core.wording import counted
from promptmill.service import choosing
from promptmill.service.service import Service
from promptmill.system import runtime

_LOOK_S = 0.2


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    add_shared(parser)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(command=check)


def check(arguments: argparse.Namespace, configuration: Configuration) -> int:
    """Try what the configuration says, with a one-token call at the end. Returns 0, or 2 when something fails.

    `arguments` are those of the command line, `json` among them.
    """
    as_json = arguments.json
    steps: list[Step] = []

    def report(step: Step) -> None:
        steps.append(step)
        if not as_json:
            _print(step)

    report(Step("configuration", ok=True, detail=configuration.origin))
    try:
        runtime.run(_try(configuration, report))
    except PromptmillError as error:
        error = explained(error, arguments, configuration)
        report(Step("problem", ok=False, detail=redact(str(error)), code=str(error.code)))
    good = all(step.ok for step in steps)
    if as_json:
        say(orjson.dumps({"ok": good, "steps": [_as_dict(step) for step in steps]}).decode())
    return 0 if good else 2


def _print(step: Step) -> None:
    mark, style = ("FAIL", "bold red") if not step.ok else ("warn", "yellow") if step.warns else ("ok  ", "green")
    told = f"{step.step}: {step.detail}"
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console(highlight=False)
        told = wrapped(f"{mark}  {without_controls(told)}", console.width).removeprefix(mark)
        console.print(mark, style=style, end="")
        console.print(told, markup=False, soft_wrap=True)
    else:
        say(f"{mark}  {told}")
    sys.stdout.flush()


def _as_dict(step: Step) -> dict[str, object]:
    found: dict[str, object] = {"step": step.step, "ok": step.ok, "detail": step.detail}
    return found | ({"warning": True} if step.warns else {}) | ({"code": step.code} if step.code else {})


async def _try(configuration: Configuration, report: Callable[[Step], None]) -> None:
    if configuration.plan.backend == AUTO:
        configuration = await choosing.decided(configuration)
    plan = configuration.plan
    registry.check_name(plan.backend)
    registry.check_key(plan)
    detail = plan.chosen.removeprefix("backend ") or f"{plan.backend}, {plan.model or 'no model named'}"
    report(Step("backend", ok=True, detail=detail))
    for warning in plan.warnings:
        report(Step("configuration", ok=True, detail=warning, warns=True))
    if not await registry.diagnose(plan, report):
        await _load_and_ask(configuration, report)


async def _load_and_ask(configuration: Configuration, report: Callable[[Step], None]) -> None:
    """Load the engine and have it write one token."""
    plan = configuration.plan.with_sampling({"max_tokens": 1})
    service, stats = Service(configuration), Call(total=1)
    try:
        started = time.monotonic()
        prompt = conversation_from_prompt("Say yes.", "the trial prompt")
        work = asyncio.ensure_future(service.generate([prompt], stats, plan=plan))
        told = ""
        while not work.done():
            await asyncio.wait({work}, timeout=_LOOK_S)
            if service.activity not in {told, ""}:
                told = service.activity
                report(Step("loading", ok=True, detail=told.removeprefix("Loading ")))
        (outcome,) = work.result()
        if isinstance(outcome, Failure):
            raise outcome.error
        tokens = outcome.usage.completion_tokens
        seconds = time.monotonic() - started
        report(Step("answer", ok=True, detail=f"{counted(tokens, 'token')}, {seconds:.1f} s with loading"))
        for warning in [warning for warning in stats.warnings if warning not in plan.warnings]:
            report(Step("answer", ok=True, detail=warning, warns=True))
    finally:
        await service.aclose()
