"""A description of the server for clients that have not connected yet: the card and the catalog of SEP-2127, and all
versions of MCP in the reply to `server/discover`."""

from promptmill.core.feature import Feature

_PAGES = "promptmill.features.server_card.pages"
FEATURE = Feature(
    words="a server card for clients that look for MCP servers",
    tools="promptmill.features.server_card.versions:add",
    public_pages={"/mcp/server-card": f"{_PAGES}:card", "/.well-known/mcp/catalog.json": f"{_PAGES}:catalog"},
)
