"""Checks that can be written down: a limit of words, and a pattern."""

from promptmill.core.feature import Feature

FEATURE = Feature(
    words="answers that keep to a limit of words or match a pattern, else they are requested again",
    options="promptmill.features.checks.options:OPTIONS",
    sampling="promptmill.features.checks.parameters:Wanted",
    answers=("promptmill.features.checks.written:MaxWords", "promptmill.features.checks.written:Match"),
)
