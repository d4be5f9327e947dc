"""The plan of a job that asks its questions about each row in several requests.

row ─▶ requests without answers in them ─▶ requests with these answers ─▶ … ─▶ one outcome, a field for each question
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from promptmill.answers import response_format
from promptmill.backends import registry
from promptmill.backends.protocol import Completion, Failure, Outcome
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.request import Request
from promptmill.core.values import json_text
from promptmill.core.wording import counted
from promptmill.features.ask.asked_questions import (
    ASK,
    AskedQuestion,
    definitions_of,
    joined_definitions,
    questions_of,
    schema_of,
    values_of,
)
from promptmill.features.ask.inquiries import Inquiry, check_columns, inquiries_of, template_of
from promptmill.features.ask.row_inquiries import RowInquiries
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.description import JobPrompts
from promptmill.jobs.store.plan import Estimate, JobSpec, Plan, PlanWork, RunningJob, Taking
from promptmill.jobs.store.records import Record


class Ask(Plan):
    """Asks the questions of each row in several requests, and joins the answers."""

    has_own_forms: ClassVar[bool] = True
    shows_sent: ClassVar[bool] = True

    questions: tuple[AskedQuestion, ...]
    prompt: str = ""
    """The prompt to which questions without columns are added."""

    @classmethod
    def of(cls, options: Mapping[str, Any], models: Sequence[str]) -> Ask | None:
        """Return the plan for the option `ask`; None if it is not set, or if the questions can be fields of one
        request about the order's prompt. Raises `PromptmillError` (`invalid_input`)."""
        del models
        if not options.get("ask"):
            return None
        prompt = options.get("prompt") or options.get("prompt_file") or ""  # the file is read later
        if isinstance(prompt, Mapping):  # one prompt with a name, because `ask` excludes several prompts
            prompt = next(iter(prompt.values()))
        plan = cls(questions=questions_of(options["ask"]), prompt=str(prompt))
        ((first, *others), *later) = plan.levels
        if others or later or first.template != plan.prompt:
            return plan
        definitions_of(plan.questions)
        return None

    @property
    def levels(self) -> list[list[Inquiry]]:
        """The requests about a row, see `inquiries_of`."""
        return inquiries_of(self.questions, self.prompt)

    def prompts(self, given: tuple[str, ...]) -> tuple[str, ...]:
        """Return the template of all requests about a row."""
        del given
        return (template_of(self.levels),)

    def check(self, config: ModelConfig, question: JobPrompts) -> None:
        """Raise `PromptmillError` (`invalid_input`) for several answers to a request, an image tag, or labels with two
        definitions in one request to a deciding model."""
        if registry.decides(config):
            definitions_of(self.questions)
        if (answers := config.settings.sampling_params.n or 1) > 1:
            raise input_error(ASK, f" needs one answer to a question, but `sampling_params.n` is {answers}.")
        tag = config.settings.image_tag
        if tag and any(tag in text for text in question.templates):
            raise input_error(ASK, f" sends a row's images with each question; leave the tag {tag} out of the prompts.")

    def sending(self, config: ModelConfig) -> Callable[[Request, str], Iterable[Request]]:
        """Return a function that converts a row's request to all requests about the row. Names stand in for answers."""
        made, answers = RowInquiries(config, self.levels), _Names()

        def sent(request: Request, prompt: str) -> Iterable[Request]:
            del prompt
            sections, levels = made.parted(request)
            return [made.request(request, part, sections, answers) for level in levels for part in level]

        return sent

    def estimate(
        self,
        store: JobDatabase,
        spec: JobSpec,
        configs: Mapping[str, ModelConfig],
        checked: Mapping[str, Any],
        *,
        end: int,
    ) -> Estimate:
        """Return the number of answers, and a note on the requests. Raises as `check_columns`."""
        del store, configs, end
        check_columns(self.levels, spec.input)
        answers = checked["rows"] - checked["invalid"] - checked.get("skipped", 0) - checked.get("taken", 0)
        later = [question.name for level in self.levels[1:] for one in level for question in one.questions]
        waits = f"; {', '.join(later)} after the answers in the prompt" if later else ""
        return Estimate({"answers": answers}, f"{counted(checked['requests'], 'request')} in all{waits}")

    def taking(self, other: JobSpec) -> Taking | None:
        """Return how a row reuses another job's answers to questions that both jobs ask; None if they share none."""
        plan = other.plan
        if not isinstance(plan, Ask) or not (known := self._known(plan)):
            return None
        asked = {question.name for question in plan.questions}
        definitions = joined_definitions(plan.questions) or None
        sampling = {
            "response_format": response_format.asking_for(schema_of(plan.questions)),
            "definitions": definitions,
        }
        return Taking(functools.partial(self._taken, known), sampling, is_whole=known >= asked)

    def _known(self, other: Ask) -> set[str]:
        """Return the names of the questions that another plan asks in the same requests."""
        earlier, known = [one for level in other.levels for one in level], set[str]()
        for level in self.levels:
            known.update(name for one in level if one in earlier and one.needs <= known for name in one.names)
        return known

    def _taken(self, known: Collection[str], record: Record) -> Outcome | None:
        """Return the outcome of a row whose record has answers to the `known` questions."""
        outcome, names = record.outcome(), [question.name for question in self.questions]
        if record.finish_reason == "length":  # the record does not say which answer was cut
            return None
        found = values_of(outcome.text if isinstance(outcome, Completion) else outcome.part)
        values = {name: found[name] for name in names if name in found and name in known}
        probabilities = {name: one for name, one in (outcome.probabilities or {}).items() if name in values} or None
        if not values or len(values) < len(names):
            error = PromptmillError(Code.BATCHED, "The row waits for the answers to other questions.")
            return Failure(error, part=json_text(values), probabilities=probabilities) if values else None
        whole = outcome if isinstance(outcome, Completion) else Completion("", "stop")
        return replace(whole, text=json_text(values), probabilities=probabilities)

    def left(self, record: Record, requests: Sequence[Request]) -> Sequence[Request]:
        """Return the requests with questions that the record of their row does not answer."""
        known = values_of(record.extras.get("part", "")).keys()
        texts = [one.names for level in self.levels for one in level]
        forms = (response_format.schema_of(one.sampling.response_format) for one in requests)
        names = (
            {*(form["properties"] if form else texts[one.choice])} for form, one in zip(forms, requests, strict=True)
        )
        return [one for one, asked in zip(requests, names, strict=True) if not known >= asked]

    def work(self, job: RunningJob) -> PlanWork:
        """Return the object that sends the requests about each row during one run."""
        from promptmill.features.ask.asked_rows import AskedRows

        return AskedRows(job, [question.name for question in self.questions], self.levels)


class _Names(dict[str, str]):
    """Gives a question's name in double braces in place of its answer."""

    def __missing__(self, name: str) -> str:
        return f"{{{{{name}}}}}"
