"""The tool `review`."""

from __future__ import annotations

from promptmill.core.values import JsonDict
from promptmill.features.verbs.record import VerbTool
from promptmill.jobs.caller import Caller
from promptmill.jobs.manage.server_jobs import ServerJobs
from promptmill.server.results import object_schema, objects_schema


def _resolved(options: JsonDict, jobs: ServerJobs, caller: Caller) -> JsonDict:
    from promptmill.features.review import review_page  # imported on use: most servers review nothing

    output, take = options["output"], options["take"]
    suffixes = (*review_page.PAGES, review_page.WORKBOOK)
    return {
        **options,
        "folder": jobs.visible.find(options["job"], caller),
        "output": None if output is None else jobs.paths.allowed_of(output, "output_file", suffixes),
        "take": None if take is None else jobs.paths.allowed(take, "take"),
    }


TOOL = VerbTool(
    title="Rows to check by hand",
    words="""\
Find the rows of a job that a person should check, the most doubtful first; show them to the user.

With `decisions` or `take`, store the user's labels in the job and its output. Never make labels up. Sends nothing to a
model.""",
    resolved=_resolved,
    text="The rows are in the structured content.",
    is_destructive=True,  # the labels replace answers in the output (the job keeps the answers)
    is_idempotent=False,
    is_open_world=False,
    schema=object_schema(
        {
            "job_id": {"type": "string"},
            "count": {
                "type": "integer",
                "description": "Number of rows to review, also those that do not fit in `rows`.",
            },
            "reasons": {"type": "object", "additionalProperties": {"type": "integer"}},
            "labels": {"type": "array", "items": {"type": "string"}, "description": "All labels of the job."},
            "note": {"type": "string", "description": "Why the job stores no labels, or has no such row."},
            "file": {"type": "string"},
            "rows": objects_schema(
                "The most doubtful row first: `row`, its number from 1, `answer`, `why` and `score`, `label`, if the "
                "user gave one, the fields of the input, the other answers to it, `fields` to decide, each with its "
                "values and their places, and `key`, which identifies its question."
            ),
            "taken": {"type": "integer", "description": "New labels that were stored."},
            "changed": {"type": "integer", "description": "New labels that differ from the answer."},
            "taken_back": {"type": "integer", "description": "Labels whose rows have their earlier answer again."},
            "refused": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Labels that were not stored, with the reasons: show them to the user.",
            },
            "written": {
                "type": "boolean",
                "description": "Whether the output has them; else the job's next run does it.",
            },
        },
        "job_id",
    ),
)
