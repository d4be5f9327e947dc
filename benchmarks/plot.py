"""Requests per second over requests in flight, as an SVG that needs nothing to be drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

_WIDTH, _HEIGHT = 740, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 170, 48, 56
_LOOKS = {
    "ours": ("promptmill (MCP tool)", "#0b7285", ""),
    "bare": ("bare aiohttp loop", "#868e96", "6 4"),
    "openai": ("openai package", "#d9480f", ""),
    "litellm": ("litellm", "#7048e8", ""),
}


def svg(points: Sequence[dict[str, Any]]) -> str:
    """Return the plot of `points` (`name`, `in_flight`, `rate`), both axes logarithmic."""
    across = sorted({point["in_flight"] for point in points})
    rates = [point["rate"] for point in points]
    low, high = 10 ** math.floor(math.log10(min(rates))), 10 ** math.ceil(math.log10(max(rates)))

    def x(in_flight: float) -> float:
        share = math.log(in_flight / across[0]) / max(1e-9, math.log(across[-1] / across[0]))
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(rate: float) -> float:
        return _HEIGHT - _BOTTOM - math.log(rate / low) / math.log(high / low) * (_HEIGHT - _TOP - _BOTTOM)

    def text(at_x: float, at_y: float, words: str, style: str = "") -> str:
        return f'<text x="{at_x:.0f}" y="{at_y:.0f}" {style}>{words}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        '<g font-family="system-ui, sans-serif" font-size="13" fill="#343a40">',
        "<title>Requests per second over requests in flight</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        text(
            _LEFT,
            26,
            "Requests per second on one core, upstream with 50 ms latency",
            'font-size="15" font-weight="600"',
        ),
    ]
    decade = low
    while decade <= high:
        parts += [
            f'<path d="M{_LEFT} {y(decade):.1f}H{_WIDTH - _RIGHT}" stroke="#dee2e6"/>',
            text(_LEFT - 10, y(decade) + 4, f"{decade:,}", 'text-anchor="end"'),
        ]
        decade *= 10
    parts += [text(x(number), _HEIGHT - _BOTTOM + 22, f"{number:,}", 'text-anchor="middle"') for number in across]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(text(middle, _HEIGHT - 12, "requests in flight", 'text-anchor="middle"'))
    names = [name for name in _LOOKS if any(point["name"] == name for point in points)]
    heights = _apart({name: y(_curve(points, name)[-1][1]) for name in names})
    for name in names:
        label, colour, dashes = _LOOKS[name]
        curve = [(x(in_flight), y(rate)) for in_flight, rate in _curve(points, name)]
        path = "L".join(f"{at_x:.1f} {at_y:.1f}" for at_x, at_y in curve)
        style = f'stroke="{colour}" stroke-width="2.5" fill="none"' + (
            f' stroke-dasharray="{dashes}"' if dashes else ""
        )
        parts.append(f'<path d="M{path}" {style}/>')
        parts += [f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="3.5" fill="{colour}"/>' for at_x, at_y in curve]
        parts.append(text(_WIDTH - _RIGHT + 10, heights[name] + 4, label, f'fill="{colour}"'))
    return "\n".join([*parts, "</g></svg>"]) + "\n"


def _curve(points: Sequence[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return sorted((point["in_flight"], point["rate"]) for point in points if point["name"] == name)


def _apart(heights: dict[str, float], gap: float = 17) -> dict[str, float]:
    """Return label heights that do not cover each other."""
    placed: dict[str, float] = {}
    at = -math.inf
    for name, height in sorted(heights.items(), key=lambda entry: entry[1]):
        at = placed[name] = max(height, at + gap)
    return placed
