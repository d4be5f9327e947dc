"""`promptmill compare`: the answers of several files to the same rows, against each other and against right answers.

    files ──► _scanned: columns ──► _identity: which columns make rows the same ──► _read: answers in the first
              of each file                                                          file's order ──► figures ──► text

The files are read twice, so that the columns of the rows are never all in memory. `compared` returns all figures, which
`--json` prints; the text shows the most important ones in 80 columns.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from promptmill.cli.options import Parser, at_least_one
from promptmill.cli.terminal import columns, say
from promptmill.core.errors import Code, PromptmillError, config_error, input_error
from promptmill.core.money import dollars
from promptmill.core.wording import counted
from promptmill.jobs.files import disk, row_files
from promptmill.jobs.files.spool import objects_in
from promptmill.jobs.store import status
from promptmill.jobs.store.folder import JobFolders
from promptmill.jobs.store.records import FIELD, OURS
from promptmill.jobs.store.spec import JobSpec

_ROWS = 5
_LETTERS = "ABCDEFGHIJ"
_IDS = ("id", "custom_id")
_MOST_VALUES = 8  # of a table of the text
_MOST_CHANGES = 200
_MOST_CLASSES = 50
_FEW = 20  # so many different answers are labels, whatever the number of rows
_LONGEST_VALUE = 12  # characters, as the head of a column
_SHORT_S = 100
_Z = 1.959963984540054  # of the normal distribution, for 95 %
VARIANT, _MODEL = "variant", "model"
"""Columns of an output with several answers to each row."""
INTERVAL = "Newcombe's score interval for paired proportions (1998, method 10)"
TEST = "exact McNemar test, two-sided"


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
    if len(arguments.files) > len(_LETTERS):
        raise config_error("", f"compare takes at most {len(_LETTERS)} files.")
    if len(arguments.files) < 2 and arguments.gold is None and arguments.by is None:
        raise config_error("", "compare takes two files, or one with --gold COLUMN or --by COLUMN.")
    if len(arguments.files) > 1 and arguments.by is not None:
        raise config_error("--by", "goes with one file.")
    folders = JobFolders.from_environ()
    files = [
        _file(letter, what, folders, arguments.field) for letter, what in zip(_LETTERS, arguments.files, strict=False)
    ]
    if arguments.by is not None:
        files = _parts(files[0], arguments.by)
    try:
        found = compared(files, gold=arguments.gold, key=arguments.id, most=arguments.rows)
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
        file = _file("A", str(output), JobFolders.from_environ(), None)
        found = compared(_parts(file, VARIANT))
    except PromptmillError as error:  # such as no answer at all, or fields of a schema
        say(f"promptmill: {error.message} Run: promptmill compare {output} --by {VARIANT}", sys.stderr)
        return
    say("\n".join(["", *_text(found, columns(sys.stdout))]))
    say(f"\npromptmill compare {output} --by {VARIANT} --gold COLUMN: against right answers")


@dataclass(frozen=True, slots=True)
class ComparedFile:
    """A file of answers; `letter` names it in the text."""

    letter: str
    path: Path
    answer: str = "answer"
    """The column that is compared."""
    within: str = ""
    """The field of the answers to compare, else the column of this name; `""`: the answers."""
    error: str = "error"
    ours: Collection[str] = OURS
    """The columns that are not the row's own."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """The status of the job that made it."""
    cost: str = "cost"
    only: tuple[str, str] | None = None
    """The column and the value of the rows that count; None: all rows."""

    @property
    def name(self) -> str:
        """The name for people."""
        return self.path.name if self.only is None else self.only[1]

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Yield the rows that count."""
        if self.only is None:
            return objects_in(self.path)
        column, value = self.only
        return (row for row in objects_in(self.path) if text_of(row.get(column)) == value)

    def answer_of(self, row: Mapping[str, Any]) -> str:
        """Return the answer of a row as a text, `""` for none."""
        if row.get(self.error):
            return ""
        answer = row.get(self.answer)
        if not self.within:
            return text_of(answer).strip()
        if isinstance(answer, str) and answer.startswith("{"):  # as `--no-fields` has it
            with contextlib.suppress(orjson.JSONDecodeError):
                answer = orjson.loads(answer)
        if isinstance(answer, Mapping):
            return text_of(answer.get(self.within)).strip()
        is_lost = answer is None and self.answer in row  # then a column of this name is the row's own
        return "" if is_lost else text_of(row.get(self.within)).strip()


def _file(letter: str, what: str, folders: JobFolders, wanted: str | None) -> ComparedFile:
    """Return the file that `what` names. Raises `PromptmillError`."""
    folder = folders.maker(what)
    spec = None if folder is None else folder.spec
    if folder is None or spec is None:
        answer = wanted or "answer"
        return ComparedFile(letter, Path(what).expanduser(), within=wanted or "", ours={*OURS, answer})
    if not spec.output.exists():
        raise input_error(
            f"Job {spec.job_id} has written no output yet. Run: promptmill jobs {spec.job_id} --export FILE"
        )
    names, fields = spec.columns or {}, _fields(spec)
    own = {names.get(key, key) for key in OURS} | {names.get(key, name) for key, name in fields.items()}
    answer = names.get("answer", spec.answer_column)
    column = names.get(f"{FIELD}{wanted}", wanted) if f"{FIELD}{wanted}" in fields else wanted
    about = status.read(folder)
    kept = ("job_id", "model", "cost", "seconds", "prompt_tokens", "completion_tokens")
    return ComparedFile(
        letter,
        spec.output,
        answer=answer,
        within=column or "",
        error=names.get("error", "error"),
        cost=names.get("cost", "cost"),
        ours=own | {answer},
        about={name: about[name] for name in kept if name in about},
    )


def _parts(file: ComparedFile, by: str) -> list[ComparedFile]:
    """Return the parts of a file that the column `by` tells apart. Raises `PromptmillError` (`invalid_input`)."""
    values = dict.fromkeys(text_of(row.get(by)) for row in objects_in(file.path))
    if not 2 <= len(values) <= len(_LETTERS):
        raise input_error(
            f"The column {by:.60} of {file.path.name} has {counted(len(values), 'value')}; 2 to {len(_LETTERS)} parts "
            "can be compared."
        )
    ours = {*file.ours, by, *([_MODEL] if by == VARIANT else [])}
    return [
        replace(file, letter=letter, only=(by, value), ours=ours, about={})
        for letter, value in zip(_LETTERS, values, strict=False)
    ]


def _fields(spec: JobSpec) -> Mapping[str, str]:
    """Return the usual names of the columns that hold fields of the answers, by their keys."""
    if spec.answer_schema is None or spec.output_format not in row_files.TABLES:
        return {}
    from promptmill.jobs.run.schema_columns import SchemaColumns  # other files do not need it

    return SchemaColumns(spec.answer_schema, apart=spec.fields).names


def text_of(value: Any) -> str:
    """Return a value as the text that stands for it in every format: `1`, `true`, JSON of lists and objects."""
    match value:
        case None:
            return ""
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case float():
            return "" if math.isnan(value) else str(int(value)) if value.is_integer() else repr(value)
        case int():
            return str(value)
    return orjson.dumps(value, default=str, option=orjson.OPT_SORT_KEYS).decode()


# ---- which rows are the same


@dataclass(frozen=True, slots=True)
class _Scan:
    """The rows of a file; each column has a sum over its cells that does not depend on their order."""

    rows: int
    sums: Mapping[str, int]


def _scanned(file: ComparedFile) -> _Scan:
    rows, sums = 0, dict[str, int]()
    for row in file.rows():
        rows += 1
        for name, value in row.items():
            text = text_of(value)
            sums[name] = sums.get(name, 0) + (hash(text) if text else 0)
    return _Scan(rows, sums)


@dataclass(frozen=True, slots=True)
class _Identity:
    """The columns by which rows of the files are the same row; none: the place."""

    columns: Sequence[str]
    must_be_unique: bool = False
    """Whether they are only some of the columns that the files share."""

    @property
    def words(self) -> str:
        """The name of the rule, such as `by id`."""
        named = ", ".join(self.columns[:3]) + (", …" if len(self.columns) > 3 else "")
        return f"by {named}" if self.columns else "by place"


def _identity(files: Sequence[ComparedFile], scans: Sequence[_Scan], key: str | None) -> _Identity:
    """Return the rule for equal rows. Raises `PromptmillError` (`invalid_input`) for files of other rows."""
    ours = set().union(*(file.ours for file in files))
    shared = [name for name in scans[0].sums if all(name in scan.sums for scan in scans)]
    if key is not None:
        for file, scan in zip(files, scans, strict=True):
            if key not in scan.sums:
                raise input_error(f"{file.name} has no column {key:.60}; it has {_listed(scan.sums)}.")
        return _Identity([key])
    shared = [name for name in shared if name not in ours]
    if named := next((name for name in _IDS if name in shared), None):
        return _Identity([named])
    if len({scan.rows for scan in scans}) > 1:
        counts = ", ".join(
            f"{file.name} has {counted(scan.rows, 'row')}" for file, scan in zip(files, scans, strict=True)
        )
        raise input_error(f"The files do not hold the same rows: {counts}. Name a column that identifies rows: --id.")
    same = [name for name in shared if len({scan.sums[name] for scan in scans}) == 1]
    if shared and not same:
        raise input_error(
            f"The files do not hold the same rows: {_listed(shared)} {'differs' if len(shared) == 1 else 'differ'}. "
            "Name a column that identifies rows: --id."
        )
    return _Identity(same, must_be_unique=len(same) < len(shared))


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(f"`{name:.40}`" for name in itertools.islice(names, 12))
    return shown + (", …" if len(names) > 12 else "")


@dataclass(slots=True)
class _Answers:
    """The answers of a file in the order of its rows, and what identifies each row."""

    keys: list[int]
    values: list[str]
    gold: list[str]
    cost: float | None = None
    """The sum over the rows, if they have their costs."""


def _read(file: ComparedFile, identity: _Identity, gold: str) -> _Answers:
    """Read a file. Raises `PromptmillError` (`invalid_input`)."""
    keys, values, right, costs = [], [], [], []
    seen: Counter[int] = Counter()
    for at, row in enumerate(file.rows()):
        own = hash(tuple(text_of(row.get(name)) for name in identity.columns)) if identity.columns else at
        if own in seen and (identity.must_be_unique or list(identity.columns) in ([one] for one in _IDS)):
            raise input_error(
                f"{file.name} has several rows with the same {_listed(identity.columns)}, the second is row "
                f"{at + 1}; name a column that identifies rows: --id."
            )
        keys.append(hash((own, seen[own])))  # the n-th of equal rows is the n-th in each file
        seen[own] += 1
        values.append(file.answer_of(row))
        with contextlib.suppress(ValueError, TypeError):  # empty, or a column of the user's
            costs.append(float(row.get(file.cost) or ""))
        if gold:
            right.append(text_of(row.get(gold)).strip())
    if not any(values):
        raise input_error(
            f"No row of {file.name} has an answer in `{file.within or file.answer}`; name a column to compare: "
            f"--field. It has {_listed(_scanned(file).sums)}."
        )
    return _Answers(keys, values, right, sum(costs) if costs else None)


def _matched(files: Sequence[ComparedFile], every: Sequence[_Answers], identity: _Identity) -> list[_Answers]:
    """Return the answers in the order of the first file. Raises `PromptmillError` (`invalid_input`)."""
    first, found = every[0], [every[0]]
    for file, answers in zip(files[1:], every[1:], strict=True):
        places = {key: at for at, key in enumerate(answers.keys)}
        own = set(first.keys)
        for one, lacking, other in (
            (files[0], [at for at, key in enumerate(first.keys) if key not in places], file),
            (file, [at for at, key in enumerate(answers.keys) if key not in own], files[0]),
        ):
            if lacking:
                which = "row is" if len(lacking) == 1 else "rows are"
                raise input_error(
                    f"The files do not hold the same rows, {identity.words}: {len(lacking):,} {which} in "
                    f"{one.name} and not in {other.name}, such as row {lacking[0] + 1:,}."
                )
        order = [places[key] for key in first.keys]
        gold = [answers.gold[at] for at in order] if answers.gold else []
        found.append(_Answers(first.keys, [answers.values[at] for at in order], gold))
    return found


# ---- figures


def compared(
    files: Sequence[ComparedFile], *, gold: str | None = None, key: str | None = None, most: int = _ROWS
) -> dict[str, Any]:
    """Return the figures of a comparison; `key` and `gold` are columns, `most` the number of rows that differ to show.

    Raises `PromptmillError` (`invalid_input`) if the files do not hold the same rows; `OSError`.
    """
    scans = [_scanned(file) for file in files]
    identity = _identity(files, scans, key)
    golden = next((at for at, scan in enumerate(scans) if gold in scan.sums), None)
    if gold is not None and golden is None:
        raise input_error(f"No file has a column {gold:.60}; there are {_listed(scans[0].sums)}.")
    read = [_read(file, identity, (gold or "") if at == golden else "") for at, file in enumerate(files)]
    every = _matched(files, read, identity)
    files = [
        file if answers.cost is None else replace(file, about={"cost": answers.cost, **file.about})
        for file, answers in zip(files, read, strict=True)
    ]
    right = [] if golden is None else every[golden].gold
    values = [answers.values for answers in every]
    found: dict[str, Any] = {
        "rows": len(values[0]),
        "matched": identity.words,
        "files": [
            {
                "name": file.letter,
                "file": str(file.path.absolute()),
                **({} if file.only is None else {file.only[0]: file.only[1]}),
                "title": file.name,
                **file.about,
                "answered": sum(map(bool, own)),
            }
            for file, own in zip(files, values, strict=True)
        ],
        "pairs": [
            {"of": [one.letter, other.letter], **_agreement(ours, theirs)}
            for (one, ours), (other, theirs) in itertools.combinations(zip(files, values, strict=True), 2)
        ],
    }
    if right:
        found["gold"] = _against(gold or "", right, files, values)
    several = values if len(values) > 1 else [*values, right]
    differ = [at for at, row in enumerate(zip(*several, strict=True)) if len(set(row)) > 1]
    found["differ"] = len(differ)
    found["differing"] = list(_shown_rows(files, values, right, gold, differ[:most]))
    return found


def _agreement(ours: Sequence[str], theirs: Sequence[str]) -> dict[str, Any]:
    """Return how far two lists of answers agree, over the rows that both have answered, and what became what."""
    pairs = Counter((one, other) for one, other in zip(ours, theirs, strict=True) if one and other)
    rows = pairs.total()
    agree = sum(count for (one, other), count in pairs.items() if one == other)
    found: dict[str, Any] = {"rows": rows, "agree": agree}
    if not rows:
        return found
    found |= {"agreement": agree / rows, "kappa": kappa(pairs)}
    if _are_labels(ours, rows) and _are_labels(theirs, rows):
        common = pairs.most_common(_MOST_CHANGES)
        found["changes"] = [{"from": one, "to": other, "rows": count} for (one, other), count in common]
    return found


def _are_labels(values: Sequence[str], rows: int) -> bool:
    """Return whether answers repeat, so that counting them says something."""
    different = len(set(values))
    return different <= _FEW or 4 * different <= rows


def kappa(pairs: Mapping[tuple[str, str], int]) -> float | None:
    """Return Cohen's kappa, (po - pe) / (1 - pe), of the counts of pairs; None where only one answer occurs.

    J. Cohen, A coefficient of agreement for nominal scales, Educational and Psychological Measurement 20 (1960), 37-46.
    """
    rows = sum(pairs.values())
    ours, theirs = Counter[str](), Counter[str]()
    for (one, other), count in pairs.items():
        ours[one] += count
        theirs[other] += count
    agree = sum(count for (one, other), count in pairs.items() if one == other)
    expected = sum(count * theirs[value] for value, count in ours.items())
    return None if expected == rows * rows else (agree * rows - expected) / (rows * rows - expected)


def _against(
    gold: str, right: Sequence[str], files: Sequence[ComparedFile], values: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Return the figures against the right answers: of the rows that have one. A row without an answer is wrong."""
    known = [at for at, value in enumerate(right) if value]
    if not known:
        raise input_error(f"The column {gold} is empty in all rows.")
    truth = [right[at] for at in known]
    every = [[own[at] for at in known] for own in values]
    is_right = [[one == other for one, other in zip(own, truth, strict=True)] for own in every]
    classes = [value for value, _ in Counter(truth).most_common()] if _are_labels(truth, len(truth)) else []
    of_files = []
    for file, own, hits in zip(files, every, is_right, strict=True):
        found = {"name": file.letter, "right": sum(hits), "accuracy": sum(hits) / len(known)}
        found["interval"] = wilson(sum(hits), len(known))
        if classes:
            by_class = _by_class(truth, own, classes)
            found["macro_f1"] = sum(one["f1"] for one in by_class) / len(by_class)
            found["classes"] = by_class[:_MOST_CLASSES]
        of_files.append(found)
    differences = [
        _difference(files[0], is_right[0], other, hits) for other, hits in zip(files[1:], is_right[1:], strict=True)
    ]
    return {"column": gold, "rows": len(known), "files": of_files, "differences": differences}


def _by_class(truth: Sequence[str], own: Sequence[str], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return precision, recall and F1 of each class; 0 where a class was never answered, as scikit-learn has it."""
    counts, answered = Counter(truth), Counter(own)
    hits = Counter(one for one, other in zip(truth, own, strict=True) if one == other)
    found = []
    for value in classes:
        precision = hits[value] / answered[value] if answered[value] else 0.0
        recall = hits[value] / counts[value]
        f1 = 2 * hits[value] / (counts[value] + answered[value])
        found.append({"class": value, "rows": counts[value], "precision": precision, "recall": recall, "f1": f1})
    return found


def _difference(one: ComparedFile, ours: Sequence[bool], other: ComparedFile, theirs: Sequence[bool]) -> dict[str, Any]:
    """Return by how much the accuracy of `other` is higher."""
    table = Counter(zip(theirs, ours, strict=True))
    both, only_other, only_one, neither = (
        table[it] for it in ((True, True), (True, False), (False, True), (False,) * 2)
    )
    found: dict[str, Any] = {
        "of": [one.letter, other.letter],
        "difference": (only_other - only_one) / len(ours),
        "interval": paired_interval(both, only_other, only_one, neither),
        "interval_method": INTERVAL,
        "p": mcnemar(only_other, only_one),
        "p_method": TEST,
        "only_right": [only_one, only_other],
    }
    before, after = one.about.get("cost"), other.about.get("cost")
    if before is not None and after is not None:
        found["cost"] = more = after - before
        points = 100 * found["difference"]
        found["cost_per_point"] = more / points if more * points > 0 else None
    if "seconds" in one.about and "seconds" in other.about:
        found["seconds"] = other.about["seconds"] - one.about["seconds"]
    return found


def wilson(hits: int, rows: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927), 209-212.
    """
    share, square = hits / rows, _Z * _Z
    middle = (hits + square / 2) / (rows + square)
    half = _Z * math.sqrt(rows * share * (1 - share) + square / 4) / (rows + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def paired_interval(both: int, first: int, second: int, neither: int) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two proportions over the same rows, of which `first` hit one alone.

    R. G. Newcombe, Improved confidence intervals for the difference between binomial proportions based on paired data,
    Statistics in Medicine 17 (1998), 2635-2650, method 10: the score intervals of both proportions are squared and
    added, less their correlation phi with a correction for continuity.
    """
    rows = both + first + second + neither
    one, other = (both + first) / rows, (both + second) / rows
    (low, high), (lower, higher) = wilson(both + first, rows), wilson(both + second, rows)
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    cross = float(both * neither - first * second)
    cross = max(cross - rows / 2, 0.0) if cross >= 0 else cross
    phi = cross / math.sqrt(margins) if margins else 0.0

    def width(ours: float, theirs: float) -> float:
        return math.sqrt(max(0.0, ours * ours - 2 * phi * ours * theirs + theirs * theirs))

    return one - other - width(one - low, higher - other), one - other + width(high - one, other - lower)


def mcnemar(first: int, second: int) -> float:
    """Return the p-value of the exact McNemar test: two-sided, binomial over the rows that only one of two has right.

    Q. McNemar, Note on the sampling error of the difference between correlated proportions, Psychometrika 12 (1947),
    153-157; exact as in A. Agresti, Categorical Data Analysis, section 11.1.
    """
    rows, fewer = first + second, min(first, second)
    term, tail = 1.0, 0.0
    for hits in range(fewer, -1, -1):  # each term of the tail, in units of the largest
        tail += term
        term *= hits / (rows - hits + 1)
        if term < tail * 1e-17:
            break
    largest = math.lgamma(rows + 1) - math.lgamma(fewer + 1) - math.lgamma(rows - fewer + 1) - rows * math.log(2)
    return min(1.0, 2 * tail * math.exp(largest))


def _shown_rows(
    files: Sequence[ComparedFile],
    values: Sequence[Sequence[str]],
    right: Sequence[str],
    gold: str | None,
    wanted: Sequence[int],
) -> Iterator[dict[str, Any]]:
    """Yield rows side by side, with their own columns as the first file has them."""
    ours = {gold}.union(*(file.ours for file in files))
    found = dict.fromkeys(wanted)
    rows = itertools.islice(files[0].rows(), max(wanted, default=-1) + 1)
    for at, row in enumerate(rows):
        if at in found:
            yield {
                "row": at + 1,
                "own": {name: text_of(value) for name, value in row.items() if name not in ours},
                **({"gold": right[at]} if right else {}),
                "answers": {file.letter: own[at] for file, own in zip(files, values, strict=True)},
            }


# ---- text


def _text(found: Mapping[str, Any], width: int) -> Iterator[str]:
    """Yield the lines for people."""
    for file in found["files"]:
        yield _cut(f"{file['name']}  {file['title']}: {_made(file, found['rows'])}", width)
    yield f"{counted(found['rows'], 'row')}, matched {found['matched']}"
    for pair in found["pairs"]:
        yield from _pair(pair, width, found["rows"])
    if "gold" in found:
        yield from _gold(found["gold"], width)
    yield from _rows(found, width)


def _made(file: Mapping[str, Any], rows: int) -> str:
    parts = [f"{file['answered']:,} answered"]
    if missing := rows - file["answered"]:
        parts.append(f"{missing:,} not")
    said = ", ".join(parts)
    if "seconds" in file:
        said += f" in {_seconds(file['seconds'])}"
    if file.get("model"):
        said += f" by {file['model']}"
    return said + (f", {dollars(file['cost'])}" if file.get("cost") is not None else "")


def _seconds(seconds: float) -> str:
    return f"{float(f'{seconds:.2g}'):g} s" if abs(seconds) < _SHORT_S else status.duration(seconds)


def _pair(pair: Mapping[str, Any], width: int, rows: int) -> Iterator[str]:
    one, other = pair["of"]
    yield ""
    if not pair["rows"]:
        yield f"{one} and {other} have answered no row in common"
        return
    both = f" that both answered (of {rows:,})" if pair["rows"] < rows else ""
    yield f"{one} and {other} agree in {_percent(pair['agreement'])} of {counted(pair['rows'], 'row')}{both}"
    if pair["kappa"] is not None:
        yield f"Cohen's kappa {pair['kappa']:.2f}: 1 is full agreement, 0 that of chance"
    if pair.get("changes") and pair["agree"] < pair["rows"]:
        yield from _table(pair["changes"], one, other, width)


def _table(changes: Sequence[Mapping[str, Any]], one: str, other: str, width: int) -> Iterator[str]:
    """Yield the cross-tabulation of the commonest answers."""
    counts: Counter[str] = Counter()
    for change in changes:
        counts[change["from"]] += change["rows"]
        counts[change["to"]] += change["rows"]
    values = [value for value, _ in counts.most_common()]
    heads = {value: _cut(" ".join(value.split()), _LONGEST_VALUE) for value in values[:_MOST_VALUES]}
    first = max(map(len, (*heads.values(), "others", f"{one} ↓ {other} →"))) + 2
    kept, room = list[str](), width - first - len("others") - 2
    for value in values[:_MOST_VALUES]:
        room -= max(len(heads[value]), 5) + 2
        if room < 0:
            break
        kept.append(value)
    has_others = len(kept) < len(values)
    cells = Counter[tuple[str, str]]()
    for change in changes:
        names = (it if it in kept else "" for it in (change["from"], change["to"]))
        cells[next(names), next(names)] += change["rows"]
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
        low, high = (_percent(one) for one in file["interval"])
        f1 = f", macro F1 {file['macro_f1']:.2f}" if has_classes else ""
        yield f"{file['name']}  {_percent(file['accuracy'])} ({file['right']:,}; 95 % interval {low} to {high}){f1}"
    if has_classes:
        yield from _classes(gold["files"], width)
    for difference in gold["differences"]:
        yield from _shown_difference(difference)


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


def _shown_difference(found: Mapping[str, Any]) -> Iterator[str]:
    one, other = found["of"]
    points, (low, high), (only_one, only_other) = found["difference"], found["interval"], found["only_right"]
    yield ""
    yield f"{other} less {one}: {_points(points)} points, 95 % interval {_points(low)} to {_points(high)}"
    verdict = "" if low > 0 or high < 0 else "; no difference is shown"
    yield f"{only_one:,} only {one} has right, {only_other:,} only {other}; p = {_p(found['p'])}{verdict}"
    yield f"  interval: {INTERVAL}"
    yield f"  p: {TEST}"
    if "cost" in found:
        yield f"{other} costs {_more(dollars(abs(found['cost'])), found['cost'])}{_per_point(found)}"
    if "seconds" in found:
        yield f"{other} takes {_more(_seconds(abs(found['seconds'])), found['seconds'])}"


def _per_point(found: Mapping[str, Any]) -> str:
    """Return the price of each point that the dearer one gains."""
    if found["cost_per_point"] is not None:
        return f": {dollars(found['cost_per_point'])} for each point gained"
    if not found["cost"] or not found["difference"]:
        return ""
    better = found["of"][found["difference"] > 0]
    return f", and {better} is the better one"


def _more(amount: str, difference: float) -> str:
    return f"{amount} {'more' if difference > 0 else 'less'}" if difference else "the same"


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
        texts = {**row["own"], **gold, **row["answers"]}
        names = {name: _cut(name, 8) for name in texts}
        for at, (name, text) in enumerate(texts.items()):
            head = f"row {row['row']:,}" if not at else ""
            yield _cut(f"{head:9} {names[name]:8} {' '.join(text.split()) or '(no answer)'}", width)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 0.0001 else "less than 0.0001"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(width - 1, 1)]}…"
