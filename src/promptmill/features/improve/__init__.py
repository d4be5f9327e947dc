"""Searches for better prompts on rows with right answers, and tests the best prompt once on held-out rows."""

from typing import Literal

from promptmill.core.feature import Command, Feature

Again = Literal["failed", "prompts"]
FEATURE = Feature(
    needs=("compare",),
    words="a strong model writes a better prompt, and right answers test it",
    commands=(
        Command(
            "improve",
            "have a strong model write a better prompt, and test it on right answers",
            "promptmill.features.improve.command_options:add_options",
            writes=("output",),
            is_search=True,
        ),
    ),
    instructions="`improve` finds a better prompt from rows with right labels.",
    tools="promptmill.features.improve.tools:add",
    names={
        "Improvement": "promptmill.features.improve.improvement:Improvement",
        "improve": "promptmill.features.improve.improvement:improve",
    },
)
