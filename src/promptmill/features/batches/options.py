"""The options of batches."""

from __future__ import annotations

from promptmill.core.errors import Named
from promptmill.options.option import Flag, Option

OPTIONS = (
    Option("batch", bool, "by the provider's Batch API: cheaper, within a day; the rest is sent live", False),
    Option(
        "by",
        str,
        "with {batch}: 06:00, 2026-03-01T06:00 or 6h from now; open rows are sent live then",
        flag=Flag(metavar="TIME"),
        goes_with=[Named("batch")],
    ),
    Option(
        "poll",
        str,
        "with {batch}: look at it so often; else after 30s to 15m",
        flag=Flag(metavar="TIME"),
        argument=None,
        goes_with=[Named("batch")],
    ),
    Option(
        "keep_files",
        bool,
        "with {batch}: leave the files at the provider",
        False,
        argument=None,
        goes_with=[Named("batch")],
    ),
)
