"""`promptmill compare`: the answers of several files to the same rows, against each other and against right answers.

`comparison.figures` computes the figures. Text in 80 columns shows the most important ones, `--json` prints all, and
`--report` writes a page with all rows side by side. A judge is an ordinary job whose rows are the pairs of answers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from promptmill.cli.options import Parser, at_least_one, option_of
from promptmill.cli.terminal import columns, say
from promptmill.core.errors import Code, PromptmillError, config_error
from promptmill.core.wording import counted
from promptmill.jobs.files import disk
from promptmill.jobs.manage import comparison
from promptmill.jobs.manage.compared_files import LETTERS, VARIANT, ComparedFile, ComparedRows
from promptmill.jobs.store.folder import JobFolders

_ROWS = 5
_MOST_VALUES = 8  # of a table
_LONGEST_VALUE = 12  # characters, as the head of a column


def add_options(compare: Parser) -> None:
    """Add the options of the command."""
    compare.add_argument(
        "files", nargs="+", metavar="FILE|JOB", help="outputs of the same rows, or their jobs; any file of rows"
    )
    compare.add_argument("--gold", metavar="COLUMN", help="the column with the right answers, in one of the files")
    compare.add_argument(
        "--field", metavar="NAME", help="compare this column, or field of the answers; else the answers"
    )
    compare.add_argument(
        "--id", metavar="COLUMN", help="the column by which rows are the same; else id, or all of them"
    )
    compare.add_argument("--by", metavar="COLUMN", help="compare the rows of one file that this column tells apart")
    compare.add_argument(
        "--rows", type=at_least_one, default=_ROWS, metavar="N", help=f"show so many rows that differ; else {_ROWS}"
    )
    compare.add_argument("--state", type=Path, metavar="DIR", help="where jobs are kept, as for bulk")
    compare.add_argument("--json", action="store_true", help="print all figures as JSON")
    compare.set_defaults(unconfigured=_run)


def _run(arguments: argparse.Namespace) -> int:
    """Print the comparison. Returns 0."""
    if len(arguments.files) > len(LETTERS):
        raise config_error("", f"compare takes at most {len(LETTERS)} files.")
    if len(arguments.files) < 2 and arguments.gold is None and arguments.by is None:
        raise config_error("", "compare takes two files, or one with --gold COLUMN or --by COLUMN.")
    if len(arguments.files) > 1 and arguments.by is not None:
        raise config_error("--by", "goes with one file.")
    folders = JobFolders.from_environ()
    files = [
        ComparedFile.of(letter, what, folders, arguments.field)
        for letter, what in zip(LETTERS, arguments.files, strict=False)
    ]
    if arguments.by is not None:
        files = files[0].parts(arguments.by)
    try:
        found = comparison.figures(ComparedRows.of(files, arguments.gold, arguments.id), most=arguments.rows)
    except OSError as error:
        raise PromptmillError(Code.STORAGE, f"{error.filename} cannot be read: {disk.why(error)}.", "") from None
    if arguments.json:
        say(orjson.dumps(found).decode())
        return 0
    say("\n".join(_text(found, columns(sys.stdout))))
    return 0


def show_variants(output: Path) -> None:
    """Print the comparison of the variants in a job's output, once it is there."""
    if not output.exists():
        return
    try:
        file = ComparedFile.of("A", str(output), JobFolders.from_environ(), None)
        found = comparison.figures(ComparedRows.of(file.parts(VARIANT), None, None), most=_ROWS)
    except PromptmillError as error:  # such as no answer at all, or fields of a schema
        say(f"promptmill: {error.worded(option_of)} Run: promptmill compare {output} --by {VARIANT}", sys.stderr)
        return
    say("\n".join(["", *_text(found, columns(sys.stdout))]))
    say(f"\npromptmill compare {output} --by {VARIANT} --gold COLUMN: against right answers")


# ---- text


def _text(found: Mapping[str, Any], width: int) -> Iterator[str]:
    """Yield the lines for people."""
    for file in found["files"]:
        yield _cut(f"{file['name']}  {file['title']}: {comparison.made(file, found['rows'])}", width)
    yield f"{counted(found['rows'], 'row')}, matched {found['matched']}"
    for pair in found["pairs"]:
        yield ""
        yield from comparison.agreed(pair, found["rows"])
        if pair.get("changes") and pair["agree"] < pair["rows"]:
            yield from _table(pair, width)
    if "gold" in found:
        yield from _gold(found["gold"], width)
    if "judge" in found:
        yield from _judge(found["judge"], width)
    yield from _rows(found, width)


def _table(pair: Mapping[str, Any], width: int) -> Iterator[str]:
    """Yield the cross-tabulation of the commonest answers."""
    (one, other), changes = pair["of"], pair["changes"]
    values = comparison.commonest(changes)
    heads = {value: _cut(" ".join(value.split()), _LONGEST_VALUE) for value in values[:_MOST_VALUES]}
    first = max(map(len, (*heads.values(), "others", f"{one} ↓ {other} →"))) + 2
    kept, room = list[str](), width - first - len("others") - 2
    for value in values[:_MOST_VALUES]:
        room -= max(len(heads[value]), 5) + 2
        if room < 0:
            break
        kept.append(value)
    has_others = len(kept) < len(values)
    cells = comparison.tabulated(changes, kept)
    shown = [*kept, *([""] if has_others else [])]
    heads[""] = "others"
    widths = [max(len(heads[value]), 5) for value in shown]
    yield f"{one} ↓ {other} →".ljust(first) + "  ".join(
        heads[value].rjust(size) for value, size in zip(shown, widths, strict=True)
    )
    for value in shown:
        row = (f"{cells[value, to]:,}" if cells[value, to] else "·" for to in shown)
        yield heads[value].ljust(first) + "  ".join(cell.rjust(size) for cell, size in zip(row, widths, strict=True))


def _gold(gold: Mapping[str, Any], width: int) -> Iterator[str]:
    yield ""
    has_classes = "macro_f1" in gold["files"][0]
    yield f"right, by {gold['column']} ({counted(gold['rows'], 'row')}){'' if has_classes else ', word for word'}"
    for file in gold["files"]:
        yield f"{file['name']}  {comparison.right_of(file)}"
    if has_classes:
        yield from _classes(gold["files"], width)
    for difference in gold["differences"]:
        yield ""
        yield from comparison.differs(difference)


def _classes(files: Sequence[Mapping[str, Any]], width: int) -> Iterator[str]:
    """Yield the figures by class."""
    classes = files[0]["classes"]
    shown = classes[:_MOST_VALUES]
    first = min(max(len("class"), *(len(one["class"]) for one in shown)), width - 50)
    yield ""
    yield f"{'class':{first}}  {'rows':>7}     precision  recall    F1"
    for at, one in enumerate(shown):
        for file in files:
            its = file["classes"][at]
            head = f"{_cut(one['class'], first):{first}}  {one['rows']:7,}" if file is files[0] else " " * (first + 9)
            yield f"{head}  {file['name']}       {its['precision']:.2f}    {its['recall']:.2f}  {its['f1']:.2f}"
    if len(classes) > len(shown):
        yield f"… and {len(classes) - len(shown):,} more classes (--json)"


def _judge(judge: Mapping[str, Any], width: int) -> Iterator[str]:
    for pair in judge["pairs"]:
        yield ""
        yield _cut(f"by {judge['model']}: {' '.join(judge['criterion'].split())}", width)
        yield from comparison.judged(pair)
    yield comparison.asked(judge)


def _rows(found: Mapping[str, Any], width: int) -> Iterator[str]:
    if not found["differing"]:
        return
    yield ""
    shown = len(found["differing"])
    of = f"{shown:,} of " if found["differ"] > shown else ""
    which = "with different answers" if len(found["files"]) > 1 else "with a wrong answer"
    yield f"{of}{counted(found['differ'], 'row')} {which}"
    for row in found["differing"]:
        gold = {"gold": row["gold"]} if "gold" in row else {}
        said = {"judge": ", ".join(map(comparison.verdict, row["verdicts"].values()))} if "verdicts" in row else {}
        texts = {**row["own"], **gold, **row["answers"], **said}
        names = {name: _cut(name, 8) for name in texts}
        for at, (name, text) in enumerate(texts.items()):
            head = f"row {row['row']:,}" if not at else ""
            yield _cut(f"{head:9} {names[name]:8} {' '.join(text.split()) or '(no answer)'}", width)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(width - 1, 1)]}…"
