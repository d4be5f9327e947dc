"""What a job is, as far as a test does not care."""

from __future__ import annotations

from pathlib import Path

from promptmill.jobs.store.spec import JobSpec


def spec_of(input_format: str) -> JobSpec:
    """Return the description of a job with rows of this format."""
    return JobSpec(
        job_id="job-0123456789",
        input=Path("in"),
        output=Path("out"),
        input_format=input_format,
        output_format="jsonl",
        size=0,
        mtime_ns=0,
        fingerprint={},
        backend="openai",
        model="m",
        created=0,
    )
