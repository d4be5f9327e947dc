"""The plan of a job with several requests about each row, one or more for its questions.

row ─▶ requests without answers in them ─▶ requests with these answers ─▶ … ─▶ one outcome, a field for each question
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from promptmill.backends import registry
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import input_error
from promptmill.core.request import Request
from promptmill.core.wording import counted
from promptmill.features.ask.inquiries import Inquiry, check_columns, inquiries_of, template_of
from promptmill.features.ask.questions import ASK, AskedQuestion, definitions_of, questions_of
from promptmill.features.ask.row_inquiries import RowInquiries
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.plan import Estimate, JobSpec, Plan, PlanWork, RunningJob
from promptmill.jobs.store.stored import Question


class Ask(Plan):
    """Asks the questions of each row in several requests, and joins the answers."""

    has_own_forms: ClassVar[bool] = True
    shows_sent: ClassVar[bool] = True

    questions: tuple[AskedQuestion, ...]
    prompt: str = ""
    """The prompt to which questions without columns are added."""

    @classmethod
    def of(cls, options: Mapping[str, Any], models: Sequence[str]) -> Ask | None:
        """Return the plan for the option `ask`; None without it, and for questions that are fields of one request about
        the order's prompt. Raises `PromptmillError` (`invalid_input`)."""
        del models
        if not options.get("ask"):
            return None
        prompt = options.get("prompt") or options.get("prompt_file") or ""  # a file is read after the options' check
        if isinstance(prompt, Mapping):  # one prompt with a name: options exclude several
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

    def check(self, config: ResolvedConfig, question: Question) -> None:
        """Raise `PromptmillError` (`invalid_input`) for several answers to a request, a tag of images, or labels that a
        model that decides would get in one request, defined in two ways."""
        if registry.decides(config):
            definitions_of(self.questions)
        if (answers := config.settings.sampling_params.n or 1) > 1:
            raise input_error(ASK, f" needs one answer to a question, but `sampling_params.n` is {answers}.")
        tag = config.settings.image_tag
        if tag and any(tag in text for text in question.templates):
            raise input_error(ASK, f" sends a row's images with each question; leave the tag {tag} out of the prompts.")

    def sending(self, config: ResolvedConfig) -> Callable[[Request, str], Iterable[Request]]:
        """Return the function from a row's request to all requests about it, with names in place of answers."""
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
        configs: Mapping[str, ResolvedConfig],
        checked: Mapping[str, Any],
        *,
        end: int,
    ) -> Estimate:
        """Return the number of answers, and a note on the requests. Raises as `check_columns`."""
        del store, configs, end
        check_columns(self.levels, spec.input)
        answers = checked["rows"] - checked["invalid"] - checked.get("skipped", 0)
        later = [question.name for level in self.levels[1:] for one in level for question in one.questions]
        waits = f"; {', '.join(later)} after the answers in the prompt" if later else ""
        return Estimate({"answers": answers}, f"{counted(checked['requests'], 'request')} in all{waits}")

    def work(self, job: RunningJob) -> PlanWork:
        """Return the requests about each row for one run."""
        from promptmill.features.ask.asked_rows import AskedRows

        return AskedRows(job, [question.name for question in self.questions], self.levels)


class _Names(dict[str, str]):
    """In place of each answer, its name as in the prompt."""

    def __missing__(self, name: str) -> str:
        return f"{{{{{name}}}}}"
