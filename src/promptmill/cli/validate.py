"""`promptmill bulk --validate`: what was found in a file, for people or programs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

import orjson

from promptmill.backends.registry import addresses
from promptmill.cli.terminal import say
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.money import dollars
from promptmill.jobs.run.validation import check
from promptmill.jobs.store.spec import JobRequest
from promptmill.system.installation import command_for

_OF_THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}


def run(plan: ResolvedConfig, order: JobRequest, *, as_json: bool) -> int:
    """Print the findings. Returns 0 when every row can be sent, else 1. Raises `PromptmillError` as a job would."""
    found = check(plan, order)
    if as_json:
        say(orjson.dumps(found).decode())
    else:
        for problem in found["problems"]:
            say(problem)
        if found["invalid"] > len(found["problems"]):
            say(f"… and {found['invalid'] - len(found['problems'])} more")
        for note in found["notes"]:
            say(note, wrap=True)
        skipped = f", {found['skipped']} empty ones left out" if found.get("skipped") else ""
        say(
            f"{found['rows']} rows, {found['invalid']} of them invalid{skipped}, {found['images']} images, "
            f"about {found['estimated_prompt_tokens']:,} prompt tokens without {_left_out(found)}",
            wrap=True,
        )
        if (cost := found.get("estimated_cost")) is not None:
            most = found["most_cost"]
            answers = ", more with the answers" if most is None else f", at most {dollars(most)} with the answers"
            say(f"about {dollars(cost)} for the prompts{answers}")
        elif _is_paid(plan):
            listed = "" if find_spec("genai_prices") else f", or install the list of prices: {command_for('prices')}"
            say(
                f"no price is known for {plan.model or 'the model'}: `price:` in the configuration, or --set "
                f"'price={{input: 1, output: 2}}', says what a million tokens cost in US dollars{listed}",
                wrap=True,
            )
    return int(found["invalid"] > 0)


def _left_out(found: Mapping[str, Any]) -> str:
    return "images and what the chat template adds" if found["images"] else "what the chat template adds"


def _is_paid(plan: ResolvedConfig) -> bool:
    """Return whether an endpoint is not a server of this machine."""
    return plan.record.needs_endpoint and any(
        urlsplit(url if "://" in url else f"//{url}").hostname not in _OF_THIS_MACHINE for url in addresses(plan)
    )
