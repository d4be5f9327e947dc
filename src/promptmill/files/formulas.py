"""Formulas of web pages and documents as a line of text, such as `(a+b)/2` or `x²`."""

from __future__ import annotations

import re
from typing import Any

_RAISED = str.maketrans("0123456789+-\u2212=()", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾")
_LOWERED = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_RAISED_START = re.compile(r"\s*[-+\u2212(]?[0-9]|\s*[-+\u2212]\s*\Z")
_POWER = re.compile(r"[-+\u2212]?[i-kmnpqtx-z](?:[-+\u2212*/]\w{1,9})?|[.,][0-9]{1,9}")  # no a, e, o: 1o is an ordinal
_LEFT_OUT = frozenset({"annotation", "annotation-xml", "mphantom"})


def grouped(text: str) -> str:
    """Return a part of a formula, in brackets if it has several signs."""
    return text if text.isalnum() else f"({text})"


def raised(text: str) -> str:
    """Return a superscript with raised digits, because 10² is not 102. A power that is not a number becomes `^n`.

    >>> raised("2"), raised("2,3"), raised("st"), raised("n+1"), raised(".5")
    ('²', '²,³', 'st', '^(n+1)', '^.5')
    """
    if _POWER.fullmatch(text):
        return f"^{text}" if text.isalnum() or text[0] in ".," else f"^({text})"
    return text.translate(_RAISED) if _RAISED_START.match(text) else text


def lowered(text: str) -> str:
    """Return a subscript with lowered digits, because log₂8 is not log28.

    >>> lowered("2"), lowered("max")
    ('₂', 'max')
    """
    return text.translate(_LOWERED)


def of_mathml(formula: Any) -> str:
    """Return the text of a page's `math` element. This is not recursive, because a page may be nested deeply."""
    texts: dict[int, str] = {}
    for node in reversed(list(formula.traverse(include_text=True))):
        if node.tag == "-text":
            texts[node.mem_id] = " ".join((node.text_content or "").split())
        else:
            texts[node.mem_id] = _element(node, [texts[each.mem_id] for each in node.iter(include_text=True)])
    return texts[formula.mem_id]


def _element(node: Any, parts: list[str]) -> str:
    """Return the text of an element from the texts of its children."""
    tag = node.tag
    if tag in _LEFT_OUT:
        return ""
    whole, elements = "".join(parts), [each for each in parts if each]
    match tag, elements:
        case "msqrt", _:
            return f"√({whole})"
        case "mtable", _:
            return "; ".join(each.strip() for each in elements)
        case "mtr" | "mlabeledtr", _:
            return " ".join(elements)
        case "mfenced", _:
            return f"{node.attributes.get('open') or '('}{','.join(elements)}{node.attributes.get('close') or ')'}"
        case "mfrac", [above, below]:
            return f"{grouped(above)}/{grouped(below)}"
        case "mroot", [base, degree]:
            return f"{raised(degree)}√({base})"
        case "msub" | "munder", [base, lower]:
            return f"{base}_{grouped(lower)}"
        case "msup", [base, upper]:
            return base + _power(upper)
        case "mover", [base, upper]:
            return f"{base}{upper}" if len(upper) == 1 and not upper.isalnum() else base + _power(upper)
        case "msubsup" | "munderover", [base, lower, upper]:
            return f"{base}_{grouped(lower)}{_power(upper)}"
    return whole


def _power(text: str) -> str:
    return raised(text) if raised(text) != text else f"^{grouped(text)}"
