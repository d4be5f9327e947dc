"""A recipe that can be run: its steps are known commands in a possible order, with options that these commands have."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from promptmill.backends import registry
from promptmill.cli.error_words import option_of
from promptmill.cli.options import configuration_of
from promptmill.core.errors import Named, PromptmillError
from promptmill.core.feature import Command
from promptmill.core.request import Sampling, check_of_data
from promptmill.core.wording import cut, did_you_mean
from promptmill.features.recipes.command_words import (
    LIKE_RUN,
    check_key,
    command_of,
    file_words,
    parser_of,
    step_commands,
    texts_in,
    words_of,
)
from promptmill.features.recipes.recipe_file import MAX_COST, NULL, Entry, RecipeFile, RecipeLine
from promptmill.files import table_paths
from promptmill.files.path_formats import is_url
from promptmill.jobs.door import decided
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.spec import digest
from promptmill.options.flag_values import amount
from promptmill.steps.costs import lacking
from promptmill.system.safe_open import home_expanded

_OPTION = re.compile(r"--([a-z][a-z-]*)(?: (.*))?", re.DOTALL)
_FLAG = re.compile(r"^--([a-z][a-z-]*)")
_PATTERN = re.compile(r"[*?\[]")


def key_of(named: Named) -> str | None:
    """Return the name of a field as a key of a recipe, together with the field's value if there is one."""
    words = option_of(named)
    option = _OPTION.fullmatch(words or "")
    if option is None or named.field == "again":
        return words
    key = option[1].replace("-", "_")
    return f"`{key}: {option[2]}`" if option[2] else f"`{key}`"


@dataclass(frozen=True, slots=True)
class RecipeStep:
    """A command of a recipe."""

    number: int
    command: Command
    words: Sequence[str]
    """The command line, from the command's name on."""
    entries: Mapping[str, Entry]
    """The options, including the options that all steps share."""
    place: RecipeLine
    digest: str
    """The digest of the files and of the options that affect answers."""

    def arguments(self, unread: Sequence[str] = ()) -> argparse.Namespace:
        """Return the parsed command line. The options `unread` name files that are not written yet, see
        `StepParser.parse_without`.

        Raises `PromptmillError` (`invalid_config`).
        """
        arguments = parser_of(self.command).parse_without(self.words[1:], unread)
        arguments.given = [*self.words]
        return arguments

    def reads(self, arguments: argparse.Namespace) -> list[str]:
        """Return the names of the files that have the step's rows."""
        others = set(self.command.writes or ())
        return [*_names(arguments, [name for name in parser_of(self.command).files() if name not in others])]

    def writes(self, arguments: argparse.Namespace) -> list[str]:
        """Return the names of the files that the step writes."""
        return [*_names(arguments, self.command.writes or ())]

    def title(self, arguments: argparse.Namespace) -> str:
        """Return the names of the step's outputs or, without outputs, its command and the files that it reads."""
        return " ".join(self.writes(arguments) or [self.command.name, *self.reads(arguments)])

    def awaited(self, outputs: Mapping[str, RecipeStep]) -> list[str]:
        """Return the options that name a file which an earlier step will write."""
        earlier = self._earlier(outputs)
        return [
            key
            for key, entry in self.entries.items()
            if not earlier.keys().isdisjoint(map(_path, texts_in(entry.value)))
        ]

    def makers(self, arguments: argparse.Namespace, outputs: Mapping[str, RecipeStep]) -> list[RecipeStep]:
        """Return the earlier steps that write the rows of this step."""
        earlier = self._earlier(outputs)
        found = [earlier.get(_path(name)) or earlier.get(_file(name)) for name in self.reads(arguments)]
        return [step for step in found if step is not None]

    def named(self, outputs: Mapping[str, RecipeStep]) -> list[RecipeStep]:
        """Return the earlier steps whose outputs are named by options of this step."""
        earlier = self._earlier(outputs)
        texts = [text for entry in self.entries.values() for text in texts_in(entry.value)]
        return [step for text in texts if (step := earlier.get(_path(text))) is not None]

    def missing(self, outputs: Mapping[str, RecipeStep]) -> str:
        """Return the path of a missing file that the step needs and an earlier step will write, or `""`."""
        names = self.reads(self.arguments(self.awaited(outputs)))
        texts = [text for entry in self.entries.values() for text in texts_in(entry.value)]
        paths = map(_path, [*names, *map(_file, names), *texts])
        earlier = self._earlier(outputs)
        return next((path for path in paths if path in earlier and not Path(path).exists()), "")

    def _earlier(self, outputs: Mapping[str, RecipeStep]) -> dict[str, RecipeStep]:
        return {path: step for path, step in outputs.items() if step.number < self.number}

    @property
    def dry_run(self) -> str | None:
        """The attribute of parsed arguments that requests a dry run; None if the command has no dry run."""
        action = parser_of(self.command).options().get("dry_run")
        return None if action is None else action.dest

    def located(self, error: PromptmillError) -> PromptmillError:
        """Return `error` with the line of the option that it names, or of the step: if it names none, or the budget of
        the recipe, which all steps share."""
        text = _FLAG.sub(lambda flag: flag[1].replace("-", "_"), error.worded(key_of))
        named = [part.field for part in error.parts if isinstance(part, Named)]
        named += [word.strip("`:,;.'\"") for word in text.split()]
        entry = next((self.entries[name] for name in named if name in self.entries), None)
        if entry is not None and entry.key == MAX_COST and entry.place.line < self.place.line:
            return self.place.error(f"step {self.number}: {text}")
        return (self.place if entry is None else entry.place).error(text)


@dataclass(frozen=True, slots=True)
class Recipe:
    """The commands of a file, in their order."""

    file: Path
    steps: Sequence[RecipeStep]
    max_cost: float | None
    """The most that all steps together may spend, in US dollars."""

    @classmethod
    def read(cls, file: Path, of_run: Mapping[str, str]) -> Recipe:
        """Read a recipe. `of_run`: options of the run, by name. Does not look for the files of steps.

        Raises `PromptmillError` (`invalid_config`) with the line.
        """
        content = RecipeFile.read(file)
        options = {key for each in step_commands().values() for key in parser_of(each).options()}
        for entry in content.shared.values():
            check_key(entry, options, "bulk")
        run = {key: Entry.of_run(key, text) for key, text in of_run.items()}
        limit = run.get(MAX_COST) or content.max_cost
        shared = {**content.shared, **run, **({} if limit is None else {MAX_COST: limit})}
        steps = []
        for number, entries in enumerate(content.steps, 1):
            command = command_of(entries)
            parser = parser_of(command)
            known = parser.options()
            for entry in entries.options.values():
                check_key(entry, known, command.name)
            excluded = parser.excluded_by(entries.options)
            common = {key: each for key, each in shared.items() if key in known and known[key].dest not in excluded}
            every = {**common, **entries.options}
            words = {key: words_of(entry, known[key]) for key, entry in every.items()}
            for key, entry in every.items():
                _check_value(entry, words[key])
            files = file_words(entries.command)
            asked = digest(files, {key: its for key, its in words.items() if key not in LIKE_RUN})
            line = [command.name, *files, *(word for its in words.values() for word in its)]
            steps.append(RecipeStep(number, command, line, every, entries.command.place, asked))
        return cls(file, steps, _amount(limit))

    def check(self) -> Mapping[str, RecipeStep]:
        """Check all steps before the first one runs, as far as their files exist. Sends and stores nothing.

        Return a mapping of the path of each output to its step. Raises `PromptmillError` with the line.
        """
        outputs: dict[str, RecipeStep] = {}
        parsed = []
        for step in self.steps:
            unread = step.awaited(outputs)
            try:
                arguments = step.arguments(unread)
            except PromptmillError as error:
                raise step.located(error) from None
            parsed.append((step, arguments, unread))
            for name in step.writes(arguments):
                if (other := outputs.setdefault(_filled(name, step, arguments), step)) is not step:
                    raise step.place.error(f"{name} is the output of step {other.number}, too; name another file.")
                outputs.setdefault(_file(name), step)
        for step, arguments, _ in parsed:
            _check_order(step, arguments, outputs)
        for step, arguments, unread in parsed:
            _check_jobs(step, outputs)
            self._check_command(step, arguments, outputs, is_whole={*unread} <= {"choices"})
        return outputs

    def _check_command(
        self, step: RecipeStep, arguments: argparse.Namespace, outputs: Mapping[str, RecipeStep], *, is_whole: bool
    ) -> None:
        if "command" not in arguments:  # the command has no configuration, or reads it later
            return
        try:
            configuration = configuration_of(arguments)
            registry.check_key(configuration.config)
            if self.max_cost is not None and (error := lacking([decided(configuration).config], rows_set=True)):
                raise error
            if "precheck" in arguments and is_whole:
                files = [Path(_file(name)) for name in step.reads(arguments)]
                is_there = bool(files) and all(file.is_file() for file in files)
                has_rows = is_there and not step.makers(arguments, outputs)
                arguments.precheck(arguments, configuration, has_rows=has_rows)
        except PromptmillError as error:
            raise step.located(error) from None


def _names(arguments: argparse.Namespace, attributes: Sequence[str]) -> Iterator[str]:
    for attribute in attributes:
        value = getattr(arguments, attribute)
        yield from map(str, value if isinstance(value, list) else [value] if value is not None else [])


def _check_value(entry: Entry, words: Sequence[str]) -> None:
    """Raise `PromptmillError` (`invalid_config`) if a recipe names a function or a file that only a person may name."""
    if entry.place.line:  # an option of `promptmill run` is the person's own
        try:
            for word in words:
                check_of_data({entry.key: word.partition("=")[2]}, Sampling())
        except PromptmillError as error:
            raise entry.place.error(error.message) from None


def _amount(entry: Entry | None) -> float | None:
    if entry is None or entry.value.tag == NULL:
        return None
    try:
        return amount(str(entry.value.value))
    except PromptmillError as error:
        raise entry.place.error(f"{MAX_COST}: {error.message}") from None


def _path(name: str) -> str:
    return os.path.normpath(home_expanded(name).absolute())


def _filled(name: str, step: RecipeStep, arguments: argparse.Namespace) -> str:
    """Return the path of an output; for a sheet that the step reads and fills, the path of the column."""
    column = getattr(arguments, "answer_column", None)
    if not column or _file(name) not in map(_file, step.reads(arguments)):
        return _path(name)
    return _path(str(table_paths.with_column(home_expanded(name), column)))


def _file(name: str) -> str:
    """Return the path of a file; for a table in a file, the path of that file."""
    return _path(str(table_paths.file_of(home_expanded(name))))


def _check_order(step: RecipeStep, arguments: argparse.Namespace, outputs: Mapping[str, RecipeStep]) -> None:
    """Raise `PromptmillError` (`invalid_config`) if a step reads a file that a later step writes, or a missing file
    that no step writes."""
    for entry in step.entries.values():
        for text in texts_in(entry.value):
            _check_maker(entry.place, step, text, outputs.get(_path(text)))
    for name in step.reads(arguments):
        if is_url(name):
            continue
        maker = outputs.get(_path(name)) or outputs.get(_file(name))
        _check_maker(step.place, step, name, maker)
        folder = f"{_path(name)}{os.sep}"
        is_inside = any(path.startswith(folder) and one.number < step.number for path, one in outputs.items())
        if maker is None and not (is_inside or _PATTERN.search(name) or Path(_file(name)).exists() or _is_job(name)):
            earlier = [os.path.relpath(path) for path, one in outputs.items() if one.number < step.number]
            meant = did_you_mean(name, earlier, "no earlier step writes it; check the path.", likeness=0.7)
            raise step.place.error(f"there is no file {cut(name, 100)}; {meant}")


def _check_jobs(step: RecipeStep, outputs: Mapping[str, RecipeStep]) -> None:
    """Raise `PromptmillError` (`invalid_config`) if `from` names the file of a step that has no job."""
    entry = step.entries.get("from")
    for text in [] if entry is None else texts_in(entry.value):
        maker = outputs.get(_path(text))
        if entry is not None and maker is not None and "is_step" not in maker.arguments(maker.awaited(outputs)):
            of_search = "; a step with its `choices` takes the labels of the search without `from`"
            raise entry.place.error(
                f"{text} has no job whose answers could be used: step {maker.number} is `{maker.command.name}`"
                f"{of_search if maker.command.is_search else ''}; leave `from` out."
            )


def _check_maker(place: RecipeLine, step: RecipeStep, name: str, maker: RecipeStep | None) -> None:
    if maker is not None and maker.number > step.number:
        raise place.error(f"{name} is the output of step {maker.number}; put that step before this one.")


def _is_job(name: str) -> bool:
    try:
        JobFolders.from_environ().find(name)
    except PromptmillError:
        return False
    return True
