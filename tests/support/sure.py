"""What a test knows to be there, said to the type checker."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def sure(value: T | None) -> T:
    """Return what must not be None."""
    assert value is not None
    return value
