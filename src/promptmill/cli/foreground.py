"""Runs a job in the foreground: progress on the terminal, a summary, and the command's exit code."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import re
import shlex
import sys
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import orjson

from promptmill.cli.error_words import explained, option_of
from promptmill.cli.job_display import command_of, print_status, progress_display
from promptmill.cli.options import OF_THE_MODEL, configuration_of, note_once
from promptmill.cli.terminal import OK, SOME_FAILED, TERMINATED, TRY_AGAIN, USAGE, complain, is_terminal, say
from promptmill.config.configuration import Configuration
from promptmill.config.parameter_file import is_shipped
from promptmill.core.errors import Code, PromptmillError, redact
from promptmill.core.feature import features, figures, part
from promptmill.core.money import dollars
from promptmill.core.values import JsonObject
from promptmill.core.wording import counted
from promptmill.files import files as input_files
from promptmill.jobs import door
from promptmill.jobs.columns.column_names import VARIANT
from promptmill.jobs.door import OpenJob
from promptmill.jobs.export.live_output import LiveOutput
from promptmill.jobs.inputs.any_format import image_column
from promptmill.jobs.manage import prune
from promptmill.jobs.manage.step_model import StepModel
from promptmill.jobs.run.job import EndedJob, Hooks, Job
from promptmill.jobs.run.resumption import SEND_ALL, ChangedError
from promptmill.jobs.store import progress, rounds, status
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.order import JobOrder
from promptmill.jobs.store.status_record import RunStatus, Status
from promptmill.options import table
from promptmill.system import runtime
from promptmill.system.safe_open import is_file, real_path

# Options whose values may contain a key, unless the value is the name of a variable.
_SECRET, _REFERENCE = re.compile(r"api_key(?!_env)|headers|token(?!s)"), re.compile(r"[\w.]+=\$\{\w+\}")
# If a new job ends with one of these errors, the job is removed, unless its status has a field of `_KEPT`.
_TYPOS = frozenset({Code.INVALID_CONFIG, Code.INVALID_INPUT, Code.MISSING_DEPENDENCY, Code.NOT_FOUND})
_KEPT = ("done", "prompt_tokens", "cost", "cost_set_aside")


def run(
    arguments: argparse.Namespace,
    configuration: Configuration,
    opened: OpenJob,
    *,
    live: LiveOutput | None = None,
    is_step: bool = False,
    names_failures: bool = True,
) -> int:
    """Run or resume a job in the foreground, with the options `json` and `quiet`.

    During the run, `live` receives the answers, and stderr everything else. `is_step`: the job runs inside another
    command and prints only progress, because that command owns stdout. `names_failures`: a finished step that has
    failed rows prints its summary, too.

    On a terminal, the user decides whether answers are kept after a change of settings, prompt or input.

    Return 0 if all rows are answered, 1 if not, and 75 if the job stopped and the same command may help later. Raises
    the errors of `OpenJob.admit`.
    """
    while True:
        try:
            return _run(arguments, configuration, opened, live=live, is_step=is_step, names_failures=names_failures)
        except ChangedError as error:
            if is_step or live is not None or arguments.json or not is_terminal():
                raise _with_command(error, arguments) from None
            opened = replace(opened, order=_chosen(error, opened))


class StoppedError(Exception):
    """A job of a series stopped early, and has reported the reason. The argument of the error is the exit code."""


def step_model(arguments: argparse.Namespace, *, names_failures: bool = True, **changes: Any) -> StepModel:
    """Return the model of a step of a series, made from the command's arguments with `changes`. Raises
    `PromptmillError`; the model's `run` also raises `StoppedError`."""
    its = argparse.Namespace(**{**vars(arguments), "json": False, "report": None})
    changed = argparse.Namespace(**{**vars(its), **changes})
    configuration = door.decided(configuration_of(changed))

    def run_step(job: OpenJob) -> None:
        code = run(its, configuration, job, is_step=True, names_failures=names_failures)
        if job.loose is None or job.loose.status.get("state") != progress.FINISHED:
            raise StoppedError(code)

    words = ["rows", "answers", *_form_of(changed)]
    return StepModel(configuration, run_step, remembered_step(words, changed, configuration))


def stopped(error: StoppedError, spent: JsonObject, name: str, without: str = "") -> int:
    """Report that the series `name` has stopped, and return the exit code. `without`: such as ` without --again`."""
    code = int(error.args[0])
    if code in {TRY_AGAIN, TERMINATED}:
        cost = f"{dollars(spent['cost'])} are spent in all; " if "cost" in spent else ""
        complain(f"{name} stopped: {cost}the same command{without} resumes it, and pays for no answer again.")
    return code if code != OK else TRY_AGAIN


def _with_command(error: ChangedError, arguments: argparse.Namespace) -> ChangedError:
    """Return the error with the command that sends every row again, if such a command exists."""
    send_all, _, *others = error.remedy
    if arguments.given[:1] != ["bulk"] or arguments.json or send_all != SEND_ALL:
        return error
    given = [word for word in arguments.given if word != "--keep"]
    command = f"promptmill {redact(shlex.join(given))} --again all"
    return type(error)(error.code, [*error.parts, f" `{command}` asks all rows again."], others)


def _chosen(error: ChangedError, opened: OpenJob) -> JobOrder:
    """Return the order that the user chooses on the terminal. Raises `error` if the user makes no choice."""
    order = opened.order
    if error.remedy[0] != SEND_ALL:
        return _chosen_column(error, opened)
    other = free_name(order.output)
    say(error.worded(lambda _: None).partition(". ")[0] + ".", sys.stderr, wrap=True)
    say("  a  ask all rows again", sys.stderr, wrap=True)
    if error.may_keep:
        say("  k  keep the old answers, and ask the other rows", sys.stderr, wrap=True)
    say(f"  o  write another output: {other.name}", sys.stderr, wrap=True)
    letters = "a, k or o" if error.may_keep else "a or o"
    print(f"{letters} (Enter ends the command): ", end="", file=sys.stderr, flush=True)
    match input().strip().lower()[:1]:
        case "a":
            return order.with_earlier(again="all")
        case "k" if error.may_keep:
            return order.with_earlier(keep=True)
        case "o":
            return order.model_copy(update={"output": other})
    raise error


def _chosen_column(error: ChangedError, opened: OpenJob) -> JobOrder:
    """Return the order that the user chooses if the sheet has answers to another question. Raises as `_chosen` does."""
    order = opened.order
    names = (f"{order.form.column}_{number}" for number in itertools.count(2))
    orders = (order.model_copy(update={"form": order.form.model_copy(update={"column": name})}) for name in names)
    other = next(each for each in orders if opened.folders.of(real_path(each.target)).spec is None)
    say(error.worded(lambda _: None).partition(". ")[0] + ".", sys.stderr, wrap=True)
    say(f"  c  write a new column beside it: {other.form.column}", sys.stderr, wrap=True)
    say("  a  ask all rows again, and replace the answers", sys.stderr, wrap=True)
    print("c or a (Enter ends the command): ", end="", file=sys.stderr, flush=True)
    match input().strip().lower()[:1]:
        case "c":
            return other
        case "a":
            return order.with_earlier(again="all")
    raise error


def free_name(path: Path) -> Path:
    """Return the first of `labels-2.csv`, `labels-3.csv`, … that does not exist."""
    stem, dot, suffixes = path.name.partition(".")
    names = (path.with_name(f"{stem}-{number}{dot}{suffixes}") for number in itertools.count(2))
    return next(name for name in names if not name.exists())


def _run(
    arguments: argparse.Namespace,
    configuration: Configuration,
    opened: OpenJob,
    *,
    live: LiveOutput | None,
    is_step: bool,
    names_failures: bool,
) -> int:
    """Run a job as `run` does, but raise each `ChangedError`."""
    configuration = door.decided(configuration)
    as_json, on_stderr = arguments.json, live is not None or is_step
    job = _before_job(arguments, replace(opened, models=configuration)).admit()
    quiet = getattr(arguments, "quiet", False)
    if not quiet:
        note_once(configuration.config)

    def tell(now: Status, *, again: bool = True) -> None:
        if is_step and now["state"] == progress.FINISHED and not (names_failures and now.get("failed")):
            return
        now = {**now, "alive": False}
        print_status(now, job.folder, opened.order, as_json=as_json, on_stderr=on_stderr, again=again, quiet=quiet)

    code: int | None = None
    requests: int | None = 0
    try:
        about = status.read(job.folder)
        warn_of_input(job)
        if job.finished:
            if not as_json and not is_step:
                print(f"promptmill: job {job.spec.job_id} is finished already.{_kept(job)}", file=sys.stderr)
            tell(about)
            code, requests = SOME_FAILED if about.get("failed") else OK, None
            return code
        _note_pause(job.folder, about)
        try:
            ended, error, terminated = runtime.run(_shown_run(configuration, job, live, as_json=as_json, quiet=quiet))
        except KeyboardInterrupt:
            now = status.read(job.folder)
            requests = _requests(about, now)
            tell(now)
            if job.folder.awaited:  # the job does not fail: the provider continues
                code = TRY_AGAIN
                return code
            raise
        requests = _requests(about, ended)
        if isinstance(error, ChangedError) and not as_json:
            raise error
        if error is not None:
            ended = ended | {"reason": _reason(error, arguments, configuration)}
        if _is_typo(error, job, ended):
            prune.forget(job.folder, opened.folders)
        if as_json or job.folder.path.exists():
            tell(_joined(about, ended), again=error is None or error.retryable)
        else:
            complain(ended["reason"])
        code = TERMINATED if terminated else _exit_code(ended, error)
        return code
    finally:
        job.close()  # closed first, because a feature's function may resume the job
        if job.folder.database.exists():
            _call_features(EndedJob(arguments, job.folder, on_stderr, code, requests))


def _note_pause(folder: Folder, about: Status) -> None:
    if folder.control.paused:
        note = f"job {folder.job_id} is paused; `{command_of(about)} --unpause` lets it go on."
        print(f"promptmill: {note}", file=sys.stderr, flush=True)


def _requests(before: Status, now: RunStatus) -> int:
    """Return the number of requests of the last run."""
    return now.get("run_requests", now.get("requests", 0) - before.get("requests", 0))


def _joined(before: Status, ended: RunStatus) -> Status:
    """Return a job's status after a run: `before` updated by `ended`, without figures of the earlier run. A finished
    run counts all figures anew."""
    old = {"run_requests", "run_cost", *(figures() if ended["state"] == progress.FINISHED else ())}
    return cast("Status", {**{name: value for name, value in before.items() if name not in old}, **ended})


def warn_of_input(job: Job) -> None:
    """Print a warning if cells look like paths of images but no image is sent."""
    spec = job.spec
    is_sent = spec.question.image_column is not None or job.finished
    if is_sent or not spec.input.is_file or not spec.input.parts[0].path.exists():
        return
    files = input_files.opened(spec.input.parts[:1], reading=spec.input)
    if column := image_column(files, spec.input.format, only_existing=True):
        unsent = f"the cells of {column} are paths of images, but no image is sent"
        say(f"warning: {unsent}; to send them: --image-column {column}", sys.stderr, wrap=True)


def remembered_step(words: Sequence[str], arguments: argparse.Namespace, configuration: Configuration) -> list[str]:
    """Return the command line that a step of another command stores: `words`, and the model's options."""
    given = {name: getattr(arguments, name) for name in OF_THE_MODEL}
    options_ = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
    sets = [word for value in arguments.set for word in ("--set", value)]
    return remembered_command(["bulk", *words, *options_, *sets], configuration)


def _form_of(arguments: argparse.Namespace) -> list[str]:
    """Return the options by which a remembered command sets the form of its answers."""
    if arguments.choices is None:
        schema = getattr(arguments, "schema", None)
        return [] if schema is None else ["--schema", orjson.dumps(schema).decode()]
    values = ((f"sampling_params.{name}", value) for name, value in arguments.choices.sampling.items())
    return [word for name, value in values for word in ("--set", f"{name}={orjson.dumps(value).decode()}")]


def passed_on(given: Sequence[str], own: Container[str], switches: Container[str]) -> list[str]:
    """Return the words of a command line that another command also accepts. The other command lacks the options `own`,
    which have values, and `switches`, which have none."""
    kept, words = list[str](), iter(given)
    for word in words:
        name, equals, _ = word.partition("=")
        if name in own:
            _ = None if equals else next(words, None)
        elif word not in switches:
            kept.append(word)
    return kept


def remembered_command(given: Sequence[str], configuration: Configuration) -> list[str]:
    """Return a command line without keys that works from any folder, so that a job can be resumed by its id."""
    texts_or_files = {"--choices", "--schema"}
    files = {*texts_or_files, *(each.name_on("flag") for each in table.options().values() if each.type is Path)}
    words, kept = iter(given), []
    for word in words:
        option, equals, value = word.partition("=")
        if option not in {"--set", "--config", *files}:
            kept.append(redact(word))
            continue
        value = value if equals else next(words)
        if option in texts_or_files and not is_file(value):
            kept += [option, redact(value)]
        elif option in files - {"--config"}:
            kept += [option, str(Path(value).absolute())]
        elif option == "--set" and (_SECRET.search(value) is None or _REFERENCE.fullmatch(value)):
            kept += [option, redact(value)]
    file = Path(configuration.origin).absolute()
    return kept if is_shipped(file) or not file.is_file() else [*kept, "--config", str(file)]


def _exit_code(ended: RunStatus, error: PromptmillError | None) -> int:
    if error is not None and error.code in _TYPOS - {Code.NOT_FOUND}:
        return USAGE
    if error is not None and error.retryable:
        return TRY_AGAIN
    return OK if ended["state"] == progress.FINISHED and not ended["failed"] else SOME_FAILED


def _is_typo(error: PromptmillError | None, job: Job, ended: RunStatus) -> bool:
    """Return whether a typo ended a new job before it did anything, so that the job should be removed."""
    is_wrong = error is not None and error.code in _TYPOS and job.change.before is None
    # A damaged description may hide answers, so the rounds are checked too.
    return is_wrong and not any(ended.get(name) for name in _KEPT) and rounds.is_empty(job.folder.store)


def _reason(error: PromptmillError, arguments: argparse.Namespace, configuration: Configuration) -> str:
    return redact(explained(error, arguments, configuration).worded(option_of))


def _kept(job: Job) -> str:
    """Return a sentence if the output has more rows than this order requests, else `""`."""
    result, limit = job.folder.result, job.order.limits.limit
    if limit is None or result is None or result.limit == limit:
        return ""
    rows = "all rows" if result.limit is None else counted(result.limit, "row")
    return f" Its output already holds {rows}, and is left unchanged."


def _before_job(arguments: argparse.Namespace, opened: OpenJob) -> OpenJob:
    for feature in features().values():
        for attribute, function in feature.before_job.items():
            if getattr(arguments, attribute, None) is not None:
                opened = part(function)(arguments, opened)
    return opened


def _call_features(ended: EndedJob) -> None:
    spec, shows = ended.folder.spec, ended.code is not None and not ended.on_stderr and not ended.arguments.json
    ended.follow()
    for feature in features().values():
        if feature.variants and shows and spec is not None and spec.is_grid and spec.output.format:
            part(feature.variants)(spec.output.path, (spec.output.names or {}).get(VARIANT, VARIANT))


async def _shown_run(
    configuration: Configuration, job: Job, live: LiveOutput | None, *, as_json: bool, quiet: bool
) -> tuple[RunStatus, PromptmillError | None, bool]:
    async with contextlib.aclosing(job.service(configuration)) as service:
        with progress_display(job.spec.job_id, as_json=as_json, quiet=quiet) as watch:
            hooks = Hooks(watch) if live is None else Hooks(watch, recorded=live.recorded, live=live)
            return await door.until_signal(job, service, hooks)
