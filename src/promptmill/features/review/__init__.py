"""A review: the rows of a job that a person should check, and the labels that the person gives."""

from promptmill.core.feature import Command, Feature, Figure

MOST_REVIEWED = 10_000
"""The most rows in a review: a person needs weeks for more, and a larger page takes seconds to open."""
ROWS = 50
"""The default number of rows in a review: about an hour of a person's time."""
FEATURE = Feature(
    needs=("verbs",),
    words="the rows to check by hand, and a person's labels for them",
    commands=(
        Command(
            "review",
            "list the rows to check by hand, and store the labels you give",
            "promptmill.features.review.verb:REVIEW.add_options",
            writes=("output",),
        ),
    ),
    instructions="`review` finds rows that the user should check, and stores the user's labels.",
    tools="promptmill.features.review.verb:REVIEW.add_tool",
    names={"review": "promptmill.features.review.python_review:review"},
    figures=(
        Figure(  # counted for all jobs, as a person may label any job; it takes 0.1 µs a row, 4 % of the other counts
            name="person",
            record="builtins:int",
            facts="promptmill.features.review.person:facts",
            count="promptmill.features.review.person:figures",
        ),
        Figure(name="shares", record="promptmill.features.review.person:Shares"),
    ),
)
