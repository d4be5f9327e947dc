"""The report of a job for a call: a child process with limited memory and time reads the rows and images.

The job's own process may read any image that its user may; for the report of a call, the rule for the files of calls
counts, as for the file that is written. So does the rule for rows with secrets, which no result of a call shows.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from promptmill.core.values import JsonDict
from promptmill.features.report import job_page
from promptmill.images.load import ImageRules
from promptmill.jobs.caller import Caller
from promptmill.jobs.manage import child_step
from promptmill.jobs.manage.server_jobs import ServerJobs
from promptmill.jobs.store.database import Work
from promptmill.jobs.store.folder import Folder
from promptmill.system import runtime
from promptmill.system.call_files import FileRule

_MODULE = "promptmill.features.report.call_report"
_COMPUTING_S = 300  # bound of processor time, as for a comparison


async def written(jobs: ServerJobs, caller: Caller, job_id: str, report: str) -> JsonDict:
    """Write the report of a job to the file `report`, and return its path and the number of its rows.

    Raises `PromptmillError`, for example if the file exists and is not an earlier report of this job.
    """
    target, folder = jobs.paths.allowed_page(report), jobs.visible.find(job_id, caller)
    call = partial(_write, path=folder.path, target=target, rule=jobs.paths.rule)
    return await jobs.apart(call, folder.job_id, _MODULE)


def _write(_: Work, *, path: Path, target: Path, rule: FileRule) -> dict[str, object]:
    runtime.limit_computing(_COMPUTING_S)
    return job_page.write(Folder(path), target, ImageRules(rule)).as_dict()


_STEPS = {_write.__name__: _write}

if __name__ == "__main__":
    sys.exit(child_step.main(_STEPS))
