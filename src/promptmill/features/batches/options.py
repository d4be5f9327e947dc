"""The options of batches."""

from __future__ import annotations

from promptmill.core.errors import Named
from promptmill.options.option import Flag, Option

OPTIONS = (
    Option(
        "batch",
        bool,
        "send rows by the provider's Batch API: cheaper, within a day; other rows are sent live",
        False,
        flag=Flag(is_common=True, brief="by the provider's Batch API: cheaper, within a day"),
    ),
    Option(
        "by",
        str,
        "with {batch}: the time at which open rows are sent live: 06:00, 2026-03-01T06:00 or 6h from now",
        flag=Flag(metavar="TIME"),
        needs=[Named("batch")],
    ),
    Option(
        "poll",
        str,
        "with {batch}: the time between two looks at the batch; default: 30s, growing to 15m",
        flag=Flag(metavar="TIME"),
        argument=None,
        needs=[Named("batch")],
        names="nothing",
    ),
    Option(
        "keep_files",
        bool,
        "with {batch}: leave the files at the provider",
        False,
        argument=None,
        needs=[Named("batch")],
    ),
)
