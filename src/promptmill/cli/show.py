"""`promptmill show`: some rows of a job, each prompt above its answer, or some rows of any file of rows.

The rows of a job come from its database and its input, so that they are there while it runs. A file that no job made is
read once.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import pydoc
import random
import secrets
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson

from promptmill.backends import rows
from promptmill.backends.rows import RowReader
from promptmill.cli.options import Parser, at_least_one
from promptmill.cli.terminal import columns, say, wrapped
from promptmill.config.backends import OTHER_PATHS
from promptmill.core.conversation import AudioPart, ImagePart, Message
from promptmill.core.errors import Code, PromptmillError, input_error, without_controls
from promptmill.core.wording import counted
from promptmill.jobs.files import disk, row_files
from promptmill.jobs.files.disk import Lines, RandomFile
from promptmill.jobs.files.spool import spool
from promptmill.jobs.files.tables import CellTable
from promptmill.jobs.store.answers import ANSWERED, FAILED, DamagedError
from promptmill.jobs.store.folder import Folder, JobFolders
from promptmill.jobs.store.records import Record, answer_fields
from promptmill.jobs.store.spec import JobSpec

_ROWS = 5
_SEEDS = 10_000
_LONGEST = 2_000  # characters of a text, unless --full is given
_LABEL = 8
_LAST = ("answer", "error")
_HIDDEN = frozenset({"usage", "finish_reason", "cost"})
_CHANGED = "The input is not what the job has read; the answers are shown alone."
_LESS = "-RX"  # keeps colours, and leaves the rows on the screen


def add_options(show: Parser) -> None:
    """Add the options of the command."""
    show.add_argument("what", metavar="FILE|JOB", help="a job, its output, or any file of rows")
    show.add_argument("--rows", type=at_least_one, default=_ROWS, metavar="N", help=f"so many rows; else {_ROWS}")
    show.add_argument("--seed", type=int, metavar="N", help="the same rows each time; printed with the rows")
    show.add_argument("--failed", action="store_true", help="rows that failed first")
    show.add_argument("--full", action="store_true", help=f"texts of more than {_LONGEST:,} characters, too")
    show.add_argument("--state", type=Path, metavar="DIR", help="where jobs are kept, as for bulk")
    show.add_argument("--json", action="store_true", help="print the rows as JSON")
    show.set_defaults(unconfigured=_run)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row to show: `asked` has texts by their labels, `values` is the row for programs."""

    number: int
    """From 1."""
    asked: Sequence[tuple[str, str]]
    answers: Sequence[str]
    error: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Sample:
    """Some rows of `total`."""

    title: str
    total: int
    rows: Sequence[_Row]
    about: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


def _run(arguments: argparse.Namespace) -> int:
    """Print the rows. Returns 0."""
    seed = secrets.randbelow(_SEEDS) if arguments.seed is None else arguments.seed
    folder = _job_at(arguments.what)
    try:
        if folder is None:
            sample = _of_file(Path(arguments.what).expanduser(), arguments.rows, seed, failed_first=arguments.failed)
        else:
            sample = _of_job(folder, arguments.rows, seed, failed_first=arguments.failed)
    except (OSError, DamagedError) as error:
        why = disk.why(error) if isinstance(error, OSError) else "its database is damaged"
        raise PromptmillError(Code.STORAGE, f"{arguments.what} cannot be read: {why}.", "") from None
    if arguments.json:
        found = {**sample.about, "total": sample.total, "seed": seed, "rows": [row.values for row in sample.rows]}
        say(orjson.dumps(found, default=str).decode())
        return 0
    if sample.note:
        print(f"promptmill: {sample.note}", file=sys.stderr)
    if not sample.rows:
        print(f"promptmill: {sample.title} has no rows to show yet.", file=sys.stderr)
        return 0
    how = ", failed ones first" if arguments.failed else ""
    if sample.total > len(sample.rows):
        how += f", at random (--seed {seed})"
    _print(sample, how, full=arguments.full)
    return 0


def _job_at(what: str) -> Folder | None:
    """Return the job with this id or output; None for a file that no job made. Raises `PromptmillError`."""
    try:
        return JobFolders.from_environ().at(what)
    except PromptmillError as error:
        if Path(what).expanduser().exists():
            return None
        if "." in what or os.sep in what:
            raise input_error(f"There is no file {what}, and no job with this output.") from None
        raise error from None


def _of_job(folder: Folder, most: int, seed: int, *, failed_first: bool) -> _Sample:
    """Return rows of a job. Raises `PromptmillError`, and as `JobStore` does."""
    spec = folder.spec
    if spec is None:
        raise input_error(f"Job {folder.job_id} is not there any more.")
    failed = f"{FAILED} AND code != '{Code.EMPTY_PROMPT}'" if spec.skip_empty else FAILED
    with folder.reading() as store:
        total = store.count(f"{ANSWERED} OR ({failed})")
        found = store.page(0, failed, most) if failed_first else []
        where = ANSWERED if failed_first else f"{ANSWERED} OR ({failed})"
        found += store.sample(most - len(found), seed, where)
    lines, note = _lines_of(folder, spec, sorted(record.row for record in found))
    reader = RowReader(
        row_files.row_kind(spec.input_format),
        paths=OTHER_PATHS,
        prompt_column=spec.prompt_column if spec.input_format == "jsonl" else None,
        row_settings=spec.rows_set,
    )
    title = f"{spec.input.name} → {spec.output.name}"
    shown = [_job_row(record, lines.get(record.row), reader) for record in found]
    return _Sample(title, total, shown, {"job_id": spec.job_id}, note)


def _lines_of(folder: Folder, spec: JobSpec, wanted: Sequence[int]) -> tuple[dict[int, bytes], str]:
    """Return the lines of these rows of the input, and a note if it is not what the job has read."""
    found: dict[int, bytes] = {}
    with contextlib.ExitStack() as opened:
        try:
            if spec.spooled:
                file = RandomFile(folder.rows)
                opened.callback(file.close)
            else:
                files = row_files.opened(spec.parts, known=True)
                opened.callback(files.close)
                file = files.first
                if files.stamp()[0] < spec.size or spec.to_bind is not None:
                    return {}, _CHANGED
        except (OSError, PromptmillError):
            return {}, _CHANGED
        row = offset = 0
        for each in wanted:
            lines = Lines(file, row, offset)
            lines.skip(each - row)
            if not (block := lines.read()):
                break
            row, offset = block[0].row, block[0].offset
            found[each] = block[0].data or b""
    return found, ""


def _job_row(record: Record, line: bytes | None, reader: RowReader) -> _Row:
    """Return a row of a job: what it asks, as far as `line` is known, and its record."""
    asked, prompt = ([], None) if line is None else _question(record.row, line, reader)
    fields = answer_fields(record)
    answers = [str(fields["answer"])]
    if several := fields.get("answers"):
        answers = [one if isinstance(one, str) else orjson.dumps(one).decode() for one in several]
    elif not answers[0] and "tool_calls" in fields:
        answers = [orjson.dumps(fields["tool_calls"]).decode()]
    if fields.get("reasoning"):
        asked = [*asked, ("thought", fields["reasoning"])]
    error = "" if record.code is None else f"{record.code}: {record.text}"
    values = {"row": record.row + 1, "prompt": prompt, **fields}
    return _Row(record.row + 1, asked, [] if error else answers, error, values)


def _question(row: int, line: bytes, reader: RowReader) -> tuple[list[tuple[str, str]], Any]:
    """Return the question of a line as texts with labels, and for programs."""
    try:
        request = reader.request(row, line)
    except PromptmillError:  # the record holds the error
        text = rows.row_of(line).decode(errors="replace")
        return [("row", text)], text
    if request.path:
        body = dict(request.extra)
        return [("request", orjson.dumps(body).decode())], body
    messages = request.conversation.messages
    if len(messages) == 1 and messages[0].role == "user":
        text = _text(messages[0])
        return [("prompt", text)], text
    return [(turn.role, _text(turn)) for turn in messages], request.conversation.as_messages()


def _text(turn: Message) -> str:
    """Return the text of a turn, with a mark for each image and sound."""
    if not isinstance(turn.content, tuple):
        return turn.content or (orjson.dumps(turn.extra).decode() if turn.extra else "")
    found = []
    for part in turn.content:
        match part:
            case ImagePart(source):
                found.append("[image]" if source.startswith("data:") else f"[image {source}]")
            case AudioPart():
                found.append("[sound]")
            case _:
                found.append(part.text)
    return "\n".join(found)


def _of_file(path: Path, most: int, seed: int, *, failed_first: bool) -> _Sample:
    """Return rows of a file that no job made, in one pass. Raises `PromptmillError`."""
    chance = random.Random(seed)  # noqa: S311 (it chooses rows)
    kept: list[tuple[int, Mapping[str, Any]]] = []
    failed: list[tuple[int, Mapping[str, Any]]] = []
    total = 0
    for row in _rows_of(path):
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


def _rows_of(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a file."""
    files = row_files.opened(row_files.find([path.absolute()], path), known=False)
    with contextlib.ExitStack() as opened:
        opened.callback(files.close)
        kind = row_files.format_of_input(files)
        row_files.check_installed(path)
        if kind == "parquet":
            from promptmill.jobs.files.tables import ParquetTable

            for batch in ParquetTable(files).batches():
                yield from batch.to_pylist()
            return
        if kind in row_files.CELLS:
            table = CellTable(files, kind)
            for row in table.rows():
                yield dict(zip(table.header, row.cells, strict=False))
            return
        yield from _objects(files, kind, opened)


def _objects(files: row_files.InputFiles, kind: str, opened: contextlib.ExitStack) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of a JSON file."""
    if row_files.is_read_directly(files, kind):
        lines = Lines(files.first)
    else:
        spooled = Path(opened.enter_context(TemporaryDirectory())) / "rows.jsonl"
        spool(files, kind, spooled)
        file = RandomFile(spooled)
        opened.callback(file.close)
        lines = Lines(file)
    for line in itertools.chain.from_iterable(iter(lines.read, [])):
        if not line.blank:
            value = rows.load(rows.row_of(line.data or b""), f"line {line.row + 1}")
            yield value if isinstance(value, dict) else {"row": value}


def _file_row(number: int, row: Mapping[str, Any]) -> _Row:
    """Return a row of a file: its columns, and its answer last."""
    error = row.get("error")
    if isinstance(error, Mapping):
        error = f"{error.get('code')}: {error.get('message')}"
    asked = [(name, _shown(value)) for name, value in row.items() if name not in {*_LAST, *_HIDDEN}]
    answers = [_shown(row["answer"])] if "answer" in row and not error else []
    return _Row(number, asked, answers, str(error or ""), {"row": number, "values": row})


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value, default=str).decode()


def _print(sample: _Sample, how: str, *, full: bool) -> None:
    """Print rows for people: wrapped and in colours on a terminal, through a pager if they are longer than it."""
    from rich.console import Console
    from rich.text import Text

    on_terminal = sys.stdout.isatty()
    width = columns(sys.stdout) if on_terminal else 0
    console = Console(file=sys.stdout, width=width or None)
    text = Text()
    title = f"{sample.title}: {len(sample.rows)} of {counted(sample.total, 'row')}{how}"
    text.append(f"{wrapped(without_controls(title), width) if width else title}\n", "bold")
    for row in sample.rows:
        text.append(f"\nrow {row.number:,}\n", "bold")
        for label, content in row.asked:
            _add(text, label, content, "", width, full=full)
        for answer in row.answers:
            _add(text, "answer", answer, "green", width, full=full)
        if row.error:
            _add(text, "error", row.error, "red", width, full=full)
    if not on_terminal:
        sys.stdout.write(text.plain)
        return
    with console.capture() as captured:
        console.print(text, end="", soft_wrap=True, highlight=False)
    shown = captured.get()
    if shown.count("\n") < shutil.get_terminal_size().lines:
        sys.stdout.write(shown)
        return
    os.environ.setdefault("LESS", _LESS)
    pydoc.pager(shown)


def _add(text: Any, label: str, content: str, style: str, width: int, *, full: bool) -> None:
    """Add a text with its label; `width` 0: do not wrap it."""
    cut = 0 if full else max(0, len(content) - _LONGEST)
    content = content[: len(content) - cut] + (f" … {cut:,} more characters (--full)" if cut else "")
    lines = content.expandtabs(4).splitlines() or [""]
    label = without_controls(label) if width else label
    indent = " " * (_LABEL + 2)
    text.append(f"  {label:{_LABEL}}", "dim")
    if len(label) >= _LABEL:
        text.append(f"\n{indent}")
    if width:
        room = max(width - len(indent), 20)
        broken = (textwrap.wrap(without_controls(line), room, break_on_hyphens=False) for line in lines)
        lines = [part for parts in broken for part in parts or [""]]
    text.append(f"\n{indent}".join(lines) + "\n", style)
