"""One request on its way through the pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from promptmill.backends.engines.growing_answer import GrowingAnswer


@dataclass(slots=True, eq=False, kw_only=True)
class Row(GrowingAnswer):
    """A request with OpenVINO's configuration of its generation."""

    config: Any
    """`openvino_genai.GenerationConfig`."""
    schema: str | None = None
    """The JSON schema that its answer is held to."""
    handle: Any = None
    """`openvino_genai.GenerationHandle` while it runs."""
