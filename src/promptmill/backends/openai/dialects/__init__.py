"""The formats of each API's requests and replies. Replies are converted to chat completions.

`DIALECTS` has the dialects by name. `openai` is the name of chat completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from promptmill.backends.openai.dialects import anthropic, chat, gemini, responses
from promptmill.backends.openai.dialects.dialect import Dialect

DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {"openai": chat, "anthropic": anthropic, "gemini": gemini, "responses": responses}
)
