"""The documented import path of DataStudio's classes: `from promptmill.api import OpenAIAPI`."""

from promptmill.compat.datastudio import BaseAPI, InterruptedCall, MPOpenAIAPI, OpenAIAPI
from promptmill.core.errors import PromptmillError

__all__ = ["BaseAPI", "InterruptedCall", "MPOpenAIAPI", "OpenAIAPI", "PromptmillError"]
