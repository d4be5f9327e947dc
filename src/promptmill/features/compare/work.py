"""The comparison, for all callers. For a server's call, a child process with limited memory and time reads the files.

    files ─▶ their rows, and those of the judge's job ─▶ the job ─▶ figures with its verdicts, and the report

**The attacker** is an agent that has read a poisoned page, and that chooses files and columns. **The harm**: the agent
reads keys and passwords in rows, or sends them to a judge. So files must pass the file rule, rows with secrets are left
out, and figures that contain a secret are refused. A call starts the judge's job last, and does not wait for its end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from promptmill.core.bounds import LONGEST_SHOWN, MOST_SHOWN
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.secret_text import SecretFinder, find_field, may_hold_secrets
from promptmill.core.values import JsonDict, json_text
from promptmill.core.wording import cut, shape
from promptmill.features.compare import comparison_page, figures
from promptmill.features.compare.compared_rows import ComparedRows
from promptmill.features.compare.comparison_order import order_of, rows_of
from promptmill.features.compare.figures import Judgement
from promptmill.features.compare.judge import NAME, VERDICTS, JudgedPairs, JudgeOrder, judgement_of, masked_by
from promptmill.features.verbs.record import VerbCall
from promptmill.files import disk
from promptmill.files.files import InputFile
from promptmill.jobs.door import Rows
from promptmill.jobs.inputs import input_rows as given
from promptmill.jobs.inputs.input_rows import InputRows
from promptmill.jobs.inputs.short_forms import Labels
from promptmill.jobs.store.index import JobFolders
from promptmill.pages import page
from promptmill.pages.page import Report
from promptmill.system.call_files import MAY_HOLD_SECRETS, FileRule
from promptmill.system.safe_open import home_expanded

ROWS = 5
"""The number of differing rows that a command shows by default."""


def compared(call: VerbCall) -> JsonDict:
    """Return the figures of a comparison, and its first rows with different answers. Raises `PromptmillError`.

    For a call of a server, the result has the form that the tool returns, with the verdicts so far.
    """
    options, files = call.options, [str(name) for name in call.options["files"]]
    if not isinstance(gold := options["gold"], str | Path | None):
        columns = "name a column of the files, or the path of a file with the right answers."
        raise input_error(Named("gold"), f" is {shape(gold)}; {columns}")
    asked = JudgeOrder.of(options, compares_several=len(files) > 1 or options["by"] is not None)
    if (report := options["report"]) is not None:
        page.check(report := home_expanded(report))
    reading = partial(
        _compared,
        files=files,
        options={name: options[name] for name in ("field", "by", "tolerance", "id")}
        | {"gold": None if gold is None else str(gold)},
        may_read_gold=options.get("may_read_gold", True),
        most=ROWS if options["rows"] is None else options["rows"],
        report=report,
        folders=call.folders,
        rule=call.rule,
    )
    shown = ", ".join(Path(name).name for name in files)
    found = call.apart(reading, shown) if asked is None else _judged(call, asked, reading, shown)
    if report is not None:
        call.page = Report(report, found["report"]["rows"], found["report"]["total"])
    return found


def _judged(call: VerbCall, asked: JudgeOrder, reading: partial[JsonDict], shown: str) -> JsonDict:
    """Run or start the judge's job, and return the figures with its verdicts."""
    model = call.model(choices=Labels(VERDICTS))
    config, session = model.models.config, "" if call.caller is None else call.caller.session
    with given.temporary_folder(call.folders) as place:
        file, settings = place / f"{NAME}.jsonl", asked.settings(config)

        def ask(job_id: str, key: str) -> JsonDict:
            pairs = Rows(given=InputRows([InputFile(file)], key, NAME), name=NAME, job_id=job_id)
            with asked.opened(pairs, model.models, call.folders, command=model.command, caller=call.caller) as job:
                return call.run(model, job)

        first, keys = ask if call.caller is None else None, call.options.get("keys", {})
        judging = Judging(asked, config.model, settings, masked_by(config), session, file, keys, first)
        found = call.apart(partial(reading, judging=judging), shown)
        job_id, key = found.pop("job")
        if key and first is None:
            found["judge"] |= ask(job_id, key)
    return found


@dataclass(frozen=True, slots=True)
class Judging:
    """What the function that reads the files needs to know about the judge."""

    asked: JudgeOrder
    model: str
    settings: dict[str, object]
    """The settings, see `JudgeOrder.settings`."""
    masked: frozenset[str]
    """See `masked_by`."""
    session: str
    """The session, see `JudgedPairs.job_id`."""
    file: Path
    """The path of the file for the judge's rows."""
    keys: Mapping[str, str]
    """The digests of the rows that a program passed, by the temporary file that has the rows."""
    ask: Callable[[str, str], object] | None
    """A function of the job's id and the digest of its rows, which runs the job. None: the job is started later."""


def _compared(
    *,
    files: list[str],
    options: dict[str, object],
    may_read_gold: bool,
    most: int,
    report: Path | None,
    folders: JobFolders,
    rule: FileRule | None,
    judging: Judging | None = None,
) -> dict[str, Any]:
    # `gold` may name a file only if the file rule allowed it; any other text is a column
    finder = rule.finder if rule is not None and rule.is_guarded else None
    try:
        rows = rows_of(files, order_of(options), folders, may_read_gold=may_read_gold)
        judgement, job = (None, None) if judging is None else _judgement(rows, judging, folders, finder)
        found = figures.figures(rows, judgement, most)
        figured = {**found, "files": [{**file} for file in found["files"]]}
        found = found if rule is None else _for_agent(found, finder)
        made = None if report is None else comparison_page.write(report, figured, rows, judgement, finder)
    except OSError as error:
        raise PromptmillError(Code.STORAGE, f"{error.filename} cannot be read: {disk.why(error)}.", "") from None
    return {
        **found,
        **({} if job is None else {"job": job}),
        **({} if made is None else {"report": made.as_dict()}),
    }


def _for_agent(found: JsonDict, finder: SecretFinder | None) -> JsonDict:
    """Return figures as the tool returns them. Raises `PromptmillError` (`invalid_input`) for figures with a secret."""
    shown = found.pop("differing")
    for file in found["files"]:
        file.pop("made", None)
    if finder is not None and (kind := finder.find(orjson.dumps(found))):
        raise input_error(f"The values of these files hold {kind}; compare another field.")
    found["rows_compared"] = found.pop("rows")
    bounded = [_short(row) for row in shown]
    if finder is not None:
        bounded = [
            {"row": row["row"], "left_out": f"The row {MAY_HOLD_SECRETS}."}
            if may_hold_secrets(finder, row["own"], json_text(row))
            else row
            for row in bounded
        ]
    return {**_short(found), "rows": bounded}


def _judgement(
    rows: ComparedRows, judging: Judging, folders: JobFolders, finder: SecretFinder | None
) -> tuple[Judgement, tuple[str, str]]:
    """Write the rows of a judge's job, and ask the judge. Return the verdicts, the job's id, and its rows' digest.

    Without rows, the digest is `""`. Rows that may contain secrets are not judged.
    """
    pairs = JudgedPairs.of(rows, judging.asked.limit, {Path(path): key for path, key in judging.keys.items()})
    pairs.check_masks(judging.masked)
    if finder is not None:
        pairs = pairs.without(lambda own, line: find_field(own) or finder.find(line))
    job_id, content = pairs.job_id(judging.settings, judging.session), hashlib.sha256()
    with judging.file.open("wb") as file:
        for line in pairs.lines():
            content.update(line)
            file.write(line)
    key, folder = content.hexdigest() if pairs.others else "", folders.loose(job_id)
    if key and judging.ask is not None:
        judging.ask(job_id, key)
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
