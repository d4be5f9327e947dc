"""Several questions about each row. Each has a column of its own, and may use the answer to another question."""

from promptmill.core.feature import Feature, PartEntry

FEATURE = Feature(
    words="several questions about each row, each its own column; one may use the answer to another",
    options="promptmill.features.ask.options:OPTIONS",
    order_parts=(PartEntry("ask", "promptmill.features.ask.plan:Ask"),),
)
