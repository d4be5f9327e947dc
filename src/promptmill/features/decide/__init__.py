"""Two models for each row: a model that decides answers the closed fields of a schema, the job's own model the open
ones."""

from promptmill.core.feature import Feature, PartEntry

FEATURE = Feature(
    words="the fields with a few allowed answers from a model that decides, the others from the job's own model",
    options="promptmill.features.decide.options:OPTIONS",
    order_parts=(PartEntry("decide", "promptmill.features.decide.plan:Decide"),),
)
