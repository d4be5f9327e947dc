"""The sources of an answer: quotes that are found in the row's text, or pages from the provider's web search."""

from promptmill.core.feature import Feature, Figure

FEATURE = Feature(
    words="the words of a row that say each value, looked up in its text, or the pages of the provider's web search",
    options="promptmill.features.sources.options:OPTIONS",
    sampling="promptmill.features.sources.parameters:Sourced",
    answers=(
        "promptmill.features.sources.quoting:LocatedQuotes",
        "promptmill.features.sources.quoting:QuotedAnswers",
        "promptmill.features.sources.web_search:WebSearch",
    ),
    pdf_pages="promptmill.features.sources.page_turns:turn",
    doubts={"quote": "promptmill.features.sources.quote_status:doubt_of"},
    figures=(
        Figure(
            name="quotes",
            record="promptmill.features.sources.quote_status:QuoteStatus",
            facts="promptmill.features.sources.quote_status:facts",
            count="promptmill.features.sources.quote_status:count",
            option="quote",
            section="promptmill.features.sources.quote_status:section",
        ),
    ),
)
