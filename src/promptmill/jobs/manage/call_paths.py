"""Checks the paths of a call: the files must be in folders that the file rule permits, and have formats for rows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from promptmill.core.bounds import LONGEST_PATH
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.files import files as input_files
from promptmill.files import format_table, path_formats, table_paths
from promptmill.images import load as images
from promptmill.jobs.inputs.row_secrets import OTHERWISE
from promptmill.jobs.run.wanted_job import check_name
from promptmill.system.call_files import FileRule, RefusedError
from promptmill.system.safe_open import OutsideError, home_expanded

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:[/\\]")  # `Path` leaves one slash of `://`; a drive name has one letter


class CallPaths:
    """Resolves and checks the paths of calls."""

    def __init__(self, rule: Callable[[], FileRule]) -> None:
        """`rule` returns the present rule for files that are read and written. The rule may change."""
        self._rule = rule

    @property
    def rule(self) -> FileRule:
        """The present rule for files that calls read and write."""
        return self._rule()

    def allowed(self, text: str, name: str) -> Path:
        """Return the resolved path of a file of rows, which a call names as `text` in its argument `name`.

        Raises `PromptmillError` (`invalid_input`) for a file that the file rule refuses.
        """
        real = self._resolved_path(text, name)
        if input_files.is_several(real):
            folders = "name folders and patterns in `files`" if name == "input_file" else "name a file"
            raise input_error(f"{name} is a folder or a pattern; {folders}.")
        is_output, file = name == "output_file", path_formats.plain(real)
        read, written = format_table.reading(file), format_table.writing(file)
        is_usable = read is not None and read.is_read_by_calls and (name == "input_file" or not read.database)
        if is_output:
            is_usable = written is not None and written.is_written_by_calls
        if not is_usable:
            usable = ", ".join(
                path_formats.names_for_calls("write" if is_output else "read", with_databases=name == "input_file")
            )
            is_known = (written if is_output else read) is not None or (read is not None and not read.is_read_by_calls)
            why = ": others may be a program's" if is_known else ""
            whole = "; `files` sends whole texts" if name == "input_file" and read is not None and read.whole else ""
            what = f"is a {file.suffix:.20} file" if file.suffix else "has no suffix"
            raise input_error(f"{name} {what}; use one of {usable} here{why}{whole}.")
        return real

    def allowed_of(self, text: str, name: str, suffixes: Sequence[str]) -> Path:
        """Return the resolved path of a file to write, with one of the `suffixes`. Raises as `allowed` does."""
        real = self._resolved_path(text, name)
        if real.suffix.lower() not in suffixes:
            raise input_error(f"{name} is no {' or '.join(suffixes)} file; name one, such as answers{suffixes[0]}.")
        return real

    def _resolved_path(self, text: str, name: str) -> Path:
        if len(text) > LONGEST_PATH:
            raise input_error(f"{name} has {len(text):,} characters; no path is that long.")
        if _URL.match(text):
            raise input_error(f"{name} is a URL; name a file on the server's machine.")
        rule, path = self.rule, home_expanded(text)
        try:
            file, member = table_paths.split(rule.placed_file(path))
            real = rule.resolved(file)
            real = real.with_name(f"{real.name}#{member}") if member else real
        except (OSError, ValueError, RuntimeError):
            raise input_error(f"{name} is an invalid path.") from None
        except OutsideError:
            whole = "a file inside"
            if rule.roots and not rule.is_shared:
                whole = f"its whole path, such as {rule.roots[0] / path.name}"
            use, folder = ("Use a file inside", path.parent) if path.anchor else (f"Name {whole}", "/the/whole/path")
            who = f"{use}, or whoever" if rule.roots else "Whoever"
            raise input_error(
                f"{name} is outside {rule.words}. {who} runs the server allows its folder: "
                f"`allowed_roots: [{json.dumps(str(folder))}]` in parameter.yaml."
            ) from None
        except RefusedError as error:
            raise input_error(
                f"{name} {error}. {OTHERWISE if name == 'input_file' else 'Name another file.'}"
            ) from None
        check_name(real)
        return real

    def passes(self, path: Path) -> bool:
        """Return whether the rule permits a file."""
        try:
            self.rule.check(path)
        except (OutsideError, RefusedError):
            return False
        return True


def resolved_image(source: str, rule: FileRule) -> Path | None:
    """Return the path of a local image. Raises `PromptmillError` (`invalid_image`) if the rule refuses it."""
    if images.is_web(source) or images.is_data(source):
        return None
    try:
        return rule.resolved(rule.placed(images.local_path(source)))
    except OutsideError:
        problem = f"is outside {rule.words}."
    except RefusedError as error:
        problem = f"{error}, so calls may not use it."
    except (OSError, RuntimeError, ValueError):
        problem = "has a path that cannot be used."
    raise PromptmillError(Code.INVALID_IMAGE, f"An image {problem}", "")
