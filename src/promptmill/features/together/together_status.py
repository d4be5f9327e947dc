"""The figures of a job whose rows share requests, and their text: the cost, and the estimated cost without sharing.

The cost of rows alone is measured if the job sent rows alone to the same model: a sample, or a few rows with shorter or
longer texts. Otherwise its prompt tokens (in) and answer tokens (out) are estimated from the requests that rows shared:

    in     by the bytes of all requests, plus the prompt's words and the system prompt for each row, minus the words
           about records in each request and the JSON around each row
    out    by the bytes of the answers, minus the id and the JSON around each answer

A row sent alone has its own schema and message marks. The tokens that an endpoint counts for these are unknown; for
short rows, they are half of the cost. So an estimate has a lower and an upper end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple, NotRequired

from typing_extensions import TypedDict

from promptmill.answers.choices import choices_of
from promptmill.answers.response_format import schema_of
from promptmill.answers.shown import shown_of
from promptmill.backends import registry
from promptmill.backends.protocol import Usage
from promptmill.config.model_config import ModelConfig
from promptmill.core.money import dollars
from promptmill.core.request import Fields, Sampling
from promptmill.core.values import cell_text, json_text, loads
from promptmill.core.wording import counted
from promptmill.features.together.record_form import RecordForm
from promptmill.jobs.rows.plain_template import PlainTemplate
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.records import SLOT
from promptmill.jobs.store.rounds import ANSWERED
from promptmill.jobs.store.statistics import CAME, SHARED
from promptmill.steps.prices import cost_of_many, price_of

_BYTES_PER_TOKEN = 4  # estimated for English text
_DENSER = 1.6
"""The JSON around short texts has this many times the tokens of words of the same length."""
_AROUND_QUESTION = 64
"""The bytes that a question to a deciding model needs to name its row."""
_AROUND_MESSAGE = 12, 40
"""The fewest and the most bytes that an endpoint counts around a message, for the role and the marks of a turn."""
_UNSURE = 5
"""The possible error, in percent, of the estimated cost of rows if they were sent alone."""
_LOOKED_AT = 200
"""The most rows whose fields are measured. Their mean is within a few percent of the mean of all rows."""
_FEWEST_SAMPLED = 20
"""If at least this many rows were sent alone, their mean counts as the mean of all rows."""
_AROUND_CHOICE = len('{"answer":""}')
"""The bytes around a choice in an answer to one row, because an endpoint's model writes the answer as an object."""
_MEAN_ANSWER = f"""
    SELECT total(length(text)) / max(1, count(*)) FROM answer WHERE key BETWEEN ? AND ? AND {ANSWERED}
"""  # noqa: S608 (fixed names of columns)
_COUNTS = f"""
    SELECT total({CAME} = 'shared'), total({CAME} = 'shared' AND attempts > {SHARED}),
        total({CAME} = '' AND attempts > 0), total({CAME} = '' AND {SHARED} > 0)
    FROM answer WHERE key BETWEEN ? AND ? AND vector IS NULL
"""  # noqa: S608 (fixed names of columns)
_JSON = "CASE WHEN json_valid(more) THEN more END"
_PAID = f"""
    SELECT count(*), total(prompt_tokens), total(completion_tokens), total(json_extract({_JSON}, '$.cost')),
        total(json_extract({_JSON}, '$.tokens.reasoning_tokens'))
    FROM answer WHERE key BETWEEN ? AND ? AND {ANSWERED} AND attempts > 0 AND {{0}}
"""  # noqa: S608 (fixed names of columns)
_IN_SHARED, _ALONE = f"({CAME} = 'shared' OR {SHARED} > 0)", f"{CAME} = '' AND {SHARED} = 0"
_ONCE = f"{_ALONE} AND attempts = 1"
_FEW_ALONE = f"""
    SELECT key FROM answer WHERE key BETWEEN ? AND ? AND {ANSWERED} AND {_ONCE} LIMIT {_LOOKED_AT}
"""  # noqa: S608 (fixed names of columns)


class TogetherStatus(TypedDict):
    """The rows that shared requests, and the savings."""

    rows: int
    """The number of rows whose answer came in a reply to several rows."""
    requests: int
    """The number of requests for these rows."""
    alone: int
    """The number of rows whose answer came in a separate reply."""
    unread: bool
    """Whether no reply to several rows had a readable answer."""
    saved: int
    """About how many prompt tokens were saved, compared with a request for each row; negative if more were used."""
    added: NotRequired[int]
    """The approximate number of additional answer tokens. Missing if the model thinks, because it is unknown how long
    it would think about each row alone."""
    cost: NotRequired[float]
    """The cost, in US dollars, of the requests that are compared."""
    cost_alone: NotRequired[float]
    """The approximate cost, in US dollars, if each row were sent alone."""
    cost_alone_between: NotRequired[list[float]]
    """The lower and the upper end of `cost_alone`. Missing if `cost_alone` is measured."""
    checked: NotRequired[bool]
    """Whether rows were also sent alone, to measure agreement. `saved` and `cost` include the requests for that."""


class _Paid(NamedTuple):
    """The tokens and costs of some answers: their sums, or their means."""

    rows: int
    read: float
    written: float
    cost: float
    thoughts: float = 0.0

    def plus(self, other: _Paid) -> _Paid:
        """Return the sums of both."""
        rows, *sums = (one + more for one, more in zip(self, other, strict=True))
        return _Paid(int(rows), *sums)

    def times(self, number: float) -> _Paid:
        """Return the sums multiplied by `number`."""
        return _Paid(self.rows, *(number * each for each in self[1:]))


_NO_FIELDS = Fields(("",), ())


def count(
    store: JobDatabase, spec: JobSpec, labels: Sequence[str], before: int, configs: Sequence[ModelConfig]
) -> Mapping[str, object]:
    """Return the figures of the rows with numbers below `before`; `{}` if no row was sent with `together`. Blocks."""
    del labels
    found, left_out = TogetherStatus(rows=0, requests=0, alone=0, unread=False, saved=0), 0
    compared = list[_Compared]()
    for slot, config in enumerate(configs):
        if not (spec.targets[slot].sampling or {}).get("together"):
            continue
        ((rows, requests, alone, without),) = store.read(_COUNTS, slot * SLOT, slot * SLOT + before - 1)
        found["rows"] += int(rows)
        found["requests"] += int(requests)
        found["alone"] += int(alone)
        left_out += int(without)
        if rows:
            compared.append(_Slot(store, spec, slot, before, config).compared(int(requests)))
    found["unread"] = bool(left_out) and not found["rows"]
    if compared:
        found.update(_sums(compared))  # type: ignore[typeddict-item]
    return {"together": found} if found["rows"] or found["alone"] else {}


class _Compared(NamedTuple):
    """The cost of rows that shared requests, and the lowest and the highest cost of the same rows if sent alone."""

    together: _Paid
    least: _Paid
    most: _Paid
    has_costs: bool
    is_checked: bool = False
    """Whether a sample was also sent alone. Its requests are included."""

    @property
    def is_measured(self) -> bool:
        """Whether the cost of rows sent alone is measured."""
        return self.least == self.most


def _sums(compared: Sequence[_Compared]) -> dict[str, Any]:
    each = zip(*((one.together, one.least, one.most) for one in compared), strict=True)
    together, least, most = (reduce(_Paid.plus, sums) for sums in each)
    alone = least.plus(most).times(0.5)
    figures: dict[str, Any] = {"saved": round(alone.read - together.read)}
    if together.thoughts and not all(one.is_measured for one in compared):
        return figures
    figures["added"] = round(together.written - alone.written)
    if all(one.has_costs for one in compared):
        figures |= {"cost": round(together.cost, 9), "cost_alone": round(alone.cost, 9)}
        if least.cost < most.cost:
            figures["cost_alone_between"] = [round(least.cost, 9), round(most.cost, 9)]
    return figures | ({"checked": True} if all(one.is_checked for one in compared) else {})


@dataclass(frozen=True, slots=True)
class _Slot:
    """The answers of one model to rows that share requests."""

    store: JobDatabase
    spec: JobSpec
    slot: int
    before: int
    config: ModelConfig

    def compared(self, requests: int) -> _Compared:
        """Return the cost of the rows that shared `requests` requests, and the cost of these rows if sent alone."""
        together, has_costs = self._paid(self.slot, _IN_SHARED), price_of(self.config) is not None
        if sample := self._sample():
            alone = sample.times(together.rows / sample.rows)
            return _Compared(together.plus(sample), alone, alone, has_costs, is_checked=True)
        few = self._paid(self.slot, _ONCE)
        ends = [self._estimated(together, requests, few, end) for end in range(2)]
        least, most = (self._priced(together, alone) for alone in (ends[:1] * 2 if few.rows else ends))
        return _Compared(together, least, most, has_costs)

    def _sample(self) -> _Paid | None:
        """Return the sums for rows that were also sent to the same model alone; None if they are too few."""
        target = self.spec.targets[self.slot]
        for slot, other in enumerate(self.spec.targets):
            is_same = other.model == target.model and other.prompt == target.prompt
            if is_same and not (other.sampling or {}).get("together"):
                alone = self._paid(slot, _ALONE)
                return alone if alone.rows >= _FEWEST_SAMPLED else None
        return None

    def _priced(self, together: _Paid, alone: _Paid) -> _Paid:
        """Return `alone` with the cost of its tokens, at the price that tokens had in shared requests."""
        if (price := price_of(self.config)) is None:
            return alone
        before, after = (
            cost_of_many(price, Usage(round(one.read), round(one.written)), one.rows) for one in (together, alone)
        )
        return alone._replace(cost=together.cost * after / before if before else 0.0)

    def _paid(self, slot: int, which: str) -> _Paid:
        first = slot * SLOT
        ((rows, *sums),) = self.store.read(_PAID.format(which), first, first + self.before - 1)
        return _Paid(int(rows), *sums)

    def _estimated(self, together: _Paid, requests: int, few: _Paid, end: int) -> _Paid:
        """Estimate the tokens (not their cost) that the rows of `requests` requests would need alone. Use `few`, rows
        that were sent alone; if there are none, return the least (`end` 0) or the most (`end` 1) possible tokens."""
        rows, sampling = together.rows, self.config.settings.sampling_params
        system = _bytes(str((self.store.get("order") or {}).get("system_prompt") or ""))
        prompts = self.spec.question.templates
        template = PlainTemplate.of(prompts[self.spec.targets[self.slot].prompt]) if prompts else None
        parts = ("", "prompt", "") if template is None else template.parts
        shows = not self.spec.names_form or registry.shows_forms(self.config)
        shown = _bytes(shown_of(sampling, shows=shows).beside(parts[::2]))
        own, fields = system + shown + sum(map(_bytes, parts[::2])), self._bytes_of_fields(template)
        texts = rows * fields
        sent, alone, written = requests * own + texts, rows * own + texts, together.written
        form = RecordForm.of(sampling, is_object=registry.keeps_schemas(self.config))
        if registry.decides(self.config) or isinstance(form, str):
            sent += rows * _AROUND_QUESTION
        else:
            record = json_text({"id": "r100", **dict.fromkeys(parts[1::2], "")})
            written *= self._answers_alone(form)
            sent += requests * len(form.text([_NO_FIELDS], [""])) + rows * _DENSER * len(record)
            marks = _AROUND_MESSAGE[end] * (2 if system or shown else 1)
            schema = 0 if self.config.record.is_engine else end
            sent += requests * (marks + schema * _size(form.sampling_for(round(rows / requests))))
            alone += rows * (marks + schema * _size(sampling))
        read = together.read * alone / sent if texts else together.read + (alone - sent) / _BYTES_PER_TOKEN
        if few.rows:
            longer = (fields - self._bytes_of_fields(template, alone=True)) * together.read / sent
            read, written = rows * (few.read / few.rows + longer), rows * few.written / few.rows
        else:
            read *= 1 + _UNSURE / 100 * (2 * end - 1)
        return _Paid(rows, max(0.0, read), max(rows, written), 0.0)

    def _answers_alone(self, form: RecordForm) -> float:
        """Return the tokens that separate answers to rows would have, as a share of the tokens of shared replies."""
        first, sampling = self.slot * SLOT, self.config.settings.sampling_params
        ((length,),) = self.store.read(_MEAN_ANSWER, first, first + self.before - 1)
        is_written = sampling.choices is not None and not self.config.record.is_engine
        around = _AROUND_CHOICE if is_written else 0
        return float((length + _DENSER * around) / (length + _DENSER * form.bytes_around))

    def _bytes_of_fields(self, template: PlainTemplate | None, *, alone: bool = False) -> float:
        """Return the mean number of bytes of a row's fields in the prompt, for some rows or, if `alone`, for rows that
        were sent alone; 0 if it is unknown."""
        if template is None:
            return 0.0
        ((last,),) = self.store.read("SELECT coalesce(max(n), 0) FROM row")
        numbers: Iterable[int] = range(0, last + 1, 1 + last // _LOOKED_AT)
        if alone:
            first = self.slot * SLOT
            numbers = (key - first for (key,) in self.store.read(_FEW_ALONE, first, first + self.before - 1))
        chosen, sizes, names = ", ".join(map(str, numbers)), list[int](), self.spec.input.names
        query = f"SELECT cells FROM row WHERE n IN ({chosen}) AND line IS NULL"  # noqa: S608 (numbers)
        for (cells,) in self.store.read(query):
            values = loads(cells or b"{}")
            row = dict(zip(names, values, strict=False)) if isinstance(values, list) else values
            fields = (cell_text(row[name]) for name in template.names & row.keys())
            sizes.append(sum(map(_bytes, fields)))
        return sum(sizes) / len(sizes) if sizes else 0.0


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _size(sampling: Sampling) -> int:
    """Return the number of bytes in a request's schema."""
    wanted = sampling.response_format
    if sampling.choices is not None:
        wanted = choices_of(tuple(sampling.choices)).response_format
    schema = None if wanted is None else schema_of(wanted)
    return 0 if schema is None else len(json_text(schema))


def facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the numbers of rows and of their requests, and the savings, as text."""
    its: TogetherStatus = found["together"]
    if its["unread"]:
        alone = counted(its["alone"], "row")
        yield "together", f"{alone} sent alone: no reply to several had answers that could be read"
        return
    rows, requests = counted(its["rows"], "row"), counted(its["requests"], "request")
    saved = "".join(f"\n{words}" for words in (_money(its), _tokens(its)) if words)
    yield "together", f"{rows} in {requests}, {its['alone']:,} sent alone{saved}"


def _money(its: TogetherStatus) -> str:
    """Return words on the job's cost, and on the estimated cost of the rows if sent alone; `""` without a price."""
    cost, alone = its.get("cost"), its.get("cost_alone")
    if cost is None or not alone:
        return ""
    ends = its.get("cost_alone_between", [alone])
    shares = sorted(round(100 * (cost / one - 1)) for one in ends)
    check = " with the check" if its.get("checked") else ""
    amounts = " to ".join(dict.fromkeys(map(dollars, ends)))
    return f"{dollars(cost)}{check} instead of about {amounts} alone{_compared(*shares)}"


def _compared(least: int, most: int | None = None) -> str:
    """Return in words by how many percent rows cost more together than alone. `least`, `most`: both ends of an
    estimate, or one measured value."""
    most = least if most is None else most
    if least < 0 < most:
        return "; only `agree` measures which is cheaper"
    numbers = " to ".join(map(str, sorted({abs(least), abs(most)})))
    compared = f"{numbers} % {'more' if most > 0 else 'less'}" if least or most else "as much"
    return f": {compared}{'; `together` does not pay here, leave it out' if least > _UNSURE else ''}"


def _tokens(its: TogetherStatus) -> str:
    saved, added = its["saved"], its.get("added")
    read = f"about {abs(saved):,} {'fewer' if saved >= 0 else 'more'} prompt tokens"
    if added is None:
        return f"{read}; how long the model would think about each row alone is not known"
    return f"{read}, {abs(added):,} {'more' if added >= 0 else 'fewer'} answer tokens"
