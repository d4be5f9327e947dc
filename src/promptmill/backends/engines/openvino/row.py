"""One request on its way through the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from promptmill.backends.engines.growing_answer import GrowingAnswer


@dataclass(frozen=True, slots=True)
class Sight:
    """What a model that reads images is given in place of tokens."""

    text: str
    """The prompt, with OpenVINO's tags where its images stand."""
    images: Sequence[str]
    """Files in base64: decoded they take many times as much, and rows wait."""


@dataclass(slots=True, eq=False, kw_only=True)
class Row(GrowingAnswer):
    """A request with OpenVINO's configuration of its generation. With `sight`, `prompt` is its text alone."""

    config: Any
    """`openvino_genai.GenerationConfig`."""
    sight: Sight | None = None
    counted: int | None = None
    """The prompt's tokens with those of its images, once the pipeline has said."""
    schema: str | None = None
    """The JSON schema that its answer is held to."""
    handle: Any = None
    """`openvino_genai.GenerationHandle` while it runs."""

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has, images included."""
        return len(self.prompt) if self.counted is None else self.counted
