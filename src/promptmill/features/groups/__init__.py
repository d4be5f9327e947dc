"""Groups: several rows become one, such as all reviews of a hotel, and the prompt has their cells as `{{rows}}`."""

from promptmill.core.feature import Feature

FEATURE = Feature(
    words="one row for each group of rows, such as a summary of all reviews of a hotel",
    options="promptmill.features.groups.options:OPTIONS",
    replaced={"group_by": "promptmill.features.groups.grouped:grouped"},
)
