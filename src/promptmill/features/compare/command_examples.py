"""The examples in the help of `promptmill compare`."""

EXAMPLES = (
    "promptmill compare labels-a.csv labels-b.csv --gold label",
    "promptmill compare labels.csv --by variant --report comparison.html --open",
    "promptmill compare summaries-a.csv summaries-b.csv --judge good-1 --criterion 'is the better summary'",
)
