"""Answers on disk, shared by all processes of one user: bounded in size and age, readable by that user alone."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from promptmill.core.errors import Code, PromptmillError
from promptmill.system.safe_open import make_private

FILE_NAME = "answers.sqlite"
MOST_BYTES = 1 << 30
MOST_AGE_S = 30 * 24 * 3600.0
_LOOK_AFTER = 1000  # answers written between two looks at size and age
_AT_ONCE = 500  # SQLite takes at least 999 parameters
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, answer BLOB NOT NULL, made REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_age ON answers (made);
"""


def default_path() -> Path:
    """Return where answers are kept unless the configuration names a place: beside our other caches."""
    if named := os.environ.get("PROMPTMILL_CACHE"):
        return Path(named).expanduser() / "answers" / FILE_NAME
    import platformdirs

    return platformdirs.user_cache_path("promptmill") / "answers" / FILE_NAME


def path_of(wanted: bool | str) -> Path:  # noqa: FBT001 (as the configuration says it)
    """Return the file that the key `cache` of the configuration means: `true` and `all` mean the default one."""
    return default_path() if wanted is True or wanted == "all" else Path(str(wanted)).expanduser()


class AnswerCache:
    """Bytes by key. All methods block and may be called from any thread; they raise `PromptmillError` (`storage`)."""

    def __init__(self, path: Path, *, most_bytes: int = MOST_BYTES, most_age_s: float = MOST_AGE_S) -> None:
        """Open the file at `path` or make it; nothing is read yet."""
        self.path = path
        self._most_bytes = most_bytes
        self._most_age_s = most_age_s
        self._lock = threading.Lock()
        self._written = 0
        try:
            _make_private(path)
            self._db = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
            for pragma in ("journal_mode=WAL", "synchronous=OFF"):  # what a power loss takes is asked for again
                self._db.execute(f"PRAGMA {pragma}")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise _unusable(path, error) from None

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the answers that are known and not too old."""
        found: dict[bytes, bytes] = {}
        since = time.time() - self._most_age_s
        with self._lock, self._storage_errors():
            for start in range(0, len(keys), _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(some))
                query = f"SELECT key, answer FROM answers WHERE key IN ({marks}) AND made > ?"  # noqa: S608 (marks alone)
                found.update(self._db.execute(query, (*some, since)))
        return found

    def put(self, answers: Iterable[tuple[bytes, bytes]]) -> None:
        """Keep `answers`, and drop the oldest when there are too many."""
        now = time.time()
        rows = [(key, answer, now) for key, answer in answers]
        with self._lock, self._storage_errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)
                self._written += len(rows)
                if self._written >= _LOOK_AFTER or self._bytes() > self._most_bytes:
                    self._written = 0
                    self._drop_old(now)
            finally:
                self._db.execute("COMMIT")

    def summary(self) -> dict[str, Any]:
        """Return path, number of answers, their size in bytes and the age of the oldest in seconds."""
        with self._lock, self._storage_errors():
            count, oldest = self._db.execute("SELECT count(*), min(made) FROM answers").fetchone()
            size = self._bytes()
        age = None if oldest is None else round(time.time() - oldest)
        return {"path": str(self.path), "answers": count, "bytes": size, "oldest_s": age}

    def clear(self) -> int:
        """Forget everything; return how many answers that were."""
        with self._lock, self._storage_errors():
            count: int = self._db.execute("DELETE FROM answers").rowcount
            self._db.execute("VACUUM")
        return count

    def close(self) -> None:
        """Close the file."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            self._db.close()

    def _bytes(self) -> int:
        pages, free, size = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def _drop_old(self, now: float) -> None:
        self._db.execute("DELETE FROM answers WHERE made <= ?", (now - self._most_age_s,))
        while self._bytes() > self._most_bytes:
            oldest = "SELECT key FROM answers ORDER BY made LIMIT max(1, (SELECT count(*) / 10 FROM answers))"
            if not self._db.execute(f"DELETE FROM answers WHERE key IN ({oldest})").rowcount:  # noqa: S608 (a constant)
                break

    @contextlib.contextmanager
    def _storage_errors(self) -> Any:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise _unusable(self.path, error) from None


def _make_private(path: Path) -> None:
    """Make the file, for this user alone. Raises `OSError`, also for another user's file or a link."""
    make_private(path.parent)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    if sys.platform == "win32":
        return
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(1, "it is not a regular file of this user's")
    if found.st_mode & 0o077:
        path.chmod(0o600)


def _unusable(path: Path, error: Exception) -> PromptmillError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return PromptmillError(
        Code.STORAGE, f"The cache {path} cannot be used: {reason}.", "Remove the file, or name another in `cache`."
    )
