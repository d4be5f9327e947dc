"""Searches for better prompts on rows with right answers, and tests the best prompt once on held-out rows."""

from promptmill.core.feature import Command, Feature

FEATURE = Feature(
    needs=("compare", "verbs"),
    words="a strong model writes a better prompt, and right answers test it",
    commands=(
        Command(
            "improve",
            "have a strong model write a better prompt, and test it on right answers",
            "promptmill.features.improve.verb:IMPROVE.add_options",
            writes=("output",),
            is_search=True,
        ),
    ),
    instructions="`improve` finds a better prompt from rows with right labels.",
    tools="promptmill.features.improve.verb:IMPROVE.add_tool",
    names={
        "Improvement": "promptmill.features.improve.improvement:Improvement",
        "improve": "promptmill.features.improve.improvement:improve",
    },
)
