"""The verb `counts`: a command, a function of Python and a tool."""

from promptmill.core.feature import Command, Feature

FEATURE = Feature(
    needs=("verbs",),
    words="how many rows of a file have each field",
    commands=(Command("counts", "count the rows that have each field", "counts.verb:COUNTS.add_options"),),
    tools="counts.verb:COUNTS.add_tool",
    names={"counts": "counts.verb:counts"},
)
