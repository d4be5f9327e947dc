"""Topics: unknown labels of a table, found in a sample of rows and tried on other rows."""

from promptmill.core.feature import Command, Feature

FEATURE = Feature(
    needs=("compare", "sources"),
    uses=("embeddings",),
    words="the labels that nobody knows yet, found in a sample and tried on other rows",
    commands=(
        Command(
            "topics",
            "find the labels of a table that nobody knows yet, and try them on other rows",
            "promptmill.features.topics.command:add_options",
            writes=("output",),
            is_search=True,
        ),
    ),
    names={
        "Topics": "promptmill.features.topics.topics:Topics",
        "topics": "promptmill.features.topics.topics:topics",
    },
)
