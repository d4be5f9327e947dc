"""Parses option values of the command line for which a type is not enough. Each function raises `PromptmillError`."""

from __future__ import annotations

from promptmill.core.errors import input_error, looks_like_key
from promptmill.core.money import prices_in


def number(text: str, how: str = "write one such as 0.7", example: str = "0.7") -> float:
    """Parse a number that is at least 0."""
    try:
        value = float(text)
    except ValueError:
        raise input_error(f"{text[:20]!r} is not a number; {how}") from None
    if not 0 <= value < float("inf"):
        raise input_error(f"{text[:20]!r} is out of range; write a number from 0 on, such as {example}")
    return value


def amount(text: str) -> float:
    """Parse an amount of money."""
    return number(text, "write 5 or 5.00, without a sign (a shell reads $5 as a variable of its own)", "5.00")


def price(text: str) -> str:
    """Check a price, such as `0.25/2` or `small=0.25/2`."""
    prices_in(text)
    return text


def names(text: str) -> list[str]:
    """Parse names separated by commas."""
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise input_error("write names with commas, such as answer,error")
    return found


def variable(text: str) -> str:
    """Parse the name of an environment variable."""
    if looks_like_key(text):
        raise input_error(
            "that looks like a key, or is no name; write the NAME of the variable that holds it, such as OPENAI_API_KEY"
        )
    return text
