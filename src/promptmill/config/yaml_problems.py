"""What is wrong with a YAML file, in the words of people who write one."""

from __future__ import annotations

import re

import yaml

_KEY = re.compile(r"\s*(?:- )?([\w.${}-]+)\s*:(?:\s|$)")
_UNSPACED = re.compile(r"\s*(?:- )?([A-Za-z_]\w*):(?!//)(\S[^#]*)(?!.*:\s)")
_QUOTED = re.compile(r"[:-] +['\"]")
_BRACKETS = {"}": "{", "]": "["}


def plain(error: yaml.YAMLError, text: str) -> str:
    """Return what `error`, raised for `text`, comes from, with the line: a whole sentence."""
    problem, mark = getattr(error, "problem", None) or "", getattr(error, "problem_mark", None)
    if mark is None:
        return "It is not valid YAML."
    return _no_space(problem, mark.line, text.splitlines()) or _explain(error, problem, mark, text)


def _explain(error: yaml.YAMLError, problem: str, mark: yaml.Mark, text: str) -> str:
    """Return what `problem`, which YAML found at `mark`, comes from."""
    began = getattr(error, "context_mark", None) or mark
    lines, here = text.splitlines(), mark.line
    place = f"line {here + 1}"
    if bracket := re.match(r"expected ',' or '([}\]])', but got '(.*)'", problem):
        if bracket[2] == "{":
            return f"{place[0].upper()}{place[1:]} needs quotes: write `${{…}}` within {{…}} between quotes."
        end = "the file's end" if "stream end" in bracket[2] else place
        return (
            f"The {_BRACKETS[bracket[1]]} in line {began.line + 1} is not closed before {end}: a {bracket[1]} or a "
            "comma is missing."
        )
    if "node content, but found '<stream end>'" in problem:
        return "A { or [ is not closed before the file's end: a } or ] is missing."
    if "end of stream" in problem:
        return f"A quotation mark in line {began.line + 1} is not closed."
    if "'\\t'" in problem:
        return f"Line {here + 1} is indented with a tab; indent with spaces."
    if "cannot start any token" in problem:
        character = re.search(r"character '(.*?)'", problem)
        what = f"begins with {character[1]}, which" if character else "begins with a character that"
        return f"A value in {place} {what} means something in YAML; put it between quotes."
    if "undefined alias" in problem:
        return f"A value in {place} begins with *, which means something in YAML; put it between quotes."
    if "not allowed here" in problem:
        return _one_colon_too_many(here, mark.column, lines)
    if re.search(r"expected <block end>, but found '<scalar>'", problem) and _QUOTED.search(lines[here]):
        return (
            f"Line {here + 1} goes on behind a closing quotation mark; put the whole value between quotes, and write "
            "one that it holds twice ('') between single ones."
        )
    if "expected ':'" in problem:
        return f"Line {began.line + 1} is not `key: value`: its colon, with a space behind it, is missing."
    if "expected <block end>" in problem:
        return _outline(here, began.line, lines)
    return f"Line {here + 1}, column {mark.column + 1}, is not valid YAML: {problem}."


def _no_space(problem: str, here: int, lines: list[str]) -> str:
    """Return which line lacks the space behind its colon, at or above the one that cannot be read; `""` for none."""
    if not re.search(r"not allowed here|expected ':'|expected <block end>", problem):
        return ""
    near = [here, *([] if (above := _above(here, lines)) is None else [above])]
    for number in near:
        found = _UNSPACED.match(lines[number]) if number < len(lines) else None
        if found:
            return f"Line {number + 1} needs a space after the colon: {found[1]}: {found[2].rstrip()[:60]}."
    return ""


def _one_colon_too_many(here: int, column: int, lines: list[str]) -> str:
    """Return why a key stands where none can: it is too deep, or in a value, or a colon is missing."""
    line = lines[here] if here < len(lines) else ""
    above = _above(here, lines)
    first = _KEY.match(line)
    if first is None or column > first.end():
        return f"Line {here + 1} has a second colon followed by a space; put the value between quotes."
    if above is not None and _depth(line) > _depth(lines[above]):
        return f"Line {here + 1} is indented deeper than line {above + 1}, which has its own value; indent both alike."
    if above is not None and not _KEY.match(lines[above]):
        return f"Line {above + 1} has no colon behind its key; write `key: value`."
    return f"Line {here + 1} has a colon where none can be; put the value between quotes."


def _outline(here: int, began: int, lines: list[str]) -> str:
    """Return why a line belongs to nothing above it."""
    at = next((number for number in range(min(here, len(lines) - 1), -1, -1) if lines[number].strip()), 0)
    line, above = lines[at], _above(at, lines)
    if not _KEY.match(line) and not line.lstrip().startswith("- "):
        return f"Line {at + 1} is not `key: value`: its colon, with a space behind it, is missing."
    if lines[began].lstrip().startswith("- ") is not line.lstrip().startswith("- "):
        return f"Line {at + 1} mixes keys with a list that begins in line {began + 1}; indent it as what it belongs to."
    if above is None or _depth(line) == _depth(lines[began]):
        return f"Line {at + 1} does not belong to what stands above it; correct its indentation."
    depths = {_depth(other) for other in lines[:at] if other.strip()}
    deeper = "deeper" if _depth(line) > _depth(lines[above]) else "less"
    return (
        f"Line {at + 1} is indented {deeper} than line {above + 1}, by {_depth(line)} spaces, "
        f"and nothing above it is; indent it by {' or '.join(map(str, sorted(depths)))}."
    )


def _above(line: int, lines: list[str]) -> int | None:
    """Return the last line above that says something."""
    found = (number for number in range(line - 1, -1, -1) if lines[number].split("#")[0].strip())
    return next(found, None)


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
