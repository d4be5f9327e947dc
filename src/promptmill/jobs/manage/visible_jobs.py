"""Jobs as a server's callers see them, inside the folders that they may use: their status, their rows, their files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import orjson

from promptmill.backends import rows
from promptmill.core.bounds import LARGEST_PAGE, LONGEST_PATH
from promptmill.core.errors import input_error
from promptmill.core.secret_text import SecretFinder, find_field
from promptmill.jobs import members
from promptmill.jobs.caller import USER, Caller
from promptmill.jobs.columns import answer_fields, variant_values
from promptmill.jobs.export.answered import answered_rows
from promptmill.jobs.export.text import OwnValues
from promptmill.jobs.inputs import files as input_files
from promptmill.jobs.inputs import formats
from promptmill.jobs.inputs.row_secrets import OTHERWISE
from promptmill.jobs.run.order_files import check_name
from promptmill.jobs.store import status
from promptmill.jobs.store.database import JobDatabase, Row
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders, no_job
from promptmill.jobs.store.records import SLOT, Record
from promptmill.jobs.store.spec import JobSpec
from promptmill.jobs.store.status_record import Status
from promptmill.system.call_files import MAY_HOLD_SECRETS, FileRule, RefusedError
from promptmill.system.safe_open import OutsideError, home_expanded

_VALUE = 24  # bytes of text that take as long on the event loop as a value; a page has up to 300,000 values
_NAME_ANOTHER = "Name another file."
Only = Literal["all", "answers", "failed"]
_FORMATS = frozenset({"jsonl", "csv", "tsv", "parquet", "xlsx"})


class VisibleJobs:
    """All jobs of this user that a server's callers may see."""

    def __init__(self, rule: Callable[[], FileRule], folders: JobFolders | None = None) -> None:
        """`rule` gives the rule for the files that are read and written; `folders` is where jobs live."""
        self._rule = rule
        self.folders = folders or JobFolders.from_environ()
        self._own: dict[str, str] = {}
        """Jobs of callers of this process whose files are ours, and the session of each."""

    @property
    def rule(self) -> FileRule:
        """The rule for the files that calls read and write."""
        return self._rule()

    def status(self, job_id: str | None, limit: int = 20, caller: Caller = USER) -> dict[str, Any]:
        """Return the status of one job, or the newest as `{"jobs": […], "more": how many there are besides}`.

        Jobs on rows that came in a call are listed for their session only.
        """
        if job_id is not None:
            return dict(status.read(self.find(job_id, caller)))
        found = status.read_all(self.folders.all(), partial(self._is_listed, caller=caller))
        return {"jobs": found[:limit], "more": max(0, len(found) - limit)}

    def results(
        self, job_id: str, offset: int, limit: int, only: Only = "all", caller: Caller = USER
    ) -> dict[str, Any]:
        """Return answered rows from row `offset` (from 0) on, in input order; also before the job's end. Blocks.

        `only`: only answered rows, or only failed ones.

        `next_offset` is the next page's, None at the end of the input; rows without an answer yet are left out.
        """
        folder, _ = self._found(job_id, caller)
        rule = self._rule()
        found: list[dict[str, Any]] = []
        with folder.reading() as store:
            spec = folder.spec_in(store)
            names = spec.output.names or {}
            fields = _Fields(spec, rule.finder if rule.is_guarded else None)
            size, last, after = 0, -1, None
            for each in answered_rows(
                store, spec, partial(_wanted, only), min(offset, SLOT), _end_of_answers(store, spec)
            ):
                if each.row.n != last and (len(found) >= limit or size > LARGEST_PAGE):
                    after = each.row.n
                    break
                answered = _answer_fields(each.record, names)
                own = fields.of(each.row) | variant_values(spec, each.slot)
                found.append({names.get("row", "row"): each.row.n} | own | answered)
                size += _size(each.row.cells or b"") + _size(orjson.dumps(answered))
                last = each.row.n
        now = status.read(folder)
        return {
            "job_id": now["job_id"],
            "state": now["state"],
            "done": now.get("done", 0),
            "total": now.get("total"),
            **({"columns": names} if names else {}),
            "rows": found,
            "next_offset": after,
        }

    def output_of(self, job_id: str, caller: Caller) -> Path:
        """Return the output of a job that its caller may see. Raises `PromptmillError` (`invalid_input`). Blocks."""
        _, spec = self._found(job_id, caller)
        if self._is_loose(spec):
            raise input_error(f"Job {job_id} has no output file; run it with `output_file`.")
        return spec.output.path

    def control(self, job_id: str, caller: Caller = USER, **changes: Any) -> Status:
        """Pause or continue a job, or change its limits; `changes` are fields of `Control`. Blocks.

        A change takes effect within two seconds, and holds for later runs. Raises `PromptmillError` (`invalid_input`).
        """
        folder = self.find(job_id, caller)
        folder.change_control(**changes)
        return status.read(folder)

    def find(self, job_id: str, caller: Caller) -> Folder:
        """Return the folder of a job that its caller may see, by its id or its output.

        Raises `PromptmillError` (`invalid_input`).
        """
        return self._found(job_id, caller)[0]

    def _found(self, job_id: str, caller: Caller) -> tuple[Folder, JobSpec]:
        folder = self.folders.named(job_id)
        spec = folder.known_spec()  # read once: its folder could be another one by the second time
        if not self._is_owner(folder, spec, caller):
            raise no_job(job_id)
        if not self._may_see(spec):
            if job_id != spec.job_id:  # or a client could find out which files other folders have
                raise no_job(job_id)
            raise input_error(f"Job {job_id} has files outside the folders that may be used here, or other such files.")
        return folder, spec

    def _is_listed(self, folder: Folder, spec: JobSpec, caller: Caller) -> bool:
        if self._is_loose(spec):
            return self._own.get(spec.job_id) == caller.session
        return self._is_owner(folder, spec, caller) and self._may_see(spec)

    def _is_owner(self, folder: Folder, spec: JobSpec, caller: Caller) -> bool:
        """Return whether a job is its caller's. A job on files is everybody's."""
        owner = spec.owner
        if owner is None and self._is_loose(spec):  # of an older release
            owner = (folder.task or {}).get("owner", "")
        return owner is None or owner == caller.owner

    def _may_see(self, spec: JobSpec) -> bool:
        paths = [*(part.path for part in spec.input.parts if spec.input.is_file)]
        if not self._is_loose(spec):
            paths.append(spec.output.path)
        return all(map(self._passes, paths))

    def allowed(self, text: str, name: str) -> Path:
        """Return the resolved path of a file of rows that a call names in its argument `name`.

        Raises `PromptmillError` (`invalid_input`) for a file that the rule on files refuses.
        """
        if len(text) > LONGEST_PATH:
            raise input_error(f"{name} has {len(text):,} characters; no path is that long.")
        rule, path = self._rule(), home_expanded(text)
        try:
            file, member = members.split(path)
            real = rule.resolved(file)
            real = real.with_name(f"{real.name}#{member}") if member else real
        except (OSError, ValueError, RuntimeError):
            raise input_error(f"{name} is not a usable path.") from None
        except OutsideError:
            raise input_error(f"{name} is outside {rule.words}. Use a file inside.") from None
        except RefusedError as error:
            raise input_error(f"{name} {error}. {OTHERWISE if name == 'input_file' else _NAME_ANOTHER}") from None
        check_name(real)
        kind = formats.format_by_suffix(real, name)
        if kind not in _FORMATS:  # the user's texts and JSON files are no concern of a caller
            whole = "; `files` sends whole texts." if (name, kind) == ("input_file", "txt") else "."
            raise input_error(
                f"{name} is a .{kind} file; use one of .jsonl, .csv, .tsv, .parquet, .xlsx here: others may be a "
                f"program's{whole}"
            )
        if input_files.is_several(real):
            raise input_error(f"{name} is a folder or a pattern; name a file.")
        return real

    def _passes(self, path: Path) -> bool:
        try:
            self._rule().check(path)
        except (OutsideError, RefusedError):
            return False
        return True

    def _is_loose(self, spec: JobSpec) -> bool:
        """Return whether the answers of a job are in no file: its rows came in a call."""
        return self.folders.owner(spec.output.path) is not None


def _answer_fields(record: Record, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the answer's fields as for the output, without logprobs and the like where they take megabytes.

    Their values would take many times their size in memory, and seconds of the event loop to send.
    """
    size = len(record.more or "")
    if _size((record.more or "").encode()) <= LARGEST_PAGE // 8:
        return answer_fields(record, names)
    left_out = f"`logprobs`, `tool_calls` and the like take {size:,} bytes; they are in the job's output file."
    return answer_fields(record._replace(more=None), names) | {"left_out": left_out}


def _end_of_answers(store: JobDatabase, spec: JobSpec) -> int:
    """Return the number behind the last row with an answer: the rest of a large input is not read."""
    query = "SELECT coalesce(max(key), -1) FROM answer WHERE key BETWEEN ? AND ?"
    firsts = [slot * SLOT for slot in range(len(spec.targets))]
    return max(int(store.read(query, first, first + SLOT - 1)[0][0]) - first for first in firsts) + 1


def _wanted(only: Only, key: int, record: Record | None) -> Record | None:
    del key
    if record is None or (only != "all" and (record.code is None) != (only == "answers")):
        return None
    return record


def _size(text: bytes) -> int:
    """Return the size of JSON as a part of a page: its bytes, and more for many values."""
    return len(text) + _VALUE * text.count(b",")


class _Fields:
    """The own fields of a job's rows, as far as they can be sent."""

    def __init__(self, spec: JobSpec, finder: SecretFinder | None) -> None:
        """`finder` finds the secrets that a row of the operator's job may hold; None: they are no matter."""
        self._spec, self._finder = spec, finder
        self._own = OwnValues(spec)

    def of(self, row: Row) -> dict[str, Any]:
        """Return the fields of a row; `{}` for one that is too large for a page, or unreadable."""
        if _size(row.cells or b"") > LARGEST_PAGE:
            return {}
        text = rows.json_line(self._own.of(row))
        value: dict[str, Any] = orjson.loads(text)
        if self._finder is not None and (find_field(value) or self._finder.find(text)):
            return {"left_out": f"The row's fields {MAY_HOLD_SECRETS}."}
        return value
