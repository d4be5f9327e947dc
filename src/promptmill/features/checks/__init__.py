"""Checks that an option describes: a limit of words, a pattern, or a language."""

from promptmill.core.feature import Feature

FEATURE = Feature(
    words="answers that keep to a limit of words, a pattern or a language, else they are requested again",
    options="promptmill.features.checks.options:OPTIONS",
    sampling="promptmill.features.checks.parameters:CheckWishes",
    answers=(
        "promptmill.features.checks.written:MaxWords",
        "promptmill.features.checks.written:Match",
        "promptmill.features.checks.written:Language",
    ),
)
