"""An endpoint whose key changes, and the program that prints the key of the moment.

keys = ChangingKey(folder)                      # keys.command is for `api_key_command`
upstream.reply = keys.guard(late(0.05))         # 401 for any key but that of the moment
keys.change()                                   # or `every=40`: after so many answers
assert keys.runs == 2                           # how often the program ran
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from replies import answer, status
from upstream import Exchange, Reply

_PROGRAM = """
import pathlib, sys
folder = pathlib.Path(sys.argv[1])
with (folder / "runs").open("a") as runs:
    runs.write("x")
failures = folder / "failures"
left = int(failures.read_text()) if failures.exists() else 0
if left:
    failures.write_text(str(left - 1))
    print("the token service is away, not", (folder / "key").read_text(), file=sys.stderr)
    sys.exit(7)
print((folder / "output").read_text())
"""
EXPIRED = status(401, "The access token expired")


class ChangingKey:
    """The key of the moment. A folder holds it, for the program."""

    def __init__(self, folder: Path, *, every: int = 0, expires_in: float | None = None) -> None:
        """`every`: the answers after which the key changes. `expires_in`: the seconds that the program states."""
        self._folder, self._every, self._expires_in = folder, every, expires_in
        self._numbers, self._lock = itertools.count(1), threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        program = folder / "print_key.py"
        program.write_text(_PROGRAM, encoding="utf-8")
        self.command = [sys.executable, "-I", "-S", str(program), str(folder)]
        self.answered: Counter[str] = Counter()
        """By prompt: the accepted requests."""
        self.refused = 0
        self.all: list[str] = []
        self.change()

    def change(self) -> None:
        """From now on, accept only another key."""
        self.now = f"renewed-key-{next(self._numbers):04}-of-the-hour"
        self.all.append(self.now)
        output: Any = (
            self.now
            if self._expires_in is None
            else json.dumps({"access_token": self.now, "expires_in": self._expires_in})
        )
        for name, text in (("key", self.now), ("output", output)):
            (self._folder / f"{name}.new").write_text(text, encoding="utf-8")
            (self._folder / f"{name}.new").replace(self._folder / name)

    def fail(self, times: int) -> None:
        """Let the next runs of the program fail."""
        (self._folder / "failures").write_text(str(times), encoding="utf-8")

    @property
    def runs(self) -> int:
        """How often the program ran."""
        path = self._folder / "runs"
        return len(path.read_text(encoding="utf-8")) if path.exists() else 0

    def is_now(self, headers: dict[str, str]) -> bool:
        """Return whether a request has the key of the moment, in any header."""
        return any(self.now in value for value in headers.values())

    def guard(self, reply: Reply | None = None, refusal: Reply = EXPIRED) -> Reply:
        """Return a reply that refuses other keys. The key is judged when the request arrives."""
        accepted = reply or answer()

        async def guarded(exchange: Exchange) -> None:
            if not self.is_now(exchange.seen.headers):
                self.refused += 1
                await refusal(exchange)
                return
            self.answered[exchange.seen.prompt] += 1
            if self._every and self.answered.total() % self._every == 0:
                self.change()
            await accepted(exchange)

        return guarded
