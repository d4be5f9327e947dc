"""OpenAI's HTTP API over the service: `/v1/models`, `/v1/chat/completions`, `/v1/responses` and `/v1/embeddings`.

The package only translates: a body becomes a `Request`, and its `Outcome` becomes the reply. Named models, cache,
budgets, schema checks, limits and fair shares work as for every other call.

    http checks ─▶ paths ─▶ bodies.request_of ─▶ service ─▶ bodies.reply_body, or streams

These functions do not need HTTP, so lines of a batch use them too: `bodies.request_of(path, body)` returns a `Request`,
`bodies.reply_body(path, body, completion, model)` returns the body of the reply, and `api_errors.error_of(error)`
returns an `ApiError` with `status` and `body()`.
"""

from promptmill.core.feature import Face, Feature

FEATURE = Feature(
    words="OpenAI's API next to MCP: chat, responses, embeddings, files and batches",
    uses=("embeddings",),
    sampling="promptmill.features.openai_server.parameters:Reranking",
    faces=(Face("openai", "OpenAI's API at /v1", "promptmill.features.openai_server.paths:OpenAIPaths"),),
)
