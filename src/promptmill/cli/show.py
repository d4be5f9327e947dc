"""`promptmill jobs JOB --rows`: shows some rows of a job, each prompt above its answer, or some rows of any file.

Rows of a job are read from its database, so that they can be shown while it runs. A file that no job made is read in
one pass.
"""

from __future__ import annotations

import argparse
import os
import pydoc
import secrets
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from promptmill.cli.terminal import columns, say
from promptmill.core.bounds import LONGEST_SHOWN
from promptmill.core.errors import Code, PromptmillError, config_error, without_controls
from promptmill.core.values import JsonObject, json_text
from promptmill.core.wording import counted, list_in_words
from promptmill.files import disk
from promptmill.jobs.columns.column_order import by_worth, mean_lengths
from promptmill.jobs.inputs.any_format import objects_in
from promptmill.jobs.manage.job_rows import JobRow, JobRows
from promptmill.jobs.store import statistics, status, status_words
from promptmill.jobs.store.database import DamagedError
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.rounds import ANSWERED
from promptmill.system.safe_open import home_expanded

_SEEDS = 10_000
_LABEL = 8
_LAST = ("answer", "error")
_HIDDEN = frozenset({"usage", "finish_reason", "cost"})
_LESS = "-X"  # with this option, `less` leaves the rows on the screen


@dataclass(frozen=True, slots=True)
class _Sample:
    """Some of `total` rows."""

    title: str
    total: int
    rows: Sequence[JobRow]
    about: JsonObject = field(default_factory=dict)
    several: str = ""
    """Words such as ` to 300 rows`, if a job has several answers to each row."""


def show(arguments: argparse.Namespace) -> int:
    """Print some rows of a job or a file. Returns 0. Raises `PromptmillError`."""
    if arguments.job_id is None:
        raise config_error("--rows", " needs a job, its output or a file of rows: promptmill jobs out.csv --rows.")
    seed = secrets.randbelow(_SEEDS) if arguments.seed is None else arguments.seed
    folder = JobFolders.from_environ().maker(arguments.job_id)
    try:
        if folder is None:
            sample = _of_file(home_expanded(arguments.job_id), arguments.rows, seed, failed_first=arguments.failed)
        else:
            sample = _of_job(folder, arguments.rows, seed, failed_first=arguments.failed)
    except (OSError, DamagedError) as error:
        why = disk.why(error) if isinstance(error, OSError) else "its database is damaged"
        raise PromptmillError(Code.STORAGE, f"{arguments.job_id} cannot be read: {why}.", "") from None
    if arguments.json:
        found = {**sample.about, "total": sample.total, "seed": seed, "rows": [row.values for row in sample.rows]}
        say(orjson.dumps(found, default=str).decode())
        return 0
    if not sample.rows:
        print(f"promptmill: {sample.title} has no rows to show yet.", file=sys.stderr)
        return 0
    how = ", failed ones first" if arguments.failed else ""
    if sample.total > len(sample.rows):
        how += f", at random (--seed {seed})"
    is_terminal = sys.stdout.isatty()
    text = "\n".join(_lines(sample, how, columns(sys.stdout) if is_terminal else 0, full=arguments.full))
    if is_terminal and text.count("\n") + 1 >= shutil.get_terminal_size().lines:
        os.environ.setdefault("LESS", _LESS)
        pydoc.pager(without_controls(text))
    else:
        say(text)
    return 0


def _of_job(folder: Folder, most: int, seed: int, *, failed_first: bool) -> _Sample:
    spec = folder.known_spec()
    skips_empty = spec.question.skip_empty
    outcomes = f"({ANSWERED} OR ({statistics.is_failed(skips_empty=skips_empty)})) AND {statistics.DELIVERED}"
    with folder.reading() as store:
        total = store.count(outcomes)
        records = statistics.failures(store, most, skips_empty=skips_empty) if failed_first else []
        where = f"{outcomes} AND {ANSWERED}" if failed_first else outcomes
        records += statistics.sample(store, most - len(records), seed, where)
        rows = list(JobRows(store, folder.spec_in(store)).read(records))
    rows.sort(key=lambda row: (failed_first and not row.error, row.number))  # keeps the answers to a row together
    rows_of_input = status_words.rows_of_input(status.read(folder))
    to = f" → {spec.output.path.name}" if spec.output.format else ""
    several = "" if rows_of_input is None else f" to {counted(rows_of_input, 'row')}"
    return _Sample(f"{spec.input.path.name}{to}", total, rows, {"job_id": spec.job_id}, several)


def _of_file(path: Path, most: int, seed: int, *, failed_first: bool) -> _Sample:
    """Return rows of a file that no job made, read in one pass. Raises `PromptmillError`."""
    chance = statistics.chance(seed)
    kept: list[tuple[int, JsonObject]] = []
    failed: list[tuple[int, JsonObject]] = []
    total = 0
    for row in objects_in(path):
        total += 1
        if failed_first and row.get("error"):
            if len(failed) < most:
                failed.append((total, row))
        elif len(kept) < most:
            kept.append((total, row))
        elif (place := chance.randrange(total)) < most:
            kept[place] = (total, row)
    chosen = failed + sorted(kept, key=lambda one: one[0])[: most - len(failed)]
    return _Sample(path.name, total, [_file_row(*one) for one in chosen], {"file": str(path.absolute())})


def _file_row(number: int, row: JsonObject) -> JobRow:
    error = row.get("error")
    if isinstance(error, Mapping):
        error = f"{error.get('code')}: {error.get('message')}"
    asked = [(name, _shown(value)) for name, value in row.items() if name not in {*_LAST, *_HIDDEN}]
    answers = [_shown(row["answer"])] if "answer" in row and not error else []
    return JobRow(number, asked, answers, str(error or ""), {"row": number, "values": row})


def _by_worth(row: JobRow, lengths: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Yield the labels and texts of a job's row (prompt, answer, variant), or a file's columns, the most useful first.

    `lengths`: the mean length of the texts in each column of a file.
    """
    answers = [("thought", row.thought), *(("answer", text) for text in row.answers), ("error", row.error)]
    answers = [(label, text) for label, text in answers if text or label == "answer"]
    if row.answered is None and "values" in row.values:
        texts = dict(row.asked)
        in_prompts = {name: length for name, length in lengths.items() if name in texts}
        for name in by_worth([*texts, "answer"], ["answer"], in_prompts):
            yield from answers if name == "answer" else [(name, texts[name])]
        return
    yield from (*row.asked, *answers, *row.variant)


def _shown(value: Any) -> str:
    return list_in_words(value if isinstance(value, str) else json_text(value))


def _lines(sample: _Sample, how: str, width: int, *, full: bool) -> Iterator[str]:
    """Yield rows for people. Texts longer than `width` are broken between words, unless `width` is 0."""
    noun, indent = "answer" if sample.several else "row", "\n" + " " * (_LABEL + 2)
    title = f"{sample.title}: {len(sample.rows)} of {counted(sample.total, noun)}{sample.several}{how}"
    yield from textwrap.wrap(title, width, break_on_hyphens=False) if width else [title]
    lengths = mean_lengths([dict(row.asked) for row in sample.rows])
    for row in sample.rows:
        yield f"\nrow {row.number:,}"
        for label, content in _by_worth(row, lengths):
            text = content if full else content[:LONGEST_SHOWN]
            if len(text) < len(content):
                text += f" … {len(content) - len(text):,} more characters (--full)"
            lines = text.expandtabs(4).splitlines() or [""]
            if width:
                room = max(width - _LABEL - 2, 20)
                lines = [part for line in lines for part in textwrap.wrap(line, room, break_on_hyphens=False) or [""]]
            yield f"  {label:{_LABEL}}{indent if len(label) >= _LABEL else ''}{indent.join(lines)}"
