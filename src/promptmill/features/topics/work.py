"""The search for topics, on every face."""

from __future__ import annotations

from promptmill.backends import registry
from promptmill.core.bounds import MOST_CHOICES
from promptmill.core.errors import Named, input_error
from promptmill.core.values import JsonDict, JsonObject
from promptmill.features.topics.covering import Covering, chosen_rows, with_chosen
from promptmill.features.topics.drawn import Drawn
from promptmill.features.topics.finding import Finding
from promptmill.features.topics.topic_file import TopicFile
from promptmill.features.topics.topic_jobs import (
    Form,
    StepQuestions,
    TopicEstimate,
    TopicJobs,
    check_form,
    figures_of,
    longest_of,
    settings_of,
)
from promptmill.features.topics.topic_rows import TopicRows
from promptmill.features.verbs.record import VerbCall
from promptmill.jobs.manage.step_model import StepModel
from promptmill.system.safe_open import home_expanded, real_path


def found(call: VerbCall) -> JsonDict:
    """Find topics, and return all figures; with `dry_run`, return an estimate of the cost. Raises `PromptmillError`."""
    options = call.options
    prompt, most = options["prompt"], options["most"]
    _check_options(options)
    drawn = _drawn(call)
    config = call.model(choices=None).models.config
    check_form(config)
    limit = longest_of(config, options["max_cost"], most)

    def model(form: Form) -> StepModel:
        return call.model(**settings_of(form, limit))

    series = call.series(options["max_cost"])
    if call.target is not None:
        series.folders = call.folders.of_series(real_path(call.target.path.absolute()))
    questions = StepQuestions(prompt, options["system"] or "", options["again"])
    if options["dry_run"]:
        return _estimated(drawn, most, [TopicEstimate(series, model, questions, fits) for fits in (True, False)])
    registry.check_key(config)
    covering = Covering(series.folders, config, call.config, call.watch)
    jobs = TopicJobs(series, model, questions)
    finding = Finding(covering.of(drawn, call.tell), prompt, most, jobs, call.tell, notes=covering.notes)
    figures = finding.figures() | series.spent
    return {**figures, "jobs": jobs.labelled_with(figures["topics"])}


def write(call: VerbCall, figures: JsonDict) -> None:
    """Write the topics, and add the file to the figures. Raises `PromptmillError`."""
    if isinstance(call.target, TopicFile) and "topics" in figures:
        call.target.write(figures)
        figures["output_file"] = str(call.target.path)


def _check_options(options: JsonObject) -> None:
    """Raise `PromptmillError` (`invalid_input`) for values of the options that no search can have."""
    if not options["prompt"]:
        raise input_error(Named("prompt"), " is empty.")
    if not isinstance(options.get("model") or "", str):
        raise input_error(Named("model"), " is one model, which takes all steps.")
    for name, highest in (("most", MOST_CHOICES - 1), ("sample", None), ("held_out", None)):
        number = options[name]
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise input_error(Named(name), f" is {number!s:.20}; it is a whole number from 1 on.")
        if highest is not None and number > highest:
            raise input_error(Named(name), f" is {number:,}; a job takes at most {highest:,} labels, and `other`.")


def _drawn(call: VerbCall) -> Drawn:
    """Check the file of the topics, and return the rows that are drawn from the input. Raises `PromptmillError`."""
    options, output = call.options, None
    with call.rows("input") as sources:
        if options["output"] is not None:
            output = home_expanded(options["output"])
            target = call.target = TopicFile(output, options["overwrite"], sends_again=options["again"] is not None)
            target.check(sources)
        rows = TopicRows(sources, options["prompt"], options["encoding"], output)
        drawn = rows.drawn(options["sample"], options["held_out"])
    for note in rows.notes:
        call.warn(note)
    return drawn


def _estimated(drawn: Drawn, most: int, estimates: list[TopicEstimate]) -> JsonDict:
    likely = with_chosen(drawn, range(chosen_rows(drawn)))  # any rows, as many as would be chosen
    for estimate in estimates:
        Finding(likely, estimate.questions.prompt, most, estimate, is_estimate=True).figures()
    return figures_of(*estimates)
