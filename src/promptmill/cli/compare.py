"""`promptmill compare` compares the answers of several files to the same rows, also with right answers.

`figures` computes the figures. Text in 80 columns shows the most important ones, `--json` prints all, and
`--report` writes a page with all rows side by side. A judge is an ordinary job whose rows are the pairs of answers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from promptmill.backends import registry
from promptmill.cli import job_run
from promptmill.cli.job_run import remembered_command
from promptmill.cli.options import Parser, add_shared, amount, at_least_one, configuration_of, explained, option_of
from promptmill.cli.terminal import OK, columns, say
from promptmill.comparison import comparison_page, figures, judge, words
from promptmill.comparison.call import order_of, rows_of
from promptmill.comparison.figures import Judgement
from promptmill.comparison.files import LETTERS, ComparedFile, ComparedRows, ComparisonOrder
from promptmill.comparison.judge import Pairs
from promptmill.core.errors import Code, PromptmillError, config_error
from promptmill.core.wording import counted, cut
from promptmill.jobs import disk
from promptmill.jobs.columns import VARIANT
from promptmill.jobs.store import status
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.order import Earlier, Limits, Shown
from promptmill.report import page as report_page
from promptmill.system.safe_open import home_expanded

_ROWS = 5
_NARROW = 60  # columns; below, each class has lines of its own
_ABOUT = ("job_id", "model", "cost", "cost_set_aside", "seconds", "requests", "prompt_tokens", "completion_tokens")
_OF_THE_MODEL = ("backend", "model", "base_url", "provider", "key_env", "temperature", "max_tokens", "concurrency")
_JUDGING = ("limit", "max_cost", "again", "set", *_OF_THE_MODEL)


def add_options(compare: Parser) -> None:
    """Add the options of the command."""
    compare.add_argument(
        "files", nargs="+", metavar="FILE|JOB", help="outputs of the same rows, or their jobs; any file of rows"
    )
    group = compare.add_argument_group("rows and columns")
    group.add_argument(
        "--gold",
        metavar="COLUMN|FILE",
        help="right answers, of all or some rows: a column of any of the files, or a file: gold.csv, gold.csv:COLUMN",
    )
    group.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME",
        help="compare this column, or field of the answers; may be repeated; else all fields, or the answers",
    )
    group.add_argument(
        "--tolerance", metavar="N|P%", help="numbers that differ by no more than this are the same, such as 0.01 or 1%%"
    )
    group.add_argument("--id", metavar="COLUMN", help="the column by which rows are the same; else id, or all of them")
    group.add_argument("--by", metavar="COLUMN", help="compare the rows of one file that this column tells apart")
    group.add_argument("--state", type=Path, metavar="DIR", help="where jobs are kept, as for bulk")
    group = compare.add_argument_group("output")
    group.add_argument(
        "--rows", type=at_least_one, default=_ROWS, metavar="N", help=f"show so many rows that differ; else {_ROWS}"
    )
    group.add_argument("--json", action="store_true", help="print all figures as JSON")
    group.add_argument("--report", type=Path, metavar="FILE", help="write all of it, and the rows, to one HTML file")
    group.add_argument("--open", action="store_true", help="with --report: show it in the browser")
    group = compare.add_argument_group("a judge", "a model says which of two different answers is better")
    group.add_argument("--criterion", metavar="TEXT", help="such as 'is the better summary'; each pair in both orders")
    group.add_argument("--limit", type=at_least_one, metavar="N", help="judge only so many rows, taken at random")
    group.add_argument("--max-cost", type=amount, metavar="AMOUNT", help="most that this judgement may spend, in all")
    group.add_argument("--again", choices=("failed", "all"), help="judge these pairs again")
    add_shared(compare, named=["--judge"])
    compare.show_examples(
        "promptmill compare labels-a.csv labels-b.csv --gold label",
        "promptmill compare labels.csv --by variant --report comparison.html --open",
        "promptmill compare summaries-a.csv summaries-b.csv --judge good-1 --criterion 'is the better summary'",
    )
    compare.set_defaults(unconfigured=_run)


def _run(arguments: argparse.Namespace) -> int:
    """Print the comparison. Returns 0, or the exit code of the judge's job."""
    _check(arguments)
    folders = JobFolders.from_environ()
    order = order_of(vars(arguments))
    judgement, code = None, OK
    try:
        rows = rows_of(arguments.files, order, folders)
        if arguments.criterion is not None:
            judgement, code = _judgement(arguments, rows, folders)
            if code != OK and not judgement.said:
                return code
        found = figures.figures(rows, judgement, arguments.rows)
        if arguments.report is not None:
            _write_report(arguments, found, rows, judgement)
    except OSError as error:
        raise PromptmillError(Code.STORAGE, f"{error.filename} cannot be read: {disk.why(error)}.", "") from None
    if arguments.json:
        say(orjson.dumps(found).decode())
    else:
        say("\n".join(_text(found, columns(sys.stdout))), wrap=True)
    return code


def _check(arguments: argparse.Namespace) -> None:
    """Raise `PromptmillError` for arguments that do not go together."""
    several = len(arguments.files) > 1 or arguments.by is not None
    if len(arguments.files) > len(LETTERS):
        raise config_error("", f"compare takes at most {len(LETTERS)} files.")
    if not several and arguments.gold is None:
        raise config_error("", "compare takes two files, or one with --gold COLUMN or --by COLUMN.")
    if len(arguments.files) > 1 and arguments.by is not None:
        raise config_error("--by", "goes with one file.")
    if arguments.criterion is None:
        given = next((name for name in _JUDGING if getattr(arguments, name) not in (None, [])), None)
        if given is not None:
            option = "judge" if given == "model" else given.replace("_", "-")
            raise config_error(f"--{option}", "goes with --criterion TEXT.")
    elif not several:
        raise config_error("--criterion", "goes with two files, or one with --by COLUMN.")
    elif not arguments.criterion.strip():
        raise config_error("--criterion", "says what makes an answer better, such as 'is the better summary'.")
    if arguments.report is not None:
        report_page.check(home_expanded(arguments.report))
    elif arguments.open:
        raise config_error("--open", "goes with --report FILE.")


def show_variants(output: Path, column: str = VARIANT) -> None:
    """Print the comparison of the variants in a job's output, if it exists; `column` has the variant of each row."""
    if not output.exists():
        return
    try:
        file = ComparedFile.of("A", str(output), JobFolders.from_environ())
        found = figures.figures(ComparedRows.of(file.parts(column), ComparisonOrder()), most=_ROWS)
    except PromptmillError as error:  # e.g. no row has an answer, or the answers are fields
        say(f"promptmill: {error.worded(option_of)} Run: promptmill compare {output} --by {column}", sys.stderr)
        return
    say("\n".join(["", *_text(found, columns(sys.stdout))]), wrap=True)
    say(f"\npromptmill compare {output} --by {column} --gold COLUMN: against right answers")
    say(f"promptmill compare {output} --by {column} --criterion TEXT: by a model that judges")


def _write_report(
    arguments: argparse.Namespace,
    found: Mapping[str, Any],
    rows: ComparedRows,
    judgement: Judgement | None,
) -> None:
    """Write the page of the comparison, and open it if that is wanted."""
    made = comparison_page.write(home_expanded(arguments.report), found, rows, judgement)
    say(str(made), sys.stderr if arguments.json else sys.stdout)
    if arguments.open:
        made.show()


# ---- the judge


def _judgement(arguments: argparse.Namespace, rows: ComparedRows, folders: JobFolders) -> tuple[Judgement, int]:
    """Have a job judge the pairs, which an earlier run may have begun. Returns the verdicts, and its exit code."""
    asked = argparse.Namespace(**{**vars(arguments), "choices": [*judge.VERDICTS], "report": None})
    configuration = configuration_of(asked)
    try:
        registry.check_key(configuration.plan)
        configuration = job_run.decided(configuration)
        criterion, pairs = arguments.criterion.strip(), Pairs.of(rows, arguments.limit)
        about = {"criterion": criterion, "model": configuration.plan.model, "requests": 0, "seconds": 0.0}
        about |= {"tagged": pairs.tagged} if pairs.tagged else {}
        if not pairs.others:
            return Judgement(about, {}), OK
        earlier = Earlier(again=arguments.again)
        shown = Shown(command=remembered_command(_command(asked), configuration))
        limits = Limits(max_cost=arguments.max_cost)
        job = judge.job_of(pairs, criterion, configuration.plan, folders, earlier=earlier, limits=limits, shown=shown)
        with job as (order, given):
            code = job_run.run(asked, configuration, order, given=given, is_step=True)
    except PromptmillError as error:
        raise explained(error, asked, configuration) from None
    folder = folders.of(order.output)
    if folder.spec is None or not folder.spec.is_read:  # it has sent nothing
        return Judgement(about, {}), code
    now: Mapping[str, object] = status.read(folder)
    about |= {name: now[name] for name in _ABOUT if name in now}
    return Judgement(about, judge.verdicts_in(folder, pairs)), code


def _command(arguments: argparse.Namespace) -> list[str]:
    """Return the part of the judge's command line that decides about the model and its answers."""
    given = {name: getattr(arguments, name) for name in _OF_THE_MODEL}
    words_ = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
    sets = [word for value in arguments.set for word in ("--set", value)]
    return ["bulk", "pairs", "verdicts", f"--choices={','.join(judge.VERDICTS)}", *words_, *sets]


# ---- text


def _text(found: Mapping[str, Any], width: int) -> Iterator[str]:
    """Yield the lines for people."""
    for file in found["files"]:
        yield cut(words.headline(file, found["rows"]), width)
    yield words.matched(found)
    for pair in found["pairs"]:
        yield ""
        yield from words.agreed(pair, found)
        if pair.get("changes") and pair["agree"] < pair["rows"]:
            yield from _table(pair, width)
    if words.is_free_text(found) and "judge" not in found:
        yield "`--judge MODEL --criterion 'is the better summary'` says which is better"
    if "gold" in found:
        yield from _gold(found["gold"], width)
    if "judge" in found:
        yield from _judge(found["judge"], width)
    if notes := list(words.methods(found)):
        yield ""
        yield from (f"  {note}" for note in notes)
    yield from _rows(found, width)


def _table(pair: Mapping[str, Any], width: int) -> Iterator[str]:
    """Yield the cross-tabulation of the commonest answers."""
    (one, other), changes = pair["of"], pair["changes"]
    values = figures.commonest(changes)
    heads = {value: cut(" ".join(value.split()), 12) for value in values[:8]}
    first = max(map(len, (*heads.values(), "others", f"{one} ↓ {other} →"))) + 2
    kept, room = list[str](), width - first - len("others") - 2
    for value, head in heads.items():
        room -= max(len(head), 5) + 2
        if room < 0:
            break
        kept.append(value)
    has_others = len(kept) < len(values)
    cells = figures.tabulated(changes, kept)
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
    is_whole = not has_classes and "fields" not in gold
    yield f"right, by {gold['column']}{', word for word' if is_whole else ''}"
    yield words.have_right(gold)
    yield from words.spelled(gold)
    yield from words.right_lines(gold)
    if has_classes:
        yield from _classes(gold["files"], width)
    if "fields" in gold and gold["differences"]:
        yield ""
        yield from words.differs_by_field(gold)
    for difference in gold["differences"]:
        yield ""
        yield from words.differs(difference)


def _classes(files: Sequence[Mapping[str, Any]], width: int) -> Iterator[str]:
    """Yield the figures by class."""
    classes = files[0]["classes"]
    shown = classes[:8]
    yield ""
    yield from _class_lines(files, shown, width) if width < _NARROW else _class_table(files, shown, width)
    if len(classes) > len(shown):
        yield f"… and {len(classes) - len(shown):,} more classes (--json)"


def _class_table(files: Sequence[Mapping[str, Any]], shown: Sequence[Mapping[str, Any]], width: int) -> Iterator[str]:
    name = max(len(file["name"]) for file in files)
    first = max(5, min(max(len("class"), *(len(one["class"]) for one in shown)), width - 49 - name))
    yield f"{'class':{first}}  {'rows':>7}  {'':{name}}  precision  recall    F1"
    for at, one in enumerate(shown):
        for file in files:
            its = file["classes"][at]
            head = f"{cut(one['class'], first):{first}}  {one['rows']:7,}" if file is files[0] else " " * (first + 9)
            yield f"{head}  {file['name']:{name}}       {its['precision']:.2f}    {its['recall']:.2f}  {its['f1']:.2f}"


def _class_lines(files: Sequence[Mapping[str, Any]], shown: Sequence[Mapping[str, Any]], width: int) -> Iterator[str]:
    for at, one in enumerate(shown):
        rows = counted(one["rows"], "row")
        yield f"{cut(one['class'], width - len(rows) - 2)}: {rows}"
        for file in files:
            its = file["classes"][at]
            yield f"{file['name']}  precision {its['precision']:.2f}, recall {its['recall']:.2f}, F1 {its['f1']:.2f}"


def _judge(judge: Mapping[str, Any], width: int) -> Iterator[str]:
    for pair in judge["pairs"]:
        yield ""
        yield cut(f"judged by {judge['model']}: {' '.join(judge['criterion'].split())}", width)
        yield from words.judged(pair)
    if tagged := judge.get("tagged"):
        yield f"{counted(tagged, 'pair')} not judged: an answer contains the tag that ends the answers for the judge"
    yield words.price(judge)


def _rows(found: Mapping[str, Any], width: int) -> Iterator[str]:
    if not found["differing"]:
        return
    yield ""
    shown = len(found["differing"])
    of = f"{shown:,} of " if found["differ"] > shown else ""
    which = "with different answers" if len(found["files"]) > 1 else "with a wrong answer"
    yield f"{of}{counted(found['differ'], 'row')} {which}"
    for row in found["differing"]:
        yield cut(f"{row['heading']} (row {row['row']:,})" if row["heading"] else f"row {row['row']:,}", width)
        gold = {"gold": row["gold"]} if "gold" in row else {}
        said = {"judge": words.said(row)} if "verdicts" in row else {}
        own = {name: text for name, text in row["own"].items() if " ".join(text.split()) != row["heading"]}
        answers = {**gold, **row["answers"]}
        texts = {**own, **{name: _in_a_line(answer, row) for name, answer in answers.items()}, **said}
        for name, text in texts.items():
            yield cut(f"{'':9} {cut(name, 8):8} {' '.join(text.split()) or '(no answer)'}", width)


def _in_a_line(answer: Any, row: Mapping[str, Any]) -> str:
    text = words.one_text(answer, row)
    return text if isinstance(answer, str) else "; ".join(text.split("\n"))
