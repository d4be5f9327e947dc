"""Values in messages: what kind of thing one is, and numbers with their nouns."""

from __future__ import annotations

from collections.abc import Mapping


def shape(value: object) -> str:
    """Return what kind of thing `value` is in a few words, never what it says."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list() | tuple():
            return f"a list of {len(value)}"
        case Mapping() if not value:
            return "an object without keys"
        case Mapping():
            names = ", ".join(f"{key!r:.40}" for key in list(value)[:6])
            return f"an object with the keys {names}{', …' if len(value) > 6 else ''}"
    return f"a {type(value).__name__}"


def counted(number: int, noun: str) -> str:
    """Return `1 answer`, `1,200 answers`: a number with its noun, whose plural ends in s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
