"""The requests and replies of APIs other than OpenAI's chat completions, whose own form the package around has.

`DIALECTS` has them by name; `openai` is the name of chat completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from promptmill.backends.openai.dialects import anthropic, gemini, responses
from promptmill.backends.openai.dialects.dialect import Dialect

DIALECTS: Mapping[str, Dialect] = MappingProxyType({"anthropic": anthropic, "gemini": gemini, "responses": responses})
