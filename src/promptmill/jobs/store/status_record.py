"""The records of a job's status and of the course of its runs. The runner writes both; other processes read them.

The fields of these records define the JSON of a status, how a stored status is read, the sums over runs, the schema for
the tools (`schema`) and the texts for people. Fields without information are left out to keep a status short.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_type_hints

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from promptmill.core.errors import Code
from promptmill.core.feature import Figure, figures, part
from promptmill.core.values import JsonDict

T = TypeVar("T")
_LAST_TIME = 10**11  # max time in seconds: the year 5138
_KNOWN = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class Count:
    """Marks a field that covers all runs of a job, and names the source of the field's number."""

    over: Literal["rows", "requests", "runs", ""] = ""
    """The source of the number. `rows`: the records, which `JobCounts` counts. `requests`: the records of earlier runs,
    plus the counts of this run's `Call`. `runs`: the previous run's status, plus the counts of this run's `Call`."""
    words: str = ""
    """The text after the number in a line of the summary, such as ` empty row{s}`; `""` if it has no line."""
    title: str = ""
    """The name of the field in a report, if it differs from the field's name."""
    rare: bool = False
    """Whether the field is left out if it is 0."""

    def line(self, number: int) -> str:
        """Return the number with its text.

        >>> Count("rows", " empty row{s}, not in the output").line(1)
        '1 empty row, not in the output'
        """
        return f"{number:,}{self.words.format(s='' if number == 1 else 's')}"


class FieldResults(TypedDict, total=False):
    """The values of a field of the answers: the number of rows for each value, or the range of its numbers."""

    values: dict[str, int]
    is_list: bool
    """Whether a row may have several values of the field."""
    min: float
    max: float
    mean: float


class Results(TypedDict, total=False):
    """The distinct answers, see `statistics.results`."""

    vectors: int
    """The number of vectors, if answers are vectors. The counts from `different` to `fields` are for texts."""
    dimensions: int
    """The length of each vector; 0 if vectors differ in length."""
    different: int
    shortest: int
    longest: int
    values: dict[str, int]
    fields: dict[str, FieldResults]


class LabelShare(TypedDict):
    """The share of a label among all rows, and its interval, as numbers from 0 to 1."""

    share: float
    low: float
    high: float
    counted: float
    """The share of the label before it was corrected for wrong labels."""


def _code_of(name: Any) -> Code:
    """Return the code with this name. (pydantic takes no enum as a validator from Python 3.12 on: its signature is
    `(*values)` there.) Raises `ValueError`."""
    return Code(name)


class _State(TypedDict, total=False):
    state: Annotated[
        str,
        Field(description="`starting`, `running`, `merging`; `finished`; `stopped`, `cancelled`, `interrupted`."),
    ]
    reason: Annotated[str, Field(description="Why it stopped.")]
    code: Annotated[Code, BeforeValidator(_code_of)]
    """The code of the error that stopped the run."""
    activity: str
    round: str
    """The reason of the current round."""
    paused: bool
    waiting: str
    warnings: list[str]
    seconds: float
    """The wall time of all runs."""
    updated: Annotated[float, Field(ge=0, le=_LAST_TIME)]


class _Answers(TypedDict, total=False):
    columns: dict[str, str]
    """The names of the output columns that do not have their usual names, by usual name."""
    results: Results


class _Rows(TypedDict, total=False):
    total: Annotated[int | None, Count(), Field(description="Number of rows; null until they are counted.")]
    done: Annotated[int, Count("rows"), Field(description="Rows with an outcome, failed ones included.")]
    answered: Annotated[int, Count("rows")]
    failed: Annotated[int, Count("rows"), Field(description="Rows without an answer, because of an error.")]
    errors: Annotated[dict[str, int], Count("rows")]
    """The number of failures by code."""
    skipped: Annotated[int, Count("rows", " empty row{s}, not in the output", rare=True)]
    truncated: Annotated[int, Count("rows", " by max_tokens", "Cut off by max_tokens")]
    empty: Annotated[
        int,
        Count("rows", " answered without a word: look at `finish_reason`, and at the prompt or model", rare=True),
    ]
    written: int
    """The number of output rows that have been written."""


class _Requests(TypedDict, total=False):
    requests: Annotated[int, Count("requests")]
    run_requests: int
    """The number of requests of the last run, if there were earlier runs."""
    retries: Annotated[int, Count("requests")]
    latency_s: Annotated[dict[str, float | None], Count("rows")]


class _Tokens(TypedDict, total=False):
    prompt_tokens: Annotated[int, Count("requests")]
    completion_tokens: Annotated[int, Count("requests")]
    cached_tokens: Annotated[int, Count("requests")]


class _Chain(TypedDict, total=False):
    cached: Annotated[int, Count("runs", " row{s} copied, without a request", "Copied", rare=True)]
    repaired: Annotated[int, Count("runs", rare=True)]
    asked_again: Annotated[int, Count("runs", " time{s}, because an answer was not accepted", "Asked again", rare=True)]


class _Money(TypedDict, total=False):
    cost: Annotated[float | None, Count()]
    run_cost: float
    """The cost of the last run, if there were earlier runs."""
    max_cost: float | None
    cost_set_aside: float
    cost_forgotten: float
    cache_saved: float
    """The savings by the provider's prompt cache, in US dollars; 0 while the job runs."""


class _Flow(TypedDict, total=False):
    in_flight: int
    window: int | None
    pace: float
    """The limit of requests per second, which was set because an endpoint refused more requests."""
    refused: int
    """The number of requests of this run that an endpoint refused because of load."""
    rows_per_second: float
    tokens_per_second: float
    eta_s: Annotated[float | None, Field(description="Estimated seconds left; null if unknown.")]


class RunStatus(_State, _Answers, _Rows, _Requests, _Tokens, _Chain, _Money, _Flow, total=False):
    """The part of a status that a runner stores. It also includes the figures of features, see `Figure`."""

    __pydantic_config__ = _KNOWN  # type: ignore[misc]


class Status(RunStatus, total=False):
    """The status of a job."""

    job_id: Annotated[str, Field(description="The id of the job.")]
    input_file: Annotated[str, Field(description="The file of the rows.")]
    output_file: Annotated[
        str | None,
        Field(description="Complete when the state is `finished`; null if bulk_status has the answers."),
    ]
    model: str
    """The model; several models are separated by commas."""
    variants: Sequence[str]
    """With several models or prompts: the name of each pair of model and prompt. Counts of rows then count answers."""
    backend: str
    created: int
    alive: bool
    """Whether a process is running the job."""
    prompt: str
    system: str
    command: str
    """The command line of the last order."""
    message: str
    """A sentence about the effect of the call that returns this status."""


class RunNote(TypedDict):
    """The start of a run."""

    at: float
    """The seconds that all earlier runs took."""
    began: Annotated[int, Field(ge=0, le=_LAST_TIME)]
    version: str


class CourseRecord(TypedDict, total=False):
    """The course of all runs, see `Course`."""

    __pydantic_config__ = _KNOWN  # type: ignore[misc]
    runs: list[RunNote]
    samples: list[Annotated[list[float | None], Field(min_length=7, max_length=7)]]
    every_s: Annotated[float, Field(gt=0)]


def counts_of(record: type[Any]) -> dict[str, Count]:
    """Return the fields of a record that are marked with a `Count`, in order."""
    hints = get_type_hints(record, include_extras=True)
    return {name: mark for name, hint in hints.items() for mark in get_args(hint) if isinstance(mark, Count)}


def schema(record: type[Any]) -> JsonDict:
    """Return the JSON Schema of the fields that have a description."""
    hints = get_type_hints(record, include_extras=True)
    told = {name for name, hint in hints.items() if any(getattr(mark, "description", "") for mark in get_args(hint))}
    return {name: TypeAdapter[Any](hint).json_schema() for name, hint in hints.items() if name in told}


def sound(stored: Mapping[str, Any], record: type[T]) -> T:
    """Return the known and valid fields of a stored record; others are left out, because a job's folder may come from
    anywhere. A status also keeps the figures of features."""
    wrong: set[object] = set()
    try:
        _checker(record).validate_python(stored, strict=True)
    except ValidationError as error:
        wrong = {problem["loc"][0] for problem in error.errors(include_url=False, include_input=False)}
        if record is RunStatus:
            wrong -= {name for name, figure in figures().items() if name in wrong and _is_valid(stored[name], figure)}
    return cast("T", {name: value for name, value in stored.items() if name not in wrong})


def _is_valid(value: object, figure: Figure) -> bool:
    try:
        _checker(part(figure.record)).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def shares_of(status: Mapping[str, Any]) -> Mapping[str, Mapping[str, LabelShare]]:
    """Return the label shares in a status, by field. They are from a person's labels or, if none exist, from a plan."""
    of_plan = (value.get("shares") for value in status.values() if isinstance(value, Mapping))
    return status.get("shares") or next(filter(None, of_plan), {})


_checker: Callable[[object], TypeAdapter[Any]] = cache(TypeAdapter)
COUNTS: Mapping[str, Count] = counts_of(RunStatus)
"""The counts of the whole job in a status, by name."""
