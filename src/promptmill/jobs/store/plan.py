"""The description of a job, and its plan: which rows are sent next, to which slots, and which answer a row gets.

    order ─▶ Plan ─▶ rounds ─▶ answers ─▶ PlanWork: copies, decisions ─▶ delivered answers ─▶ marks, figures, doubts

An ordinary job has the plan `Plan()`; features add other plans, as parts of orders. A method that only one feature
calls, and that only some plans have, is declared in a protocol of that feature.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from promptmill.backends.protocol import Outcome
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.request import Request
from promptmill.core.values import JsonDict
from promptmill.files import table_paths
from promptmill.jobs.store.database import JobDatabase, Work
from promptmill.jobs.store.description import JobPrompts, Stored, Target, Variant
from promptmill.jobs.store.order_part import AnyParts, OrderPart, parts_of
from promptmill.jobs.store.record_labels import least_probable, probability
from promptmill.jobs.store.records import Record
from promptmill.jobs.store.rounds import LIVE, Round
from promptmill.jobs.store.shape import Shape, shape_in
from promptmill.jobs.store.spec import LAST_TIME, InputSpec, Origin, OutputSpec
from promptmill.options.table import Again

if TYPE_CHECKING:  # imported on use: it takes a tenth of a second
    from promptmill.config.model_config import ModelConfig
    from promptmill.jobs.rows.row_questions import RowRequests
    from promptmill.steps.step import Step


class PlanWork:
    """The work that a plan does during a run, apart from sending requests. This base class does nothing.

    All methods block the thread. They raise the errors of `JobDatabase`. In a round that copies answers, the core reads
    the rows page by page and writes the records.
    """

    window = 4096
    """A live round delivers answers after each window of this many row numbers. A query over more rows would block the
    database too long."""
    late = 0
    """When a window's answers are delivered, this many rows before the window are checked again."""
    steps: Sequence[Step] = ()
    """Steps outside of the model's chain, for the rows of rounds that send requests.

    A step may send several requests for one row, each with its own `choice`. If one of these requests has the outcome
    `batched`, the row has this outcome too, and is passed to the step again once the batch has ended."""
    meanwhile: Mapping[str, str] = MappingProxyType({})
    """For each rule of live rounds, the SQL condition for rows to which answers may be delivered during the round."""

    def begin(self, round_: int) -> None:
        """Prepare the run. The core calls this before it chooses the next round. `round_`: the id of that round."""

    def advance(self) -> bool:
        """Make the next decision, and return whether a round may have rows now. Called only if no round has rows."""
        return False

    def prepare(self, round_: Round) -> None:
        """Fill the temporary tables for the rule of a round."""

    def copies(self, round_: Round, slot: int, pages: Iterable[Sequence[int]]) -> Iterator[Sequence[Record]]:
        """Yield the records for the rows of a round whose `way` is `copy`. `pages`: the numbers of these rows."""
        del round_, slot, pages
        yield from ()

    def recorded(self, keys: Sequence[int]) -> None:
        """Take note that the outcomes with these keys were stored in the database. Runs in the event loop."""

    def delivered(self, round_: Round, pages: Iterable[Sequence[int]]) -> Iterator[Delivered]:
        """During a round, yield answers for rows that meet its condition in `meanwhile`, and the rows to send again."""
        del round_, pages
        yield from ()


class Delivered(NamedTuple):
    """Answers that are delivered while the round still runs."""

    records: Sequence[Record]
    to_send: Collection[int] = ()
    """The numbers of rows that the round now sends for slot 0."""


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A run of a job, as the job's plan sees it."""

    store: JobDatabase
    config: ModelConfig
    """The model and settings of the run."""
    limit: int | None
    """The most rows that the order sends; None: no limit."""
    end: int
    """The number of the first row beyond the limit."""
    work: Work
    """Reports the progress of the plan's long work, and tells it when to halt."""
    described: Callable[[], JobSpec]
    put: Callable[[Plan], None]
    """Stores the plan with its new decisions. Raises the errors of `JobDatabase`."""
    show: Callable[[Mapping[str, object]], object]
    """Puts the status fields that follow from the plan's decisions into the status of the running job."""
    requests: Callable[[], RowRequests]
    """Returns the request maker for the model of the first slot."""
    config_of: Callable[[str], ModelConfig]
    """Returns the settings of a model that the plan names."""

    @property
    def spec(self) -> JobSpec:
        """The present description of the job."""
        return self.described()


class Taking(NamedTuple):
    """A job's reuse of the answers of another job, which asks other questions about the same rows."""

    outcome: Callable[[Record], Outcome | None]
    """Returns the outcome that a row gets from its record in the other job: an answer, or a `batched` failure with the
    answers so far; None if the record has nothing to reuse."""
    sampling: JsonDict
    """The sampling parameters of the other job's questions."""
    is_whole: bool
    """Whether the job asks all questions of the other job, so that it can reuse each of their answers."""


class Estimate(NamedTuple):
    """The figures and the words that a plan adds to a validation's estimate."""

    figures: Mapping[str, object] = MappingProxyType({})
    words: str = ""
    """The figures as text, for a person; `""` if there are none."""
    first_cost: float | None = None
    """The estimated cost, in US dollars, of the rows sent before the plan's decision; None if it is unknown or 0."""


class Plan(OrderPart):
    """Decides which rows a job sends next, to which slots, and which answer a row gets.

    This base class is the plan of an ordinary job: each row is sent to each target, and each answer is delivered. A
    feature's plan chooses one of several answers: slot 0 has the delivered answer, and later slots have the answers to
    choose from. In an order, the plan holds options; in a job, it also holds the decisions it has made.
    """

    fields: ClassVar[Sequence[str]] = ()
    """The columns that `marks` fills."""
    follows: ClassVar[bool] = True
    """Whether an answer is final when it is recorded, so that a live output may include it."""
    has_own_forms: ClassVar[bool] = False
    """Whether a row's request is replaced by requests with other forms; then no prompt may describe the row's form."""
    shows_sent: ClassVar[bool] = False
    """Whether a validation shows the prompts of `sending`'s requests instead of the rows' own prompts."""
    all_may_fail: ClassVar[bool] = True
    """Whether failures in all slots count for the limit of failures, and not only failures of delivered answers."""

    @property
    def slots(self) -> tuple[Variant, ...]:
        """The model and prompt of each slot; `()` if the slots are the order's variants."""
        return ()

    @property
    def named_models(self) -> frozenset[str]:
        """All models that the plan's slots and rounds may name; a call must be permitted to use them."""
        return frozenset(slot.model for slot in self.slots) - {""}

    @property
    def only_model(self) -> str | None:
        """The model that all slots name; None if they name different models or a slot uses the order's model."""
        names = {slot.model for slot in self.slots}
        return (names.pop() or None) if len(names) == 1 else None

    @property
    def chooses(self) -> bool:
        """Whether the plan chooses the delivered answer: then only slot 0 is delivered."""
        return bool(self.slots)

    def next(self, first: Round, again: Again | None) -> Iterator[Round]:
        """Yield candidates for the next round: `first`, or copies of it with other rules for rows. A pure function."""
        if again is not None:
            yield replace(first, rows=f"again {again}", reason=f"again {again}")
        yield first

    def resumes(self, last: Round) -> bool:
        """Return whether an interrupted round is resumed. If not, the next round is derived from the answers.

        A live round for rows without an answer is not resumed: a new round selects the same rows. Rows that fail in it
        have failed in this run, so the next run sends them again.
        """
        return last.rows != "open" or last.way != LIVE

    @property
    def option(self) -> str:
        """The option that selects the plan; `""` if the option has the same name as the plan's part."""
        return ""

    # ---- admission

    def prompts(self, given: tuple[str, ...]) -> tuple[str, ...]:
        """Return the templates of a row's prompts. `given`: the templates of the order."""
        return given

    def target(self, slot: int, target: Target, config: ModelConfig) -> Target:
        """Return `target` with the plan's changes for a slot."""
        del slot, config
        return target

    def resumed(self, begun: Plan, job_id: str, *, sends_all: bool) -> Plan:
        """Return this plan with the decisions of `begun`, the plan that is stored in the job `job_id`.

        `sends_all`: whether the order sends all rows again. Raises `PromptmillError` (`invalid_input`).
        """
        del begun, job_id, sends_all
        return self

    def taking(self, other: JobSpec) -> Taking | None:
        """Return how the job can reuse answers of the job `other`, which asks other questions about the same rows; None
        if it can reuse only answers to the same question."""
        del other
        return None

    def left(self, record: Record, requests: Sequence[Request]) -> Sequence[Request]:
        """Return the `requests` about a row that are still to be sent. `record`: the answers that the row has."""
        del record
        return requests

    def asked(self, targets: Sequence[Target]) -> Sequence[str]:
        """Return the models that answer each prompt of a row."""
        return [*dict.fromkeys(target.model for target in targets)]

    def estimate(
        self,
        store: JobDatabase,
        spec: JobSpec,
        configs: Mapping[str, ModelConfig],
        checked: Mapping[str, Any],
        *,
        end: int,
    ) -> Estimate:
        """Return the figures and words that the plan adds to a validation. Blocks.

        `configs`: the configurations, by model name. `checked`: the estimate so far, as if one model answered. It has
        `alone`, the `Usage` of all rows if each is sent alone; `text_tokens`, the tokens of their texts; and
        `of_models`, the costs by model (empty if no price is known). `end`: the number of the first row beyond the
        limit. If the figures have a `least_estimated_cost`, `estimated_cost` is the upper end of a range.
        """
        del store, spec, configs, checked, end
        return Estimate()

    def answering(self, model: str, config: ModelConfig) -> ModelConfig:
        """Return the settings with which `model` answers in a validation. `config`: the configuration of `model`."""
        del model
        return config

    def sending(self, config: ModelConfig) -> Callable[[Request, str], Iterable[Request]]:
        """Return a function that takes a row's request and template (or `""`) and returns the requests to send.

        `config`: the settings of the model. The function raises `PromptmillError` for a row that cannot be sent.
        """
        del config
        return lambda request, _: (request,)

    # ---- a run

    def work(self, job: RunningJob) -> PlanWork:
        """Return the plan's work for one run."""
        del job
        return PlanWork()

    def without(self, targets: Sequence[Target], round_: Round, error: PromptmillError) -> Sequence[Target] | None:
        """Return the targets without the parameter that `error` refuses; None if `error` has another cause."""
        del targets, round_, error
        return None

    # ---- the answers

    def marks(self, spec: JobSpec, record: Record, beside: Sequence[Record | None]) -> dict[str, object]:
        """Return the values of `fields` for a row with the delivered answer `record`. `beside`: the answers in the
        later slots."""
        del spec, record, beside
        return {}

    def figures(self, store: JobDatabase, spec: JobSpec, fields: Sequence[str], before: int) -> Mapping[str, object]:
        """Return the plan's status fields for the rows below `before`. Blocks. Raises the errors of `JobDatabase`.

        `fields`: the fields of the answers whose values are labels.
        """
        del store, spec, fields, before
        return {}

    def doubt(self, spec: JobSpec, record: Record, beside: Sequence[Record | None]) -> Doubt | None:
        """Return the reason why a person should check a row that a model answered; None if no check is needed."""
        del spec, beside
        own, least = probability(record), least_probable(record)
        of = f" of {least[1]}" if least is not None else ""
        return None if own is None or own >= 1 else Doubt(own, f"low probability{of}")


class Doubt(NamedTuple):
    """The reason why a person should check a row."""

    score: float
    """The lower the score, the more doubtful the answer. If `is_wrong`, a higher score is more doubtful."""
    words: str
    kind: Literal["", "tie", "disagree"] = ""
    """The kind of doubt. Ties are shown first, then rows on which models disagree."""
    score_words: str = ""
    """The score as text, such as `2 of 3`, if it is not a probability."""
    fields: Mapping[str, Sequence[tuple[Any, str]]] = MappingProxyType({})
    """For each field with several values: the values, each with the name of the place where it was found."""


_ORDINARY = Plan()


def plans_in(parts: Mapping[str, OrderPart]) -> dict[str, Plan]:
    """Return the plan among the parts of an order or job, by its name; `{}` for an ordinary job.

    Raises `PromptmillError` (`invalid_input`) if there are several.
    """
    plans = {name: each for name, each in parts.items() if isinstance(each, Plan)}
    if len(plans) > 1:
        first, second, *_ = (Named(each.option or name) for name, each in plans.items())
        raise input_error(first, " cannot be used with ", second, "; leave one of them out.")
    return plans


def option_of(parts: Mapping[str, OrderPart]) -> Named:
    """Return the option that selects the plan of an order or job with these parts, even if its feature is missing."""
    plan = next((name for name, each in parts.items() if isinstance(each, Plan)), next(iter(parts)))
    return Named(getattr(parts[plan], "option", "") or plan)


def plan_in(parts: Mapping[str, OrderPart]) -> Plan:
    """Return the plan among the parts of an order or job. Raises the errors of `plans_in`."""
    return next(iter(plans_in(parts).values()), _ORDINARY)


def plan_of(options: Mapping[str, Any], models: Sequence[str]) -> Plan:
    """Return the plan that the options of `bulk` select. Raises `PromptmillError` (`invalid_input`)."""
    return plan_in(parts_of(options, models))


class JobSpec(Stored):
    """The description of a job. Fingerprints identify model, sampling and system prompt without revealing them."""

    job_id: str
    created: Annotated[int, Field(ge=0, le=LAST_TIME)]
    input: InputSpec
    question: JobPrompts = JobPrompts()
    output: OutputSpec
    targets: tuple[Target, ...] = (Target(),)
    """The targets of each row, one for each slot."""
    backend: str
    model: str
    provider: str = ""
    """The name of the provider, for metrics."""
    parts: AnyParts = Field({})
    """The plan with its decisions, by the name of the option that selects it; empty for an ordinary job."""
    shapes: AnyParts = Field({})
    """The shape of the output, by the name of the option that selects it."""
    chooses: bool = False
    """The `Plan.chooses` of the job's plan, as a field, because SQL queries read it."""
    to_bind: Literal["questions", "rows"] | None = None
    """The rule that binds answers when the input is read again: by question, or by row number."""
    names_form: bool = False
    """Whether prompts for a model that gets no schema describe the form of answers; False in older versions' jobs."""
    origin: Origin = Origin()

    @property
    def plan(self) -> Plan:
        """The plan, which decides the rows to send next and the answer of each row."""
        return plan_in(self.parts)

    def with_plan(self, plan: Plan) -> JobSpec:
        """Return the job with `plan`, which is the job's plan after further decisions."""
        return self.model_copy(update={"parts": dict.fromkeys(self.parts, plan)})

    @property
    def fills_input(self) -> bool:
        """Whether the answers become columns of the sheet that the rows come from."""
        source, (file, sheet) = self.input, table_paths.split(self.output.path)
        if not (source.kind.has_sheets and self.output.kind.has_sheets) or len(source.parts) > 1:
            return False
        return source.parts[0].path == file and sheet in {"", source.parts[0].member}

    @property
    def keeps_sheets(self) -> bool:
        """Whether the job writes one sheet of a workbook, or columns of a sheet, and keeps the rest of the workbook."""
        return self.output.kind.has_sheets and (self.fills_input or bool(table_paths.split(self.output.path)[1]))

    @property
    def image_folders(self) -> tuple[str, ...]:
        """The folders in which relative image paths are searched: first the input's folder, then the working folder."""
        here = Path.cwd()
        folders = [self.input.path.parent] if self.input.is_file else []
        folders.append(self.origin.working_folder or here)
        return () if {*folders} == {here} else tuple(map(str, folders))

    def may_have(self, option: str) -> bool:
        """Return whether an option of a feature may be set for the job, for one of its rows, or for an answer of an
        earlier run; True for `""`."""
        is_open = not option or bool(self.input.settings_read) or self.input.kind.rows == "requests"
        given = ((None if target.kept else target.sampling) for target in self.targets)
        return is_open or option in {*self.parts, *self.shapes} or any(each is None or option in each for each in given)

    @property
    def is_read(self) -> bool:
        """Whether the database has the rows and questions that `input` and `question` describe."""
        return self.output.names is not None and self.to_bind is None

    @property
    def models(self) -> str:
        """The names of the job's models, separated by commas."""
        return ", ".join(dict.fromkeys(target.model or self.model for target in self.targets))

    @property
    def is_grid(self) -> bool:
        """Whether the output has several answers to each row, one for each target."""
        return self.delivered > 1

    @property
    def delivered(self) -> int:
        """The number of answers to each row in the output. They are in the first slots."""
        return 1 if self.chooses else len(self.targets)

    @property
    def output_targets(self) -> Sequence[Target]:
        """The targets of the answers in the output."""
        return self.targets[: self.delivered]

    @property
    def of_call(self) -> bool:
        """Whether this job began as a call, whose items are its rows."""
        return self.input.format == "messages"

    @property
    def shape(self) -> tuple[object, ...]:
        """The settings that determine the columns and rows of the output."""
        output = self.output
        names = [target.name for target in self.targets]
        return output.form, self.question.skip_empty, output.answer_schema, names, dict(self.shapes)

    @property
    def output_shape(self) -> Shape | None:
        """The shape of the output; None if each row of the input is a row of the output."""
        return next(iter(shape_in(self.shapes).values()), None)

    @property
    def in_output(self) -> JobSpec:
        """The job with the schema of the output's rows, which may differ from the schema of the answers."""
        shape, schema = self.output_shape, self.output.answer_schema
        if shape is None or schema is None:
            return self
        return self.with_output(answer_schema=shape.output_schema(schema)).model_copy(update={"shapes": {}})

    def with_output(self, **changes: Any) -> JobSpec:
        """Return the job with other values of `output`."""
        return self.model_copy(update={"output": self.output.model_copy(update=changes)})

    def with_input(self, **changes: Any) -> JobSpec:
        """Return the job with other values of `input`."""
        return self.model_copy(update={"input": self.input.model_copy(update=changes)})

    def leaves_out(self, code: str | None) -> bool:
        """Return whether the output omits rows with this error code."""
        return self.question.skip_empty and code == Code.EMPTY_PROMPT
