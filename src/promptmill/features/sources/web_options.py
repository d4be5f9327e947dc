"""The option for the provider's web search."""

from __future__ import annotations

from promptmill.options.option import Argument, Excluded, Option

OPTIONS = (
    Option(
        "web",
        bool,
        "the provider searches the web for each answer; the pages that it cites are the column `sources`",
        argument=Argument(within="sampling_params"),
        keys=["sampling_params.web"],
        excludes=[
            Excluded("quote", "; the sources of an answer are quotes or pages"),
            Excluded("embed", "; a vector has no sources"),
            Excluded("split", "; the sources of a row in pieces are its pieces"),
            Excluded("together", "; the pages cited for several rows cannot be matched to rows"),
            Excluded("n", "; the pages cited for several answers cannot be matched to answers"),
        ],
    ),
)
