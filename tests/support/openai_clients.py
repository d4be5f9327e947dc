"""OpenAI's own client of a server."""

from typing import Any

import openai

from served import TOKEN, Served


def client_of(server: Served, **options: Any) -> openai.OpenAI:
    """Return a client, which repeats no request unless `options` say so."""
    url = server.url.removesuffix("/mcp") + "/v1"
    return openai.OpenAI(base_url=url, api_key=TOKEN, **{"timeout": 20, "max_retries": 0} | options)
