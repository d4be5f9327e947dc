"""What else can answer where an engine of this machine cannot: told beside what is missing."""

from __future__ import annotations

from promptmill.config.loading import Configuration
from promptmill.core.errors import Code, PromptmillError
from promptmill.service import choosing, registry


def explained(error: PromptmillError, configuration: Configuration, *, asked_for: str | None = None) -> PromptmillError:
    """Return `error` with who chose the engine that cannot be loaded, and what could answer in its place.

    `asked_for` is the backend that the command line names, where that is to be told.
    """
    plan = configuration.plan
    if error.code not in {Code.MISSING_DEPENDENCY, Code.ENGINE_LOAD_FAILED} or not plan.record.is_engine:
        return error
    chose = "--backend" if asked_for else configuration.origin
    ways = ["--base-url URL"]
    with_key = [name for name, _, key_env, is_set in registry.providers() if key_env and is_set]
    ways += [f"--provider {with_key[0]}, whose key is set" if with_key else "--provider NAME"]
    here = choosing.local_engine()
    if here != plan.backend and choosing.is_installed(here):
        ways.append(f"--backend {here}, which is installed here")
    hint = f"{error.hint.rstrip('.')}. {chose} says {plan.backend}; instead: {', '.join(ways[:-1])} or {ways[-1]}."
    return PromptmillError(error.code, error.message, hint)
