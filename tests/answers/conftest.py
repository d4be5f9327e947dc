"""What tests of answers share."""

from __future__ import annotations

import pytest

from promptmill.answers.schema import AnswerSchema, compile_schema

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "n": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture(scope="session")
def city() -> AnswerSchema:
    """The schema of a city."""
    return compile_schema(CITY)
