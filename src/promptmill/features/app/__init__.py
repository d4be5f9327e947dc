"""A page that shows a job inside a chat: hosts of MCP Apps display it next to the result of a tool."""

from promptmill.core.feature import Feature

FEATURE = Feature(
    uses=("sources",),
    words="the job inside the chat: a live page in Claude, ChatGPT, VS Code and other hosts of MCP Apps",
    tools="promptmill.features.app.tools:add",
)
MOST_PICTURES = 32
"""The most pictures in a call: enough for the rows in a frame of 720 pixels, and for nearby rows."""
MOST_IN_WINDOW = 100
"""The most rows in a call: enough for the rows in a frame, and for as many more when it is scrolled."""
SHORT, LONGEST = 400, 20_000
"""The most characters of a cell: in the table (`SHORT`), and where the page shows a single row (`LONGEST`)."""
