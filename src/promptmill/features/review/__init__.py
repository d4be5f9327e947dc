"""A review: the rows of a job that are worth a person's minute, and the labels that the person gives."""

from promptmill.core.feature import Command, Feature

FEATURE = Feature(
    words="the rows that are worth a look, and a person's labels for them",
    commands=(
        Command(
            "review",
            "list the rows that are worth a look, and take a person's labels",
            "promptmill.features.review.command:add_options",
        ),
    ),
    instructions="`review` finds rows that the user should check, and stores the user's labels.",
    tools="promptmill.features.review.tools:add",
)
