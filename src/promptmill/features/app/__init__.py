"""A page that shows a job inside a chat: hosts of MCP Apps display it next to the result of a tool."""

from promptmill.core.feature import Feature

FEATURE = Feature(
    words="the job inside the chat: a live page in Claude, ChatGPT, VS Code and other hosts of MCP Apps",
    tools="promptmill.features.app.tools:add",
)
MOST_PICTURES = 32
"""Pictures of a call: the rows of a frame of 720 pixels, and those near it."""
MOST_IN_WINDOW = 100
"""Rows of a call: those of a frame, and as many for scrolling."""
SHORT, LONGEST = 400, 20_000
"""Characters of a cell in the table, and where the page shows one row."""
