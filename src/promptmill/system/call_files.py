"""The rule that decides which files of this machine a call may read or write.

**The attacker** is an agent that has read a poisoned page and writes the arguments of calls. It names files directly,
by patterns, by links, or in rows of a file. **The harm**: keys, passwords and transcripts of this machine are sent to
an endpoint or the agent, or a file is planted where a shell or another agent reads it.

A call may use a file

    below a root            `allowed_roots`; if unset, the working directory, unless the home folder is inside it
    with no hidden part     below the root; `.git` and `.env` are hidden
    of an ordinary name     not the name of an environment file, key, key store, credential or password export
    not promptmill's own    its configuration, any `parameter.yaml`, the folder of its jobs
    without secrets in it   see `core.secret_text`; this applies to files that are sent as text

A link counts as secret if its own name or its target counts as secret. The opened file is the file that was checked.
The operator's command line and Python programs may use every file, unless `allowed_roots` restricts their images.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from promptmill.core.bounds import LONGEST_PATH
from promptmill.core.secret_text import SecretFinder
from promptmill.system import safe_open

_ROWS = r"json|jsonl|ndjson|ya?ml|toml|ini|cfg|conf|txt|csv|tsv|parquet|xml|properties"
# Names of files that leak scanners search for, and that coding agents ignore.
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
    """The rule refuses a file. The text is the reason, as the predicate of a sentence."""


@dataclass(frozen=True, slots=True)
class FileRule:
    """The rule for a server's calls. Without arguments, it permits every file, for the operator's own programs."""

    roots: tuple[Path, ...] | None = None
    """The resolved roots; None if files may be anywhere."""
    is_guarded: bool = False
    """Whether names and contents are checked, in addition to the roots."""
    own: tuple[Path, ...] = ()
    """The resolved paths of promptmill's own files and folders."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """The server's own keys, headers and tokens."""
    is_shared: bool = False
    """Whether the callers may be on other machines; if so, errors name no folder above a root."""
    started_in: str = ""
    """The working directory, if it contains too much to be a root."""

    @classmethod
    def of_calls(
        cls,
        allowed_roots: Sequence[str] | None,
        own: Sequence[Path],
        secrets: Sequence[str],
        *,
        is_shared: bool = False,
    ) -> FileRule:
        """Return the rule for a server's calls with this setting of `allowed_roots`. `is_shared`: see the attribute.

        Without the setting, the root is the working directory. Desktop programs start servers in `/` or in the home
        folder, which contain all of the user's files: then there is no root.
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
            is_shared=is_shared,
            started_in=started_in,
        )

    @property
    def finder(self) -> SecretFinder:
        """Finds secrets in the content of files."""
        return SecretFinder(self.secrets)

    @property
    def without_secrets(self) -> FileRule:
        """The rule for a process that reads no text and therefore needs no keys."""
        return replace(self, secrets=())

    def check(self, real: Path, name: str = "") -> None:
        """Check the resolved path `real` of a file, which may be missing. `name`: the name of a link to it.

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
        """Return a descriptor of the regular file to which `path` leads. Raises as `check` and `open_regular` do."""
        return safe_open.open_regular(path, self.roots, lambda real: self.check(real, path.name))

    def resolved(self, path: Path) -> Path:
        """Return the resolved path of `path`, which may be missing. Raises as `check` does, and `ValueError`."""
        if safe_open.is_remote(str(path)) and not any(path.is_relative_to(root) for root in self.roots or ()):
            raise safe_open.OutsideError
        real = safe_open.real_path(path)
        self.check(real, path.name)
        return real

    def placed(self, path: Path) -> Path:
        """Return the path to try for a path that a call names. If the server was started in `/` or in the home folder,
        as desktop programs do, a relative path that does not lead into the only root is tried below the root.
        """
        if not self.is_guarded or path.anchor or len(self.roots or ()) != 1 or not holds_everything(Path()):
            return path
        (root,) = self.roots or ()
        try:
            return path if safe_open.is_inside(safe_open.real_path(path), (root,)) else root / path
        except ValueError:  # not a path: the reader of the file reports it
            return path

    def placed_file(self, path: Path) -> Path:
        """Do the same as `placed` for a file of rows. Callers on other machines do not know where the server was
        started, so their relative path may also be the path of an existing file below a root, as statuses show it."""
        if self.is_shared and not path.anchor and len(str(path)) <= LONGEST_PATH:
            with contextlib.suppress(OSError, ValueError):
                for each in (path, *(root / path for root in self.roots or ())):
                    real = safe_open.real_path(each)
                    if safe_open.is_inside(real, self.roots or ()) and Path(str(real).partition("#")[0]).exists():
                        return each
        return self.placed(path)

    def shown_file(self, path: str) -> str:
        """Return the path of a file for a status: for callers on other machines, a path that they may name or, of a
        file that they may not name, its name."""
        if not self.is_shared:
            return path
        file, roots, here = Path(path), self.roots or (), safe_open.real_path(Path())
        for folder in (*([here] if safe_open.is_inside(here, roots) else ()), *roots):
            name = file.relative_to(folder) if file.is_relative_to(folder) else None
            if name is not None and safe_open.real_path(self.placed_file(name)) == file:
                return str(name)
        return file.name

    def is_own(self, path: Path) -> bool:
        """Return whether the resolved `path` is promptmill's own file (under any name), or in its own folders."""
        return safe_open.is_inside(path, self.own) or any(safe_open.is_same(path, own) for own in self.own)

    def shown(self, root: Path) -> str:
        """Return a root for an error: its whole path, or its name alone for callers on other machines.

        >>> FileRule().shown(Path("data")), FileRule(is_shared=True).shown(Path("/srv/shop/data"))
        ('data', 'data')
        """
        return (root.name or "its folder") if self.is_shared else str(root)

    def below_roots(self, text: str) -> str:
        """Return an error in which, for callers on other machines, paths of files begin below their root.

        >>> root = Path("/srv/data")
        >>> FileRule((root,), is_shared=True).below_roots(f"{root / 'a.csv'} is a pipe in {root}.")
        'a.csv is a pipe in data.'
        """
        for root in self.roots or () if self.is_shared else ():
            path = rf"(?<![\w.:/\\-]){re.escape(str(root))}"
            text = re.sub(rf"{path}[/\\]", "", text)
            text = re.sub(rf"{path}(?!-?\w)", self.shown(root).replace("\\", r"\\"), text)
        return text

    @property
    def words(self) -> str:
        """The permitted folders, for errors: "the folders that agents may use (`allowed_roots`: /data)"."""
        if self.started_in:
            return (
                f"the folders that agents may use (none: set `allowed_roots`; {self.shown(Path(self.started_in))}, "
                "where the server started, holds too much)"
            )
        shown = ", ".join(map(self.shown, self.roots or ())) or "none"
        return f"the folders that agents may use (`allowed_roots`: {shown})"


def holds_everything(folder: Path) -> bool:
    """Return whether a folder is the root of a drive or contains the home folder."""
    folder = safe_open.real_path(folder)
    try:
        return folder.parent == folder or safe_open.is_inside(Path.home().resolve(), (folder,))
    except (OSError, RuntimeError):  # the home folder is unknown
        return True


def is_secret_name(name: str) -> bool:
    """Return whether a file with this name probably contains secrets."""
    return _SECRET.fullmatch(_plain(name)) is not None


def _is_hidden(name: str) -> bool:
    return _plain(name).startswith(".") and name != os.pardir


def _plain(name: str) -> str:
    """Return a name as file systems may compare it: without invisible characters and parts that Windows ignores."""
    plain = unicodedata.normalize("NFKC", name) if not name.isascii() else name
    if not plain.isascii():
        plain = "".join(letter for letter in plain if unicodedata.category(letter) != "Cf")  # HFS+ ignores them
    if sys.platform == "win32":
        plain = plain.partition(":")[0]  # the name without a stream: `.env::$DATA` is `.env`
    return plain.rstrip(". ") or plain


def _below(path: Path, roots: Sequence[Path]) -> Iterator[tuple[str, ...]]:
    """Yield the parts of `path` below each root that contains it."""
    for root in roots:
        if path.is_relative_to(root):
            yield path.relative_to(root).parts
        elif not safe_open.CASE_COUNTS:  # compared by identity, because the path may spell the root differently
            yield from (
                path.relative_to(above).parts for above in (path, *path.parents) if safe_open.is_same(above, root)
            )
