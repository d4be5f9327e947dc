"""The options of checks."""

from __future__ import annotations

from promptmill.options.option import Argument, Flag, Option

OPTIONS = (
    Option(
        "max_words",
        int,
        "an answer with more words is requested again, and then fails; a Chinese or Japanese character is a word",
        flag=Flag(metavar="N"),
        argument=Argument(within="sampling_params"),
        keys=["sampling_params.max_words"],
    ),
    Option(
        "match",
        str,
        "an answer that does not match this regular expression as a whole is requested again, and then fails",
        flag=Flag(metavar="REGEX"),
        argument=Argument(within="sampling_params"),
        keys=["sampling_params.match"],
    ),
    Option(
        "language",
        str,
        "an answer in another language than this (its code: de, en, fr) is requested again, and then fails",
        flag=Flag(metavar="CODE"),
        argument=Argument(within="sampling_params"),
        keys=["sampling_params.language"],
    ),
)
