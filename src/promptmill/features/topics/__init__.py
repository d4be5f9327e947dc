"""Topics: unknown labels of a table, found in a sample of rows and tried on other rows."""

from promptmill.core.feature import Command, Feature

MOST, SAMPLE, HELD_OUT = 12, 300, 200
"""Defaults: the most topics, the number of rows in which topics are found, and the number of rows on which topics are
tried. With a probability of 95 %, 300 random rows contain a topic that 1 % of all rows have."""
FEATURE = Feature(
    needs=("compare", "sources", "verbs"),
    uses=("embeddings",),
    words="the labels that nobody knows yet, found in a sample and tried on other rows",
    commands=(
        Command(
            "topics",
            "find the labels of a table that nobody knows yet, and try them on other rows",
            "promptmill.features.topics.verb:TOPICS.add_options",
            writes=("output",),
            is_search=True,
        ),
    ),
    names={
        "Topics": "promptmill.features.topics.topics:Topics",
        "topics": "promptmill.features.topics.topics:topics",
    },
)
