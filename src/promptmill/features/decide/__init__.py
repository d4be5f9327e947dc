"""Two models for each row: a deciding model answers the closed fields of a schema, and the job's own model answers the
open fields."""

from promptmill.core.feature import Feature, PartEntry

FEATURE = Feature(
    words="the fields with a few allowed answers from a model that decides, the others from the job's own model",
    options="promptmill.features.decide.options:OPTIONS",
    order_parts=(PartEntry("decide", "promptmill.features.decide.plan:Decide"),),
)
