"""The tool `improve`."""

from __future__ import annotations

from promptmill.core.values import JsonDict
from promptmill.features.verbs.record import VerbTool
from promptmill.jobs.caller import Caller
from promptmill.jobs.manage.server_jobs import ServerJobs
from promptmill.server.results import object_schema, objects_schema


def _resolved(options: JsonDict, jobs: ServerJobs, _: Caller) -> JsonDict:
    from promptmill.jobs.inputs.row_secrets import check_encoding  # imported on use, by few servers

    check_encoding(options["encoding"])
    return {**options, "input": jobs.paths.allowed(options["input"], "input_file")}


TOOL = VerbTool(
    title="Find a better prompt",
    words="""\
Let `strong` write better prompts from the mistakes on labelled rows, and test the best one on held-out rows.

`outcome` is `gain`, `cannot tell` or `worse`. Takes minutes and about twelve requests per row; while `state` is
`running`, make the same call again: no answer is paid for twice.""",
    resolved=_resolved,
    step="This step of the search",
    reading="reading the rows with right labels",
    schema=object_schema(
        {
            "state": {
                "type": "string",
                "description": "`finished`; `running`: make the same call again, without `again`.",
            },
            "step": {"type": "string", "description": "The step of a running search; `job_id` is its job."},
            "outcome": {"type": "string", "description": "`gain`, `cannot tell` or `worse`, by the held-out rows."},
            "prompt": {"type": "string", "description": "The winner; the given prompt if `winner` is `yours`."},
            "winner": {"type": "string"},
            "test": {
                "type": "object",
                "description": "The test on the held-out rows: gain, interval and p.",
                "additionalProperties": True,
            },
            "candidates": objects_schema("All prompts; `right` counts the seen rows, which chose the winner."),
            "cost": {"type": "number", "description": "Of all runs, in US dollars; absent without a price."},
        },
        "state",
    ),
)
