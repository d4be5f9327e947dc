"""The figures of a job whose rows share requests, and their text: also what the job cost, and would have cost alone.

What a row costs alone is measured if the job sent a sample of the same rows alone, to the same model. Otherwise it is
estimated from the requests that rows shared:

    in     by the bytes of all requests: with the words of the prompt and the system prompt for each row; without the
           words about records in each request, and the JSON around each row
    out    by the bytes of the answers: without the id and the JSON around each
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NotRequired

from typing_extensions import TypedDict

from promptmill.answering.prices import cost_of_many, price_of
from promptmill.answers.choices import choices_of
from promptmill.answers.response_format import schema_of
from promptmill.answers.shown import shown_of
from promptmill.backends import registry
from promptmill.backends.protocol import Usage
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.money import dollars
from promptmill.core.request import Fields, Sampling
from promptmill.core.values import json_text, loads
from promptmill.core.wording import counted
from promptmill.features.together.record_form import RecordForm
from promptmill.jobs.rows.plain_template import PlainTemplate, cell_text
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.records import SLOT
from promptmill.jobs.store.rounds import ANSWERED
from promptmill.jobs.store.statistics import CAME, SHARED

_BYTES_PER_TOKEN = 4  # estimated for English text
_DENSER = 1.6
"""How many times more tokens the JSON around short texts has than words of the same length."""
_AROUND_QUESTION = 64
"""Bytes by which a question to a model that decides names its row."""
_UNSURE = 5
"""Percent by which an estimate of the cost alone may be wrong."""
_LOOKED_AT = 200
"""Rows whose fields are measured: their mean is within a few percent of that of all rows."""
_FEWEST_MEASURED = 20
"""Rows alone whose mean is closer to the others' than an estimate."""
_AROUND_CHOICE = len('{"answer":""}')
"""Bytes around a choice in an answer alone, which an endpoint writes as an object."""
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


class TogetherStatus(TypedDict):
    """How many rows shared requests, and what that saved."""

    rows: int
    """Rows whose answer came in a reply to several."""
    requests: int
    """The requests for these rows."""
    alone: int
    """Rows whose answer came in a reply of their own."""
    unread: bool
    """Whether no reply to several rows had an answer that could be read."""
    saved: int
    """About how many prompt tokens fewer the job had than with each row alone; below 0: more."""
    added: NotRequired[int]
    """About how many more tokens the answers had. Missing if the model thinks: how long it does alone is unknown."""
    cost: NotRequired[float]
    """The cost, in US dollars, of the requests that are compared."""
    cost_alone: NotRequired[float]
    """About what each row alone would have cost, in US dollars."""
    checked: NotRequired[bool]
    """Whether rows were also sent alone, to measure how often the answers agree. `saved` and `cost` include these."""


class _Paid(NamedTuple):
    """The sums of some answers, or their means."""

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
        """Return `number` times the sums."""
        return _Paid(self.rows, *(number * each for each in self[1:]))


_NO_FIELDS = Fields(("",), ())
_NOTHING = _Paid(0, 0.0, 0.0, 0.0)


def count(
    store: JobDatabase, spec: JobSpec, labels: Sequence[str], before: int, configs: Sequence[ResolvedConfig]
) -> Mapping[str, object]:
    """Return the figures of the rows below `before`; none for a job whose rows share no requests, and none after the
    run. Blocks."""
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
    """What rows cost together, and what they would cost alone."""

    together: _Paid
    alone: _Paid
    has_costs: bool
    is_measured: bool


def _sums(compared: Sequence[_Compared]) -> dict[str, Any]:
    together, alone = _NOTHING, _NOTHING
    for each in compared:
        together, alone = together.plus(each.together), alone.plus(each.alone)
    is_measured = all(each.is_measured for each in compared)
    figures: dict[str, Any] = {"saved": round(alone.read - together.read)}
    if not is_measured and together.thoughts:
        return figures
    figures["added"] = round(together.written - alone.written)
    if all(each.has_costs for each in compared):
        figures |= {"cost": round(together.cost, 9), "cost_alone": round(alone.cost, 9)}
    return figures | ({"checked": True} if is_measured else {})


@dataclass(frozen=True, slots=True)
class _Slot:
    """The answers of one model to rows that share requests."""

    store: JobDatabase
    spec: JobSpec
    slot: int
    before: int
    config: ResolvedConfig

    def compared(self, requests: int) -> _Compared:
        """Return what the rows of `requests` requests cost together, and alone."""
        together, price = self._paid(self.slot, _IN_SHARED), price_of(self.config)
        if measured := self._measured():
            alone = measured.times(together.rows / measured.rows)
            return _Compared(together.plus(measured), alone, price is not None, True)
        alone = self._estimated(together, requests)
        if price is not None:
            before, after = (
                cost_of_many(price, Usage(round(one.read), round(one.written)), one.rows) for one in (together, alone)
            )
            alone = alone._replace(cost=together.cost * after / before if before else 0.0)
        return _Compared(together, alone, price is not None, False)

    def _measured(self) -> _Paid | None:
        """Return the rows that the same model answered alone; None if there are few."""
        target = self.spec.targets[self.slot]
        for slot, other in enumerate(self.spec.targets):
            is_same = other.model == target.model and other.prompt == target.prompt
            if is_same and not (other.sampling or {}).get("together"):
                alone = self._paid(slot, _ALONE)
                return alone if alone.rows >= _FEWEST_MEASURED else None
        return None

    def _paid(self, slot: int, which: str) -> _Paid:
        first = slot * SLOT
        ((rows, *sums),) = self.store.read(_PAID.format(which), first, first + self.before - 1)
        return _Paid(int(rows), *sums)

    def _estimated(self, together: _Paid, requests: int) -> _Paid:
        """Return about how many tokens the rows of `requests` requests have alone, without their cost."""
        rows, sampling = together.rows, self.config.settings.sampling_params
        system = _bytes(str((self.store.get("order") or {}).get("system_prompt") or ""))
        prompts = self.spec.question.templates
        template = PlainTemplate.of(prompts[self.spec.targets[self.slot].prompt]) if prompts else None
        parts = ("", "prompt", "") if template is None else template.parts
        shows = not self.spec.names_form or registry.shows_forms(self.config)
        own = system + _bytes(shown_of(sampling, shows=shows).beside(parts[::2])) + sum(map(_bytes, parts[::2]))
        texts = rows * self._bytes_of_fields(template)
        sent, alone, written = requests * own + texts, rows * own + texts, together.written
        form = RecordForm.of(sampling, is_object=registry.keeps_schemas(self.config))
        if registry.decides(self.config) or isinstance(form, str):
            sent += rows * _AROUND_QUESTION
        else:
            record = json_text({"id": "r100", **dict.fromkeys(parts[1::2], "")})
            written *= self._answers_alone(form)
            sent += requests * len(form.text([_NO_FIELDS], [""])) + rows * _DENSER * len(record)
            if registry.shows_forms(self.config):
                sent += requests * _size(form.sampling_for(round(rows / requests)))
                alone += rows * _size(sampling)
        read = together.read * alone / sent if texts else together.read + (alone - sent) / _BYTES_PER_TOKEN
        return _Paid(rows, max(0.0, read), max(rows, written), 0.0)

    def _answers_alone(self, form: RecordForm) -> float:
        """Return the share of a reply to several rows that its answers take alone."""
        first, sampling = self.slot * SLOT, self.config.settings.sampling_params
        ((length,),) = self.store.read(_MEAN_ANSWER, first, first + self.before - 1)
        is_written = sampling.choices is not None and not self.config.record.is_engine
        around = _AROUND_CHOICE if is_written else 0
        return float((length + _DENSER * around) / (length + _DENSER * form.bytes_around))

    def _bytes_of_fields(self, template: PlainTemplate | None) -> float:
        """Return the mean bytes of the fields in the prompts of some rows; 0 if they are unknown."""
        if template is None:
            return 0.0
        ((last,),) = self.store.read("SELECT coalesce(max(n), 0) FROM row")
        chosen = ", ".join(map(str, range(0, last + 1, 1 + last // _LOOKED_AT)))
        sizes, names = list[int](), self.spec.input.names
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
    """Return the bytes of the schema of a request."""
    wanted = sampling.response_format
    if sampling.choices is not None:
        wanted = choices_of(tuple(sampling.choices)).response_format
    schema = None if wanted is None else schema_of(wanted)
    return 0 if schema is None else len(json_text(schema))


def facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield how many rows shared how many requests, and what that saved, as text."""
    its: TogetherStatus = found["together"]
    if its["unread"]:
        alone = counted(its["alone"], "row")
        yield "together", f"{alone} sent alone: no reply to several had answers that could be read"
        return
    rows, requests = counted(its["rows"], "row"), counted(its["requests"], "request")
    saved = "".join(f"\n{words}" for words in (_money(its), _tokens(its)) if words)
    yield "together", f"{rows} in {requests}, {its['alone']:,} sent alone{saved}"


def _money(its: TogetherStatus) -> str:
    """Return what the job cost, and would have cost alone; `""` without a price."""
    cost, alone = its.get("cost"), its.get("cost_alone")
    if cost is None or not alone:
        return ""
    share = round(100 * (cost / alone - 1))
    compared = f"{abs(share)} % {'more' if share > 0 else 'less'}" if share else "as much"
    check = " with the check" if its.get("checked") else ""
    advice = "; `together` does not pay here, leave it out" if share > _UNSURE else ""
    return f"{dollars(cost)}{check} instead of about {dollars(alone)} alone: {compared}{advice}"


def _tokens(its: TogetherStatus) -> str:
    saved, added = its["saved"], its.get("added")
    read = f"about {abs(saved):,} {'fewer' if saved >= 0 else 'more'} prompt tokens"
    if added is None:
        return f"{read}; how long the model would think about each row alone is not known"
    return f"{read}, {abs(added):,} {'more' if added >= 0 else 'fewer'} answer tokens"
