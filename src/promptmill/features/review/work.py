"""The review of a job, on every face. For a server's call, a child process with limited memory and time does this.

An agent gets no row that may contain secrets, because it may have read a poisoned page that asks for them. The review's
file is for the person and has all rows, like the job's output.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from promptmill.core.bounds import LONGEST_SHOWN, MOST_SHOWN
from promptmill.core.errors import Named, argument_name, config_error, input_error, worded
from promptmill.core.secret_text import SecretFinder
from promptmill.core.values import JsonDict, exact
from promptmill.core.wording import cut
from promptmill.features.review import ROWS, review_page
from promptmill.features.review.command_words import command
from promptmill.features.review.reviewed import LABEL, NO_DOUBT, OF_FIELD, Review, ReviewRow, review, take
from promptmill.features.verbs.record import VerbCall
from promptmill.jobs.columns.column_names import VARIANT
from promptmill.jobs.inputs import input_rows as given
from promptmill.jobs.inputs.short_forms import labels_of
from promptmill.jobs.manage.bulk_result import lines_of
from promptmill.jobs.manage.call_results import left_out
from promptmill.jobs.store.folder import Folder
from promptmill.pages.page import Report
from promptmill.system.call_files import FileRule
from promptmill.system.safe_open import home_expanded

_SEVERAL = "The job has several answers to each row and stores no labels"


def done(call: VerbCall) -> JsonDict:
    """Return the rows to review, and write them; or store a person's labels. Raises `PromptmillError`."""
    options = call.options
    folder = options.get("folder") or call.folders.at(str(options["job"]))
    labels = [] if options["choices"] is None else [*labels_of(options["choices"]).texts]
    if options["take"] is None and options["decisions"] is None:
        return _reviewed(call, folder, labels)
    if options["take"] is not None and options["decisions"] is not None:
        raise input_error("Give one of ", Named("take"), " and ", Named("decisions"), ".")
    taking = "take" if options["decisions"] is None else "decisions"
    for name in ("output", "rows", "sample", "open"):
        if options[name]:
            raise config_error(Named(name), " cannot be used with ", Named(taking), ".")
    store = partial(_taken, path=folder.path, labels=labels)
    if options["take"] is not None:
        file = home_expanded(options["take"])
        taken = call.apart(partial(store, decisions=file), file.name)
    else:
        with given.written(call.folders, lines_of(options["decisions"], "label"), ".jsonl", "decisions") as rows:
            taken = call.apart(partial(store, decisions=rows.parts[0].path), "decisions")
    call.has_failures = "refused" in taken
    if call.rule is not None and call.has_failures:
        taken["refused"] = taken["refused"][:MOST_SHOWN]
    return taken


def _reviewed(call: VerbCall, folder: Folder, labels: list[str]) -> JsonDict:
    rows, sample = call.options["rows"], call.options["sample"]
    if rows is not None and sample is not None:
        raise config_error(Named("rows"), " cannot be used with ", Named("sample"), "; leave one of them out.")
    if not all(isinstance(count, int) and count > 0 for count in (rows, sample) if count is not None):
        raise input_error("`rows` and `sample` are whole numbers from 1 on.")
    target = call.output(_beside(folder)) if call.is_command or call.options["output"] else None
    if target is not None:
        suffix = target.suffix.lower()
        if suffix not in {*review_page.PAGES, review_page.WORKBOOK}:
            raise input_error(f"{target.name} is no name for a review: it ends in .html or .xlsx.")
        if call.options["open"] and suffix == review_page.WORKBOOK:
            raise config_error(Named("open"), " shows a page; leave -o out, or name a .html.")
    finding = partial(
        _found,
        path=folder.path,
        most=sample or rows or ROWS,
        at_random=sample is not None,
        labels=labels,
        target=target,
        rule=call.rule,
        is_command=call.is_command,
    )
    found = call.apart(finding, folder.job_id)
    if target is not None and target.suffix.lower() != review_page.WORKBOOK and "file" in found:
        call.page = Report(target, found["count"], found["count"])
    if not call.is_command:
        return found
    about = {name: found[name] for name in ("job_id", "reasons", "labels")}  # the rows are in the file
    return {**about, "file": found.get("file"), "rows": found["count"]}


def _beside(folder: Folder) -> Path:
    spec = folder.known_spec()
    if not spec.output.format:
        return Path(f"{spec.job_id}.review.html")
    return spec.output.path.with_name(f"{spec.output.path.name}.review.html")


def _found(
    *,
    path: Path,
    most: int,
    at_random: bool,
    labels: list[str],
    target: Path | None,
    rule: FileRule | None,
    is_command: bool,
) -> JsonDict:
    found = review(Folder(path), most, labels, at_random=at_random)
    next_step = command(found) if is_command else _call(found)
    is_written = target is not None and bool(found.rows)
    if target is not None and is_written:
        review_page.write(target, found, next_step)
    finder = rule.finder if rule is not None and rule.is_guarded else None
    notes = [] if found.can_take else [f"{_SEVERAL}; {next_step} measures them."]
    notes += [] if found.rows else [f"No row is in doubt, and no file is written. {worded(NO_DOUBT, argument_name)}"]
    rows = [row.cells() for row in found.rows] if rule is None else [_shown(row, finder) for row in found.rows]
    return {
        "job_id": found.job_id,
        "count": len(found.rows),
        "reasons": found.reasons,
        "labels": [*found.labels] if rule is None else _shown_labels(found, finder),
        **({"note": " ".join(notes)} if notes else {}),
        **({"file": str(target.absolute())} if target is not None and is_written else {}),
        "rows": rows,
    }


def _shown_labels(found: Review, finder: SecretFinder | None) -> list[str]:
    """Return the labels that an agent may see: none if the job stores no labels, and no label with a secret."""
    labels = found.labels[: MOST_SHOWN if found.can_take else 0]
    return [cut(label, LONGEST_SHOWN) for label in labels if finder is None or not finder.find(label.encode())]


def _call(found: Review) -> str:
    """Return the call that stores a page's decisions or, if rows have several answers, measures these answers."""
    saved = review_page.saved_as(found)
    if found.can_take:
        return f"review: job_id {found.job_id}, take {saved}"
    return f"compare: files {found.job_id}, by {VARIANT}, gold {saved}:{LABEL}"


def _shown(row: ReviewRow, finder: SecretFinder | None) -> JsonDict:
    cells = row.cells()
    fields = {name: [(exact(value), place) for value, place in values] for name, values in row.fields.items()}
    shown: JsonDict = {
        name: cut(value, LONGEST_SHOWN) if isinstance(value, str) else exact(value)
        for name, value in cells.items()
        if value or not (name == LABEL or name.startswith(OF_FIELD))
    }
    return left_out(row.number, row.own, cells, finder) or {**shown, **({"fields": fields} if fields else {})}


def _taken(*, path: Path, decisions: Path, labels: list[str]) -> JsonDict:
    return {"job_id": Folder(path).job_id, **take(Folder(path), decisions, labels).as_dict()}
