"""The examples in the help of `promptmill improve`."""

EXAMPLES = (
    (
        "promptmill improve reviews.csv --gold label --prompt 'Is this positive? {{text}}' "
        "--choices positive,negative --model small-1 --strong good-1"
    ),
    (
        "promptmill improve mails.xlsx --gold topic --prompt-file topic.txt --choices praise,complaint "
        "--strong good-1 --output better.txt --max-tokens 10 --max-cost 5"
    ),
)
