"""Secret text: keys, tokens and passwords, recognized by their form or known as the server's own.

`redact` (in `errors`) removes secret text from messages, and also harmless text: any word after "bearer", and the user
in any URL. A message loses nothing by this. `SecretFinder` decides whether a file may be sent, and must not refuse a
file because of a word. It finds private keys and, of the texts that `redact` removes, only random texts and passwords.

A file of rows may have gigabytes, so each form has a pattern that starts with a rare letter, which Python's `re` finds
at memory speed: 0.6 s per gigabyte and pattern, against 14 s for one pattern that starts with any of the prefixes. Only
these matches are compared with the whole form. Measured: 6 s per gigabyte for all forms, on one core, and 0.5 s per
megabyte of text that was made to match. `re` holds Python's lock, so a text is searched in pieces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from promptmill.core.bounds import DEEPEST_TEXT

_SHORTEST_KEY = 8
_TAIL = 64 << 10  # bytes; longer than any key, even if all letters of the key are escaped as \u0041
_BEFORE = 16  # letters: the length of the longest key prefix
_PIECE = 128 << 10  # bytes that are searched at a time: at most 0.06 s for each form
_SHORTEST_PART, _LONGEST_PART = 12, 1002  # bytes of the first part of a JSON Web Token, without its dot
_OF_PART = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
_LONGEST_START = 2048  # bytes; longer than any match of the patterns that start with a rare letter

# Prefixes of keys, according to the providers' documentation and the rules of gitleaks.
_PREFIXES = (
    *("sk", "pk", "rk", "gsk", "hf", "xai", "nvapi", "csk", "pplx", "tvly", "r8", "ghp", "gho", "ghu", "ghs", "ghr"),
    *("github_pat", "glpat", "xoxa", "xoxb", "xoxe", "xoxo", "xoxp", "xoxr", "xoxs", "xapp", "npm", "pypi", "dckr_pat"),
    *("dop_v1", "shpat", "shpca", "shppa", "shpss", "whsec", "lin_api", "figd", "sntrys", "sntryu"),
)
# After a prefix, a key has a run of sixteen letters, or of ten letters and digits: ordinary names and paths
# (`skip_special_tokens`, `hf_dataset_prompts_2024`) have no such run. There are two patterns because a single one would
# search for the run again after each of many prefixes in one word.
KEY = re.compile(
    rf"(?a)\b(?:(?:{'|'.join(_PREFIXES)})[-_]|AIza|A[KS]IA|AGE-SECRET-KEY-1|ya29\.|SG\.|hvs\.|eyJ[\w-]{{10,999}}\.eyJ)"
    r"([A-Za-z0-9_-]{16,})"
)
KEY_RUN = re.compile(r"[A-Za-z0-9]{16}|(?=[A-Za-z0-9]{10})[A-Za-z]{0,9}[0-9]")
_BEARER = re.compile(r"(?ai)\b(?:bearer|basic)[ \t]+([A-Za-z0-9._~+/=-]{16,})")
_DIGIT = re.compile(r"[0-9]")
_OF_URL = r"""[^/\s@:?#"'<>,;(){}\[\]|\\]"""
_PASSWORD_IN_URL = re.compile(rf"://{_OF_URL}{{0,200}}:({_OF_URL}{{3,200}})@")
_PLACEHOLDER = re.compile(
    r"(?i)(?:your|my|some|the|an?)?[-_ ]*(?:pass(?:word|wd)?|pwd|secret|token|key)\d?|x+|\*+|\.+|%\w"
)

# The patterns that start with a rare letter, for a `KEY`, a `_BEARER`, and a URL with a password.
_RUN = rb"[A-Za-z0-9_-]{16}"
_BEHIND_PREFIX = b"|".join(rb"(?<=%b.)" % name.encode() for name in _PREFIXES)
_OF_KEY = (
    re.compile(rb"-(?=%b)(?:%b)" % (_RUN, _BEHIND_PREFIX)),
    re.compile(rb"_(?=%b)(?:%b)" % (_RUN, _BEHIND_PREFIX)),
    re.compile(rb"\.(?=%b)(?:(?<=ya29\.)|(?<=SG\.)|(?<=hvs\.))" % _RUN),
    re.compile(rb"A(?:KIA|SIA|Iza)" + _RUN),
    re.compile(rb"AGE-SECRET-KEY-1"),
)
_OF_TOKEN = re.compile(rb"\.eyJ([A-Za-z0-9_-]{16,120})")  # the second part of a JSON Web Token
_OF_BEARER = tuple(re.compile(word + rb"[ \t]{1,999}[A-Za-z0-9._~+/=-]{16}") for word in (b"earer", b"EARER", b"asic"))
_OF_PASSWORD = re.compile(_PASSWORD_IN_URL.pattern.encode())
_KEY_RUN = re.compile(KEY_RUN.pattern.encode())
_PRIVATE_KEY, _OF_PRIVATE_KEY = b"-----BEGIN ", re.compile(rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY")
_BEHIND = 120  # bytes after an anchor that decide whether a key has its run of letters and digits

# Names of fields with passwords or keys: columns in exports of password managers, and keys of configurations.
_FIELD = (
    r"(?:login[_ -]?|user[_ -]?|db[_ -]?)?pass(?:word|wd|phrase)|pwd|(?:login[_ -]?)?totp|otp[_ -]?auth|"
    r"(?:secret|api|private|access|encryption|signing|account)[_ -]?keys?(?:[_ -]?id)?|client[_ -]?secret|"
    r"(?:access|refresh|auth|bearer|api|session)[_ -]?tokens?"
)
_VARIABLE = r"[A-Z0-9_]+_(?:PASSWORD|PASSWD|SECRET|TOKEN)|[A-Z0-9_]*(?:API|ACCESS|PRIVATE|SECRET)_KEY"
_FIELD_NAME = re.compile(rf"\s*(?:(?i:{_FIELD})|{_VARIABLE})\s*")
# A value assigned to a name with one of these ends, as in settings.py, docker-compose.yml, appsettings.json and .env:
#     DB_PASSWORD = "…"    "api_key": "…"    define('DB_PASSWORD', '…')    <password>…</password>    Password=…;
_NAME_END = r"(?i:passw(?:or)?d|passphrase|pwd|secret(?:[_-]?key)?|token|key)"
_QUOTED = re.compile(
    rf"""{_NAME_END}["'`]?\s{{0,20}}(?::=|=>|[:=,])\s{{0,20}}[bru]?(["'`])([^"'`\s${{}}<>%\[][^"'`\s{{}}]{{5,500}})\1"""
)
_ELEMENT = re.compile(rf"{_NAME_END}>\s{{0,20}}([^<>\s${{}}]{{6,500}})\s{{0,20}}</")
_IN_TEXT = re.compile(r"""(?i:password|pwd)\s?=\s?([^;"'\s${}<>%(]{4,500})(?=[;"'])""")
# An assignment without quotes, on its own line: YAML, INI, properties, shell.
_UNQUOTED = re.compile(
    rf"""{_NAME_END}["']?[ \t]{{0,20}}[:=][ \t]{{0,20}}"""
    r"""([^\s"'`${}<>%(\[|&*!#][^\s"'`{}()<>]{5,500})[ \t]{0,20}\r?$""",
    re.MULTILINE,
)
_LINE_START = re.compile(r"""\s*(?:-\s+|export\s+|set\s+|ENV\s+|ARG\s+)?["']?[\w.-]*""")
_WORDS = (b"passw", b"passphrase", b"pwd", b"secret", b"token", b"key")  # each `_NAME_END` starts with one of these
_OF_KEYS = re.compile(r"(?i)(?:api|access|private|account|auth|encryption|signing)[_-]?")
_LONGEST_NAME, _LONGEST_ASSIGNED = 120, 600  # max characters of a name, and of the value that is assigned to it
_PASSWORD = re.compile(r"(?i)passw|passphrase|pwd")
_WORD = re.compile(
    r"_*[A-Za-z]+(?:[._-]+[A-Za-z]+)*[._-]*"
)  # the name of another value, for example `request.token` or `Bearer`
_NO_VALUE = re.compile(r"(?i)true|false|none|null|required|optional|string|\w+\.[a-z_.]+")
# Files of secrets, recognized by their form: a Kubernetes Secret, .netrc, shadow and htpasswd, a PuTTY key.
_FILES = (
    re.compile(rb"kind:[ \t]*[\"']?Secret\b"),
    re.compile(rb"machine\s+\S{1,200}\s+login\s+\S{1,200}\s+password\s"),
    re.compile(rb":\$(?:apr1|[156y]|2[aby])\$[./A-Za-z0-9$]{8}"),
    re.compile(rb"PuTTY-User-Key-File-\d"),
)


class SecretFinder:
    """Finds keys and passwords in the content of files. `own`: the server's own keys, headers and tokens."""

    def __init__(self, own: Iterable[str] = ()) -> None:
        self._own = tuple(secret.encode("utf-8", "replace") for secret in dict.fromkeys(own) if is_long_enough(secret))

    def find(self, data: bytes) -> str:
        """Return the kind of secret in a text, such as "an API key"; `""` without a secret.

        >>> SecretFinder().find(b"key: sk-proj-0123456789abcdefghij")
        'an API key'
        >>> SecretFinder().find(b"the ring bearer")
        ''
        """
        if b"\0" in data:  # UTF-16 or UTF-32
            data = data.replace(b"\0", b"")
        texts = [data]
        for _ in range(DEEPEST_TEXT):  # JSON may contain JSON as a text
            if b"\\" not in data or (unescaped := _unescaped(data)) == data:
                break
            data = unescaped
            texts.append(data)
        if any(secret in text for text in texts for secret in self._own):
            return "a key of this server"
        # The escaped text is searched, too: a key after a backslash may look like an escape, as in `C:\npm_…`.
        return next(filter(None, map(_kind_in, texts)), "")

    def find_in(self, blocks: Iterable[bytes]) -> tuple[str, int]:
        """Return the kind of secret in a file that is read in `blocks`, as `find` does, and its line (0 if unknown).

        A key is found even if one part is at the end of a block and the other part at the beginning of the next.
        """
        tail, lines = b"", 0
        for block in blocks:
            data = tail + block
            if words := self.find(data):
                places = (at for at, line in enumerate(data.split(b"\n"), lines + 1) if self.find(line))
                return words, next(places, 0)
            tail = data[-_TAIL:]
            lines += data.count(b"\n", 0, len(data) - len(tail))
        return "", 0


def find_assigned(data: bytes, *, has_lines: bool) -> str:
    """Return the kind of secret that a program or configuration assigns to a name such as `DB_PASSWORD`, or `""`.

    `has_lines`: each line may assign a value without quotes, as in YAML.
    """
    if b"\0" in data:  # UTF-16 or UTF-32
        data = data.replace(b"\0", b"")
    if any(form.search(data) for form in _FILES):
        return "passwords or keys, by its form"
    small = data.lower()
    for word in _WORDS:
        at = small.find(word)
        while at >= 0:
            line = small.rfind(b"\n", max(0, at - _LONGEST_NAME), at) + 1 or max(0, at - _LONGEST_NAME)
            before, after = data[line:at].decode("latin-1"), data[at : at + _LONGEST_ASSIGNED].decode("latin-1")
            if (word != b"key" or _ends_with(_OF_KEYS, before)) and _assigns(before, after, has_lines=has_lines):
                return "a password or a key"
            at = small.find(word, at + 1)
    return ""


def _assigns(before: str, after: str, *, has_lines: bool) -> bool:
    """Return whether a secret is assigned to a name. `after` starts with the name's last word."""
    match = _QUOTED.match(after) or _ELEMENT.match(after) or _IN_TEXT.match(after)
    if match is not None and "," in after[: match.start(match.lastindex or 0)] and "define" not in before:
        match = None  # no secret, but a list of names
    if match is None and has_lines and _LINE_START.fullmatch(before):
        match = _UNQUOTED.match(after)
    return match is not None and _is_secret(match[match.lastindex or 0], is_password=_PASSWORD.match(after) is not None)


def _ends_with(pattern: re.Pattern[str], text: str) -> bool:
    return any(pattern.fullmatch(text, len(text) - size) for size in range(3, min(len(text), 12) + 1))


def find_field(names: Iterable[object]) -> str:
    """Return the first name of a column or field that holds passwords or keys, or `""`."""
    return next((name for name in names if isinstance(name, str) and _FIELD_NAME.fullmatch(name)), "")


def may_hold_secrets(finder: SecretFinder, names: Iterable[object], row: str) -> bool:
    """Return whether a row of a job, as JSON, may hold keys or passwords, so that no page or result of a call shows it.
    `names`: the names of the row's columns."""
    return bool(find_field(names) or finder.find(row.encode("utf-8", "replace")))


def is_long_enough(secret: str) -> bool:
    """Return whether a configured key is a secret, not a word that local servers accept (`EMPTY`, `ollama`)."""
    return len(secret) >= _SHORTEST_KEY and (len(secret) > 16 or _DIGIT.search(secret) is not None)


def _is_secret(value: str, *, is_password: bool) -> bool:
    if _PLACEHOLDER.fullmatch(value) or _NO_VALUE.fullmatch(value):
        return False
    return is_password or not _WORD.fullmatch(value)


def _kind_in(text: bytes) -> str:
    """Return the kind of secret in a text, or `""`."""
    if _PRIVATE_KEY in text and _OF_PRIVATE_KEY.search(text):
        return "a private key"
    for start in range(0, len(text), _PIECE):
        end = start + _PIECE + _LONGEST_START
        if any(_has_key(text, anchor, start, end) for anchor in _OF_KEY):
            return "an API key"
        if any(_follows_header(text, match) for match in _OF_TOKEN.finditer(text, start, end)):
            return "an API key"
        matches = (match for anchor in _OF_BEARER for match in anchor.finditer(text, start, end))
        if any(_is_token(_near(text, match)) for match in matches):
            return "a token"
        passwords = (match[1].decode("latin-1") for match in _OF_PASSWORD.finditer(text, start, end))
        if not all(map(_PLACEHOLDER.fullmatch, passwords)):
            return "a URL with a password"
    return ""


def _has_key(text: bytes, anchor: re.Pattern[bytes], start: int, end: int) -> bool:
    run = 0  # where the next run begins; stored so that a text of prefixes, `sk-sk-sk-…`, is searched only once
    for match in anchor.finditer(text, start, end):
        if run < match.start():
            found = _KEY_RUN.search(text, match.start(), end + _BEHIND)
            run = found.start() if found else end + _BEHIND
        if run <= match.end() + _BEHIND and any(KEY_RUN.search(key[1]) for key in KEY.finditer(_near(text, match))):
            return True
    return False


def _follows_header(text: bytes, match: re.Match[bytes]) -> bool:
    """Return whether `match`, the second part of a JSON Web Token, follows a first part. The search goes backwards from
    the second part, because in a text that repeats `eyJ-`, each `eyJ` would start a forward search."""
    before = text[max(0, match.start() - _LONGEST_PART) : match.start()]
    part = before[len(before.rstrip(_OF_PART)) :]
    return 0 <= part.find(b"eyJ") < len(part) - _SHORTEST_PART and _KEY_RUN.search(match[1]) is not None


def _near(text: bytes, match: re.Match[bytes]) -> str:
    return text[max(0, match.start() - _BEFORE) : match.end() + _BEHIND].decode("latin-1")


def _is_token(near: str) -> bool:
    return any(KEY_RUN.search(match[1]) and _DIGIT.search(match[1]) for match in _BEARER.finditer(near))


_ESCAPE = re.compile(rb"\\u00([0-7][0-9A-Fa-f])")
_SPACES = (b"\\n", b"\\r", b"\\t", b"\\b", b"\\f")


def _unescaped(data: bytes) -> bytes:
    r"""Return JSON with `/` for `\/` and `+` for `\u002b`, which some programs write, and with a space for `\n`.

    The space is needed because a key may follow a line feed. `\\n` is no line feed, but a backslash and a letter.
    """
    data = data.replace(b"\\/", b"/")
    if b"\\u00" in data:
        data = _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), data)
    data = data.replace(b"\\\\", b"\0")  # `find` has removed all NULs of the file
    for escape in _SPACES:
        data = data.replace(escape, b" ")
    return data.replace(b"\0", b"\\")
