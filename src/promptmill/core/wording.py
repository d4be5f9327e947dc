"""Texts for messages: the kind of a value, numbers with nouns, similar names; and texts for files."""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_NO_SHARE = 1e-9  # smaller shares, and smaller differences from 1, are rounding errors
_SHOWN = 60  # characters of an answer in a message
_ALIKE = 0.5  # min share of letters in common (difflib's ratio); a lower one would make any two short names similar
_SHORTEST_BEGINNING = 3  # min characters of a name that is suggested for longer names that begin with it, or vice versa
_SYNONYMS = (
    ("prompts", "rows items texts"),
    ("input_file files input rows", "file path filename csv data dataset infile"),
    ("output_file output", "out outfile outputs target destination save_to results_file"),
    ("prompt prompt_ls", "prompts question questions query template task text prompt_template instruction"),
    ("prompt_column", "column text_column input_column question_column"),
    ("system_prompt system", "instructions system_message system_instruction"),
    ("choices", "label labels class classes category categories enum allowed_values"),
    ("gold gold_file", "label labels truth ground_truth expected reference"),
    ("schema", "json_schema output_schema answer_schema response_schema response_model"),
    ("fields", "extract"),
    ("model model_name model_name_or_path", "models model_id llm deployment"),
    ("base_url", "api_base base endpoint url openai_api_base openai_base_url"),
    ("api_key key_env", "api_key openai_api_key key token api_token"),
    ("set", "settings config_override"),
    ("max_tokens", "max_new_tokens max_output_tokens max_completion_tokens num_predict n_predict max_length"),
    ("concurrency", "max_concurrency parallel parallelism threads max_parallel"),
    ("num_workers", "max_workers"),
    ("retries", "max_retries num_retries"),
    ("max_cost", "budget max_budget cost_limit max_price"),
    ("http", "port host bind listen"),
    ("again retry_failed", "retry rerun redo"),
    ("limit", "max_rows n_rows nrows head"),
    ("overwrite", "force"),
    ("criterion", "criteria rubric"),
    ("job_id", "job"),
    ("web", "search web_search google_search internet online browse grounding"),
)
"""promptmill's names, with the names that other programs and new users give to the same things."""
_ESCAPES = re.compile(r"(?<!\\)(?:\\u[0-9a-fA-F]{4})+")
# Surrogates are replaced in pieces, because no other thread runs while a piece is replaced.
_SURROGATES = re.compile("(?:[\ud800-\udbff][\udc00-\udfff]?|[\udc00-\udfff]){1,10000}")


def beginning(answer: str) -> str:
    """Return how an answer begins, as the predicate of a sentence.

    >>> beginning("Sure:\\nhere it is")
    "begins with 'Sure: here it is'"
    """
    start = " ".join(answer[:_SHOWN].split())
    return f"begins with {start!r}" if start else "is empty"


def shape(value: object) -> str:
    """Return the kind of `value` in a few words, never its content.

    >>> shape({"key": 1})
    "an object with the keys 'key'"
    """
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
    """Return a number with its noun: `1 answer`, `1,200 answers`. The plural of the noun ends with s.

    >>> counted(1200, "answer")
    '1,200 answers'
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(names: Sequence[str], most: int = 12) -> str:
    """Return the first `most` of the names, and the number of the others.

    >>> listed(["a", "b", "c", "d"], 2)
    'a, b and 2 more'
    """
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def in_percent(share: float, places: int) -> str:
    """Return a share in percent, with more than `places` digits if it would look like 0 or 100 and is not.

    >>> in_percent(0.9996, 1), in_percent(0.0002, 0), in_percent(1, 1)
    ('99.96', '0.02', '100.0')
    """
    while True:
        text = f"{100 * share:.{places}f}"
        if not _NO_SHARE < share < 1 - _NO_SHARE or 0 < float(text) < 100:
            return text
        places += 1


def duration(seconds: float) -> str:
    """Return a duration as `1:02:03`, or as `2:03` if it is below an hour.

    >>> duration(3723)
    '1:02:03'
    """
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def paced(pace: float) -> str:
    """Return why no more than `pace` requests are sent per second; `""` if `pace` is 0."""
    return f"paced at {pace:,.{0 if pace >= 10 else 2}f} requests/s: the endpoint refused more" if pace else ""


def list_in_words(text: str) -> str:
    """Return a JSON list of plain values as people write a list; return any other text unchanged.

    >>> list_in_words('["Alpha", "Beta"]'), list_in_words("[removed]")
    ('Alpha; Beta', '[removed]')
    """
    if not (text.startswith("[") and text.endswith("]")):
        return text
    try:
        values = json.loads(text)
    except ValueError:
        return text
    is_plain = bool(values) and all(isinstance(value, str | int | float) for value in values)
    return "; ".join(value if isinstance(value, str) else json.dumps(value) for value in values) if is_plain else text


def cut(text: str, most: int) -> str:
    """Return `text` if it has at most `most` characters, else its beginning and an ellipsis.

    >>> cut("a long text", 7)
    'a long…'
    """
    return text if len(text) <= most else f"{text[: max(most - 1, 1)]}…"


def cut_inside(text: str, most: int) -> str:
    """Return `text` if it has at most `most` characters, else its beginning, an ellipsis and its end.

    >>> cut_inside("a long, long text", 9)
    'a long…xt'
    """
    end = (most - 1) // 3
    return text if len(text) <= most else f"{text[: most - 1 - end]}…{text[len(text) - end :]}"


def unescaped(text: str) -> str:
    """Return a JSON text with é in place of `\\u00e9`, because some models escape letters; other texts stay unchanged.

    >>> unescaped('{"name": "Ren\\\\u00e9"}')
    '{"name": "René"}'
    """
    if "\\u" not in text or text.lstrip()[:1] not in {"{", "["}:
        return text
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text
    return _ESCAPES.sub(_letters, text)


def _letters(escapes: re.Match[str]) -> str:
    letters = json.loads(f'"{escapes[0]}"')
    # the escapes of quotes, of line ends and of lone surrogates are kept
    is_text = all(letter >= "\xa0" and not "\ud800" <= letter <= "\udfff" for letter in letters)
    return letters if is_text else escapes[0]


def mended(value: Any) -> Any:
    """Return a JSON value with surrogate pairs joined, and U+FFFD for a lone surrogate, which no file can contain."""
    match value:
        case str():
            return value if value.isascii() else _SURROGATES.sub(_joined, value)
        case dict():
            return {mended(str(key)): mended(inner) for key, inner in value.items()}
        case list() | tuple():
            return [mended(inner) for inner in value]
    return value


def _joined(surrogates: re.Match[str]) -> str:
    return surrogates[0].encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def did_you_mean(
    name: str, known: Iterable[str], otherwise: str = "", *, likeness: float = _ALIKE, most: int = 1
) -> str:
    """Return a question that suggests the synonym of `name`, or up to `most` similar names; else `otherwise`.

    >>> did_you_mean("temprature", ["temperature", "seed"])
    'did you mean temperature?'
    >>> did_you_mean("labels", ["limit", "choices"])
    'did you mean choices?'
    """
    known = list(known)
    near = [meant] if (meant := synonym(name, known)) else close_matches(name, known, most, likeness)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def no_column(*names: str, columns: Iterable[str], file: str = "the input") -> str:
    """Return a message about missing columns. If one is missing, it suggests similar columns; otherwise, it lists all.

    >>> no_column("txt", columns=["id", "text"])
    "the input has no column 'txt'; did you mean text?"
    >>> no_column("prompt", "messages", columns=["id", "q"], file="rows.csv")
    "rows.csv has no column 'prompt' or 'messages'; its columns: id, q."
    """
    known = [mended(column) for column in columns if column]
    others = f"its columns: {listed([column[:40] for column in known]) or 'none'}."
    near = [column for column in close_matches(names[0], known, 5) if _is_near(names[0], column)][:1]
    near = near or [column for column in known if _begins_alike(names[0], column)][:2]
    meant = f"did you mean {' or '.join(near)}?" if near and len(names) == 1 else others
    return f"{file} has no column {' or '.join(repr(name[:60]) for name in names)}; {meant}"


def _is_near(name: str, column: str) -> bool:
    """Return whether a name and a column differ only in case, letter order, or one letter (two if longer than 4)."""
    one, other = name.lower(), column.lower()
    pieces = difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    changed = sum(max(end - start, end_2 - start_2) for tag, start, end, start_2, end_2 in pieces if tag != "equal")
    return changed <= (2 if len(one) > 4 or sorted(one) == sorted(other) else 1)


def _begins_alike(name: str, column: str) -> bool:
    short, long = sorted((name.lower(), column.lower()), key=len)
    return len(short) >= _SHORTEST_BEGINNING and long.startswith(short)


def synonym(name: str, known: Iterable[str]) -> str:
    """Return the name in `known` that means the same as `name` according to `_SYNONYMS`, or `""`."""
    plain = {one.lstrip("-").replace("-", "_"): one for one in known}
    wanted = name.lower().lstrip("-").replace("-", "_")
    for ours, theirs in _SYNONYMS:
        meant = next((one for one in ours.split() if one in plain), "")
        if meant and wanted in f"{ours} {theirs}".split():
            return plain[meant]
    return ""


def close_matches(name: str, known: Iterable[str], n: int = 3, cutoff: float = _ALIKE) -> list[str]:
    """Return up to `n` names in `known` that are similar to `name`, the best first, ignoring case.

    Long names have no matches, because a comparison takes time in proportion to the product of the lengths.
    """
    if len(name) > 100:
        return []
    short: dict[str, list[str]] = {}
    for one in itertools.islice(known, 2000):
        if len(one) <= 100:
            short.setdefault(one.lower().lstrip("-"), []).append(one)
    near = difflib.get_close_matches(name.lower().lstrip("-"), short, n, cutoff)
    return [one for folded in near for one in short[folded]][:n]
