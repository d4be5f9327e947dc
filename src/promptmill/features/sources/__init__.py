"""Where the values of an answer stand: quotes that are looked up in the row's text."""

from promptmill.core.feature import Feature, Figure

FEATURE = Feature(
    words="the words of a row that say each value, looked up in its text",
    options="promptmill.features.sources.quote_options:OPTIONS",
    sampling="promptmill.features.sources.parameters:Quoted",
    answers=("promptmill.features.sources.quoting:QuotedAnswers",),
    doubt="promptmill.features.sources.quote_status:doubt_of",
    figures=(
        Figure(
            name="quotes",
            record="promptmill.features.sources.quote_status:QuoteStatus",
            facts="promptmill.features.sources.quote_status:facts",
            count="promptmill.features.sources.quote_status:count",
        ),
    ),
)
