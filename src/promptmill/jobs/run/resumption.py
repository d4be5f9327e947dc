"""Resuming a job with another order: decides which answers are kept, and which changes are refused.

An answer is kept if it was made with the order's settings, or if the user also keeps answers of other settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.jobs.store import progress, rounds, statistics
from promptmill.jobs.store.binding import Bound
from promptmill.jobs.store.changed_form import ChangedForm
from promptmill.jobs.store.description import Target
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.order import JobOrder
from promptmill.jobs.store.plan import JobSpec, option_of
from promptmill.jobs.store.records import PERSON
from promptmill.jobs.store.rounds import ANSWERED
from promptmill.jobs.store.spec import OutputRecord

SEND_ALL = Named("again", "all")
_KEEP = Named("keep", text="{} keeps the old answers, and asks the other rows; ")
_OTHER_OUTPUT = "another output leaves this one as it is."
_NEW_COLUMN = Named("answer_column", "NAME", text="{} writes a new column.")
_WAYS = (SEND_ALL, " asks all rows again; ", _KEEP, _OTHER_OUTPUT)
_WAYS_OF_QUESTION = (
    Named("answer_column", "NAME", text="Add {} for a new column beside it, or "),
    SEND_ALL,
    ", which asks all rows again and replaces the answers.",
)
_AS_READ = ("size", "version", "sha256", "header", "fields", "style", "taken", "settings_read", "blank", "packed")
"""The fields of `InputSpec` that are set only after the input was read."""
_READ_BY = ("format", "encoding", "header_row")
"""The fields of `InputSpec` that determine how the input is read."""
_ASKED = ("templates", "column", "image_column", "audio_column", "row_settings")
"""The fields of `JobPrompts` that determine a row's prompt."""
_FEWEST = 20  # answers; losing fewer costs almost nothing, so it is no error


class ChangedError(PromptmillError):
    """The order would send most rows again, because the settings, the prompt or the input have changed.

    The remedy begins with `SEND_ALL`, unless the sheet that the job fills has answers to another question.
    """

    @property
    def may_keep(self) -> bool:
        """Whether an order with `keep` could keep the answers."""
        return _KEEP in self.remedy


class ChangedInputError(ChangedError):
    """The order would send most rows again, because the rows of the input changed."""


def resumed(
    folder: Folder, begun: JobSpec, wanted: JobSpec, order: JobOrder, *, fixed: bool, adds: bool = False
) -> JobSpec:
    """Combine the stored job `begun` with the job `wanted`. `adds`: the wanted job asks the same questions and more,
    with the same settings. Raises `PromptmillError` (`invalid_input`)."""
    sends_all = order.earlier.again == "all" or _has_nothing(folder)
    if begun.chooses and begun.parts.keys() != wanted.parts.keys() and not _has_nothing(folder):
        raise input_error(
            f"Job {begun.job_id} chose its labels with ",
            option_of(begun.parts),
            "; give it again, or name another output.",
        )
    plan = wanted.plan.resumed(begun.plan, begun.job_id, sends_all=sends_all)
    by_name = {target.name: target for target in begun.targets}
    may_keep = sends_all or _have_form(folder, begun, wanted)
    keeps = order.earlier.keep and may_keep
    targets = []
    for at, target in enumerate(wanted.targets):
        before = by_name.get(target.name)
        if before is None or (before.prompt != target.prompt and at >= len(begun.targets)):
            targets.append(folder.numbered(target))
            continue
        changed = _changed_settings(before, target, folder, begun.plan.named_models)
        if changed and (fixed or not (keeps or sends_all or adds)):
            raise _settings_conflict(begun, before, wanted, target, changed, fixed=fixed, may_keep=may_keep)
        targets.append(_target_now(folder, before, target, changed, sends_all=sends_all, adds=adds))
    for way in rounds.awaited(folder.store).values():
        way.check(folder.store, begun.job_id, targets)
    if (begun.is_grid or wanted.is_grid) and not sends_all:
        _check_places(folder, begun, targets)
    spec = wanted.with_plan(plan).model_copy(
        update={
            **{name: getattr(begun, name) for name in ("created", "origin")},
            "targets": tuple(targets),
        }
    )
    known, now = begun.input, wanted.input
    facts = {name: getattr(known, name) for name in _AS_READ}
    spec = spec.model_copy(update={"input": now.model_copy(update=facts)})
    is_same_reading = (
        begun.question == wanted.question
        and all(getattr(known, name) == getattr(now, name) for name in _READ_BY)
        and [target.name for target in begun.targets] == [target.name for target in wanted.targets]
    )
    if is_same_reading:
        names = begun.output.names if begun.shape == wanted.shape else None
        return spec.with_output(names=names).model_copy(update={"to_bind": begun.to_bind})
    by_row = order.earlier.keep and not adds and known.format == now.format and begun.to_bind is None
    if by_row and any(getattr(begun.question, name) != getattr(wanted.question, name) for name in _ASKED):
        targets = [_with_other_prompt(target) if target.name in by_name else target for target in targets]
        spec = spec.model_copy(update={"targets": tuple(targets)})
    return spec.with_output(names=None).model_copy(update={"to_bind": "rows" if by_row else "questions"})


def _check_places(folder: Folder, begun: JobSpec, targets: Sequence[Target]) -> None:
    """Raise `PromptmillError` if a model or prompt takes the slot of another one, whose answers would be paid again.

    A slot without an answer may be taken, because its model may not exist.
    """
    places = enumerate(zip(begun.targets, targets, strict=False))
    if any(before.settings not in now.counted and folder.store.has_answers_in(at) for at, (before, now) in places):
        known = ", ".join(target.name or target.model or begun.model for target in begun.targets)
        raise input_error(
            f"Job {begun.job_id} already has answers of {known}. To keep them, name these first, in this order, and "
            "new ones after them; or name another output."
        )


def _target_now(
    folder: Folder, before: Target, target: Target, changed: Sequence[str], *, sends_all: bool, adds: bool
) -> Target:
    if not changed:
        kept = ("fingerprint", "sampling", "settings", "kept", "changed", "extra")
        return target.model_copy(update={name: getattr(before, name) for name in kept})
    numbered = folder.numbered(target)
    if sends_all:
        return numbered
    ids = tuple(sorted({*before.kept, before.settings} - {numbered.settings}))
    marked = before.changed if adds else sorted({*before.changed, *changed})
    return numbered.model_copy(update={"kept": ids, "changed": tuple(marked)})


def _with_other_prompt(target: Target) -> Target:
    return target.model_copy(update={"changed": tuple(sorted({*target.changed, "prompt"}))})


def _has_nothing(folder: Folder) -> bool:
    """Return whether the open job has neither answers nor costs, so that nothing is lost if all rows are sent again."""
    last = folder.status
    paid = any(last.get(name) for name in ("cost", "cost_set_aside", "prompt_tokens", "completion_tokens"))
    has_answers = folder.store.page(0, ANSWERED, size=1) or any(
        way.slots(folder.store) for way in rounds.awaited(folder.store).values()
    )
    return not paid and last.get("state") not in progress.ALIVE and not has_answers


def _have_form(folder: Folder, begun: JobSpec, wanted: JobSpec) -> bool:
    """Return whether all answers from models (not from persons) have the form that the wanted job requires."""
    form = ChangedForm(begun.output, wanted.output)
    if not form.is_changed:
        return True
    return all(form.has(record.text) for record in folder.store.records(where=f"{ANSWERED} AND settings != {PERSON}"))


def changed_names(before: Target, now: Target) -> list[str]:
    """Return the names of the settings that differ between two targets, except the settings of further models."""
    known = before.fingerprint
    return [name for name, value in now.fingerprint.items() if name != "models" and known.get(name, value) != value]


def _changed_settings(before: Target, now: Target, folder: Folder, named: AbstractSet[str]) -> list[str]:
    changed = changed_names(before, now)
    models = before.fingerprint.get("models", {})
    others = {name for name, value in now.fingerprint.get("models", {}).items() if models.get(name, value) != value}
    if others:
        changed += [
            f"models.{name}" for name in sorted(others & (named | statistics.answering_models(folder.store).keys()))
        ]
    return changed


def _settings_conflict(
    begun: JobSpec, before: Target, wanted: JobSpec, now: Target, changed: Sequence[str], *, fixed: bool, may_keep: bool
) -> PromptmillError:
    if _has_other_question(begun, wanted):
        return _other_question(begun)
    pairs = [(name, getattr(begun, name), getattr(wanted, name)) for name in ("model", "backend") if name in changed]
    if "check" in changed:
        was, is_ = ("a function" if one.fingerprint.get("check") else None for one in (before, now))
        pairs.append(("check", was, is_))
    if "sampling" in changed and before.sampling is not None and now.sampling is not None:
        names = dict.fromkeys([*before.sampling, *now.sampling])
        pairs += [(name, before.sampling.get(name), now.sampling.get(name)) for name in names]
    form = ChangedForm(begun.output, wanted.output)
    differs = [f"{name} was {_shown(was)}, now {_shown(is_)}" for name, was, is_ in pairs if was != is_]
    differs += form.differences if "sampling" in changed else []
    if "sampling" in changed and before.sampling == now.sampling and not form.differences:
        differs.append("the definitions of labels or another list differ")
    changes = ", ".join(differs)
    others = ["other settings" if name == "sampling" else f"another {name}".replace("_", " ") for name in changed]
    ran = "last ran" if before.changed else "was begun"
    conflict = f"Job {begun.job_id} {ran} with {', '.join(others)}{f' ({changes})' if changes else ''}."
    if fixed:
        return input_error(f"{conflict} Use the options or the configuration file of its first run.")
    lack = "" if may_keep else " Not all of its answers have the new form, so none can be kept."
    return ChangedError(Code.INVALID_INPUT, conflict + lack, _ways(begun, wanted, form, may_keep=may_keep))


def _ways(begun: JobSpec, wanted: JobSpec, form: ChangedForm, *, may_keep: bool) -> Sequence[str | Named]:
    """Return the ways to resume a job whose settings have changed, as a remedy."""
    other_output = _NEW_COLUMN if wanted.fills_input else _OTHER_OUTPUT if may_keep else _OTHER_OUTPUT.capitalize()
    ways = [SEND_ALL, *([_WAYS[1], _KEEP] if may_keep else [" asks all rows again. "]), other_output]
    output = begun.output
    if only_new := _only_new(begun, wanted):
        return [*ways, *only_new]
    if not form.only_adds or wanted.fills_input or not output.format or not output.form.fields:
        return ways
    known, (new, *_) = next(iter((output.answer_schema or {})["properties"])), form.new_columns
    prompt, column = Named("prompt", f"… {{{{{known}}}}} …"), Named("answer_column", new)
    return [*ways, f" To ask only for {new}: {output.path} as input, another output, ", prompt, " and ", column, "."]


def _only_new(begun: JobSpec, wanted: JobSpec) -> Sequence[str | Named]:
    """Return the remedy: another output that reuses a part of the job's answers; `()` if it could reuse none."""
    if wanted.plan.taking(begun) is None:
        return ()
    return " With another output, ", Named("from_job", str(begun.output.path)), " asks only what is new."


def _has_other_question(begun: JobSpec, wanted: JobSpec) -> bool:
    """Return whether the job fills a sheet that already has answers of this job to another question."""
    one, other = ((each.question, each.output.answer_schema, each.output.choices) for each in (begun, wanted))
    return wanted.fills_input and one != other


def _other_question(begun: JobSpec) -> ChangedError:
    names, path = begun.output.names or {}, begun.output.path
    has = f"{path.name} has the answers to another question in the column `{names.get('answer', 'answer')}`."
    return ChangedError(Code.INVALID_INPUT, has, _WAYS_OF_QUESTION)


def _shown(value: Any) -> str:
    return "not set" if value is None else f"{value!r:.60}"


def check_bound(begun: JobSpec, spec: JobSpec, bound: Bound) -> None:
    """Raise `ChangedError` if an order that may be a mistake would send most rows again.

    Such an order loses more than half of the job's answers, and leaves more than half of the rows without an answer. A
    job with fewer than 20 answers is checked only if its prompt or its input file is another one.
    """
    given, asked = spec.input.path, begun.question != spec.question
    fewest = _FEWEST if given == begun.input.path and not asked else 1
    kept = bound.kept + bound.partly
    if bound.answers < fewest or 2 * kept >= bound.answers or 2 * kept >= bound.rows:
        return
    if _has_other_question(begun, spec):
        raise _other_question(begun)
    keeps = f"keeps {bound.kept:,} of the {bound.answers:,} answers of job {begun.job_id}"
    if asked:
        conflict = f"The prompt of job {begun.job_id} was another one, and the new one {keeps}."
        raise ChangedError(Code.INVALID_INPUT, conflict, [*_WAYS, *_only_new(begun, spec)])
    if given == begun.input.path:
        conflict = f"{given} has changed since, and {keeps}."
    else:
        conflict = f"{begun.output.path} is the output of another input, {begun.input.path}. {given.name} {keeps}."
    raise ChangedInputError(Code.INVALID_INPUT, conflict, _WAYS)


def check_keeps_rows(begun: JobSpec, made: OutputRecord, order: JobOrder, *, is_still: bool) -> None:
    """Raise `PromptmillError` (`invalid_input`) if the next output would lack rows of the current output."""
    limit, sample, before = order.limits.limit, order.question.sample, begun.question.sample
    holds = f"{begun.output.path} has more rows than "
    fewer = limit is not None and (made.limit is None or made.limit > limit)
    if fewer and (not made.finished or order.earlier.again or not is_still):
        name = Named("limit")
        other = " out, or name another output."
        raise input_error(holds, name, f" {limit}; writing it would delete the rest. Leave ", name, other)
    if sample is not None and made.limit != 0 and (before is None or before > sample):
        raise input_error(holds, Named("sample"), f" {sample}; writing it would delete the rest. Name another output.")
