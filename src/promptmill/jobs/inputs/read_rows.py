"""Rows of a feature's format, which its function `Format.read` yields as mappings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from promptmill.core.bounds import LONGEST_ROW
from promptmill.core.errors import PromptmillError, input_error, words_of
from promptmill.core.feature import Format, part
from promptmill.files.files import InputFile, InputFiles
from promptmill.files.json_lines import row_of, with_columns
from promptmill.files.row import WHOLE, Extent, Stretch, Style, Window
from promptmill.jobs.inputs.input_rows import lines_of

_AT_ONCE = 256  # rows of a page


class ReadRows:
    """The rows of all files as objects, with the columns that a file's path adds."""

    header: Sequence[str] = ()
    style = Style()

    def __init__(self, known: Format, files: InputFiles) -> None:
        self._files, self._read = files, part(known.read)

    def stretches(self, columns: Sequence[tuple[int, str]] = (), window: Window = WHOLE) -> Iterator[Stretch]:
        """Yield the rows; see `Input`. Files are always read from the beginning."""
        del columns, window
        n = 0
        for at, file in enumerate(self._files.parts):
            lines = self._lines(at, file)
            while page := list(itertools.islice(lines, _AT_ONCE)):
                given = (line if len(line) <= LONGEST_ROW else None for line in page)
                whole = [line and with_columns(line, file.columns) if file.columns else line for line in given]
                yield Stretch([row_of(*each) for each in enumerate(whole, n)], Extent(rows=len(page)))
                n += len(page)

    def _lines(self, at: int, file: InputFile) -> Iterator[bytes]:
        """Yield the rows of a file as JSON. Raises `OSError`; `PromptmillError` for all errors of the feature."""
        name = file.path.name
        try:
            with self._files.local(at) as path:
                yield from (line.rstrip(b"\n") for line in lines_of(self._read(path), "prompt", name, str))
        except (PromptmillError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 (each package has its own exceptions)
            raise input_error(f"{name} cannot be read ({words_of(error, 200)}).") from None
