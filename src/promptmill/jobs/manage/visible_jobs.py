"""The jobs that a client of a server may see."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from promptmill.core.bounds import LARGEST_PAGE
from promptmill.core.errors import input_error
from promptmill.files import table_paths
from promptmill.files.databases import Stamp
from promptmill.jobs.caller import USER, Caller
from promptmill.jobs.export.output import is_own
from promptmill.jobs.manage.call_paths import CallPaths
from promptmill.jobs.manage.call_results import Only, results_page
from promptmill.jobs.store import status
from promptmill.jobs.store.description import AnswerForm
from promptmill.jobs.store.folder import ID, Folder
from promptmill.jobs.store.index import JobFolders, no_job
from promptmill.jobs.store.order import JobOrder
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.status_record import Status
from promptmill.system.safe_open import home_expanded, real_path

_LISTED = {"job_id", "state", "reason", "total", "done", "failed", "cost", "input_file", "output_file"}


class VisibleJobs:
    """The visible jobs: this user's jobs on permitted files and, for each client, the jobs on rows of its calls."""

    def __init__(self, folders: JobFolders, paths: CallPaths) -> None:
        self.folders, self.paths = folders, paths
        self._sessions: dict[str, str] = {}
        """The session that started the job, by job id, for jobs on rows of a call."""

    def add(self, job_id: str, caller: Caller) -> None:
        """List a job on rows of a call, but only for the session of this call."""
        if caller.is_alone:
            self._sessions[job_id] = caller.session

    def newest(self, limit: int, caller: Caller) -> dict[str, object]:
        """Return the newest jobs, each with the fields of `_LISTED`: `{"jobs": […], "more": the number of other jobs}`.
        Blocks."""
        jobs = status.read_all(self.folders.all(), partial(self._is_listed, caller=caller))
        listed = [{name: value for name, value in job.items() if name in _LISTED} for job in jobs[:limit]]
        return {"jobs": listed, "more": max(0, len(jobs) - limit)}

    def results(
        self,
        job_id: str,
        caller: Caller,
        offset: int,
        limit: int,
        only: Only = "all",
        *,
        with_input: bool = True,
        largest: int = LARGEST_PAGE,
    ) -> dict[str, object]:
        """Return a page of answered rows, even before the job's end; see `results_page`. Blocks."""
        folder, rule = self.find(job_id, caller), self.paths.rule
        return results_page(folder, rule, offset, limit, only, with_input=with_input, largest=largest)

    def output_of(self, job_id: str, caller: Caller) -> Path:
        """Return the output of a job that the caller may see. Raises `PromptmillError` (`invalid_input`). Blocks."""
        _, spec = self.found(job_id, caller)
        if self._is_loose(spec):
            raise input_error(f"Job {job_id} has no output file; run it with `output_file`.")
        return spec.output.path

    def control(self, job_id: str, caller: Caller = USER, **changes: Any) -> Status:
        """Pause or continue a job, or change its limits; `changes` are fields of `Control`. Blocks.

        A change takes effect within two seconds, and in later runs. Raises `PromptmillError` (`invalid_input`).
        """
        folder = self.find(job_id, caller)
        folder.change_control(**changes)
        return status.read(folder)

    def find(self, job_id: str, caller: Caller) -> Folder:
        """Return the folder of a job that the caller may see. `job_id`: the job's id or its output.

        Raises `PromptmillError` (`invalid_input`).
        """
        return self.found(job_id, caller)[0]

    def found(self, job_id: str, caller: Caller) -> tuple[Folder, JobSpec]:
        """Return the folder that `find` returns, and the job's description."""
        name = job_id if ID.fullmatch(job_id) else str(self.paths.rule.placed_file(home_expanded(job_id)))
        folder = self.folders.named(name)
        spec = folder.known_spec()  # read once, because the folder may be replaced between two reads
        if not self._is_owner(spec, caller):
            raise no_job(job_id)
        if not self._may_see(spec):
            if job_id != spec.job_id:  # a client must not learn which files exist elsewhere
                raise no_job(job_id)
            raise input_error(f"Job {job_id} has files outside the folders that may be used here, or other such files.")
        return folder, spec

    def _is_listed(self, spec: JobSpec, caller: Caller) -> bool:
        if self._is_loose(spec):
            return caller.is_alone and self._sessions.get(spec.job_id) == caller.session
        return self._is_owner(spec, caller) and self._may_see(spec)

    @staticmethod
    def _is_owner(spec: JobSpec, caller: Caller) -> bool:
        """Return whether a job belongs to `caller`. A job on files belongs to all callers."""
        return spec.origin.owner is None or spec.origin.owner == caller.owner

    def _may_see(self, spec: JobSpec) -> bool:
        paths = [*(part.path for part in spec.input.parts if spec.input.is_file)]
        if not self._is_loose(spec):
            paths.append(spec.output.path)
        return all(map(self.paths.passes, paths))

    def _is_loose(self, spec: JobSpec) -> bool:
        """Return whether the answers of a job are only in its database, because the rows came in a call."""
        return self.folders.owner(spec.output.path) is not None

    def foreign_output(self, text: str, source: object, column: object) -> tuple[Path, Stamp] | None:
        """If the file at a job's output `text` is not the job's own, return it and its stamp; else None. Blocks.

        `source`, `column`: the call's `input_file` and `answer_column`. Raises as `CallPaths.allowed` does.
        """
        output = self.paths.allowed(text, "output_file")
        there = table_paths.stamp(output)
        inputs = (real_path(self.paths.rule.placed_file(home_expanded(source))),) if isinstance(source, str) else ()
        form = AnswerForm(column=column) if isinstance(column, str) else AnswerForm()
        folder = self.folders.of(JobOrder.target_of(inputs, output, form))
        is_its_own = (spec := folder.spec) is not None and is_own(spec, folder.result, there)
        return None if there is None or is_its_own else (output, there)
