"""What the server says of itself, written down when it is released: `scripts/manifest.py` makes the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("manifest.json")


class Manifest:
    """The server's own results for the requests of an opening, without the server."""

    def __init__(self, written: dict[str, Any], *, locked: bool) -> None:
        """`written`: what the file holds."""
        self._written = written
        self._variant: dict[str, Any] = written["locked" if locked else "open"]
        self.modern_version: str = written["discover"]["supportedVersions"][-1]

    @classmethod
    def read(cls, *, locked: bool) -> Manifest:
        """Read the manifest of a server that is `locked` or not."""
        return cls(json.loads(FILE.read_text(encoding="utf-8")), locked=locked)

    def initialize(self, version: str) -> dict[str, Any]:
        """Return the result of `initialize` for a client that asks for this version of the protocol."""
        known: list[str] = self._written["handshake_versions"]
        agreed = version if version in known else known[-1]
        return self._instructed("initialize") | {"protocolVersion": agreed}

    def discover(self) -> dict[str, Any]:
        """Return the result of `server/discover`."""
        return self._instructed("discover")

    def tools(self, *, modern: bool) -> dict[str, Any]:
        """Return the result of `tools/list`."""
        tools = [self._written["tools"][name] for name in self._variant["tools"]]
        more: dict[str, Any] = self._written["modern_list"] if modern else {}
        return {"tools": tools} | more

    def _instructed(self, name: str) -> dict[str, Any]:
        result: dict[str, Any] = self._written[name]
        return result | {"instructions": self._variant["instructions"]}
