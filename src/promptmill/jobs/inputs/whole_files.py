"""Whole files as rows: `{"path": …, "content": …}`, for prompts that ask about each file of a list.

    a path       a file that cannot be sent is an error
    a pattern    a file that it finds and that cannot be sent is left out, with the reason
    a folder     the pattern `folder/**`

`system.call_files` has the rule that decides which files are sent. It holds for `files` of a trusted client, too: a
pattern finds files that its author has not seen.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import orjson

from promptmill.core.bounds import LONGEST_PATH, MOST_FILES
from promptmill.core.errors import PromptmillError, input_error
from promptmill.core.secret_text import find_assigned
from promptmill.core.wording import counted
from promptmill.system.call_files import MAY_HOLD_SECRETS, FileRule, RefusedError
from promptmill.system.safe_open import NoFileError, OutsideError, home_expanded

_PASSED_OVER = frozenset({"node_modules", "__pycache__", "venv"})  # other programs' files
# Programs and prose, where a value without quotes is the name of another value, or a word.
_QUOTES_VALUES = frozenset(
    {
        *(".py", ".pyi", ".js", ".mjs", ".ts", ".tsx", ".jsx", ".go", ".rs", ".java", ".kt", ".c", ".h", ".cc", ".cpp"),
        *(
            ".hpp",
            ".cs",
            ".rb",
            ".php",
            ".swift",
            ".scala",
            ".r",
            ".jl",
            ".lua",
            ".md",
            ".rst",
            ".tex",
            ".html",
            ".ipynb",
        ),
    }
)
_MAGIC = re.compile(r"[*?\[]")
_LARGEST_FILE, _LARGEST = 1 << 20, 256 << 20
_SHOWN = 20


class WholeFiles:
    """The files that `names` find and that `rule` lets pass, read once as lines of JSON."""

    def __init__(self, names: Sequence[str], rule: FileRule) -> None:
        self._names, self._rule = names, replace(rule, is_guarded=True)
        self._finder = rule.finder
        self.count = 0
        self._left_out: dict[str, list[Path]] = {}
        """The files that are left out, by the reason."""
        self._looked_at = 0

    @property
    def left_out(self) -> list[str]:
        """The files that are left out, by the reason: how many, and the first names."""
        found = []
        for reason, paths in self._left_out.items():
            more = len(paths) - _SHOWN
            names = ", ".join(map(str, paths[:_SHOWN])) + (f" and {more:,} more" if more > 0 else "")
            found.append(f"{counted(len(paths), 'file')} left out: {reason}: {names}")
        return found

    def lines(self) -> Iterator[bytes]:
        """Yield a line for each file, in the order of `names`. Raises `PromptmillError` (`invalid_input`)."""
        seen: set[Path] = set()
        size = 0
        for name in self._names:
            for path, is_found in self._paths(name):
                if path in seen:
                    continue
                seen.add(path)
                try:
                    content = self._read(path)
                except PromptmillError as error:
                    if not is_found:
                        raise input_error(f"`files`: {path} {error.message}.") from None
                    self._leave_out(path, error.message)
                    continue
                self.count += 1
                size += len(content)
                if self.count > MOST_FILES or size > _LARGEST:
                    most = f"{counted(MOST_FILES, 'file')} or {_LARGEST >> 20} MiB"
                    raise input_error(f"`files` finds more than {most}; use narrower patterns.")
                yield orjson.dumps({"path": str(path), "content": content}, option=orjson.OPT_APPEND_NEWLINE)
        if not self.count:
            why = f"; left out: {'; '.join(self.left_out)}" if self._left_out else "; correct the paths or patterns"
            raise input_error(f"`files` finds no file to send{why}.")

    def _leave_out(self, path: Path, reason: str) -> None:
        paths = self._left_out.setdefault(reason.partition(":")[0].partition(",")[0], [])
        if path not in paths[-1:]:
            paths.append(path)

    def _paths(self, name: str) -> Iterator[tuple[Path, bool]]:
        """Yield the paths that `name` finds, and whether a pattern found them."""
        if len(name) > LONGEST_PATH:
            raise input_error(f"`files`: {name[:200]}… has {len(name):,} characters; no path is that long.")
        path = home_expanded(name)
        at = next((at for at, part in enumerate(path.parts) if _MAGIC.search(part)), len(path.parts))
        folder, parts = Path(*path.parts[:at]), path.parts[at:]
        try:
            self._rule.resolved(folder)
            if not parts and not path.is_dir():
                yield path, False
                return
            if ".." in parts:
                raise input_error(f"`files`: {name:.200} has `..` behind a pattern; write the path without it.")
            for found in self._matches(folder, parts or ("**",)):
                yield found, True
        except RefusedError as error:
            raise input_error(f"`files`: {name:.200} {error}; name other files.") from None
        except (OSError, ValueError, RuntimeError, OutsideError):
            raise input_error(f"`files`: {name:.200} is outside {self._rule.words}, or not a usable path.") from None

    def _matches(self, folder: Path, parts: Sequence[str]) -> Iterator[Path]:
        """Yield the files below `folder` that match the pattern, in order. No link to a folder is followed."""
        first, rest = parts[0], parts[1:]
        if first == "**" and rest:
            yield from self._matches(folder, rest)
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        self._looked_at += len(found)
        if self._looked_at > 20 * MOST_FILES:
            raise input_error(f"`files` looks at more than {20 * MOST_FILES:,} files; use narrower patterns.")
        for entry in found:
            path, is_folder = folder / entry.name, entry.is_dir(follow_symlinks=False)
            if first != "**" and not fnmatchcase(entry.name, first):
                continue
            if is_folder and (entry.name.startswith(".") or entry.name in _PASSED_OVER):
                self._leave_out(path, "a folder that is passed over")
            elif is_folder and (first == "**" or rest):
                yield from self._matches(path, parts if first == "**" else rest)
            elif not is_folder and not rest:
                yield path

    def _read(self, path: Path) -> str:
        """Return the text of a file. Raises `PromptmillError` with the reason, as the predicate of a sentence."""
        try:
            with os.fdopen(self._rule.open(path), "rb") as file:
                data = file.read(_LARGEST_FILE + 1)
        except OutsideError:
            raise input_error("leads outside the folders of `allowed_roots`") from None
        except RefusedError as error:
            raise input_error(str(error)) from None
        except (NoFileError, FileNotFoundError):
            raise input_error("is not a file that is there") from None
        except (OSError, ValueError) as error:
            raise input_error(f"cannot be read: {getattr(error, 'strerror', None) or 'not a usable path'}") from None
        if len(data) > _LARGEST_FILE:
            raise input_error(f"is larger than {_LARGEST_FILE >> 20} MiB")
        has_lines = path.suffix.lower() not in _QUOTES_VALUES
        if words := self._finder.find(data) or find_assigned(data, has_lines=has_lines):
            raise input_error(f"{MAY_HOLD_SECRETS}: {words}")
        try:
            text = data.decode("utf-8-sig")
        except ValueError:
            raise input_error("is not UTF-8 text") from None
        if "\0" in text:
            raise input_error("is not text")
        return text
