"""A page that shows a job inside a chat: hosts of MCP Apps display it next to the result of a tool."""

from promptmill.core.feature import Feature

FEATURE = Feature(
    words="the job inside the chat: a live page in Claude, ChatGPT, VS Code and other hosts of MCP Apps",
    tools="promptmill.features.app.tools:add",
)
