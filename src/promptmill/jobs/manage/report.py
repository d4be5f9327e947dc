"""The report of a job or a comparison: one HTML file; that of a job also while it runs.

    job.db: status, course, counts, records ─┐
    input: what each row asks (`JobRows`) ───┴─→ data ─→ `report.html` ─→ the file

The file makes no request, and nothing in it can run but its own script:

* `report.html` is the whole page. Its policy permits its one script and its one style, by their digests.
* The data is JSON in two elements that no browser executes. The script makes text nodes of it, never HTML.
* The rows are columns of texts, deflated, which the browser inflates by itself. `_LARGEST` bounds the file:
  long texts are cut off first, then some rows are left out. The page states both.

The page of a comparison is the same page, with its figures in tables, and the answers of each row side by side.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import io
import math
import os
import re
import secrets
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import orjson

from promptmill import __version__
from promptmill.backends.protocol import Call
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.money import dollars
from promptmill.core.wording import counted, cut
from promptmill.images.load import ImageRules, from_folder, is_web, load_image
from promptmill.jobs.files import disk
from promptmill.jobs.manage import comparison
from promptmill.jobs.manage.compared_files import ComparedRows
from promptmill.jobs.manage.job_rows import JobRow, JobRows
from promptmill.jobs.store import status
from promptmill.jobs.store.answers import ANSWERED, DamagedError, failed
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.spec import JobSpec

_MOST_ROWS = 100_000
_LARGEST = 5_000_000  # bytes of the file
_SPARE = 1_000  # for the words on rows that have no room
_LEAST = 100_000  # bytes of deflated rows, whatever else there is
_TEXTS = 64_000_000  # characters of all rows, in memory
_LENGTHS = (20_000, 8_000, 4_000, 2_000, 1_000, 600, 400, 300, 200, 140, 100, 80)  # of a text, at most
_MOST_PARTS = 40  # of a row: turns of a conversation, or columns
_ROOMY = 4  # so many parts may each be as long as a text may be
_TRIED = 2_000  # rows, which show how well texts are deflated
_SEED = 1
_FAILED, _CUT = 1, 2
_DIFFER, _WRONG = 1, 2
_BETTER = {comparison.CONTRADICTION: "Contradicts itself"}
_MOST_VALUES, _LONGEST_VALUE = 12, 24  # of a table
_Filter: TypeAlias = tuple[str, str, int, int]
"""The key and the label of a button, a mask, and what of it the state of a row has that the button shows."""
_MOST_IMAGES, _IMAGE_SIDE = 200, 160
_PICTURES = 1_000_000  # characters of all thumbnails
_LONGEST_FACT = 20_000
_BINS = 24
_OF_ROWS = frozenset({"done", "answered", "failed", "errors", "skipped", "truncated", "empty"})
_SHOWN_SHARE = 0.99  # a histogram ends there, for one answer may take a hundred times as long
_MARK = b'<meta name="generator" content="promptmill report">'
_HEAD = 4096  # bytes, within which an earlier report has the mark
_TEMPLATE = Path(__file__).with_name("report.html")
_WORD_BEGUN = re.compile(r"(?<!\w)\w+\Z")
_PLACE = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True, slots=True)
class Report:
    """A report that was written."""

    path: Path
    rows: int
    total: int
    """The rows with an answer or a failure; `rows` of them are in the report."""

    def __str__(self) -> str:
        some = f"{self.rows:,} of " if self.rows < self.total else ""
        return f"report of {some}{counted(self.total, 'row')}: {self.path}"

    def show(self) -> None:
        """Open it in the browser."""
        import webbrowser  # imported where it is needed

        webbrowser.open(self.path.absolute().as_uri())


def default_path(folder: Folder) -> Path:
    """Return the file of a report that has no other name: next to the job's output."""
    spec = folder.known_spec()
    return spec.output.with_name(f"{spec.output.name}.report.html")


def check(target: Path) -> None:
    """Raise `PromptmillError` unless a report can be written to `target`: an earlier report there is replaced."""
    try:
        with target.open("rb") as file:
            is_report = _MARK in file.read(_HEAD)
    except FileNotFoundError:
        if target.parent.is_dir():
            return
        raise input_error(f"There is no folder {target.parent} for the report.") from None
    except OSError as error:
        raise PromptmillError(Code.STORAGE, f"The report {target} cannot be written: {disk.why(error)}.", "") from None
    if not is_report:
        raise input_error(f"{target} exists and is no report; name another file for the report, or remove it.")


def write(folder: Folder, target: Path) -> Report:
    """Write the report of a job to `target`, all at once. Raises `PromptmillError`."""
    check(target)
    try:
        text, rows, total = _page(folder)
        _put(target, text)
    except (OSError, DamagedError) as error:
        why = disk.why(error) if isinstance(error, OSError) else "its database is damaged"
        raise PromptmillError(Code.STORAGE, f"There is no report of job {folder.job_id}: {why}.", "") from None
    return Report(target, rows, total)


def write_comparison(
    target: Path, found: Mapping[str, Any], rows: ComparedRows, judgement: comparison.Judgement | None
) -> Report:
    """Write the page of a comparison, whose figures are `found`. Raises `PromptmillError`."""
    check(target)
    total = found["rows"]
    chosen = comparison.at_random(range(total))[:_MOST_ROWS] if total > _MOST_ROWS else range(total)
    shown = _compared_rows(found, comparison.side_by_side(rows, judgement, chosen), len(chosen))
    files = found["files"]
    title = ", ".join(file["title"] for file in files)
    differ = f"{found['differ']:,} {'differ' if len(files) > 1 else 'wrong'}"
    data = {
        "state": "comparison",
        "mood": "blue",
        "summary": f"{counted(total, 'row')}, matched {found['matched']}; {differ}",
        "notes": [],
        "tiles": list(_compared_tiles(found)),
        "answers": "",
        "values": [],
        "fields": [],
        "failures": [],
        "sections": list(_sections(found, shown.labels or ())),
        "thumbnails": {},
        "course": {},
        "spreads": [],
        "run": [(file["name"], f"{file['file']}\n{comparison.made(file, total)}") for file in files],
        "made": _made(),
    }
    try:
        _put(target, _filled(title, data, shown, total))
    except OSError as error:
        raise PromptmillError(Code.STORAGE, f"The report {target} cannot be written: {disk.why(error)}.", "") from None
    return Report(target, len(shown.number), total)


def _put(target: Path, text: bytes) -> None:
    """Write a file, all at once. Raises `OSError`."""
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(disk.created(beside, 0o666), "wb") as file:
            file.write(text)
        disk.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def _page(folder: Folder) -> tuple[bytes, int, int]:
    """Return the report, the number of its rows, and of how many they are."""
    spec, found = folder.known_spec(), status.read(folder) | status.asked(folder)
    reader, pictures = JobRows(folder, spec), _Thumbnails(str(spec.working_folder or spec.input.parent))
    with folder.reading() as store:
        results, examples, spread = (
            store.results(by_field=spec.answer_schema is not None),
            store.examples(),
            store.spread(),
        )
        counts = store.counts(skips_empty=spec.skip_empty).as_dict(Call())
        where = f"{ANSWERED} OR ({failed(skips_empty=spec.skip_empty)})"
        total = store.count(where)
        rows = _Rows.of(pictures.of(reader.read(store.records_of(_MOST_ROWS, _SEED, where))), min(total, _MOST_ROWS))
    found |= {name: count for name, count in counts.items() if name in _OF_ROWS}
    data = {
        **_heading(found),
        "notes": [*([reader.note] if reader.note else []), *found.get("warnings", ())],
        "tiles": _tiles(found),
        "answers": _of_answers(results),
        "values": [] if "fields" in results else list(results.get("values", {}).items()),
        "fields": [_field(name, field) for name, field in results.get("fields", {}).items()],
        "failures": [
            (code, count, *_example(code, examples.get(code, ""))) for code, count in found.get("errors", {}).items()
        ],
        "sections": [],
        "thumbnails": pictures.found,
        "course": (course := folder.course),
        "spreads": _spreads(spread),
        "run": _run(course, spec, found),
        "made": _made(),
    }
    rows.filters = _filters(failed=bool(data["failures"]), cut=bool(rows.cut))
    title, so_far = f"{spec.input.name} → {spec.output.name}", " so far" if found["state"] in status.ALIVE else ""
    return _filled(title, data, rows, total, so_far), len(rows.number), total


def _filters(*, failed: bool, cut: bool) -> list[_Filter]:
    """Return the filters for the rows of a job."""
    found = [("answered", "Answered", _FAILED, 0)] if failed or cut else []
    found += [("failed", "Failed", _FAILED, _FAILED)] if failed else []
    return found + ([("cut", "Cut off", _CUT, _CUT)] if cut else [])


def _filled(title: str, data: Mapping[str, Any], rows: _Rows, total: int, so_far: str = "") -> bytes:
    """Return the page with its data, and as many of its rows, `total`, as there is room for."""
    about = rows.about(total, _LENGTHS[0], so_far)
    room = _LARGEST - len(_page_of(title, {**data, "rows": about}, b"")) - _SPARE
    packed, cut_at = rows.packed(max(_LEAST, room * 3 // 4))
    return _page_of(title, {**data, "rows": rows.about(total, cut_at, so_far)}, packed)


def _page_of(title: str, data: Mapping[str, Any], packed: bytes) -> bytes:
    """Return the page with these data and rows."""
    template = _TEMPLATE.read_text(encoding="utf-8")
    style = template.partition("<style>")[2].partition("</style>")[0]
    script = template.rpartition("<script>")[2].partition("</script>")[0]
    policy = f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; img-src data:"
    parts = {
        "policy": f"{policy}; base-uri 'none'; form-action 'none'",
        "title": html.escape(title),
        "data": orjson.dumps(data, default=str).decode().replace("<", "\\u003c"),
        "rows": base64.b64encode(packed).decode(),
    }
    return _PLACE.sub(lambda found: parts[found[1]], template).encode("utf-8", "replace")


def _source(text: str) -> str:
    """Return the source of a policy that permits this script or style alone."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@dataclass(slots=True)
class _Rows:
    """The rows of a report, as columns: these are deflated better than rows."""

    number: list[int]
    state: list[int]
    """Of a job: bits `_FAILED` and `_CUT`. Of a comparison: those of its filters."""
    asked: list[str | list[tuple[str, str]]]
    """The prompt, or texts with labels."""
    answer: list[str | list[str]]
    seconds: list[float]
    tokens: list[int]
    before: str = ""
    """The common beginning of all prompts, such as that of their template; `asked` leaves it out."""
    after: str = ""
    cut: int = 0
    left_out: int = 0
    """Rows that the size of the file has no room for."""
    filters: Sequence[_Filter] = ()
    labels: Sequence[str] | None = None
    """The names of the answers of a comparison, of the right one, and of the verdict."""
    wrong: Sequence[int] = ()
    """The bit of each answer that shows it as wrong, or 0."""

    @classmethod
    def of(cls, found: Iterator[JobRow], count: int) -> _Rows:
        """Return `count` rows. Their texts are cut off where they would take too much memory."""
        rows = cls([], [], [], [], [], [])
        most = max(_LENGTHS[-1], min(_LENGTHS[0], _TEXTS // max(1, 2 * count)))
        for row in found:
            usage = row.values["usage"]
            is_cut = row.values["finish_reason"] == "length"
            answers = [cut(text, most) for text in ([row.error] if row.error else row.answers)]
            labelled = _some_parts(row.asked, most, from_end=True)
            is_prompt = [label for label, _ in labelled] == ["prompt"]
            rows.number.append(row.number)
            rows.state.append(_FAILED if row.error else _CUT if is_cut else 0)
            rows.cut += is_cut
            rows.asked.append(labelled[0][1] if is_prompt else labelled)
            rows.answer.append(answers[0] if len(answers) == 1 else answers)
            rows.seconds.append(row.seconds)
            rows.tokens.append(usage["completion_tokens"])
        rows._leave_out_template()
        return rows

    def packed(self, most: int) -> tuple[bytes, int]:
        """Return the rows, deflated to `most` bytes, and the length after which texts are cut off, 0 if none is.

        Where they have no room, some are left out at random, and no longer part of this object.
        """
        longest = max((len(text) for text in self._texts()), default=0)
        lengths = [longest, *(length for length in _LENGTHS if length < longest)]
        tried = self._some(range(0, len(self.number), 1 + len(self.number) // _TRIED))
        room = most * len(tried.number) // max(1, len(self.number))
        while lengths[1:] and len(tried._deflated(lengths[0])) > room:
            lengths.pop(0)
        while len(packed := self._deflated(lengths[0])) > most:
            if lengths[1:]:
                lengths.pop(0)
            else:
                self._drop(len(self.number) * most // len(packed) * 97 // 100)
        return packed, lengths[0] if lengths[0] < longest else 0

    def about(self, total: int, cut_at: int, so_far: str) -> dict[str, Any]:
        """Return the facts for the page, of `total` rows."""
        shown = len(self.number)
        note = f"{'All ' if total > 1 else ''}{counted(shown, 'row')}{so_far}."
        if shown < total:
            why = f" for the size of this file ({counted(self.left_out, 'row')} left out)" if self.left_out else ""
            note = f"A random sample of {shown:,} of {counted(total, 'row')}{why}; counts and charts are of all rows."
        if cut_at:
            note += f" Texts of more than {cut_at:,} characters are cut off."
        found = {"note": note, "before": self.before, "after": self.after}
        return found | {"filters": self.filters, "labels": self.labels, "wrong": self.wrong}

    def _leave_out_template(self) -> None:
        """Leave out how all prompts begin and end."""
        prompts = [text for text in self.asked if isinstance(text, str)]
        if len(prompts) < 2 or len(prompts) < len(self.asked):
            return
        self.before = _WORD_BEGUN.sub("", _common_start(prompts))
        left = [text[len(self.before) :][::-1] for text in prompts]
        self.after = _WORD_BEGUN.sub("", _common_start(left))[::-1]
        end = -len(self.after) or None
        self.asked = [text[len(self.before) : end] for text in prompts]

    def _texts(self) -> Iterator[str]:
        for asked in self.asked:
            yield from [asked] if isinstance(asked, str) else (text for _, text in asked)
        for answer in self.answer:
            yield from [answer] if isinstance(answer, str) else answer

    def _some(self, places: Sequence[int]) -> _Rows:
        return _Rows(
            [self.number[at] for at in places],
            [self.state[at] for at in places],
            [self.asked[at] for at in places],
            [self.answer[at] for at in places],
            [self.seconds[at] for at in places],
            [self.tokens[at] for at in places],
            self.before,
            self.after,
        )

    def _drop(self, kept: int) -> None:
        """Keep so many rows, evenly spaced."""
        every = len(self.number) / max(1, kept)
        some = self._some([int(at * every) for at in range(kept)])
        self.left_out += len(self.number) - kept
        self.number, self.state, self.asked = some.number, some.state, some.asked
        self.answer, self.seconds, self.tokens = some.answer, some.seconds, some.tokens
        self.cut = sum(1 for state in self.state if state & _CUT)

    def _deflated(self, length: int) -> bytes:
        """Return the columns, texts cut off after `length` characters."""
        columns = {
            "steps": [now - before for before, now in zip([0, *self.number], self.number, strict=False)],
            "state": self.state,
            "asked": [
                cut(asked, length) if isinstance(asked, str) else [(name, cut(text, length)) for name, text in asked]
                for asked in self.asked
            ],
            "answer": [
                cut(answer, length) if isinstance(answer, str) else [cut(text, length) for text in answer]
                for answer in self.answer
            ],
            "seconds": self.seconds,
            "tokens": self.tokens,
        }
        return zlib.compress(orjson.dumps(columns), 9)


def _some_parts(parts: Sequence[tuple[str, str]], most: int, *, from_end: bool = False) -> list[tuple[str, str]]:
    """Return texts with labels, cut off: the first `_MOST_PARTS`, or the last. With many, each has less room."""
    left_out = max(0, len(parts) - _MOST_PARTS)
    kept = parts[left_out:] if from_end else parts[: len(parts) - left_out]
    each = max(_LENGTHS[-1], min(most, _ROOMY * most // max(1, len(kept))))
    found = [(cut(label, _LENGTHS[-1]), cut(text, each)) for label, text in kept]
    more = [("…", f"{left_out:,} more")] if left_out else []
    return [*more, *found] if from_end else [*found, *more]


class _Thumbnails:
    """The first image of each of the first answered rows that have one, made small: the job could read it."""

    def __init__(self, folder: str) -> None:
        self.found: dict[str, str] = {}
        """JPEG in base64, by the number of the row."""
        self._folder = folder
        self._rules = ImageRules()
        self._room = _PICTURES

    @property
    def _has_room(self) -> bool:
        return len(self.found) < _MOST_IMAGES and self._room > 0

    def of(self, rows: Iterable[JobRow]) -> Iterator[JobRow]:
        """Yield the rows, whose images are looked at."""
        for row in rows:
            if row.images and not row.error and self._has_room and not is_web(row.images[0]):
                with contextlib.suppress(PromptmillError, OSError):  # it is not there any more
                    image = load_image(from_folder(row.images[0], self._folder), self._rules)
                    picture = base64.b64encode(_small(image.data)).decode()
                    self._room -= len(picture)
                    if self._room >= 0:
                        self.found[str(row.number)] = picture
            yield row


def _small(data: bytes) -> bytes:
    """Return an image as a small JPEG."""
    from PIL import Image

    made = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (_IMAGE_SIDE, _IMAGE_SIDE))
        image.thumbnail((_IMAGE_SIDE, _IMAGE_SIDE))
        image.convert("RGB").save(made, "JPEG", quality=60)
    return made.getvalue()


def _common_start(texts: Sequence[str]) -> str:
    """Return how all texts begin."""
    first, last = min(texts), max(texts)
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((at for at, (one, other) in pairs if one != other), len(first))]


def _heading(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the state, its colour and a sentence."""
    state, files = found["state"], f"{status.answered(found):,} answered"
    moods = {status.FINISHED: "warn" if found.get("failed") else "good", status.STOPPED: "bad"}
    mood = moods.get(state, "blue" if state in status.ALIVE else "warn")
    if found.get("failed"):
        files += f", {found['failed']:,} failed"
    if (total := found.get("total")) is not None and state != status.FINISHED:
        files += f" of {counted(total, 'row')}"
    summary = f"{files} in {status.took(found.get('seconds', 0))}"
    if found.get("model"):
        summary += f" by {found['model']}"
    if found.get("cost") is not None:
        summary += f", {dollars(found['cost'])}"
    if found.get("reason"):
        summary += f": {found['reason']}"
    if state in status.ALIVE:
        summary += "; the job was running when this report was made"
    return {"state": state, "mood": mood, "summary": summary}


def _tiles(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the main figures: a name, the figure, and a remark."""
    seconds, done, cost = found.get("seconds", 0), found.get("done", 0), found.get("cost")
    total, answered = found.get("total"), status.answered(found)
    tiles = [
        ("Answered", f"{answered:,}", f"of {total:,}" if total not in {None, answered} else ""),
        ("Failed", f"{found.get('failed', 0):,}", _share(found.get("failed", 0), done)),
        ("Time", status.took(seconds), f"{status.figure(done / seconds)} rows/s" if seconds and done else ""),
    ]
    if cost is not None:
        most, each = found.get("max_cost"), f"{dollars(1000 * cost / done)} per 1,000 rows" if done else ""
        tiles.append(("Cost", dollars(cost), f"of {dollars(most)}" if most is not None else each))
    cached = found.get("cached_tokens", 0)
    remark = f"{cached:,} from the provider's cache" if cached else ""
    tiles.append(("Tokens in", f"{found.get('prompt_tokens', 0):,}", remark))
    out = found.get("completion_tokens", 0)
    tiles.append(("Tokens out", f"{out:,}", f"{status.figure(out / answered)} per answer" if answered and out else ""))
    tiles.append(("Requests", f"{found.get('requests', 0):,}", f"{found.get('retries', 0):,} retries"))
    if hits := found.get("cached"):
        tiles.append(("From the cache", f"{hits:,}", _share(hits, done)))
    for name, label in (("truncated", "Cut off"), ("empty", "Empty"), ("skipped", "Skipped")):
        if found.get(name):
            tiles.append((label, f"{found[name]:,}", "by max_tokens" if name == "truncated" else ""))
    return tiles


def _share(part: int, whole: int) -> str:
    return f"{status.figure(100 * part / whole)} %" if part and whole else ""


def _of_answers(results: Mapping[str, Any]) -> str:
    """Return a sentence on the different answers."""
    if not results:
        return "There are no answers yet."
    different = results["different"]
    others = different - len(results.get("values", {}))
    kinds = counted(different, "different answer")
    more = f", {others:,} of them not shown here" if "values" in results and others else ""
    return f"{kinds}{more}; {status.lengths(results)}."


def _field(name: str, field: Mapping[str, Any]) -> tuple[str, list[tuple[str, int]], str]:
    """Return the name of a field of the answers, its values, and the range of its numbers."""
    if "values" in field:
        return name, list(field["values"].items()), ""
    return name, [], status.span(field)


def _example(code: str, text: str) -> tuple[str, str]:
    """Return the message of a failure with this code without its remedy, and the remedy."""
    try:
        error = PromptmillError(Code(code), "")
    except ValueError:
        return text, ""
    later = " The same request may succeed later." if error.retryable else ""
    return text.removesuffix(error.hint).rstrip(), error.hint + later


def _spreads(found: Sequence[tuple[float, int, int]]) -> list[dict[str, Any]]:
    """Return histograms of latencies, lengths and tokens of answers."""
    kinds = (("Latency", "s"), ("Length of answers", "characters"), ("Tokens of answers", "tokens"))
    return [
        _histogram(title, unit, values)
        for (title, unit), values in zip(kinds, zip(*found, strict=True), strict=False)
        if any(values)
    ]


def _histogram(title: str, unit: str, values: Sequence[float]) -> dict[str, Any]:
    ordered = sorted(value for value in values if value is not None)
    shares = {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in _QUANTILES.items()}
    to = ordered[min(len(ordered) - 1, math.ceil(_SHOWN_SHARE * len(ordered)))] or ordered[-1]
    bins = min(_BINS, int(to)) if unit != "s" and to >= 1 else _BINS
    counts = [0] * bins
    for value in ordered:
        counts[min(bins - 1, int(bins * value / to))] += 1
    words = ", ".join(f"{name} {status.figure(value)}" for name, value in shares.items())
    return {
        "title": title,
        "unit": unit,
        "to": to,
        "counts": counts,
        "beyond": ordered[-1] > to,
        "words": f"{words}, longest {status.figure(ordered[-1])} {unit}",
    }


_QUANTILES = {"median": 0.5, "p95": 0.95}


def _run(course: Mapping[str, Any], spec: JobSpec, found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the facts about the run, by their names."""
    runs = course.get("runs", [])
    versions = dict.fromkeys(run["version"] for run in runs)
    facts = {
        "Command": found.get("command", ""),
        "Model": f"{spec.model} ({spec.backend})" if spec.model else spec.backend,
        "Prompt": found.get("prompt", ""),
        "System prompt": found.get("system", ""),
        "Sampling": ", ".join(f"{name} {value}" for name, value in (spec.sampling or {}).items()),
        "Answers' schema": "" if spec.answer_schema is None else orjson.dumps(spec.answer_schema).decode(),
        "Input": str(spec.input),
        "Output": str(spec.output),
        "Begun": _when(spec.created),
        "Runs": "\n".join(f"{_when(run['began'])}, after {status.took(run['at'])}" for run in runs)
        if len(runs) > 1
        else "",
        "Version": f"promptmill {', '.join(versions)}" if versions else "",
        "Job": spec.job_id,
    }
    return [(label, cut(text, _LONGEST_FACT)) for label, text in facts.items() if text]


def _made() -> str:
    return f"Made by promptmill {__version__} on {_when(time.time())}. This file makes no request to any host."


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


# ---- the page of a comparison


def _compared_tiles(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the main figure of each file."""
    right = {file["name"]: file for file in found.get("gold", {}).get("files", ())}
    for file in found["files"]:
        label, made = f"{file['name']} {file['title']}", comparison.made(file, found["rows"])
        if file["name"] in right:
            yield label, comparison.percent(right[file["name"]]["accuracy"]), f"right; {made}"
        else:
            yield label, f"{file['answered']:,}", made.partition(" ")[2]
    if "judge" in found:
        for pair in found["judge"]["pairs"]:
            wins = "\N{EN DASH}".join(f"{count:,}" for count in pair["wins"])
            yield f"Judged, {' and '.join(pair['of'])}", wins, f"better answers; {pair['ties']:,} ties"


def _sections(found: Mapping[str, Any], labels: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the figures: lines of text and tables."""
    for pair in found["pairs"]:
        tables = [_crossed(pair, labels)] if pair.get("changes") else []
        title = f"Agreement of {' and '.join(pair['of'])}"
        yield {"title": title, "lines": list(comparison.agreed(pair, found["rows"])), "tables": tables}
    if gold := found.get("gold"):
        lines = [*comparison.spelled(gold), *(f"{file['name']}  {comparison.right_of(file)}" for file in gold["files"])]
        for difference in gold["differences"]:
            lines += comparison.differs(difference)
        title = f"Right, by {gold['column']} ({counted(gold['rows'], 'row')})"
        yield {"title": title, "lines": lines, "tables": list(_classes(gold["files"]))}
    if judge := found.get("judge"):
        lines = [judge["criterion"]]
        for pair in judge["pairs"]:
            lines += comparison.judged(pair)
        yield {"title": f"Judged by {judge['model']}", "lines": [*lines, comparison.price(judge)], "tables": []}


def _crossed(pair: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """Return the cross-tabulation of two files; the other answers have the value None."""
    (one, other), every = pair["of"], comparison.commonest(pair["changes"])
    kept = every[:_MOST_VALUES]
    cells = comparison.tabulated(pair["changes"], kept)
    values = [*kept, *([""] if len(kept) < len(every) else [])]
    names = [" ".join(cut(value, _LONGEST_VALUE).split()) or "others" for value in values]
    return {
        "head": [f"{one} ↓ {other} →", *names],
        "rows": [
            [name, *(f"{cells[value, to]:,}" if cells[value, to] else "·" for to in values)]
            for name, value in zip(names, values, strict=True)
        ],
        "answers": {"values": [value or None for value in values], "places": [labels.index(one), labels.index(other)]},
    }


def _classes(files: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the table of the classes, if there is one."""
    if "classes" not in files[0]:
        return
    rows = []
    for same in zip(*(file["classes"] for file in files), strict=True):
        for file, one in zip(files, same, strict=True):
            figures = (f"{one[name]:.2f}" for name in ("precision", "recall", "f1"))
            rows.append([cut(one["class"], _LONGEST_VALUE), f"{one['rows']:,}", file["name"], *figures])
    yield {"head": ["class", "rows", "", "precision", "recall", "F1"], "rows": rows, "answers": None}


def _compared_rows(found: Mapping[str, Any], rows: Iterator[Mapping[str, Any]], count: int) -> _Rows:
    """Return the rows of a comparison: the answers, the right one and the verdict side by side."""
    letters = [file["name"] for file in found["files"]]
    wrong = {letter: 4 << at for at, letter in enumerate(letters)} if "gold" in found else {}
    kinds = [*letters, comparison.CONTRADICTION] if "judge" in found else []
    bits = {kind: 4 << len(letters) + at for at, kind in enumerate(kinds)}
    most = max(_LENGTHS[-1], min(_LENGTHS[0], _TEXTS // max(1, (1 + len(letters)) * count)))
    shown = _Rows([], [], [], [], [], [])
    for row in rows:
        answers, gold = row["answers"], row.get("gold", "")
        is_wrong = [letter for letter, answer in answers.items() if gold and answer != gold]
        state = _DIFFER * (len(set(answers.values())) > 1) + _WRONG * bool(is_wrong)
        state += sum(wrong[letter] for letter in is_wrong)
        verdicts = set(row.get("verdicts", {}).values())
        texts = [*answers.values(), *([gold] if wrong else []), *([comparison.said(row)] if bits else [])]
        shown.number.append(row["row"])
        shown.state.append(state + sum(bit for kind, bit in bits.items() if kind in verdicts))
        shown.asked.append(_some_parts(list(row["own"].items()), most))
        shown.answer.append([cut(text, most) for text in texts])
        shown.seconds.append(0)
        shown.tokens.append(0)
    every = 0
    for state in shown.state:
        every |= state
    filters = [("differ", "Differ", _DIFFER), ("wrong", "Wrong", _WRONG)]
    filters += [(f"wrong{letter}", f"{letter} wrong", bit) for letter, bit in wrong.items() if len(letters) > 1]
    filters += [(f"better{kind}", _BETTER.get(kind, f"{kind} is better"), bit) for kind, bit in bits.items()]
    shown.filters = [(key, label, bit, bit) for key, label, bit in filters if every & bit]
    column = found["gold"]["column"] if wrong else ""
    shown.labels = [*letters, *([column] if wrong else []), *(["judge"] if bits else [])]
    shown.wrong = [wrong.get(label, 0) for label in letters] + [0] * (len(shown.labels) - len(letters))
    return shown
