"""Which files of this machine a call may use: one rule for all that calls name, whether to read or to write.

**The attacker** is an agent that has read a poisoned page and now writes the arguments of calls. It names files
directly, by patterns, by links, or in rows of a file. **The harm**: keys, passwords and transcripts of this machine are
sent to an endpoint or back to the agent, or a file is planted where a shell or another agent will read it.

A call may use a file

    below a root            `allowed_roots`, else the working directory, unless that holds the home folder
    with no hidden part     below the root, `.git` as well as `.env`
    of an ordinary name     no name of environment files, keys, key stores, credentials and password exports
    not promptmill's own    its configuration, any `parameter.yaml`, the folder of its jobs
    without secrets in it   see `core.secret_text`; this counts for files that are sent as text

A link is as secret as its target, and its own name counts, too. The file that is opened is the file that was checked.
The operator's command line and Python programs may use every file, unless `allowed_roots` restricts their images.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from promptmill.core.secret_text import SecretFinder
from promptmill.system import safe_open

_ROWS = r"json|jsonl|ndjson|ya?ml|toml|ini|cfg|conf|txt|csv|tsv|parquet|xml|properties"
# The names that tools against leaks look for, and that the ignore lists of coding agents contain.
_SECRET = re.compile(
    r"(?i)(env|dotenv|(.*\.)?env(\..*)?|id_(rsa|dsa|ecdsa|ed25519)(_sk)?(\.pub)?|.*_(rsa|dsa|ecdsa|ed25519)|"
    r"known_hosts|authorized_keys|.*\.(pem|key|ppk|p8|p12|pfx|pkcs12|jks|keystore|kdbx?|asc|gpg|ovpn|tfvars(\.json)?|"
    r"tfstate|agekey|kubeconfig|1pif|1pux)|kubeconfig.*|"
    r".*(credentials?|secrets?|passwords?|passwd|shadow|htpasswd|(api|access|root)[-_]?keys?|service[-_]?account|"
    rf"client[-_]secret|firebase[-_]adminsdk).{{0,120}}\.({_ROWS})|"
    rf".*(bitwarden|lastpass|1password|keepass|dashlane|nordpass|enpass|proton[-_ ]?pass|roboform).*\.({_ROWS}|html)|"
    r".*tokens?\.(json|txt|pickle)|(.*[-_])?(credentials?|secrets?|passwords?|passwd|shadow|htpasswd|api[-_]?keys?|"
    r"token)(\.\w+)?|_?netrc|pgpass.*|.*_history|wallet\.dat|logins\.json|login data|cookies(\.\w+)?|"
    r"wp-config\.php)(~|[ .](bak|backup|old|orig|save|copy|swp|enc|j2|\d+))*(\.(gz|zst|bz2|xz|zip))?"
)
_SECRET_FOLDER = re.compile(r"(?i)(.*[-_.])?(credentials?|secrets?|passwords?)")
_CONFIGURATION = re.compile(r"(?i)parameter\.y.*ml.*")
MAY_HOLD_SECRETS = "may hold secrets"


class RefusedError(Exception):
    """The rule refuses a file; the text is the reason, as the predicate of a sentence."""


@dataclass(frozen=True, slots=True)
class FileRule:
    """The rule for one server's calls. Without arguments, it allows every file: for the operator's own programs."""

    roots: tuple[Path, ...] | None = None
    """Resolved; None: anywhere."""
    is_guarded: bool = False
    """Whether more than the roots counts."""
    own: tuple[Path, ...] = ()
    """promptmill's own files and folders, resolved."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """The server's own keys, headers and tokens."""
    started_in: str = ""
    """The working directory, if it is too much for a root."""

    @classmethod
    def of_calls(cls, allowed_roots: Sequence[str] | None, own: Sequence[Path], secrets: Sequence[str]) -> FileRule:
        """Return the rule for the calls of a server with this setting.

        Without the setting, the root is the working directory. Desktop programs start their servers in `/` or in the
        home folder, where this would be everything that the user has: then there is no root.
        """
        roots, started_in = safe_open.roots_of(allowed_roots), ""
        if roots is None:
            folder = safe_open.real_path(Path())
            roots, started_in = ((), str(folder)) if holds_everything(folder) else ((folder,), "")
        return cls(
            roots,
            is_guarded=True,
            own=tuple(map(safe_open.real_path, own)),
            secrets=tuple(secrets),
            started_in=started_in,
        )

    @property
    def finder(self) -> SecretFinder:
        """Finds secrets in the content of files."""
        return SecretFinder(self.secrets)

    @property
    def without_secrets(self) -> FileRule:
        """The rule for a process that reads no text, and needs no keys."""
        return replace(self, secrets=())

    def check(self, real: Path, name: str = "") -> None:
        """Check the resolved path `real` of a file that may be missing; `name` is the name of a link to it.

        Raises `OutsideError`, `RefusedError`.
        """
        if self.roots is None:
            return
        if not safe_open.is_inside(real, self.roots):
            raise safe_open.OutsideError
        if not self.is_guarded:
            return
        below = list(_below(real, self.roots))
        if all(any(map(_is_hidden, parts)) for parts in below) or _is_hidden(name):
            raise RefusedError("is hidden")
        if self.is_own(real) or _CONFIGURATION.fullmatch(_plain(real.name)):
            raise RefusedError("belongs to promptmill itself")
        if any(is_secret_name(each) for each in (real.name, name)) or all(
            any(_SECRET_FOLDER.fullmatch(_plain(part)) for part in parts[:-1]) for parts in below
        ):
            raise RefusedError(f"{MAY_HOLD_SECRETS}, by its name")

    def open(self, path: Path) -> int:
        """Return a descriptor of the regular file that `path` leads to. Raises as `check` and `open_regular` do."""
        return safe_open.open_regular(path, self.roots, lambda real: self.check(real, path.name))

    def resolved(self, path: Path) -> Path:
        """Return the path that `path` leads to; the file may be missing. Raises as `check` does, and `ValueError`."""
        if safe_open.is_remote(str(path)) and not any(path.is_relative_to(root) for root in self.roots or ()):
            raise safe_open.OutsideError
        real = safe_open.real_path(path)
        self.check(real, path.name)
        return real

    def placed(self, path: Path) -> Path:
        """Return the path to try for one that a call names: a relative one is below the only root, if the server was
        started in `/` or in the home folder, as desktop programs do, and it does not lead inside from there.
        """
        if not self.is_guarded or path.anchor or len(self.roots or ()) != 1 or not holds_everything(Path()):
            return path
        (root,) = self.roots or ()
        try:
            return path if safe_open.is_inside(safe_open.real_path(path), (root,)) else root / path
        except ValueError:  # no path: its reader reports it
            return path

    def is_own(self, path: Path) -> bool:
        """Return whether `path`, resolved, is one of promptmill's own files, by any name, or in such a folder."""
        return safe_open.is_inside(path, self.own) or any(safe_open.is_same(path, own) for own in self.own)

    @property
    def words(self) -> str:
        """The places of files, for errors: "the folders that agents may use (`allowed_roots`: /data)"."""
        if self.started_in:
            return (
                f"the folders that agents may use: no `allowed_roots` is set, and {self.started_in}, where the server "
                "started, is too much to allow"
            )
        shown = ", ".join(map(str, self.roots or ())) or "none"
        return f"the folders that agents may use (`allowed_roots`: {shown})"


def holds_everything(folder: Path) -> bool:
    """Return whether a folder is a drive's root or holds the home folder."""
    folder = safe_open.real_path(folder)
    try:
        return folder.parent == folder or safe_open.is_inside(Path.home().resolve(), (folder,))
    except (OSError, RuntimeError):  # the home folder is unknown
        return True


def is_secret_name(name: str) -> bool:
    """Return whether a file of this name is likely to hold secrets, whatever is in it."""
    return _SECRET.fullmatch(_plain(name)) is not None


def _is_hidden(name: str) -> bool:
    return _plain(name).startswith(".") and name != os.pardir


def _plain(name: str) -> str:
    """Return a name as file systems may compare it: without invisible letters, and without what Windows ignores."""
    plain = unicodedata.normalize("NFKC", name) if not name.isascii() else name
    if not plain.isascii():
        plain = "".join(letter for letter in plain if unicodedata.category(letter) != "Cf")  # HFS+ ignores them
    if sys.platform == "win32":
        plain = plain.partition(":")[0]  # `.env::$DATA` is a stream of `.env`
    return plain.rstrip(". ") or plain


def _below(path: Path, roots: Sequence[Path]) -> Iterator[tuple[str, ...]]:
    """Yield the parts of `path` below each root that holds it."""
    for root in roots:
        if path.is_relative_to(root):
            yield path.relative_to(root).parts
        elif not safe_open.CASE_COUNTS:  # the root may have another spelling in the path
            yield from (
                path.relative_to(above).parts for above in (path, *path.parents) if safe_open.is_same(above, root)
            )
