"""`promptmill run RECIPE`: run the commands of a file in order, as one command."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from promptmill.cli.foreground import passed_on
from promptmill.cli.main import run_command
from promptmill.cli.parser import Parser, amount
from promptmill.cli.terminal import OK, SOME_FAILED, TRY_AGAIN, USAGE, complain, say
from promptmill.core.errors import Code, PromptmillError, config_error, redact
from promptmill.core.money import dollars
from promptmill.core.values import JsonDict
from promptmill.core.wording import counted
from promptmill.features.recipes import run_words
from promptmill.features.recipes.recipe import Recipe, RecipeStep
from promptmill.features.recipes.spending import Search, Spending, StepFigures
from promptmill.features.recipes.trust import check_trust
from promptmill.jobs.run.resumption import ChangedError, ChangedInputError
from promptmill.jobs.run.rows_left import of_rows_left
from promptmill.jobs.store.folder import Folder
from promptmill.system.safe_open import home_expanded

_CHANGED = "changed"
_PATHS = ("PROMPTMILL_CONFIG", "PROMPTMILL_STATE")
"""Environment variables whose relative paths start at the caller's folder, not at the recipe's folder."""
_RESUMES = " the same command resumes the recipe, and pays for no answer again. Run: "
_ESTIMATED = ("requests", "estimated_cost", "most_cost")


def add_options(run: Parser) -> None:
    """Add the options of the command."""
    run.add_argument("recipe", metavar="RECIPE", help="a YAML file with `steps`; its paths start at its folder")
    run.add_argument("--dry-run", action="store_true", help="check all steps, and show their prices; send nothing")
    run.add_argument("--max-cost", type=amount, metavar="AMOUNT", help="most that all steps may spend, in all runs")
    run.add_argument(
        "--again",
        choices=("failed", _CHANGED),
        help="failed: send failed rows again; changed: send rows again whose step has another prompt, model or input",
    )
    run.add_argument("--state", type=Path, metavar="DIR", help="where jobs are kept, as for bulk")
    run.add_argument(
        "--trust",
        action="store_true",
        help="run a recipe that sets programs, keys, configurations, endpoints or files elsewhere without a question",
    )
    run.add_argument("--quiet", action="store_true", help="show no progress")
    run.add_argument("--json", action="store_true", help="print all figures as JSON")
    run.show_examples(
        "promptmill run recipe.yaml",
        "promptmill run recipe.yaml --dry-run",
        "",
        "max_cost: 2.50                        # of all steps",
        "model: gpt-6-luna                     # of all steps that have no other",
        "steps:",
        "  - bulk: [mails/, orders.csv]        # as on the command line: INPUT … OUTPUT",
        "    prompt: 'Extract the order: {{content}}'",
        "    schema: customer,amount:number",
        "  - bulk: [orders.csv, labels.csv]",
        "    prompt: 'Is this urgent? {{customer}} {{amount}}'",
        "    choices: [yes, no]",
    )
    run.set_defaults(unconfigured=_run)


def _run(arguments: argparse.Namespace) -> int:
    """Run a recipe. Return 0 if all rows are answered, 1 if some failed, or the exit code of a step that stopped."""
    file = home_expanded(arguments.recipe)
    if not file.is_file():
        example = "`promptmill run --help` shows an example."
        raise config_error("", f"{file} is {'a folder' if file.is_dir() else 'missing'}; name a recipe; {example}")
    of_run = {"max_cost": arguments.max_cost, "again": None if arguments.again == _CHANGED else arguments.again}
    recipe = Recipe.read(file, {name: str(value) for name, value in of_run.items() if value is not None})
    for name in _PATHS:
        if os.environ.get(name):
            os.environ[name] = str(home_expanded(os.environ[name]).absolute())
    place = file.absolute()
    with contextlib.chdir(place.parent):
        check_trust(recipe, is_trusted=arguments.trust)
        outputs = recipe.check()
        if arguments.dry_run:
            return _Plan(arguments, recipe, outputs, Spending.of(place, recipe.max_cost)).show()
        with Spending.locked(place, recipe.max_cost) as spending:
            return _Run(arguments, recipe, outputs, spending).run()


@dataclass
class _Report:
    """The report on a step that has begun."""

    step: RecipeStep
    title: str
    figures: StepFigures = field(default_factory=StepFigures)
    result: object = None
    """The result that the command prints with `--json`."""

    def as_dict(self) -> JsonDict:
        figures = self.figures
        of_rows: JsonDict = {}
        if len(figures.jobs) == 1 and (job := figures.jobs[0])["output_file"]:
            of_rows = {"rows": job.get("total"), "failed": job.get("failed", 0)}
        return {
            **_begin_of(self.step, self.title),
            **of_rows,
            "requests": figures.requests,
            "cost": figures.cost,
            "unchanged": figures.is_unchanged,
            "jobs": [job["job_id"] for job in figures.jobs],
            "result": self.result,
        }


@dataclass
class _Steps:
    """The steps of a recipe, with the options of its run."""

    arguments: argparse.Namespace
    recipe: Recipe
    outputs: Mapping[str, RecipeStep]
    spending: Spending

    def _captured(self, step: RecipeStep, prepared: Callable[[JsonDict], argparse.Namespace]) -> tuple[int, str]:
        """Run a command with the arguments that `prepared` returns for accepted changes. Return its code and output."""
        changes: JsonDict = {}
        while True:
            arguments = prepared(changes)
            try:
                return _captured(arguments)
            except ChangedError as error:
                change = self._change(error, step, arguments)
                if change is None or changes.items() >= change.items():
                    raise
                changes |= change

    def _change(self, error: ChangedError, step: RecipeStep, arguments: argparse.Namespace) -> JsonDict | None:
        """Return the options with which a step accepts a change; None if the user has not accepted it.

        A change of an input that an earlier step wrote is accepted, because the user has changed that step.
        """
        is_accepted = self.arguments.again == _CHANGED
        if isinstance(error, ChangedInputError):
            return {"keep": True} if is_accepted or step.makers(arguments, self.outputs) else None
        return {"again": "all"} if is_accepted else None

    def _refusal(self, error: ChangedError, step: RecipeStep) -> PromptmillError:
        """Return the error for a change that the user has not accepted, with the command that accepts it."""
        again = f"`{self._resuming('--again', _CHANGED)}` sends the rows of such a step again"
        keep = "; `keep: true` in the step keeps its answers." if error.may_keep else "."
        return step.located(PromptmillError(error.code, [*error.parts[:1], " ", again, keep], ""))

    def _resuming(self, *option: str) -> str:
        """Return the command line of this run, with another value of an option."""
        given = passed_on(self.arguments.given, option[:1], ())
        return redact(shlex.join(["promptmill", *given, *option]))


@dataclass
class _Run(_Steps):
    """A run of a recipe."""

    reports: list[_Report] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def run(self) -> int:
        """Run the steps in order, and print the summary. Return the exit code. Raises `PromptmillError`."""
        code, ended = OK, OK
        try:
            for step in self.recipe.steps:
                ended = self._step(step)
                code = max(code, ended)
                if ended != OK and not (ended == SOME_FAILED and self.spending.step.is_usable):
                    break
            else:
                self._show("finished")
                return code
        except PromptmillError as error:
            self._show("stopped")
            place = self.reports[-1].step
            if isinstance(error, ChangedError):
                raise self._refusal(error, place) from None
            problem = place.located(error).message
            end = "" if problem.endswith((".", "?")) else "."
            raise PromptmillError(error.code, f"{problem}{end} Then{_RESUMES}{self._resuming()}", "") from None
        except KeyboardInterrupt:
            if self.reports:
                self._stop(TRY_AGAIN)
            raise
        self._stop(ended)
        return ended

    def _stop(self, code: int) -> None:
        """Print the summary, and the command that resumes the recipe."""
        self._show("stopped")
        last, most = self.reports[-1], self.recipe.max_cost
        stopped = f"step {last.step.number} of {len(self.recipe.steps)} ({last.title}) stopped"
        if most is not None and any(job.get("code") == Code.BUDGET for job in last.figures.jobs):
            limit = f"{dollars(self.spending.total)} of {dollars(most)} are spent; raise the limit."
            complain(f"{stopped}: {limit} Run: {self._resuming('--max-cost', f'{2 * most:g}')}")
        else:
            corrected = "; correct it, then" if code == USAGE else ";"
            complain(f"{stopped}{corrected}{_RESUMES}{self._resuming()}")

    def _step(self, step: RecipeStep) -> int:
        report = _Report(step, step.words[0])
        self.reports.append(report)
        report.title = step.title(step.arguments())
        named = step.named(self.outputs)
        self.spending.earlier = [one for each in self.reports if each.step in named for one in each.figures.folders]
        if not self.arguments.quiet:
            say(f"[{step.number}/{len(self.recipe.steps)}] {report.title}", sys.stderr)
        if (search := _found(step, self.spending, is_accepted=self.arguments.again == _CHANGED)) is not None:
            report.figures = StepFigures(folders=[Folder(Path(path)) for path in search.jobs], is_found=True)
            return OK
        code, text = self._ended(step, report)
        for path in _outputs(step):
            self.spending.keep_stamp(path, step.digest if step.command.is_search and code == OK else "")
        figures = report.figures
        if self.arguments.json:
            report.result = orjson.loads(text) if text else figures.jobs[0] if len(figures.jobs) == 1 else None
        elif text and not figures.is_unchanged:
            say(text.rstrip("\n"))
        return code

    def _ended(self, step: RecipeStep, report: _Report) -> tuple[int, str]:
        """Run a step. Return the exit code and the printed result."""

        def prepared(changes: JsonDict) -> argparse.Namespace:
            self.spending.step = report.figures = StepFigures()
            return self._prepared(step, changes)

        return self._captured(step, prepared)

    def _prepared(self, step: RecipeStep, changes: JsonDict) -> argparse.Namespace:
        """Return the arguments with which a step runs as a part of this run."""
        is_own = any(map(self.spending.is_own, _outputs(step)))
        owns_output = "is_step" in step.arguments()  # a job checks its own output
        values = {
            "is_step": True,
            "names_next": False,
            "overwrite": True if is_own and not owns_output else None,
            "json": self.arguments.json and not owns_output,
            "quiet": self.arguments.quiet,
            **changes,
        }
        arguments = _changed(step, values)
        arguments.spending = self.spending
        return arguments

    def _show(self, state: str) -> None:
        steps = [report.as_dict() for report in self.reports]
        costs = [step["cost"] for step in steps if step["cost"] is not None]
        found: JsonDict = {
            "recipe": str(self.recipe.file),
            "state": state,
            "count": len(self.recipe.steps),
            "steps": steps,
            "requests": sum(step["requests"] for step in steps),
            "cost": sum(costs) if costs else None,
            "spent": self.spending.total,
            "max_cost": self.recipe.max_cost,
            "seconds": round(time.monotonic() - self.began, 2),
        }
        if self.arguments.json:
            say(orjson.dumps(found).decode())
        else:
            say("\n".join(run_words.summary(found)), wrap=True)


@dataclass
class _Plan(_Steps):
    """What a run would do."""

    def show(self) -> int:
        """Print the steps with their prices. Return 0, or 1 if rows are invalid. Raises `PromptmillError`."""
        steps, code = list[JsonDict](), OK
        for step in self.recipe.steps:
            try:
                ended, found = self._estimate(step)
            except ChangedError as error:
                raise self._refusal(error, step) from None
            except PromptmillError as error:
                raise step.located(error) from None
            code = max(code, ended)
            steps.append(_begin_of(step, step.title(step.arguments(step.awaited(self.outputs)))) | found)
        costs = {name: [step[name] for step in steps if step.get(name) is not None] for name in _ESTIMATED}
        is_priced = len(costs["most_cost"]) == len(costs["estimated_cost"])
        found = {
            "recipe": str(self.recipe.file),
            "steps": steps,
            "requests": sum(costs["requests"]),
            "estimated_cost": sum(costs["estimated_cost"]) if costs["estimated_cost"] else None,
            "most_cost": sum(costs["most_cost"]) if costs["most_cost"] and is_priced else None,
            "spent": self.spending.total,
            "max_cost": self.recipe.max_cost,
        }
        if self.arguments.json:
            say(orjson.dumps(found).decode())
        else:
            say("\n".join(run_words.plan(found)), wrap=True)
        return code

    def _estimate(self, step: RecipeStep) -> tuple[int, JsonDict]:
        """Return the exit code of a step's `--dry-run`, and its figures or the reason why it has none."""
        if missing := step.missing(self.outputs):
            maker = self.outputs[missing]
            return OK, {"reason": f"no estimate before step {maker.number} has written {Path(missing).name}"}
        if (attribute := step.dry_run) is None:
            return OK, {"reason": f"{step.command.name} has no estimate"}
        if _found(step, self.spending, is_accepted=self.arguments.again == _CHANGED) is not None:
            nothing = dict.fromkeys(_ESTIMATED, 0)
            return OK, {**nothing, "reason": f"{step.title(step.arguments())} is there; delete it to search again"}
        code, text = self._captured(step, lambda changes: _changed(step, {attribute: True, "json": True, **changes}))
        found: JsonDict = orjson.loads(text)
        rows, problems = found.get("rows"), found.get("problems")
        # The highest cost may differ from the certain one, because later requests depend on answers.
        certain, every = (found.get(name) or of_rows_left(found) for name in ("certain", "all"))
        figures = {
            name: its[name] for name, its in zip(_ESTIMATED, (certain, certain, every), strict=True) if name in its
        }
        more = every["requests"] if every != certain else 0
        reason = {"reason": f"{counted(more, 'request')} if it repeats steps"} if more else {}
        if problems:
            reason = {"reason": f"{found['invalid']:,} invalid rows, the first: {problems[0]}"}
        return code, {**({"rows": rows} if isinstance(rows, int) else {}), **figures, **reason}


def _outputs(step: RecipeStep) -> list[Path]:
    return [home_expanded(name).absolute() for name in step.writes(step.arguments())]


def _found(step: RecipeStep, spending: Spending, *, is_accepted: bool) -> Search | None:
    """Return the finished search of an earlier run, whose output the later steps use; None if the step has to run.

    The output is a file of the user, who may have edited it. Raises `ChangedError` if the step's options have changed,
    unless the change is accepted.
    """
    output = next(iter(_outputs(step)), None) if step.command.is_search else None
    search = None if output is None else spending.found(output)
    if output is None or search is None or search.digest == step.digest or not spending.is_own(output):
        return search
    if is_accepted:
        return None
    changed = [f"{output.name} was found with other options.", " `--again changed` searches again."]
    raise ChangedError(Code.INVALID_INPUT, changed, "")


def _changed(step: RecipeStep, values: JsonDict) -> argparse.Namespace:
    """Return a step's arguments, with those of `values` that its command takes and that are not None."""
    arguments = step.arguments()
    for name, value in values.items():
        if name in arguments and value is not None:
            setattr(arguments, name, value)
    return arguments


def _begin_of(step: RecipeStep, title: str) -> JsonDict:
    return {"step": step.number, "command": step.command.name, "title": title}


def _captured(arguments: argparse.Namespace) -> tuple[int, str]:
    """Run a command. Return the exit code, and the text on stdout."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = run_command(arguments)
    return code, out.getvalue()
