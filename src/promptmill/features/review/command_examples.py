"""The examples in the help of `promptmill review`."""

EXAMPLES = (
    "promptmill review labels.csv --open      # a page; it saves JOB.decisions.csv",
    "promptmill review labels.csv -o review.xlsx --rows 200",
    "promptmill review labels.csv --take JOB.decisions.csv",
    "promptmill review labels.csv --sample 200 -o sample.xlsx      # for compare labels.csv --gold sample.xlsx",
)
