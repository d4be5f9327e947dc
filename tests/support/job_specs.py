"""What a job is, as far as a test does not care."""

from __future__ import annotations

from pathlib import Path

from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.spec import InputSpec, OutputSpec


def spec_of(input_format: str) -> JobSpec:
    """Return the description of a job with rows of this format."""
    return JobSpec(
        job_id="job-0123456789",
        created=0,
        input=InputSpec(path=Path("in"), format=input_format),
        output=OutputSpec(path=Path("out"), format="jsonl"),
        backend="openai",
        model="m",
    )
