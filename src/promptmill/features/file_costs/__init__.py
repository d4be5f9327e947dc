"""The tokens of PDFs and recordings that are sent as they are: for budgets, and for the estimate of a dry run."""

from promptmill.core.feature import Feature

FEATURE = Feature(
    words="a budget and an estimate for PDFs and recordings that are sent as they are",
    file_tokens="promptmill.features.file_costs.tokens:measured",
)
