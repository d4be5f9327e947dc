"""The user's consent to what a recipe runs and configures, and to the files that it names outside of its folder.

A recipe may come from another person. The settings of the operator in it (`Option.is_of_operator`) are listed for the
user, who accepts the list or refuses it. An accepted list is accepted until it or a file in it changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson

from promptmill.cli.terminal import is_terminal
from promptmill.config import parameter_file
from promptmill.core.errors import Named, config_error, redact, without_controls
from promptmill.core.wording import cut
from promptmill.features.recipes.recipe import Recipe, RecipeStep
from promptmill.options.option import are_outside, is_outside
from promptmill.options.table import options
from promptmill.system.safe_open import is_file
from promptmill.system.state import own_folder

_SHOWN = 200  # characters of a value
_FILE = "file:"  # before a file with rows, which may change
_LARGEST = 16 << 20  # bytes of a script or a configuration; a larger file is a program of the computer


def check_trust(recipe: Recipe, *, is_trusted: bool) -> None:
    """Raise `PromptmillError` (`invalid_config`) unless the user consents to the recipe, whose folder is the working
    folder. `is_trusted`: the user consented by an option; otherwise, ask on a terminal."""
    named, words = [*dict.fromkeys(_named(recipe))], list[str]()
    for each in named:
        words += each.partition(" ")[2].split() if not each.startswith(_FILE) else ()
    files = {word: _digest(Path(word)) for word in words if is_file(word)}
    key = hashlib.sha256(orjson.dumps([str(Path.cwd()), recipe.file.name, named, files])).hexdigest()
    kept = own_folder() / "trusted" / key
    if not named or kept.exists():
        return
    if not is_trusted:
        lines = "".join(f"\n  {redact(without_controls(cut(each, _SHOWN)))}" for each in named)
        what = f"the recipe sets what only you may set:{lines}"
        if not is_terminal():
            raise config_error(str(recipe.file), f"{what}\nRead it; ", Named("trust", text="{} runs it."))
        print(f"{recipe.file}: {what}\nRun it? (y/N): ", end="", file=sys.stderr, flush=True)
        if input().strip().lower()[:1] != "y":
            raise config_error(str(recipe.file), "it was not run.")
    with contextlib.suppress(OSError):  # if the mark cannot be stored, the user is asked again
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept.touch()


def _named(recipe: Recipe) -> Iterator[str]:
    """Yield a line for each setting of the operator in the recipe."""
    if (file := parameter_file.find()) == Path(parameter_file.FILE_NAME):  # neither a variable nor the user's file
        yield f"config: {file} in the folder of the recipe"
    for step in recipe.steps:
        yield from _of_step(step)


def _of_step(step: RecipeStep) -> Iterator[str]:
    known, here = {option.name_on("flag"): option for option in options().values()}, Path.cwd()
    for word in step.words[1:]:
        flag, _, value = word.partition("=")
        if not word.startswith("--"):
            if are_outside(word, here):
                yield f"{_FILE} {word}"
        elif known[flag].is_of_operator(value, here) if flag in known else is_outside(value, here):
            yield f"{flag[2:].replace('-', '_')}: {value}"


def _digest(file: Path) -> str:
    with contextlib.suppress(OSError):
        if file.stat().st_size <= _LARGEST:
            return hashlib.sha256(file.read_bytes()).hexdigest()
    return ""
