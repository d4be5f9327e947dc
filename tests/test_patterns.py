"""Every regular expression of ours takes time in proportion to the text, whatever the text."""

from __future__ import annotations

import ast
import functools
import gc
import importlib
import importlib.util
import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from re import _constants as kinds  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

import pytest

import promptmill

_ROOT = Path(promptmill.__file__).parent
_FUNCTIONS = frozenset({"search", "match", "fullmatch", "findall", "finditer", "split", "sub", "subn"})
_SHORT = 500
_LONGER = (2, 4, 8)
_NO_NOISE_S = 0.2  # of a text that long, a machine that is busy with others explains nothing
# Eight times the text takes eight times as long; of a quadratic search, sixty-four times.
_MOST_GROWTH = 20
_MOST_PIECES = 10
_REPEATS = frozenset({kinds.MAX_REPEAT, kinds.MIN_REPEAT, kinds.POSSESSIVE_REPEAT})


def _calls(tree: ast.AST) -> Iterator[tuple[str, str, ast.Call]]:
    """Yield `(object, method, call)` for every `object.method(…)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            name = owner.id if isinstance(owner, ast.Name) else ""
            if isinstance(owner, ast.Subscript) and isinstance(owner.value, ast.Name):
                name = owner.value.id  # WORDS[cause].search(…)
            elif isinstance(owner, ast.Attribute):
                name = owner.attr  # profile.always_thinking.search(…)
            yield name, node.func.attr, node


def _held(value: Any, name: str, depth: int = 0) -> Iterator[tuple[str, re.Pattern[Any]]]:
    """Yield the compiled patterns in `value` with the names they stand under."""
    if isinstance(value, re.Pattern):
        yield name, value
    elif depth < 3:
        if isinstance(value, Mapping):
            inner = [(name, one) for one in value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            inner = [(name, one) for one in value]
        else:
            fields = getattr(value, "__dataclass_fields__", {}) if not isinstance(value, type) else {}
            inner = [(field, getattr(value, field, None)) for field in fields]
        for field, one in inner:
            yield from _held(one, field, depth + 1)


@functools.cache
def _patterns() -> dict[tuple[str | bytes, int, str], str]:
    """Return where each pattern of ours stands, by `(pattern, flags, method that searches with it)`."""
    found: dict[tuple[str | bytes, int, str], str] = {}
    trees = {path: ast.parse(path.read_text("utf-8")) for path in sorted(_ROOT.rglob("*.py"))}
    methods: dict[tuple[Path | None, str], set[str]] = {}
    for path, tree in trees.items():
        for owner, method, _ in _calls(tree):
            if method in _FUNCTIONS:
                methods.setdefault((path, owner), set()).add(method)
                methods.setdefault((None, owner), set()).add(method)  # for what another module uses
    for path, tree in trees.items():
        where = path.relative_to(_ROOT).as_posix()
        compiled_here = 0
        for owner, method, call in _calls(tree):
            if owner == "re" and method in _FUNCTIONS and isinstance(call.args[0], ast.Constant):
                flags = re.MULTILINE if any("MULTILINE" in ast.dump(argument) for argument in call.args) else 0
                found[str(call.args[0].value), flags, method] = where
            compiled_here += owner == "re" and method == "compile"
        if not compiled_here:
            continue
        name = "promptmill." + where.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue  # an engine that is not installed here
        for name, value in vars(module).items():
            for own, pattern in _held(value, name):
                used = methods.get((path, own)) or methods.get((None, own)) or set()
                for method in (used - {"split", "sub", "subn"}) | ({"search"} if own != name or not used else used):
                    found[pattern.pattern, pattern.flags, method] = where
    return found


def _matching(tokens: Any, *, most: bool = False) -> str:
    """Return a text that matches the parsed pattern, roughly: repeats as few times as they may, or once more."""
    text = ""
    for kind, value in tokens:
        if kind is kinds.LITERAL:
            text += chr(value)
        elif kind is kinds.NOT_LITERAL:
            text += "a" if value != ord("a") else "b"
        elif kind is kinds.ANY:
            text += "a"
        elif kind is kinds.IN:
            text += _member(value)
        elif kind is kinds.BRANCH:
            text += _matching(value[1][0], most=most)
        elif kind is kinds.SUBPATTERN:
            text += _matching(value[-1], most=most)
        elif kind in _REPEATS:
            text += _matching(value[2], most=most) * min(value[1], max(value[0], 1) if most else value[0])
        elif kind is kinds.ATOMIC_GROUP:
            text += _matching(value, most=most)
    return text


def _member(choices: Any) -> str:
    """Return a character of a class."""
    pattern = re.compile(_class_of(choices))
    return next((one for one in "a1 -_.A<>\"'{[\\/=:;,\n\t" if pattern.match(one)), "\u4e00")


def _class_of(choices: Any) -> str:
    classes = {kinds.CATEGORY_DIGIT: r"\d", kinds.CATEGORY_NOT_DIGIT: r"\D", kinds.CATEGORY_SPACE: r"\s",
               kinds.CATEGORY_NOT_SPACE: r"\S", kinds.CATEGORY_WORD: r"\w", kinds.CATEGORY_NOT_WORD: r"\W"}  # fmt: skip
    text = ""
    for kind, value in choices:
        if kind is kinds.NEGATE:
            text += "^"
        elif kind is kinds.LITERAL:
            text += re.escape(chr(value))
        elif kind is kinds.RANGE:
            text += f"{re.escape(chr(value[0]))}-{re.escape(chr(value[1]))}"
        elif kind is kinds.CATEGORY:
            text += classes[value]
    return f"[{text}]"


def _pieces(tokens: Any) -> Iterator[str]:
    """Yield what a hostile text is made of: parts of what the pattern looks for."""
    sequence: list[list[Any]] = []
    for token in tokens:  # with words whole
        if sequence and token[0] is kinds.LITERAL and sequence[-1][-1][0] is kinds.LITERAL:
            sequence[-1].append(token)
        else:
            sequence.append([token])
    for end in range(1, len(sequence) + 1):
        yield _matching(itertools.chain(*sequence[:end]), most=True)
    for start, group in enumerate(sequence):
        yield _matching(group, most=True)
        yield _matching(itertools.chain(*sequence[start:]), most=True)
        kind, value = group[0]
        inner: list[Any] = []
        if kind is kinds.BRANCH:
            inner = list(value[1])
        elif kind is kinds.SUBPATTERN:
            inner = [value[-1]]
        elif kind in _REPEATS:
            inner = [value[2]]
        elif kind in {kinds.ASSERT, kinds.ASSERT_NOT}:
            inner = [value[1]]
        elif kind is kinds.ATOMIC_GROUP:
            inner = [value]
        for one in inner:
            yield from _pieces(one)


def _hostile(pattern: re.Pattern[Any]) -> list[Callable[[int], str]]:
    """Return makers of texts of a given length: pieces and pairs of them, repeated, behind and before others."""
    found = list(dict.fromkeys(filter(None, _pieces(parser.parse(pattern.pattern, pattern.flags)))))
    pieces = list(
        dict.fromkeys([*found[:_MOST_PIECES], *sorted(found, key=len)[: _MOST_PIECES // 2], " ", "\n", "a", "1"])
    )
    units = [*pieces, *("".join(pair) for pair in itertools.permutations(pieces[:_MOST_PIECES], 2))]
    makers: list[Callable[[int], str]] = [functools.partial(_repeated, "", unit, "\0") for unit in units]
    makers += [functools.partial(_repeated, start, unit, "\0") for start in pieces for unit in pieces if start != unit]
    return makers


def _repeated(start: str, unit: str, end: str, length: int) -> str:
    return start + unit * -(-length // len(unit)) + end  # of a long one not less than once


def _growth(search: Callable[[Any], Any], make: Callable[[int], str], *, raw: bool) -> float:
    """Return how many times as long a text up to eight times as long takes; the least of five attempts."""
    texts = [make(_SHORT * times) for times in (1, *_LONGER)]
    given = [text.encode("utf-8", "replace") for text in texts] if raw else texts
    least = float("inf")
    for _ in range(5):
        first, growth = _seconds(search, given[0]), 0.0
        for text in given[1:]:
            seconds = _seconds(search, text)
            growth = seconds / first
            if growth > _MOST_GROWTH:  # the next text would take a cubic search minutes
                break
        least = min(least, growth)
        if least <= _MOST_GROWTH or seconds > _NO_NOISE_S:
            break
    return least


def _seconds(search: Callable[[Any], Any], text: Any) -> float:
    began = time.thread_time_ns()
    found = search(text)
    if found is not None and hasattr(found, "__next__"):
        for _ in found:
            pass
    return max(2_000, time.thread_time_ns() - began) / 1e9


def _search(pattern: re.Pattern[Any], method: str) -> Callable[[Any], Any]:
    function = getattr(pattern, method)
    if method in {"sub", "subn"}:
        blank: Any = b" " if isinstance(pattern.pattern, bytes) else " "
        return functools.partial(function, blank)
    return function


def _worst(pattern: re.Pattern[Any], method: str) -> tuple[float, str]:
    """Return the largest growth that any hostile text brings about, and the start of that text."""
    raw = isinstance(pattern.pattern, bytes)
    worst = 0.0, ""
    for make in _hostile(pattern):
        growth = _growth(_search(pattern, method), make, raw=raw)
        if growth > worst[0]:
            worst = growth, make(60)
        if growth > _MOST_GROWTH:
            break
    return worst


@pytest.mark.thorough
def test_every_pattern_takes_time_in_proportion_to_the_text():
    patterns = _patterns()
    assert len(patterns) > 100
    gc.disable()
    try:
        slow = {
            (where, method, pattern): worst
            for (pattern, flags, method), where in patterns.items()
            if (worst := _worst(re.compile(pattern, flags), method))[0] > _MOST_GROWTH
        }
    finally:
        gc.enable()
    assert not slow


@pytest.mark.thorough
@pytest.mark.parametrize(
    "pattern", [r"```[ \t]*\r?\n?(.*?)```", r"<(?:script|style).*?</(?:script|style)>|<[^>]*>", r"\s+$"]
)
def test_what_is_not_linear_is_found(pattern):
    assert _worst(re.compile(pattern, re.DOTALL), "search")[0] > _MOST_GROWTH
