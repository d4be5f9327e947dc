"""The report of a job for a call: a child process with limited memory and time reads the rows and images.

The job's own process may read any image that its user may; for the report of a call, the rule for the files of calls
counts, as for the file that is written. So does the rule for rows with secrets, which no result of a call shows.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from promptmill.core.values import JsonDict
from promptmill.features.report import job_page
from promptmill.images.load import ImageRules
from promptmill.jobs.caller import Caller
from promptmill.jobs.manage.server_jobs import ServerJobs
from promptmill.jobs.store.folder import Folder
from promptmill.system.call_files import FileRule


async def written(jobs: ServerJobs, caller: Caller, job_id: str, report: str) -> JsonDict:
    """Write the report of a job to the file `report`, and return its path and the number of its rows.

    Raises `PromptmillError`, for example if the file exists and is not an earlier report of this job.
    """
    target, folder = jobs.paths.allowed_of(report, "report", (".html",)), jobs.visible.find(job_id, caller)
    return await jobs.apart(partial(_write, folder=folder.path, target=target, rule=jobs.paths.rule), folder.job_id)


def _write(folder: Path, target: Path, rule: FileRule) -> dict[str, object]:
    return job_page.write(Folder(folder), target, ImageRules(rule)).as_dict()
