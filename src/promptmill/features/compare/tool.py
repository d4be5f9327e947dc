"""The tool `compare`, and a prompt for comparing models."""

from __future__ import annotations

from pathlib import Path

from promptmill.core.errors import input_error
from promptmill.core.values import JsonDict
from promptmill.features.compare.verb import COMPARE
from promptmill.features.verbs.record import VerbTool
from promptmill.jobs.caller import Caller
from promptmill.jobs.manage.server_jobs import ServerJobs
from promptmill.server.listed_tools import SKILL
from promptmill.server.results import object_schema, objects_schema
from promptmill.server.tool_socket import ToolSocket
from promptmill.system.call_files import MAY_HOLD_SECRETS

_ROWS = 10  # the number of differing rows that a call returns by default
_PROMPT = """\
Compare the models {models} on the file {file} with promptmill, for this question: {question}

1. Call `bulk_generate` with all of these models as the list `model`, with `validate: true` and a new `output_file` in \
the folder of the file; `prompt` asks the question and names columns as {{{{column}}}}. Report the cost, and ask \
whether to start.
2. Make the same call without `validate`, and call `bulk_status` until it is `finished`.
3. Call `compare` with the output as `files`, `by: "variant"`, and with the column of the right answers as `gold` if \
there is one.
4. Say which model is better, whether the difference may be chance, and what each costs. The resource {skill} \
explains more.\
"""


def add(socket: ToolSocket) -> None:
    """Add the tool and the prompt to the server."""

    def compare_models(file: str, question: str, models: str) -> str:
        return _PROMPT.format(file=file, question=question, models=models, skill=SKILL)

    socket.add_prompt(compare_models, "Compare models on a file", "Agreement, accuracy and cost of two or more models.")
    COMPARE.add_tool(socket)


def _resolved(options: JsonDict, jobs: ServerJobs, caller: Caller) -> JsonDict:
    from promptmill.core.secret_text import find_field  # imported on use: most servers compare nothing
    from promptmill.jobs.store.folder import ID

    gold, report = options["gold"], options["report"]
    named = [*(options["field"] or ()), options["by"] or "", (gold or "").rpartition(":")[2]]
    if secret := find_field(named):
        raise input_error(f"The column {secret} {MAY_HOLD_SECRETS}, by its name.")
    files = [
        str(
            jobs.visible.output_of(name, caller)
            if ID.fullmatch(name) and "." not in name
            else jobs.paths.allowed(name, "files")
        )
        for name in options["files"]
    ]
    right, is_file = (None, False) if gold is None else _resolved_gold(jobs, gold)
    return {
        **options,
        "files": files,
        "gold": right,
        "may_read_gold": is_file or not jobs.paths.rule.is_guarded,
        "report": None if report is None else jobs.paths.allowed_of(report, "report", (".html",)),
        "rows": _ROWS if options["rows"] is None else options["rows"],
    }


def _resolved_gold(jobs: ServerJobs, gold: str) -> tuple[str, bool]:
    """Return `gold` with the resolved path of its file, and True; if `gold` names a column, return it and False.

    Raises `PromptmillError` (`invalid_input`) for a file that the file rule refuses.
    """
    path, colon, column = gold.rpartition(":")
    allowed = [str(jobs.paths.allowed(text, "gold")) for text in (path, gold) if _has_known_suffix(text)]
    if not allowed:
        return gold, False
    return allowed[-1] if _has_known_suffix(gold) else f"{allowed[0]}{colon}{column}", True


def _has_known_suffix(text: str) -> bool:
    from promptmill.files.path_formats import reading  # imported on use, as above

    return reading(Path(text)) is not None


TOOL = VerbTool(
    title="Compare answers",
    words="""\
Compare answers to the same rows: agreement, accuracy by `gold`, whether a difference may be chance.

Returns the figures and the first `rows` that differ. With `criterion`, wait for the job of `judge` with bulk_status,
and make the same call again: no verdict is paid for twice.""",
    resolved=_resolved,
    step="This judgement",
    schema=object_schema(
        {
            "rows_compared": {"type": "integer"},
            "matched": {"type": "string", "description": "The key by which rows are the same, such as `by id`."},
            "files": objects_schema(),
            "pairs": objects_schema(
                "The agreement of two files; `changes` counts each pair of answers (`''`: rare ones)."
            ),
            "gold": {
                "type": "object",
                "description": "The figures against the right answers.",
                "additionalProperties": True,
            },
            "judge": {
                "type": "object",
                "description": "The verdicts so far by pair of files, and the state of the judge's job.",
                "additionalProperties": True,
            },
            "rows": objects_schema("Rows whose answers differ, with their number from 1."),
        },
        "rows_compared",
        "files",
        "rows",
    ),
)
