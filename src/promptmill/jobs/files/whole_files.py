"""Whole files as rows: `{"path": …, "content": …}`, for prompts that ask about each file of a list.

    a path       a file that cannot be sent is an error
    a pattern    a file that it finds and that cannot be sent is left out, with the reason
    a folder     the pattern `folder/**`

Files that are likely to hold secrets are never sent. Their names are those that the tools against leaks look for, and
the ignore lists of coding agents contain: environment files, keys, key stores, credentials; and everything hidden. A
file with a private key in it is not sent either, whatever its name is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import orjson

from promptmill.core.errors import PromptmillError, input_error
from promptmill.core.wording import counted
from promptmill.system.safe_open import (
    LONGEST_PATH,
    NoFileError,
    OutsideError,
    home_expanded,
    is_inside,
    open_regular,
)

_SECRET = re.compile(
    r"(?i)(\.env|\.?env\..*|.*\.env|env|dotenv|id_(rsa|dsa|ecdsa|ed25519)(_sk)?(\.pub)?|.*_(rsa|dsa|ecdsa|ed25519)|"
    r"known_hosts|authorized_keys|.*\.(pem|key|ppk|p8|p12|pfx|pkcs12|jks|keystore|kdbx?|asc|gpg|ovpn|tfvars(\.json)?|"
    r"tfstate|agekey|kubeconfig)|kubeconfig.*|"
    r".*(credentials?|secrets?|passwords?|passwd|shadow|htpasswd|(api|access|root)[-_]?keys?|service[-_]?account|"
    r"client[-_]secret|firebase[-_]adminsdk).{0,120}\.(json|ya?ml|toml|ini|cfg|conf|txt|csv|xml|properties)|"
    r".*tokens?\.(json|txt|pickle)|(.*[-_])?(credentials?|secrets?|passwords?|passwd|shadow|htpasswd|api[-_]?keys?|"
    r"token)(\.\w+)?|_?netrc|pgpass.*|.*_history|wallet\.dat|logins\.json|login data|cookies(\.\w+)?|"
    r"wp-config\.php)(~|[ .](bak|backup|old|orig|save|copy|swp|enc|j2|\d+))*"
)
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY")
_PASSED_OVER = frozenset({"node_modules", "__pycache__", "venv"})  # other programs' files
_MAGIC = re.compile(r"[*?\[]")
_MOST_FILES = 10_000
_MOST_LOOKED_AT = 200_000
_LARGEST_FILE, _LARGEST = 1 << 20, 256 << 20
_SHOWN = 20


class WholeFiles:
    """The files that `names` find inside `roots`, read once as lines of JSON."""

    def __init__(self, names: Sequence[str], roots: Sequence[Path]) -> None:
        self._names, self._roots = names, roots
        self.count = 0
        self._left_out: list[str] = []
        self._looked_at = 0

    @property
    def left_out(self) -> list[str]:
        """The files that are left out and why, the first ones."""
        more = len(self._left_out) - _SHOWN
        return self._left_out[:_SHOWN] + ([f"… and {more:,} more"] if more > 0 else [])

    def lines(self) -> Iterator[bytes]:
        """Yield a line for each file, in the order of `names`. Raises `PromptmillError` (`invalid_input`)."""
        seen: set[Path] = set()
        size = 0
        for name in self._names:
            for path, is_found in self._paths(name):
                if path in seen:
                    continue
                seen.add(path)
                try:
                    content = self._read(path)
                except PromptmillError as error:
                    if not is_found:
                        raise input_error(f"`files`: {path} {error.message}.") from None
                    self._left_out.append(f"{path}: {error.message}")
                    continue
                self.count += 1
                size += len(content)
                if self.count > _MOST_FILES or size > _LARGEST:
                    most = f"{counted(_MOST_FILES, 'file')} or {_LARGEST >> 20} MiB"
                    raise input_error(f"`files` finds more than {most}; use narrower patterns.")
                yield orjson.dumps({"path": str(path), "content": content}, option=orjson.OPT_APPEND_NEWLINE)
        if not self.count:
            why = f"; left out: {'; '.join(self.left_out)}" if self._left_out else "; correct the paths or patterns"
            raise input_error(f"`files` finds no file to send{why}.")

    def _paths(self, name: str) -> Iterator[tuple[Path, bool]]:
        """Yield the paths that `name` finds, and whether a pattern found them."""
        if len(name) > LONGEST_PATH:
            raise input_error(f"`files`: {name[:200]}… has {len(name):,} characters; no path is that long.")
        path = home_expanded(name)
        at = next((at for at, part in enumerate(path.parts) if _MAGIC.search(part)), len(path.parts))
        folder, parts = Path(*path.parts[:at]), path.parts[at:]
        try:
            is_allowed = is_inside(folder.absolute().resolve(), self._roots)
            if not is_allowed:
                raise OutsideError
            if not parts and not path.is_dir():
                yield path, False
                return
            if ".." in parts:
                raise input_error(f"`files`: {name:.200} has `..` behind a pattern; write the path without it.")
            for found in self._matches(folder, parts or ("**",)):
                yield found, True
        except (OSError, ValueError, RuntimeError, OutsideError):
            shown = ", ".join(map(str, self._roots)) or "none"
            text = f"`files`: {name:.200} is outside the folders of `allowed_roots` ({shown}), or not a usable path."
            raise input_error(text) from None

    def _matches(self, folder: Path, parts: Sequence[str]) -> Iterator[Path]:
        """Yield the files below `folder` that match the pattern, in order. No link to a folder is followed."""
        first, rest = parts[0], parts[1:]
        if first == "**" and rest:
            yield from self._matches(folder, rest)
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        self._looked_at += len(found)
        if self._looked_at > _MOST_LOOKED_AT:
            raise input_error(f"`files` looks at more than {_MOST_LOOKED_AT:,} files; use narrower patterns.")
        for entry in found:
            path, is_folder = folder / entry.name, entry.is_dir(follow_symlinks=False)
            if first != "**" and not fnmatchcase(entry.name, first):
                continue
            if is_folder and (entry.name.startswith(".") or entry.name in _PASSED_OVER):
                if (why := f"{path}: a folder that is passed over") not in self._left_out:
                    self._left_out.append(why)
            elif is_folder and (first == "**" or rest):
                yield from self._matches(path, parts if first == "**" else rest)
            elif not is_folder and not rest:
                yield path

    def _read(self, path: Path) -> str:
        """Return the text of a file. Raises `PromptmillError` with the reason, as the predicate of a sentence."""
        real = Path(os.path.realpath(path))  # a link is as secret as its target
        below = next((real.relative_to(root) for root in self._roots if real.is_relative_to(root)), Path(real.name))
        if any(part.startswith(".") for part in (*below.parts, path.name)):
            raise input_error("is hidden")
        if any(_SECRET.fullmatch(name) for name in (real.name, path.name)):
            raise input_error("may hold secrets")
        try:
            if not is_inside(real, self._roots):
                raise OutsideError
            with os.fdopen(open_regular(real, (real,)), "rb") as file:  # not what took this name since
                data = file.read(_LARGEST_FILE + 1)
        except OutsideError:
            raise input_error("leads outside the folders of `allowed_roots`") from None
        except (NoFileError, FileNotFoundError):
            raise input_error("is not a file that is there") from None
        except (OSError, ValueError) as error:
            raise input_error(f"cannot be read: {getattr(error, 'strerror', None) or 'not a usable path'}") from None
        if len(data) > _LARGEST_FILE:
            raise input_error(f"is larger than {_LARGEST_FILE >> 20} MiB")
        if _PRIVATE_KEY.search(data):
            raise input_error("holds a private key")
        try:
            text = data.decode("utf-8-sig")
        except ValueError:
            raise input_error("is not UTF-8 text") from None
        if "\0" in text:
            raise input_error("is not text")
        return text
