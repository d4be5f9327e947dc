"""The comparison for a call. A child process with limited memory and time reads the foreign files.

**The attacker** is an agent that has read a poisoned page, and that chooses files and columns. **The harm**: the agent
reads keys and passwords in rows, or sends them to a judge. So files must pass the file rule, rows with secrets are left
out, and figures that contain a secret are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from promptmill.config.model_config import ModelConfig
from promptmill.core.bounds import LONGEST_SHOWN, MOST_SHOWN
from promptmill.core.errors import input_error
from promptmill.core.secret_text import SecretFinder, find_field, may_hold_secrets
from promptmill.core.values import JsonDict, json_text
from promptmill.core.wording import cut
from promptmill.features.compare import comparison_page, figures
from promptmill.features.compare.compared_rows import ComparedRows
from promptmill.features.compare.comparison import order_of, rows_of
from promptmill.features.compare.figures import Judgement
from promptmill.features.compare.judge import NAME, JudgedPairs, JudgeOrder, judgement_of, masked_by
from promptmill.files.files import InputFile
from promptmill.files.path_formats import reading
from promptmill.jobs.caller import Caller, CallModels
from promptmill.jobs.door import Rows
from promptmill.jobs.inputs import input_rows as given
from promptmill.jobs.inputs.input_rows import InputRows
from promptmill.jobs.manage.server_jobs import Approve, ServerJobs
from promptmill.jobs.store.folder import ID
from promptmill.jobs.store.index import JobFolders
from promptmill.system.call_files import MAY_HOLD_SECRETS, FileRule

_PROGRESS = ("job_id", "state", "reason", "done", "failed", "total", "message")


@dataclass(frozen=True, slots=True)
class Judge:
    """The judge of a call: its order, its model, and a function that gets the cost of the judge's job."""

    asked: JudgeOrder
    config: ModelConfig
    approve: Approve | None


async def compared(
    jobs: ServerJobs,
    caller: Caller,
    files: Sequence[str],
    *,
    gold: str | None,
    rows: int,
    options: JsonDict,
    report: str | None = None,
    judge: Judge | None = None,
) -> JsonDict:
    """Return the figures of a comparison and the first `rows` rows with different answers, as the tool returns them.

    `files`: paths or ids of jobs. `gold`, `options`: see `order_of`. `report`: the path for a page with all rows. A
    judge's job is started or resumed; the figures count its verdicts so far. Raises `PromptmillError`.
    """
    named = [*(options.get("field") or ()), options.get("by") or "", (gold or "").rpartition(":")[2]]
    if secret := find_field(named):
        raise input_error(f"The column {secret} {MAY_HOLD_SECRETS}, by its name.")
    paths = [
        str(
            jobs.visible.output_of(name, caller)
            if ID.fullmatch(name) and "." not in name
            else jobs.paths.allowed(name, "files")
        )
        for name in files
    ]
    right, is_file = (None, False) if gold is None else _resolved(jobs, gold)
    call = partial(
        _compare,
        files=paths,
        gold=right,
        may_read_gold=is_file or not jobs.paths.rule.is_guarded,
        options=options,
        most=rows,
        report=None if report is None else jobs.paths.allowed_of(report, "report", (".html",)),
        folders=jobs.folders,
        rule=jobs.paths.rule,
    )
    shown = ", ".join(Path(path).name for path in paths)
    if judge is None:
        return await jobs.apart(call, shown)
    with given.temporary_folder(jobs.folders) as place:
        file, settings = place / f"{NAME}.jsonl", judge.asked.settings(judge.config)
        judging = _Judging(judge.asked, judge.config.model, settings, masked_by(judge.config), caller.session, file)
        found = await jobs.apart(partial(call, judging=judging), shown)
        job_id, key = found.pop("job")
        if key:
            pairs = Rows(given=InputRows([InputFile(file)], key, NAME), name=NAME, job_id=job_id)
            with judge.asked.opened(pairs, CallModels(judge.config), jobs.folders, caller=caller) as job:
                now = await jobs.start(job, caller, judge.approve)
            found["judge"] |= {name: now[name] for name in _PROGRESS if name in now}
    return found


@dataclass(frozen=True, slots=True)
class _Judging:
    """The part of a judge's order that the child process needs."""

    asked: JudgeOrder
    model: str
    settings: dict[str, object]
    """The settings, see `JudgeOrder.settings`."""
    masked: frozenset[str]
    """See `masked_by`."""
    session: str
    """The session, see `JudgedPairs.job_id`."""
    file: Path
    """The path of the new file for the judge's rows."""


def _resolved(jobs: ServerJobs, gold: str) -> tuple[str, bool]:
    """Return `gold` with the resolved path of its file, and whether it names a file. If not, `gold` names a column.

    Raises `PromptmillError` (`invalid_input`) for a file that the file rule refuses.
    """
    path, colon, column = gold.rpartition(":")
    allowed = [str(jobs.paths.allowed(text, "gold")) for text in (path, gold) if _has_known_suffix(text)]
    if not allowed:
        return gold, False
    return allowed[-1] if _has_known_suffix(gold) else f"{allowed[0]}{colon}{column}", True


def _has_known_suffix(text: str) -> bool:
    return reading(Path(text)) is not None


def _compare(
    *,
    files: list[str],
    gold: str | None,
    may_read_gold: bool,
    options: dict[str, object],
    most: int,
    report: Path | None,
    folders: JobFolders,
    rule: FileRule,
    judging: _Judging | None = None,
) -> dict[str, Any]:
    # `gold` may name a file only if the file rule allowed it; any other text is a column
    rows = rows_of(files, order_of({**options, "gold": gold}), folders, may_read_gold=may_read_gold)
    finder = rule.finder if rule.is_guarded else None
    judgement, job = (None, None) if judging is None else _judgement(rows, judging, folders, finder)
    found = figures.figures(rows, judgement, most)
    figured = {**found, "files": [{**file} for file in found["files"]]}
    shown = found.pop("differing")
    for file in found["files"]:
        file.pop("made", None)
    if finder is not None and (kind := finder.find(orjson.dumps(found))):
        raise input_error(f"The values of these files hold {kind}; compare another field.")
    made = None if report is None else comparison_page.write(report, figured, rows, judgement, finder)
    found["rows_compared"] = found.pop("rows")
    bounded = [_short(row) for row in shown]
    if finder is not None:
        bounded = [
            {"row": row["row"], "left_out": f"The row {MAY_HOLD_SECRETS}."}
            if may_hold_secrets(finder, row["own"], json_text(row))
            else row
            for row in bounded
        ]
    begun: JsonDict = {} if job is None else {"job": job}
    if made is not None:
        begun["report"] = made.as_dict()
    return {**_short(found), **begun, "rows": bounded}


def _judgement(
    rows: ComparedRows, judging: _Judging, folders: JobFolders, finder: SecretFinder | None
) -> tuple[Judgement, tuple[str, str]]:
    """Write the rows of a judge's job. Return its verdicts so far, its id, and the digest of its rows.

    Without rows, the digest is `""`. Rows that may contain secrets are not judged.
    """
    pairs = JudgedPairs.of(rows, judging.asked.limit)
    pairs.check_masks(judging.masked)
    if finder is not None:
        pairs = pairs.without(lambda own, line: find_field(own) or finder.find(line))
    job_id, content = pairs.job_id(judging.settings, judging.session), hashlib.sha256()
    with judging.file.open("xb") as file:
        for line in pairs.lines():
            content.update(line)
            file.write(line)
    key, folder = content.hexdigest() if pairs.others else "", folders.loose(job_id)
    if folder.spec is not None and folder.spec.input.sha256 != key:  # the job has verdicts on other rows
        return Judgement({"criterion": judging.asked.criterion, "model": judging.model}, {}), (job_id, key)
    return judgement_of(pairs, judging.asked, judging.model, folder), (job_id, key)


def _short(value: Any) -> Any:
    match value:
        case str():
            return cut(value, LONGEST_SHOWN)
        case dict():
            return {name: _short(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_short(inner) for inner in value[:MOST_SHOWN]]
    return value
