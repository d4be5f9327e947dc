"""The model that answers a step: one of several jobs that a command or function runs one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from promptmill.config.configuration import Configuration
from promptmill.jobs.caller import CallModels
from promptmill.jobs.door import OpenJob
from promptmill.jobs.store.fingerprint import fingerprint
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.plan import plans_in


@dataclass(frozen=True, slots=True)
class StepModel:
    """The model of a step, and the function that runs its jobs."""

    models: Configuration | CallModels
    run: Callable[[OpenJob], object]
    """Runs a job until it is finished, unless it already is. Raises an error if the job stops early."""
    command: Sequence[str] = ()
    """The command that resumes one of the model's jobs; the job's id must be appended."""


def has_settings_of(folder: Folder, opened: OpenJob) -> bool:
    """Return whether two jobs have the same model and settings, and whether each has only one answer to a row."""
    spec, order = folder.spec, opened.order
    if spec is None or spec.parts or order.variants or plans_in(order.parts):
        return False
    settings = fingerprint(opened.config, order.system_prompt, "jsonl", has_check=order.has_check)
    return [target.fingerprint for target in spec.targets] == [settings]
