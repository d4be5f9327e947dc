"""`promptmill bulk --validate`: what was found in a file, for people or programs."""

from __future__ import annotations

import orjson

from promptmill.cli.terminal import say
from promptmill.config.loading import ResolvedConfig
from promptmill.jobs.job_request import JobRequest
from promptmill.jobs.validation import check


def run(plan: ResolvedConfig, order: JobRequest, *, as_json: bool) -> int:
    """Print what was found. Returns 0 when every row can be asked, else 1. Raises `PromptmillError` as a job would."""
    found = check(plan, order)
    if as_json:
        say(orjson.dumps(found).decode())
    else:
        for problem in found["problems"]:
            say(problem)
        if found["invalid"] > len(found["problems"]):
            say(f"… and {found['invalid'] - len(found['problems'])} more")
        say(
            f"{found['rows']} rows, {found['invalid']} of them invalid, {found['images']} images, "
            f"about {found['estimated_prompt_tokens']} prompt tokens"
        )
        if (cost := found.get("estimated_cost")) is not None:
            most = found["most_cost"]
            say(f"about {cost:.6g} for the prompts{'' if most is None else f', at most {most:.6g} with the answers'}")
    return int(found["invalid"] > 0)
