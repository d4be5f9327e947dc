"""Checks all rows of an input without sending requests or creating a job."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from promptmill.answers.form import form_of
from promptmill.backends import registry
from promptmill.backends.prompt_cache import ModelCache
from promptmill.backends.protocol import Usage
from promptmill.backends.searches import may_search
from promptmill.config.model_config import ModelConfig
from promptmill.core.bounds import LONGEST_SHOWN
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.form import Scale
from promptmill.core.money import dollars
from promptmill.core.request import (
    NOTHING_SHARED,
    OF_FORM,
    PROTECTING_NAMES,
    SOURCED_NAMES,
    TOP_CHOICES,
    Conversation,
    Request,
    Sampling,
    Shared,
    TextPart,
    check_encodable,
)
from promptmill.core.values import JsonObject
from promptmill.core.wording import counted, cut_inside
from promptmill.files.path_formats import row_kind
from promptmill.images import load as images
from promptmill.jobs.columns import column_names, remarks
from promptmill.jobs.export.batch_output import Ids
from promptmill.jobs.export.output import check_target, end_of
from promptmill.jobs.export.text import AnswerValues, OutputForm
from promptmill.jobs.ingest import CALL_DISK_SHARE
from promptmill.jobs.inputs import row_secrets
from promptmill.jobs.rows import row_lines
from promptmill.jobs.rows.row_lines import RowReader
from promptmill.jobs.rows.row_questions import RowRequests
from promptmill.jobs.run import admission
from promptmill.jobs.run.job_rounds import reader_of, requests_of
from promptmill.jobs.run.phases import Change
from promptmill.jobs.run.rows_left import of_rows_left, rows_sent_of
from promptmill.jobs.run.shared_beginnings import WINDOW_ROWS, beginnings, in_groups
from promptmill.jobs.run.wanted_job import OrderFiles, WantedJob, spec_of
from promptmill.jobs.run.ways import tier_of_way
from promptmill.jobs.store import statistics
from promptmill.jobs.store.database import JobDatabase, Row, Work
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.order import Earlier, JobOrder
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.records import SCORES, SLOT
from promptmill.jobs.store.rounds import ANSWERED, FAILED
from promptmill.jobs.store.spec import Origin
from promptmill.steps.chain import sending
from promptmill.steps.costs import AS_LIVE, advised_limit, lacking, measured, most_of, of_files
from promptmill.steps.decided import check_plan, tokens_of
from promptmill.steps.likely import LikelyLengths, form_tokens
from promptmill.steps.prices import BATCH, Price, Prices, cost_of_many, keeps_for_hours, of_a_million, price_of, tier_of
from promptmill.steps.step import Sent
from promptmill.system import runtime

_NO_MODELS: Mapping[str, ModelConfig] = MappingProxyType({})
_SHOWN = 20
_PROMPTS_SHOWN = 3  # enough to see how the template is filled
_LOOKED_AT = 100  # rows of JSON that are searched for names of fields: in most files, all rows have the same fields
_LONGEST_PROMPT = 10 * LONGEST_SHOWN
"""The most characters of a shown prompt, with its instructions. A call gets only a tenth, because a model reads it."""
_CACHED_STEP = 128  # tokens; OpenAI's models without breakpoints cache a beginning in steps of this length
_MANY_ROWS = 20  # with fewer rows, `dedupe` is not advised even if rows are equal
_THOUGHTS = ", without thinking: the first 20 rows show how long it is"
_WORTH_A_WORD = 2  # a lower `max_tokens` is advised only if it lowers the highest cost by this factor
_BYTES_PER_TOKEN = 4  # estimated for English text; less accurate for other scripts
_PER_MESSAGE, _PER_REQUEST = 3, 3  # tokens, as OpenAI counts them: the marks of a message, and the marks of the reply
_MOST_MEASURED = 10_000  # the most answers whose prompts are compared with their estimates


def check(
    wanted: WantedJob, may_name: frozenset[str] | None = None, others: Mapping[str, ModelConfig] = _NO_MODELS
) -> dict[str, Any]:
    """Return the counts `rows`, `invalid` and `images`, the first `problems`, an estimate of tokens and cost, the first
    `prompts` (filled with their rows) and, if the job writes an output, its `columns`. If rows are whole files, a call
    gets no `prompts`, because these contain the files.

    The estimate includes the system prompt and, for an endpoint, the form of answers, but no images. If the job already
    has answers, the estimate is scaled by their measured prompts. A new answer is expected to be as long as these
    answers or, if there are none, as long as the form allows. `may_name`: see `RowLimits.models`. `others`: the models
    of the server by name; the result then has `row_models`, those that rows name in place of the job's model.
    """
    order, config, configs = wanted.order, wanted.config, wanted.configs
    decided = _check_order(wanted)
    files = OrderFiles.of(wanted, is_anew=True)
    with contextlib.ExitStack() as opened:
        folder = Path(opened.enter_context(TemporaryDirectory()))
        store = opened.enter_context(contextlib.closing(JobDatabase(folder / "job.db", write=True, is_temporary=True)))
        spec = spec_of("", files, wanted)
        assert files.input is not None
        spec, bound = _change(files.folder, spec, wanted).read(store, spec, files.input, Work())
        if spec.input.is_file:
            row_secrets.check(store, spec.input, config.file_rule, Work())
        models = spec.plan.asked(spec.targets)
        answering = {
            name: spec.plan.answering(name, configs.get(name) or (config.with_model(name) if name else config))
            for name in models
        }
        every = [answering[name] for name in models]
        _check_start(every, spec, wanted)
        answered = _answered(files.folder, spec)
        sums = [
            _Sums(one, price_of(one), answered.get(name, _Answered()), has_check=order.has_check)
            for name, one in zip(models, every, strict=True)
        ]
        reader = _readers(spec, order, may_name, others)
        result = {"format": spec.input.format} | _check_rows(store, spec, wanted, sums, reader)
        if bound.partly:
            result["taken_in_part"] = bound.partly
        if spec.output.format and (spec.output.kind.is_table or spec.input.format != "batch"):
            check_target([store], spec, files.target)
            form = OutputForm([store], spec, spec.output.kind)
            named = [name for name, is_sure in _OF_MODELS.items() if is_sure(wanted, sums)]
            result["columns"] = _columns_of(form, config, named)
        notes = [*remarks.notes(spec), _repeated_ids(store, spec, order)]
        result |= _different(store, wanted, sums)
        for one in sums:
            _expect_cache(store, spec, wanted, one, reader)
        rows_sent = rows_sent_of(result)
        for one in sums:
            one.expect(rows_sent, max(1, len(spec.question.templates)))
        result["estimated_completion_tokens"] = sum(one.completion_tokens for one in sums) // max(1, len(sums))
        result["estimated_completion_from"] = " and ".join(dict.fromkeys(one.source for one in sums if one.source))
        result["alone"] = _usage_alone(sums)
        cost, result["of_models"] = _costs_of_each(models, sums, may_batch=tier_of_way(order.way) == BATCH)
        result |= _once(sums, cost) | _limited(sums, cost) | _cost_alone(sums, cost)
        end, checked = end_of(store, order.limits.limit), {**result, **cost}
        of_plan = spec.plan.estimate(store, spec, {**configs, **answering}, checked, end=end)
        notes += [of_plan.words, _search_words(sums), decided, _batch_words(sums, order)]
        result["notes"] = list(filter(None, notes))
        result |= {} if of_plan.first_cost is None else {"first_cost": of_plan.first_cost}
        result["estimated_prompt_tokens"] = sum(one.prompt_tokens for one in sums)
        result["estimated_completion_tokens"] = sum(one.completion_tokens for one in sums)
        result["answers"] *= len(every)
        result["requests"] = sum(one.requests for one in sums)
        result |= _prices_of_each(wanted, sums)
        of_plans = {"alone", "of_models", "text_tokens"}
        found = {**{name: value for name, value in result.items() if name not in of_plans}, **cost, **of_plan.figures}
        return found | _kept(files, spec, wanted, found)


def _prices_of_each(wanted: WantedJob, sums: Sequence[_Sums]) -> dict[str, Any]:
    """Return the names of models whose price is unknown, as `unpriced`. If several models may answer (variants,
    fallbacks, models that rows name), also return the price of a million tokens of each, as `prices`."""
    named = {name: price for one in sums for name, price in one.named.items()}
    own = [one.config.model or "the model" for one in sums if one.price is None and one.config.record.needs_endpoint]
    unpriced = [*own, *(name for name, price in named.items() if price is None)]
    priced = {one.model: price_of(one) for one in wanted.asked} | named
    prices = {name: of_a_million(price) for name, price in priced.items()} if len(priced) > 1 else {}
    return {"unpriced": list(dict.fromkeys(unpriced))} | ({"prices": prices} if prices else {})


def _readers(
    spec: JobSpec, order: JobOrder, may_name: frozenset[str] | None, others: Mapping[str, ModelConfig]
) -> Callable[[ModelConfig], RowReader]:
    """Return a function that returns the reader of rows for a model. As in a job, rows may name one of `others`, unless
    the job names its models."""
    local = spec.model_copy(update={"origin": Origin()})
    read = functools.partial(reader_of, spec=local, system_prompt=order.system_prompt, may_name=may_name)
    is_free = len(others) > 1 and not any(target.model for target in spec.targets)
    models = {name: read(other) for name, other in others.items()} if is_free else {}
    return lambda config: replace(read(config), models=models)


def _different(store: JobDatabase, wanted: WantedJob, sums: Sequence[_Sums]) -> dict[str, int]:
    """Return `different_prompts`, the number of different prompts, if `dedupe` would make the job much cheaper; else
    `{}`. The job must have at least `_MANY_ROWS` rows, and fewer than half as many different prompts."""
    order, config = wanted.order, wanted.config
    takes_it = config.record.needs_endpoint and not order.parts and not any(one.decides for one in sums)
    if not takes_it or order.limits.dedupe or getattr(config.block, "dedupe", False):
        return {}
    prompts, end = "FROM row WHERE n < ? AND asked != zeroblob(length(asked))", end_of(store, order.limits.limit)
    ((rows,),) = store.read(f"SELECT count(*) {prompts}", end)
    half = f"SELECT count(*) FROM (SELECT DISTINCT asked {prompts} LIMIT ?)"  # stops at half the rows
    ((different,),) = store.read(half, end, rows // 2)
    return {"different_prompts": int(different)} if rows >= _MANY_ROWS and different < rows // 2 else {}


def _change(folder: Folder, spec: JobSpec, wanted: WantedJob) -> Change:
    """Return the change that gives rows the answers of other jobs. The job in `folder` counts as one of these jobs if
    the rows can reuse a part of its answers."""
    earlier, known = wanted.order.earlier, folder.spec
    databases = [*earlier.from_jobs]
    if known is not None and admission.asks_more(known, spec, wanted) and known.question != spec.question:
        databases.append(folder.database)
    taken = Earlier(from_jobs=() if earlier.again == "all" else tuple(databases))
    return Change(None, taken, 0, CALL_DISK_SHARE if wanted.config.file_rule.is_guarded else 1.0)


def _check_order(wanted: WantedJob) -> str:
    """Raise the errors of an order that are found before its rows are read. Return a note if the model decides."""
    if wanted.order.parsed_shard is not None:
        raise input_error("Validate the whole input, without ", Named("shard"), ".")
    if not wanted.config.is_open:
        registry.check_name(wanted.config.backend)
    decided = check_plan(wanted.config)
    admission.check(wanted)
    return decided


def _check_start(every: Sequence[ModelConfig], spec: JobSpec, wanted: WantedJob) -> None:
    """Raise the errors that end a job before its first request. A model in `every` may lack a price or a limit that the
    job's budget needs; in a call, it may also be unusable. (A user who has no API key still sees the price.)"""
    for one in every if wanted.is_of_call else ():
        if not one.is_open:
            runtime.run_anywhere(_try(one))
    limits = (wanted.order.limits.max_cost, wanted.config.operator.max_cost)
    error = None if limits == (None, None) else lacking(every, rows_set=spec.question.rows_set)
    if error is not None:
        raise error


async def _try(config: ModelConfig) -> None:
    """Make a backend and close it. Raise the errors of a backend that cannot be made."""
    await (await registry.create(config)).aclose()


def _reported(config: ModelConfig) -> Sequence[str]:
    """Return the probability fields that all answers certainly have: none for engines, which may leave fields out."""
    sampling = config.settings.sampling_params
    weighs_all = registry.decides(config) or config.record.compares
    if not sampling.sets(OF_FORM) or not (weighs_all or TOP_CHOICES in config.settings.extra_params):
        return ()
    if sampling.choices is not None:
        return (column_names.PROBABILITY,)
    return ("probabilities", *([SCORES] if weighs_all and _has_scales(sampling) else []))


def _has_scales(sampling: Sampling) -> bool:
    form = form_of(sampling)
    return form is not None and any(isinstance(one.kind, Scale) for one in form.questions)


@dataclass(slots=True)
class _Answered:
    """The answers that a job has from one model, and a sample of them by row number."""

    count: int = 0
    completion_tokens: int = 0
    measured: dict[int, tuple[int, int]] = field(default_factory=dict)
    """For each sampled row, by its number: the number of the row's answers, and the tokens of the answers' prompts."""

    def add(self, n: int, prompt_tokens: int) -> None:
        """Add an answer to the sample."""
        answers, tokens = self.measured.get(n, (0, 0))
        self.measured[n] = answers + 1, tokens + prompt_tokens


class _Sums:
    """The likely tokens of one model's requests, and the highest cost of the rows if sent live or by batch."""

    def __init__(self, config: ModelConfig, price: Price | None, answered: _Answered, *, has_check: bool) -> None:
        self.config, self.price, self._has_check = config, price, has_check
        self._answered = answered
        self._measured, self._estimated = 0, 0.0
        """The prompt tokens of the sampled answers: as the endpoint counted them, and as this class estimates them."""
        self.cache = registry.prompt_cache_of(config)
        self.decides = registry.decides(config)
        self._thinks = registry.may_think(config, config.model, config.settings.sampling_params)
        self.size_of = _size_for(config)
        self.cached_tokens = self.written_tokens = 0.0
        """The tokens of prompts that the provider reads from its cache, and those that it writes there at a price."""
        self._prices = None if price is None else Prices(config, price)
        self.named, self.difference = dict[str, Price | None](), 0.0
        """The prices of models that rows name, and how much more these rows are expected to cost than with `price`."""
        self._lengths = LikelyLengths()
        self.live = self.by_batch = 0.0
        self.once = 0.0
        """The highest cost of the rows if they are sent live and no answer is refused."""
        self.advised = advised_limit(config)
        self.limited = 0.0
        """The highest cost of the rows if they are sent live and none has a `max_tokens` above `advised`."""
        self.prompt_tokens = self.audio_tokens = 0
        self.prompt_tokens_alone = self.answers = 0
        """The tokens of prompts that would be sent if no rows shared requests, and the number of answers."""
        self._requests = 0.0
        self.completion_tokens = self.around = 0
        """The tokens of all replies, and the tokens that surround the answers in replies to several rows."""
        self.may_search = False
        """Whether the endpoint may search the web, for an extra price."""
        self.source = ""
        """The basis of the expected length of answers, in words; `""` if no request was added."""

    @property
    def requests(self) -> int:
        """The number of requests."""
        return math.ceil(round(self._requests, 6))

    def usage(self, *, by_batch: bool) -> Usage:
        """Return the likely usage. A batch counts no cached tokens, because no provider states how many it has."""
        cached, written = (0, 0) if by_batch else (round(self.cached_tokens), round(self.written_tokens))
        hours = written if keeps_for_hours(self.config.settings.extra_params) else 0
        audio = min(self.audio_tokens, self.prompt_tokens)
        return Usage(self.prompt_tokens, self.completion_tokens, cached, 0, written, hours, audio_tokens=audio)

    def add_row(self, n: int, prompts: int, sent: Sequence[Sent], sizes: Sequence[int]) -> None:
        """Add the requests `sent` for row `n`, which has `prompts` prompts. `sizes`: the tokens of each request."""
        before = self.prompt_tokens
        for one, size in zip(sent, sizes, strict=True):
            self._add(one, size)
        answers, tokens = self._answered.measured.get(n, (0, 0))
        self._measured += tokens
        self._estimated += (self.prompt_tokens - before) * answers / prompts

    def _add(self, sent: Sent, prompt_tokens: int) -> None:
        """Add a request that is sent for a row. `prompt_tokens`: the tokens of the row's part of the prompt."""
        request = sent.alone or sent.request
        likely, answers = self._lengths.of(request), request.sampling.n or 1
        self.prompt_tokens += answers * prompt_tokens
        self.audio_tokens += answers * of_files(request)[1]
        alone = prompt_tokens if sent.alone is None else self.size_of(Sent(sent.alone), sent.alone)
        self.prompt_tokens_alone += answers * alone
        self.answers += answers
        self._requests += answers * sent.part
        self.completion_tokens += 0 if self.decides else answers * (likely.tokens + sent.around)
        self.around += answers * sent.around
        self.source = f"{likely.source}{_THOUGHTS if self._thinks else ''}"
        self.may_search = self.may_search or may_search(sent.request.extra, self.config.model)
        if self._prices is None or self.price is None:
            return
        if (own := self._prices.of(request)) is not self.price:
            self.named |= self._prices.named(request.extra)
            usage = Usage(answers * prompt_tokens, 0 if self.decides else answers * likely.tokens)
            self.difference += 0.0 if own is None else own.cost(usage) - self.price.cost(usage)
        for request in filter(None, (sent.request, sent.alone)):
            one = request if self.cache is None else _sharing(request, self.cache)
            most = most_of(one, self.config, self._prices, has_check=self._has_check)
            self.live += most
            self.once += most_of(one, self.config, self._prices, asks_again=False)
            self.limited += self._limited(one, most)
            if self.price.batch is not None:
                self.by_batch += most_of(one, self.config, self._prices, by_batch=True, has_check=self._has_check)

    def _limited(self, request: Request, most: float) -> float:
        assert self._prices is not None
        limit = request.sampling.max_tokens
        if self.decides or (most != math.inf and (limit is None or limit <= self.advised)):
            return most
        lower = request.changed(sampling=request.sampling.model_copy(update={"max_tokens": self.advised}))
        return most_of(lower, self.config, self._prices, has_check=self._has_check)

    def expect_beginnings(self, requested: Mapping[Shared, float]) -> None:
        """Add the cached tokens for beginnings that are in as many requests as `requested` states. The first request
        writes a beginning to the provider's cache, and the others read it there."""
        for shared, times in requested.items():
            tokens = shared.size // _BYTES_PER_TOKEN
            if self.cache is not None and self.cache.way == "key":  # to such a cache, writing is free
                tokens -= tokens % _CACHED_STEP
            else:
                self.written_tokens += min(times, 1.0) * tokens
            self.cached_tokens += max(times - 1.0, 0.0) * tokens

    def expect(self, rows: int, prompts: int) -> None:
        """Scale the tokens by the existing prompts and answers, for `rows` rows that have `prompts` prompts each."""
        if not (self._answered.count and rows):
            return
        mean = self._answered.completion_tokens / self._answered.count
        self.completion_tokens = max(self.around, round(mean * rows * prompts))
        self.source = f"as in the {counted(self._answered.count, 'answer')} so far"
        if self._measured and self._estimated and self.prompt_tokens == self.prompt_tokens_alone:
            self._scale(self._measured / self._estimated)

    def _scale(self, times: float) -> None:
        """Multiply the tokens of prompts. This is wrong if rows share requests: their number per request may differ."""
        self.prompt_tokens = self.prompt_tokens_alone = round(self.prompt_tokens * times)
        self.cached_tokens *= times
        self.written_tokens *= times


_OF_MODELS: Mapping[str, Callable[[WantedJob, Sequence[_Sums]], bool]] = {
    "cost": lambda _, sums: any(one.price is not None for one in sums),
    "answered_by": lambda wanted, sums: (
        len(wanted.models.names) > 1 or (wanted.order.plan.chooses and len({one.config.model for one in sums}) > 1)
    ),
}
"""The columns that depend on the models, in order, each with a function that returns whether a job has it."""


def _columns_of(form: OutputForm, config: ModelConfig, of_models: Sequence[str]) -> dict[str, list[str]]:
    """Return the output's columns: those from the input (if the output is no table, from the input's first rows), and
    those that the job adds. `of_models`: the columns of `_OF_MODELS` that the job has."""
    sampling, renamed = config.settings.sampling_params, form.spec.output.names or {}
    reported = [*_reported(config), *of_models]
    further = [renamed.get(column_names.SOURCES, column_names.SOURCES)] if sampling.sets(SOURCED_NAMES) else []
    if form.format.is_table:
        answers = AnswerValues(form.spec, reported, form.spec.output.form.columns)
        return {"input": form.names, "added": [*dict.fromkeys((*answers.names.values(), *further))]}
    names = (name for row in itertools.islice(form.stored(), _LOOKED_AT) for name in form.own.of(row))
    added = (*form.answers.names_in_json, *(renamed.get(name, name) for name in reported), *further)
    return {"input": [*dict.fromkeys(names)], "added": [*dict.fromkeys(added)]}


def _answered(folder: Folder, spec: JobSpec) -> dict[str, _Answered]:
    """Return the answers that the job already has to the same question, by model."""
    known, found = folder.spec, dict[str, _Answered]()
    if known is None or known.question != spec.question:
        return found
    with folder.reading() as store:
        paid = {slot: sums for (_, slot), sums in statistics.paid(store, ()).items()}
        for slot, (before, target) in enumerate(zip(known.targets, spec.targets, strict=False)):
            if slot in paid and paid[slot].usage.completion_tokens and before.fingerprint == target.fingerprint:
                of_model = found.setdefault(target.model, _Answered())
                of_model.count += paid[slot].rows
                of_model.completion_tokens += paid[slot].usage.completion_tokens
                for n, tokens in statistics.prompts_paid(store, slot, _MOST_MEASURED):
                    of_model.add(n, tokens)
    return found


def _kept(files: OrderFiles, spec: JobSpec, wanted: WantedJob, found: JsonObject) -> dict[str, float]:
    """Return the number of `answered` rows and, if the input is unchanged, the number of `rows_left` (the unanswered
    rows whose cost the estimate `found` includes) and their likely cost. `{}` if no answer counts."""
    known, earlier = files.folder.spec, wanted.order.earlier
    if known is None or earlier.again not in {None, "failed"} or not (earlier.keep or known.question == spec.question):
        return {}
    with files.folder.reading() as store:
        end = end_of(store, wanted.order.limits.limit)
        done = statistics.counts(store, before=end, skips_empty=spec.question.skip_empty)
    answered = done.answered // max(1, known.delivered)
    if not answered or not _is_read(known, files, wanted):
        return {"answered": answered} if answered else {}
    left = max(0, rows_sent_of(found) - answered)
    cost = of_rows_left({**found, "rows_left": left}).get("estimated_cost")
    return {"answered": answered, "rows_left": left, **({} if cost is None else {"estimated_cost_left": cost})}


def _is_read(known: JobSpec, files: OrderFiles, wanted: WantedJob) -> bool:
    """Return whether the job has read the same input."""
    if wanted.source is not None:
        return wanted.source.key == known.input.sha256
    return files.input is not None and files.input.stamp() == (known.input.size, known.input.version)


def _repeated_ids(store: JobDatabase, spec: JobSpec, order: JobOrder) -> str:
    """Return a note on rows that repeat the `id` of an earlier row; `""` if there are none, and for a Batch file.
    Raises `OSError`."""
    if spec.input.format == "batch":
        return ""
    ids = Ids.of(store, spec, end_of(store, order.limits.limit))
    if not ids.repeated:
        return ""
    ((row, first),) = ids.examples
    where, earlier = (_place(spec, n) for n in (row, first))
    return f"{where} has the `id` of {earlier}; repeated ids in all: {ids.repeated}."


def _place(spec: JobSpec, row: int) -> str:
    kind = row_kind(spec.input.format)
    return row_lines.place(kind, row, has_lines=spec.input.has_lines, above=spec.input.above)


_OF_ALL = frozenset({Code.INVALID_CONFIG, Code.MISSING_DEPENDENCY})
"""Errors for which no row is at fault."""


def _check_rows(
    store: JobDatabase,
    spec: JobSpec,
    wanted: WantedJob,
    sums: Sequence[_Sums],
    reader: Callable[[ModelConfig], RowReader],
) -> dict[str, Any]:
    """Count all rows, add their costs to `sums`, and return the counts and the first prompts."""
    config, order, is_of_call = wanted.config, wanted.order, wanted.is_of_call
    sent, longest = 0.0, LONGEST_SHOWN if is_of_call else _LONGEST_PROMPT
    invalid = skipped = size_of_texts = wanted_answers = 0
    kinds, uncounted, shown, problems = Counter[str](), set[str](), list[str](), list[str]()
    answered, left = _answered_rows(store, spec), _left_of(store, spec)
    models, named = reader(config).models.keys() - {config.name}, set[str]()
    rules = images.ImageRules.of(
        config.file_rule, config.settings.max_image_pixels, limits=registry.file_limits(config)
    )
    kind, end = row_kind(spec.input.format), end_of(store, order.limits.limit)
    every, by_batch = (config, *(most.config for most in sums)), tier_of_way(order.way) == BATCH
    as_shown, as_sent, *of_others = (
        sending(config, names=PROTECTING_NAMES),
        *(sending(one, by_batch=by_batch) for one in every),
    )
    parts_of, *parts_of_others = map(spec.plan.sending, every)
    size_of_own, own_price = _size_for(config), next((one.price for one in sums if one.config is config), None)
    requests, *of_sums = (list(requests_of(spec, reader(one))) for one in every)
    ((count,),) = store.read("SELECT count(*) FROM row WHERE n < ?", end)
    for row in (one for one in store.rows(last=end - 1) if one.n not in answered):
        try:
            where = _place(spec, row.n)
            made = [measured(one.request(row.n, row.line, row.cells or b""), config, own_price) for one in requests]
            named.update(models & {str(one.extra.get("model")) for one in made})
            parts = left(row.n, _parts(spec, made, parts_of))
            own = [as_sent(part) for part in parts]
            wanted_answers += sum(part.sampling.n or 1 for part in parts)  # each answer is a separate request
            sent += sum(one.part * ((one.alone or one.request).sampling.n or 1) for one in own)
            sizes = list(map(size_of_own, own, parts))
            size_of_texts += sum(_bytes(one.conversation) for one in made)
            if len(shown) < _PROMPTS_SHOWN:
                shown += _finished(
                    [
                        as_shown(each).request
                        for each in (parts if spec.plan.shows_sent else made[: _PROMPTS_SHOWN - len(shown)])
                    ],
                    longest,
                )
            for conversation in (request.conversation for request in made):
                kinds.update(part.kind for part in conversation.sourced)
                uncounted.update(
                    part.kind for part in conversation.sourced if part.kind != "image" and not part.tokens.likely
                )
                _check_payload(conversation, rules, where)
            for most, makers, as_theirs, its_parts in zip(sums, of_sums, of_others, parts_of_others, strict=True):
                its, its_sizes = own, sizes
                if most.config is not config:
                    unmeasured = (one.request(row.n, row.line, row.cells or b"") for one in makers)
                    made = [measured(one, most.config, most.price) for one in unmeasured]
                    theirs = left(row.n, _parts(spec, made, its_parts))
                    its = [as_theirs(part) for part in theirs]
                    its_sizes = list(map(most.size_of, its, theirs))
                most.add_row(row.n, len(made), its, its_sizes)
        except PromptmillError as error:
            if spec.question.skip_empty and error.code is Code.EMPTY_PROMPT:
                skipped += 1
                continue
            if error.code in _OF_ALL:
                raise
            invalid += 1
            problems += [str(error)][: _SHOWN - len(problems)]
    if kind == "batch":  # OpenAI refuses a file with a repeated id
        ids = Ids.of(store, spec, end, _SHOWN - len(problems))
        invalid += ids.repeated
        problems += [
            f"line {row + 1} has the custom_id of line {first + 1}; give each line its own."
            for row, first in ids.examples
        ]
    return {
        "rows": count,
        "invalid": invalid,
        **({"skipped": skipped} if skipped else {}),
        **({"taken": taken} if (taken := sum(n < end for n in answered)) else {}),
        **({"may_search": True} if any(one.may_search for one in sums) else {}),
        "answers": wanted_answers,
        "requests": math.ceil(round(sent, 6)),
        "images": kinds.pop("image", 0),
        **({"files": dict(kinds), **({"uncounted": sorted(uncounted)} if uncounted else {})} if kinds else {}),
        "text_tokens": size_of_texts // _BYTES_PER_TOKEN,
        **({} if is_of_call and spec.question.prompt_only else {"prompts": shown}),
        "problems": problems,
        **({"row_models": sorted(named)} if named else {}),
    }


def _expect_cache(
    store: JobDatabase, spec: JobSpec, wanted: WantedJob, sums: _Sums, reader: Callable[[ModelConfig], RowReader]
) -> None:
    """Add to `sums` the beginnings that requests share, if the provider certainly caches them."""
    cache = sums.cache
    if cache is None or cache.way == "automatic" or sums.price is None:
        return
    answered, left = _answered_rows(store, spec), _left_of(store, spec)
    last, sent_for = end_of(store, wanted.order.limits.limit) - 1, sending(sums.config)
    parts_of = spec.plan.sending(sums.config)
    for requests, prompt in zip(requests_of(spec, reader(sums.config)), spec.question.templates or ("",), strict=True):

        def look(row: Row, requests: RowRequests = requests) -> list[Shared]:
            if _size(row) + requests.constant < cache.least:
                return []
            return beginnings(requests, row.n, row.line, row.cells or b"", least=cache.least)

        requested = dict[Shared, float]()
        for row, beginning in itertools.chain.from_iterable(
            in_groups(store.row_pages(last=last), look, _size, reorders=True)
        ):
            if beginning is None or row.n in answered:
                continue
            request = requests.request(row.n, row.line, row.cells or b"").changed(shared=beginning)
            for part in left(row.n, [*parts_of(request, prompt)]):
                sent = sent_for(part)
                is_whole = sent.part == 1 and part.conversation is request.conversation
                if shared := beginning if is_whole else request.shared_system:
                    requested[shared] = requested.get(shared, 0.0) + (part.sampling.n or 1) * sent.part
            if len(requested) > WINDOW_ROWS:  # these are complete: rows with the same beginning follow each other
                sums.expect_beginnings(requested)
                requested.clear()
        sums.expect_beginnings(requested)


def _finished(requests: Sequence[Request], longest: int) -> list[str]:
    """Return the prompts of requests. Each text in them is cut to at most `longest` characters."""
    return ["\n\n".join(cut_inside(text, longest) for text in one.conversation.texts) for one in requests]


def _size(row: Row) -> int:
    return len(row.cells or b"") + len(row.line or b"")


def _parts(
    spec: JobSpec, requests: Sequence[Request], parts_of: Callable[[Request, str], Iterable[Request]]
) -> list[Request]:
    """Return the requests that the plan sends for a row. `requests`: the requests of the row itself, one for each
    prompt. `parts_of`: see `Plan.sending`."""
    prompts = spec.question.templates or ("",)
    return [part for one, prompt in zip(requests, prompts, strict=True) for part in parts_of(one, prompt)]


def _answered_rows(store: JobDatabase, spec: JobSpec) -> set[int]:
    """Return the numbers of the rows whose answers all come from other jobs."""
    rows = f"SELECT key % {SLOT} FROM answer WHERE {ANSWERED} GROUP BY 1 HAVING count(*) >= ?"
    return {n for (n,) in store.read(rows, spec.delivered)}


def _left_of(store: JobDatabase, spec: JobSpec) -> Callable[[int, Sequence[Request]], Sequence[Request]]:
    """Return a function that gets a row's number and requests, and returns the requests that are still to be sent."""
    if not store.page(0, FAILED, size=1):
        return lambda _, requests: requests

    def left(n: int, requests: Sequence[Request]) -> Sequence[Request]:
        record = store.record(n)
        return requests if record is None else spec.plan.left(record, requests)

    return left


def _sharing(request: Request, cache: ModelCache) -> Request:
    """Return a request that is marked as sharing its prompt, if the prompt is long enough for the provider's cache."""
    size = _bytes(request.conversation)
    return request.changed(shared=Shared(size, "", size) if size >= cache.least else NOTHING_SHARED)


def _batch_words(sums: Sequence[_Sums], order: JobOrder) -> str:
    """Return a warning if the price of a model's batches is unknown; `""` otherwise."""
    is_unknown = any(one.price is not None and one.price.batch is None for one in sums)
    return AS_LIVE if is_unknown and tier_of_way(order.way) == BATCH else ""


def _usage_alone(sums: Sequence[_Sums]) -> Usage:
    """Return the likely usage if no rows shared requests, as the mean over all models."""
    prompts = sum(one.prompt_tokens_alone for one in sums)
    answers = sum(one.completion_tokens - one.around for one in sums)
    return Usage(prompts // max(1, len(sums)), answers // max(1, len(sums)))


def _costs(sums: Sequence[_Sums], *, may_batch: bool) -> dict[str, float | None]:
    """Return the costs if each model answers all requests: live and, with `may_batch` and known prices, by batch. `{}`
    if the price of a model is unknown."""
    prices = [one.price for one in sums if one.price is not None and None not in one.named.values()]
    if len(prices) < len(sums):
        return {}
    has_batch = may_batch and all(price.batch is not None for price in prices)
    by_batch = _cost(sums, by_batch=True) if has_batch else {}
    return _cost(sums) | {f"batch_{name}": amount for name, amount in by_batch.items()}


def _costs_of_each(
    models: Sequence[str], sums: Sequence[_Sums], *, may_batch: bool
) -> tuple[dict[str, float | None], dict[str, dict[str, float | None]]]:
    """Return the `_costs` of all models together. By name, also return the `_costs` and the `_once` of each model."""
    each = dict[str, dict[str, float | None]]()
    for name, one in zip(models, sums, strict=True):
        cost = _costs([one], may_batch=may_batch)
        each[name] = {**cost, **_once([one], cost)}
    return _costs(sums, may_batch=may_batch), each


def _cost(sums: Sequence[_Sums], *, by_batch: bool = False) -> dict[str, float | None]:
    """Return the cost if each model answers all requests."""
    tiers = [BATCH if by_batch else tier_of(one.config.settings.extra_params) for one in sums]
    estimated = sum(
        cost_of_many(one.price, one.usage(by_batch=by_batch), one.requests, tier)
        + one.difference * ((one.price.batch or 1.0) if by_batch else 1.0)
        for one, tier in zip(sums, tiers, strict=True)
        if one.price is not None
    )
    most = sum(one.by_batch if by_batch else one.live for one in sums)
    return {"estimated_cost": estimated, "most_cost": None if most == math.inf else most}


def _cost_alone(sums: Sequence[_Sums], cost: Mapping[str, float | None]) -> dict[str, float]:
    """Return the likely cost if no rows shared requests; `{}` if no rows share requests, or if a price is unknown."""
    if not cost or all(one.prompt_tokens_alone == one.prompt_tokens for one in sums):
        return {}
    costs = (
        cost_of_many(
            one.price,
            Usage(one.prompt_tokens_alone, one.completion_tokens - one.around),
            one.answers,
            tier_of(one.config.settings.extra_params),
        )
        for one in sums
        if one.price is not None
    )
    return {"estimated_cost_alone": sum(costs)}


def _once(sums: Sequence[_Sums], cost: Mapping[str, float | None]) -> dict[str, float]:
    """Return the highest cost if no answer is refused; `{}` if it is unknown."""
    return {"most_cost_once": sum(one.once for one in sums)} if cost.get("most_cost") is not None else {}


def _limited(sums: Sequence[_Sums], cost: Mapping[str, float | None]) -> dict[str, float]:
    """Return a `max_tokens` that lowers the highest cost enough, and the lowered cost; `{}` if there is none."""
    if not cost:
        return {}
    limited, most = sum(one.limited for one in sums), cost["most_cost"]
    if limited == math.inf or (most is not None and limited * _WORTH_A_WORD > most):
        return {}
    return {"advised_max_tokens": max(one.advised for one in sums), "limited_cost": limited}


def _search_words(sums: Sequence[_Sums]) -> str:
    """Return a note on the cost of searches of the web; `""` without searches."""
    if not (known := {None if one.price is None else one.price.search for one in sums if one.may_search}):
        return ""
    prices = [price for price in known if price is not None]
    price = f"{dollars(max(prices))} per 1,000" if len(prices) == len(known) else "a price that is not known"
    return (
        f"The endpoint may search the web, at {price}, as often as the model wants; the pages are further tokens of "
        "the prompt. No amount here includes this."
    )


def _check_payload(conversation: Conversation, rules: images.ImageRules, where: str) -> None:
    try:
        check_encodable(conversation)
        for part in conversation.sourced:
            if not images.is_web(part.source):  # the endpoint itself may fetch web images
                images.load(part, rules)
    except PromptmillError as error:
        raise PromptmillError(error.code, f"{where}: {error.message}", error.hint) from None


def _size_for(config: ModelConfig) -> Callable[[Sent, Request], int]:
    """Return a function that estimates the tokens that a model gets for a row."""
    limits = registry.decisions_of(config) if registry.decides(config) else None
    return _Sizes(config).of if limits is None else lambda sent, _: tokens_of(sent.request, limits.questions)


class _Sizes:
    """The size of requests: the prompt, the form of the answer and the marks of messages. Only the form of the last
    `sampling` is kept, because few requests of a job differ in `sampling`."""

    def __init__(self, config: ModelConfig) -> None:
        self._needs_endpoint = config.record.needs_endpoint
        self._last: tuple[Sampling, int] | None = None

    def of(self, sent: Sent, part: Request) -> int:
        """Return the approximate number of tokens sent for a row. A request for vectors has no conversation."""
        messages = sent.request.conversation.messages
        size = -(-_bytes((sent.request if messages else part).conversation) // _BYTES_PER_TOKEN)
        size += of_files(part)[0]
        if not messages or not self._needs_endpoint:
            return size
        around = len(messages) * _PER_MESSAGE + _PER_REQUEST + self._of_form(sent.request.sampling)
        return size + math.ceil(around * sent.part)

    def _of_form(self, sampling: Sampling) -> int:
        if self._last is None or self._last[0] is not sampling:
            self._last = sampling, form_tokens(sampling)
        return self._last[1]


def _bytes(conversation: Conversation) -> int:
    size = 0
    for message in conversation.messages:
        content = message.content
        parts = content if isinstance(content, tuple) else (TextPart(content or ""),)
        size += sum(len(part.text.encode("utf-8", "replace")) for part in parts if isinstance(part, TextPart))
    return size
