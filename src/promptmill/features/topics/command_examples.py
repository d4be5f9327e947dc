"""The examples in the help of `promptmill topics`."""

EXAMPLES = (
    "promptmill topics reviews.csv topics.csv --prompt 'What do guests complain about? {{text}}' -m good-1",
    "promptmill topics reviews.csv topics.csv --prompt-file question.txt --most 30 -m good-1 --dry-run",
)
