"""Remarks for the user about columns: changed names, columns that are read as settings, and oddities of the input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from promptmill.core.wording import counted
from promptmill.files.databases import alike
from promptmill.files.row import Style
from promptmill.jobs.columns.column_names import MODEL, wanted_names
from promptmill.jobs.store.plan import JobSpec


def notes(spec: JobSpec) -> Iterator[str]:
    """Yield sentences for the summary: on columns that were renamed or are read as settings, on empty cells, …."""
    wanted = wanted_names(spec)
    names = {key: name for key, name in (spec.output.names or {}).items() if key in wanted}
    moved = {wanted[key]: new for key, new in names.items() if new != wanted[key]}
    if moved:
        known = {alike(name): name for name in (*spec.input.taken, *spec.input.header)}
        of_input = (known.get(alike(name), name) for name in moved)
        theirs, ours = (", ".join(f"`{name}`" for name in names) for names in (of_input, moved.values()))
        yield f"The input has columns {theirs} of its own; those of the job are called {ours}."
    asked = {target.model for target in spec.targets if spec.is_grid}
    read = [name for name in spec.input.settings_read if name != MODEL or len(asked) < 2]  # else, `model` is data
    if read:
        yield f"Columns read as row settings: {', '.join(f'`{name}`' for name in read)}."
    if spec.input.blank:
        of = ", ".join(f"`{name}` in {counted(count, 'row')}" for name, count in spec.input.blank.items())
        yield f"Empty cells leave their places in the prompt blank: {of}."
    if spec.input.packed:
        of = ", ".join(f"`{name}` in {counted(count, 'row')}" for name, count in spec.input.packed.items())
        yield f"Bytes that are no text in UTF-8 are sent in base64: {of}. Store texts of another encoding as texts."
    if number := spec.input.twice:
        yield (
            f"The text of row {number:,} seems to be UTF-8 that was encoded twice, with 'Ã¼' for 'ü', and is sent so. "
            "Write the file again from its source."
        )
    if (shape := spec.output_shape) is not None and spec.output.answer_schema is not None:
        yield from shape.remarks(spec.output.answer_schema)
    if (chosen := spec.output.form.columns) and not any(key.startswith("answer") for key in chosen):
        yield "The output has no answers: name `answer` among its columns, and the same call adds the paid answers."
    yield from _style_notes(spec.input.style)


def _style_notes(style: Style) -> Iterator[str]:
    if line := style.short_line:
        yield f"Rows with fewer cells than the header are read with empty cells at the end, the first in line {line:,}."
    if line := style.repeated_line:
        yield f"Line {line:,} repeats the header, as in joined files: it is no row, and is left out."
    if line := style.joined_line:
        what = "tabs and line breaks" if style.delimiter == "\t" else "lines that look like rows"
        yield (
            f"A quoted cell that ends in line {line:,} contains {what}. If its quotes are usual signs, double them "
            '(""), or the rows in it are lost.'
        )
    if style.mixed:
        yield f"The files have several types for {_listed(style.mixed)}, whose values are read as texts."
    if style.has_wide_header:
        yield (
            f"Cells of the header in row {style.header_row + 1} are merged over several columns. If the next row has "
            "the names, choose it as the header row."
        )
    if style.hidden:
        rows, are = counted(style.hidden, "row"), "is" if style.hidden == 1 else "are"
        yield f"{rows} of the sheet {are} hidden, as by a filter, and sent like the others: delete what is not wanted."
    if style.merged:
        yield (
            f"Cells of {_listed(style.merged)} are merged over several rows: only the first of these rows has the "
            "value, the others are read as empty. Repeat the value in each row."
        )
    if style.errors:
        yield f"Cells of {_listed(style.errors)} have errors, such as #N/A, which are read as texts."
    if style.uncomputed:
        of = _listed(style.uncomputed)
        yield (
            f"The workbook has formulas without a value in {of}, which are read as empty cells: open it in Excel or "
            "LibreOffice and save it first."
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
