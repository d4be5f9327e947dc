"""A Hugging Face Hub on loopback: the paths that huggingface_hub uses to read a dataset and to commit into one."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789"[:34]
_API = re.compile(r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info|preupload|commit)/([^/]+)(?:/(.*))?)?")
_FILE = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_LFS = re.compile(r"/datasets/([^/]+/[^/]+)\.git/info/lfs/objects/batch")


@dataclass
class Repo:
    """A dataset and its commits, the newest last."""

    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])
    titles: list[str] = field(default_factory=lambda: ["initial commit"])
    is_private: bool = False

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the newest commit."""
        return self.commits[-1]

    def sha(self, at: int = -1) -> str:
        """The id of a commit."""
        number = range(len(self.commits))[at]
        return hashlib.sha1(f"{number} {sorted(self.commits[number])}".encode()).hexdigest()

    def commit(self, changes: dict[str, bytes], title: str = "by hand") -> str:
        """Add a commit; return its id."""
        self.commits.append({**self.files, **changes})
        self.titles.append(title)
        return self.sha()

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The id and the files of a revision."""
        for number, files in enumerate(self.commits):
            if self.sha(number).startswith(revision):
                return self.sha(number), files
        return (self.sha(), self.files) if revision == "main" else None


class FakeHub:
    """The server's state."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.uploaded: dict[str, bytes] = {}
        self.user: dict[str, Any] = {
            "type": "user",
            "name": "ada",
            "orgs": [{"name": "acme"}],
            "auth": {"accessToken": {"displayName": "test", "role": "write"}},
        }
        self.seen: list[str] = []
        self.fails: dict[str, int] = {}
        """The status with which a request fails whose path contains the text."""
        self.url = ""


def _is_lfs(path: str) -> bool:
    return path.endswith(".parquet")


def _entry(path: str, content: bytes) -> dict[str, Any]:
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    found: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git}
    if _is_lfs(path):
        lfs = hashlib.sha256(content).hexdigest()
        found["lfs"] = {"oid": lfs, "size": len(content), "pointerSize": 134}
    return found


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def _send(self, status: int, body: Any = b"", **headers: str) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            headers.setdefault("content_length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def _refused(self, code: str, status: int = 404) -> None:
            self._send(status, {"error": code}, x_error_code=code, x_error_message=code)

        def _answer(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = self.rfile.read(length)
            if self.headers.get("transfer-encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            path = unquote(urlsplit(self.path).path)
            hub.seen.append(f"{self.command} {path}")
            for text, status in hub.fails.items():
                if text in path:
                    self._send(status, {"error": "no"})
                    return
            may = self.headers.get("authorization") == f"Bearer {TOKEN}"
            if path == "/api/whoami-v2":
                self._send(200, hub.user) if may else self._send(401, {"error": "Invalid user token."})
            elif path == "/api/validate-yaml":
                self._send(200, {"errors": [], "warnings": []})
            elif path == "/api/repos/create":
                self._create(json.loads(body), may=may)
            elif lfs := _LFS.fullmatch(path):
                self._batch(json.loads(body), lfs[1])
            elif path.startswith("/upload/"):
                hub.uploaded[path.removeprefix("/upload/")] = body
                self._send(200)
            elif (found := _API.fullmatch(path)) or (found := _FILE.fullmatch(path)):
                repo = hub.repos.get(found[1])
                if repo is None or (repo.is_private and not may):
                    self._refused("RepoNotFound", 404 if may else 401)
                elif found.re is _FILE:
                    self._file(repo, found[2], found[3])
                else:
                    self._api(repo, found[1], found[2] or "revision", found[3] or "main", found[4] or "", body)
            else:
                self._send(404, {"error": path})

        def _create(self, asked: dict[str, Any], *, may: bool) -> None:
            name = f"{asked.get('organization') or 'ada'}/{asked['name']}"
            if not may:
                self._send(401, {"error": "Invalid user token."})
            elif name in hub.repos:
                self._send(409, {"error": "You already created this dataset repo", "url": f"{hub.url}/datasets/{name}"})
            else:
                is_private = asked.get("private") or asked.get("visibility") == "private"
                hub.repos[name] = Repo(is_private=bool(is_private))
                self._send(200, {"url": f"{hub.url}/datasets/{name}", "name": name})

        def _batch(self, asked: dict[str, Any], name: str) -> None:
            del name
            objects = [
                {**each, "actions": {"upload": {"href": f"{hub.url}/upload/{each['oid']}"}}}
                for each in asked["objects"]
            ]
            self._send(200, {"transfer": "basic", "objects": objects}, content_type="application/vnd.git-lfs+json")

        def _file(self, repo: Repo, revision: str, path: str) -> None:
            known = repo.at(revision)
            if known is None or path not in known[1]:
                self._refused("RevisionNotFound" if known is None else "EntryNotFound")
                return
            entry = _entry(path, known[1][path])
            etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
            self._send(200, known[1][path], etag=f'"{etag}"', x_repo_commit=known[0], accept_ranges="bytes")

        def _api(self, repo: Repo, name: str, what: str, revision: str, path: str, body: bytes) -> None:
            known = repo.at(revision)
            if known is None:
                self._refused("RevisionNotFound")
                return
            sha, files = known
            if what == "revision":
                self._send(
                    200, {"_id": "1", "id": name, "sha": sha, "private": repo.is_private, "siblings": [], "tags": []}
                )
            elif what == "tree":
                found = [_entry(each, files[each]) for each in files if not path or each.startswith(f"{path}/")]
                self._send(200, found, content_type="application/json")
            elif what == "paths-info":
                wanted = parse_qs(body.decode()).get("paths", [])
                if body.startswith(b"{"):
                    wanted = json.loads(body)["paths"]
                self._send(200, [_entry(each, files[each]) for each in wanted if each in files])
            elif what == "preupload":
                self._send(
                    200,
                    {
                        "files": [
                            {
                                "path": each["path"],
                                "uploadMode": "lfs" if _is_lfs(each["path"]) else "regular",
                                "shouldIgnore": False,
                                **self._oid(files, each["path"]),
                            }
                            for each in json.loads(body)["files"]
                        ]
                    },
                )
            else:
                self._commit(repo, name, body)

        @staticmethod
        def _oid(files: dict[str, bytes], path: str) -> dict[str, str]:
            if path not in files:
                return {}
            entry = _entry(path, files[path])
            return {"oid": entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]}

        def _commit(self, repo: Repo, name: str, body: bytes) -> None:
            lines = [json.loads(line) for line in body.splitlines()]
            header = lines[0]["value"]
            if header.get("parentCommit") not in {None, repo.sha()}:
                self._send(412, {"error": "A commit has happened since. Please refresh and try again."})
                return
            changes: dict[str, bytes] = {}
            for line in lines[1:]:
                value = line["value"]
                content = base64.b64decode(value["content"]) if line["key"] == "file" else hub.uploaded[value["oid"]]
                changes[value["path"]] = content
            sha = repo.commit(changes, header["summary"])
            self._send(200, {"success": True, "commitOid": sha, "commitUrl": f"{hub.url}/datasets/{name}/commit/{sha}"})

        do_GET = do_POST = do_HEAD = do_PUT = _answer  # noqa: N815

    return Handler


@contextmanager
def running() -> Iterator[FakeHub]:
    """Run the server for the time of the block."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
