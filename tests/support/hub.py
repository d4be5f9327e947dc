"""A model hub on loopback, which refuses as the real one does, or gives the files of one model.

with refusing_hub() as hub:           # names in REFUSALS are refused, each in its way
with Mirror(folder) as mirror:        # `we/model` is the model in `folder`
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# status, X-Error-Code, X-Error-Message: as huggingface.co answers
REFUSALS = {
    "gated/without-token": (401, "GatedRepo", "Access to model gated/without-token is restricted."),
    "gated/not-accepted": (403, "GatedRepo", "Access to model gated/not-accepted is restricted."),
    "nobody/nothing": (401, "RepoNotFound", "Repository not found"),
    "nobody/with-token": (404, "RepoNotFound", "Repository not found"),
    "wrong/token": (401, None, "Invalid credentials in Authorization header"),
    "mirror/unknown": (403, None, None),
    "hub/busy": (429, None, None),
    "other/format": (404, "EntryNotFound", "Entry not found"),
    "hub/tired": (503, None, None),
}
_COMMIT = "a" * 40


def environment(url: str, home: Path) -> dict[str, str]:
    """Return what leads an engine to the hub at `url`, with an empty cache in `home`."""
    return {"HF_ENDPOINT": url, "HF_HOME": str(home), "no_proxy": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}


class _Refusing(BaseHTTPRequestHandler):
    asked: list[str]

    def do_HEAD(self) -> None:
        self.asked.append(self.path)
        name = "/".join(self.path.split("/")[1:3])
        status, code, message = REFUSALS.get(name, (200, None, None))
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if message:
            self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@dataclass
class RefusingHub:
    """The address of a hub, and the paths that it was asked for."""

    url: str
    asked: list[str]


@contextmanager
def refusing_hub() -> Iterator[RefusingHub]:
    """Serve a hub that refuses the names in `REFUSALS`."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Refusing,), {"asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield RefusingHub(f"http://127.0.0.1:{server.server_port}", asked)
    finally:
        server.shutdown()
        server.server_close()


class Mirror:
    """Gives the files of one model as `we/model`, until the `with` ends; `asked` are the paths that were asked for.

    With a `token` it gives them only to those who send it.
    """

    def __init__(self, folder: Path, *, token: str | None = None) -> None:
        self.asked: list[str] = []
        mirror = self

        class Handler(_Mirroring):
            files = folder
            asked = mirror.asked
            wanted = f"Bearer {token}" if token else None

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Mirror:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Mirroring(BaseHTTPRequestHandler):
    files: Path
    asked: list[str]
    wanted: str | None

    def do_HEAD(self) -> None:
        self._give(body=False)

    def do_GET(self) -> None:
        self._give(body=True)

    def _give(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path == "/":
            self._send(b"", body=body)
            return
        self.asked.append(self.path)
        if self.wanted and self.headers.get("Authorization") != self.wanted:
            self._refuse(401, "GatedRepo")
            return
        if path.startswith("/api/models/we/model"):
            self._send(json.dumps(self._listing(path)).encode(), body=body)
            return
        _, owner, name, *rest = [*path.split("/"), "", ""]
        file = self.files / "/".join(rest[2:-2])
        if (owner, name) == ("we", "model") and rest[:1] == ["resolve"] and file.is_file():
            data = file.read_bytes()
            self._send(data, body=body, ETag=f'"{hashlib.sha256(data).hexdigest()}"', **{"X-Repo-Commit": _COMMIT})
            return
        self._refuse(404, "EntryNotFound")

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _listing(self, path: str) -> object:
        files = sorted(file for file in self.files.iterdir() if file.is_file())
        if "/tree/" in path:
            return [{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0"} for file in files]
        return {"id": "we/model", "sha": _COMMIT, "siblings": [{"rfilename": file.name} for file in files]}

    def _send(self, data: bytes, *, body: bool, **headers: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass
