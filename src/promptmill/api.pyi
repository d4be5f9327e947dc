# Written by scripts/stubs.py: types for editors and type checkers; the module imports each name at its first use.
from promptmill.core.errors import PromptmillError as PromptmillError
from promptmill.features.datastudio.classes import BaseAPI as BaseAPI
from promptmill.features.datastudio.classes import InterruptedCall as InterruptedCall
from promptmill.features.datastudio.classes import MPOpenAIAPI as MPOpenAIAPI
from promptmill.features.datastudio.classes import OpenAIAPI as OpenAIAPI

__all__: list[str]
