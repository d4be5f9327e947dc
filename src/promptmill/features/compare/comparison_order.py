"""The order of a comparison, and the rows that it compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from promptmill.core.errors import Named, input_error
from promptmill.features.compare.answer_values import Tolerance
from promptmill.features.compare.compared_file import LETTERS, ComparedFile, ComparisonOrder
from promptmill.features.compare.compared_rows import ComparedRows
from promptmill.features.compare.matched_rows import NoCommonRowError
from promptmill.jobs.store.index import JobFolders


def order_of(options: Mapping[str, Any]) -> ComparisonOrder:
    """Return the order for the options `gold`, `field`, `id`, `by` and `tolerance`. Raises `PromptmillError`."""
    fields, tolerance = options.get("field") or (), options.get("tolerance")
    return ComparisonOrder(
        gold=options.get("gold"),
        fields=(fields,) if isinstance(fields, str) else tuple(fields),
        id=options.get("id"),
        by=options.get("by"),
        tolerance=Tolerance() if tolerance is None else Tolerance.parse(str(tolerance)),
    )


def rows_of(
    files: Sequence[str], order: ComparisonOrder, folders: JobFolders, *, may_read_gold: bool = True
) -> ComparedRows:
    """Return the rows of files or jobs side by side. `may_read_gold`: whether `gold` may name a file.

    If there are right answers and the parts of a file hold different rows (such as the parts by the column `sure`), the
    rows of each part form a group.

    Raises `PromptmillError` (`invalid_input`), `OSError`."""
    if len(files) > len(LETTERS):
        raise input_error(f"{len(files)} files are too many: compare takes at most {len(LETTERS)}.")
    if order.by is not None and len(files) > 1:
        raise input_error(Named("by"), " compares the rows of one file; give one file, or leave it out.")
    if len(files) < 2 and order.by is None and order.gold is None:
        raise input_error("A comparison needs two files, or one file and ", Named("gold"), " or ", Named("by"), ".")
    compared = [ComparedFile.of(label, name, folders) for label, name in zip(LETTERS, files, strict=False)]
    gold_folders = folders if may_read_gold else None
    if order.by is None:
        return ComparedRows.of(compared, order, gold_folders)
    try:
        parts = ComparedRows.of(compared[0].parts(order.by), order, gold_folders)
    except NoCommonRowError as error:
        if order.gold is None:
            counts = Named("gold", "COLUMN", " With {}, right answers are counted for each of them.")
            raise input_error(*error.parts, *error.remedy, counts) from None
    else:  # do not compare parts that share few rows, because such rows may be equal by chance
        if order.gold is None or 2 * len(parts.places) >= min(parts.sizes):
            return parts
    return ComparedRows.of(compared, order, gold_folders)
