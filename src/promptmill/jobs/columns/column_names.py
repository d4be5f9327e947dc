"""Names of the columns that a job adds to a row: the answer, its error, its usage, ….

A job never renames a column of the input. If the input has a column `answer`, the job's column is `answer_1`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from promptmill.core.bounds import MOST_NAMES
from promptmill.core.errors import Named, input_error
from promptmill.core.feature import Format
from promptmill.core.wording import no_column
from promptmill.files import table_paths
from promptmill.files.databases import alike
from promptmill.jobs.columns.schema_columns import FIELD, PROBABILITY_OF, SCORE_OF, SchemaColumns
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.records import SCORES

ANSWER_FIELDS = ("answer", "error", "usage", "finish_reason")
SOURCES = "sources"
"""The column for the places where the values of an answer were found, see `core.sources`."""
PROBABILITY = "probability"
"""The column for the probability of the answer, in a job whose answers are chosen from `choices`."""
EXTRA_FIELDS = (
    *("answers", PROBABILITY, "probabilities", SCORES, SOURCES, "reasoning", "tool_calls", "logprobs", "cost"),
    *("answered_by", "changed"),
)
"""The fields that only the answers of some models or requests have."""
VARIANT, MODEL = "variant", "model"
"""The columns of a job with several answers to each row: the name of the variant, and the variant's model."""
SCORE = "score"
"""The column for the score of an answer (0 to 1), which some plans add."""
IN_ORDER = ("answer", *dict.fromkeys((PROBABILITY, *ANSWER_FIELDS[1:], *EXTRA_FIELDS)))
"""The `ANSWER_FIELDS` and `EXTRA_FIELDS` in the order of a table's columns."""
OURS = (*IN_ORDER, "row", "surplus_cells")
"""The usual names of the columns that a job adds. `row` (the row's number) is added only to rows without a file."""


def variant_fields(spec: JobSpec) -> Sequence[str]:
    """Return the columns that distinguish several answers to the same row."""
    if not spec.is_grid:
        return ()
    return (MODEL, VARIANT) if len({target.model for target in spec.targets}) > 1 else (VARIANT,)


def variant_values(spec: JobSpec, slot: int) -> dict[str, str]:
    """Return the values that the answers in a slot have in the columns `variant_fields`, by column name."""
    names, target = spec.output.names or {}, spec.targets[slot]
    values = {MODEL: target.model, VARIANT: target.name}
    return {names.get(name, name): values[name] for name in variant_fields(spec)}


def own_names(spec: JobSpec) -> set[str]:
    """Return the names of all columns that a job may add to its output."""
    names = spec.output.names or {}
    return {names.get(key, usual_name(key)) for key in wanted_names(spec)}


def keys_in_order(spec: JobSpec, extra: Collection[str], schema: SchemaColumns | None) -> list[str]:
    """Return the keys of the columns that a job adds to a table, in order. `extra`: the answers' optional fields."""
    keys = [key for key in IN_ORDER if key in extra or key in ANSWER_FIELDS]
    keys[keys.index("error") : keys.index("error")] = spec.plan.fields
    if schema is not None and schema.names:
        keys = [*schema.columns(extra), *(key for key in keys if key not in {"answer", SCORES})]
    return [*variant_fields(spec), *keys]


def schema_columns(spec: JobSpec) -> SchemaColumns | None:
    """Return the columns of the answers' schema; None if the job has no schema."""
    if spec.output.answer_schema is None:
        return None
    return SchemaColumns(spec.output.answer_schema, by_field=spec.output.form.fields)


def wanted_names(spec: JobSpec) -> dict[str, str]:
    """Return the usual names of all columns that the job may add, by key. If two columns want the same name, the first
    one gets it.

    If several jobs may fill the sheet, the names begin with the name of the job's answer column: `Topic_error`.
    """
    ours = (*OURS, *variant_fields(spec), *spec.plan.fields)
    column, begin = spec.output.form.column, f"{name}_" if (name := table_paths.column_of(spec.output.path)) else ""
    wanted = {name: column if name == "answer" else f"{begin}{name}" for name in ours}
    schema = schema_columns(spec.in_output)
    if schema is None:
        return wanted
    if spec.output_shape is not None:
        del wanted["row"]  # the column is already in each row of the output
    if schema.names and spec.output.kind.is_table:  # `answer` is named last, because fields' columns take its place
        answer = wanted.pop("answer")
        wanted |= schema.names | {"answer": answer}
    return wanted | schema.every


def chosen_keys(spec: JobSpec) -> tuple[str, ...]:
    """Return the keys of the columns that the output keeps. An order may give their usual names or their output names.

    Raises `PromptmillError` (`invalid_input`) for a name that no column has.
    """
    if not spec.output.form.columns:
        return ()
    usual, wanted = (*IN_ORDER, *spec.plan.fields), wanted_names(spec)
    fields = [key for key in wanted if key != usual_name(key)] if spec.output.kind.is_table else []
    named = {wanted.get(key, key): key for key in (*fields, *usual)} | {key: key for key in usual}
    for name in spec.output.form.columns:
        if name not in named:
            raise input_error(Named("columns"), f": {no_column(name, columns=named, file='the output')}")
    return tuple(dict.fromkeys(named[name] for name in spec.output.form.columns))


def unusual_names(
    wanted: Mapping[str, str], taken: Iterable[str], compared: Callable[[str], str] = str
) -> dict[str, str]:
    """Return the new names of the job's columns that cannot have their usual names. `taken`: the columns of the input.

    `compared`: see `compared_in`. Raises `PromptmillError` (`invalid_input`) if columns of the input already have all
    candidates for a name.
    """
    names: dict[str, str] = {}
    used = set(map(compared, taken))
    for key, name in wanted.items():
        free = next((each for each in candidates(name) if compared(each) not in used), None)
        if free is None:
            raise input_error(f"The input has 100 columns `{name}`, `{name}_1`, …; rename some of them.")
        names[key] = free
        used.add(compared(free))
    return {key: name for key, name in names.items() if name != usual_name(key)}


def compared_in(output: Format, *, fills_sheet: bool = False) -> Callable[[str], str]:
    """Return a function that converts a name to the form in which the output format compares names.

    `fills_sheet`: the columns are written into a sheet, which may be a table of Excel.
    """
    return alike if output.database else str.casefold if fills_sheet else str


def possible_names(wanted: Mapping[str, str], compared: Callable[[str], str] = str) -> frozenset[str]:
    """Return all names that `unusual_names` may give to columns, in the form that `compared` returns."""
    return frozenset(compared(each) for name in wanted.values() for each in candidates(name))


def candidates(name: str) -> Iterator[str]:
    """Yield the names that a column with the usual name `name` may get, in order.

    >>> from itertools import islice
    >>> list(islice(candidates("answer"), 3))
    ['answer', 'answer_1', 'answer_2']
    """
    yield name
    for number in range(1, 100):
        yield f"{name}_{number}"


def usual_name(key: str) -> str:
    """Return the name that the column with this key has unless a column of the input has the same name."""
    for prefix, ending in ((PROBABILITY_OF, "_probability"), (SCORE_OF, "_score")):
        if key.startswith(prefix):
            return key.removeprefix(prefix) + ending
    return key.removeprefix(FIELD)


def check_width(count: int) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a table of too many columns."""
    if count > MOST_NAMES:
        raise input_error(f"The rows have more than {MOST_NAMES:,} different fields; name the output .jsonl.")
