"""`/v1/files`, over real HTTP and with OpenAI's client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import openai
import pytest

from openai_clients import changed, client_of, servers
from promptmill.core import bounds
from promptmill.core.errors import PromptmillError
from promptmill.features.openai_server import stored_files
from promptmill.features.openai_server.api_errors import ApiError
from promptmill.features.openai_server.batch_rows import FileCheck
from promptmill.features.openai_server.batch_runs import BatchRuns
from promptmill.features.openai_server.object_store import Listing, ObjectStore, StoredObject
from promptmill.features.openai_server.stored_files import Expiry, StoredFiles, checked
from served import BEARER, TOKEN, ServedHere
from waiting import eventually, until

pytestmark = pytest.mark.http
DAY_S = 86_400


@pytest.fixture
def serve(tmp_path, upstream):
    with servers(tmp_path, upstream.url, ServedHere) as start:
        yield start


@pytest.fixture
def own_server(serve) -> ServedHere:
    """A server with a state of its own."""
    return serve()


def form(*parts: tuple[str, bytes], boundary: str = "b") -> tuple[dict[str, str], bytes]:
    """Return the headers and the body of an upload; a part is the value of its disposition and its bytes."""
    body = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data + b"\r\n"
        for head, data in parts
    )
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return BEARER | kind, body + f"--{boundary}--\r\n".encode()


FILE = ('name="file"; filename="a.jsonl"', b"{}")
PURPOSE = ('name="purpose"', b"batch")


def test_a_file_comes_back_as_it_was_sent(client):
    data = bytes(range(256)) * 5000  # several pieces, with every byte
    file = client.files.create(file=("data.bin", data), purpose="user_data")
    assert (file.object, file.status, file.bytes, file.filename) == ("file", "processed", len(data), "data.bin")
    assert (file.purpose, file.expires_at) == ("user_data", None)
    assert abs(file.created_at - time.time()) < 60
    assert client.files.content(file.id).content == data
    assert client.files.retrieve(file.id) == file
    assert client.files.wait_for_processing(file.id) == file
    assert client.files.delete(file.id).deleted
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError) as raised:
            ask(file.id)
        assert raised.value.body["type"] == "not_found_error"


def test_files_of_batches_expire_after_a_month_unless_the_client_names_another_time(client):
    file = client.files.create(file=("a", b"{}"), purpose="batch")
    assert file.expires_at == file.created_at + 30 * DAY_S
    file = client.files.create(
        file=("a", b"{}"), purpose="evals", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at == file.created_at + 3600
    with pytest.raises(openai.BadRequestError) as raised:
        client.files.create(file=("a", b"{}"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 9})
    assert raised.value.body["param"] == "expires_after.seconds"


def test_an_expired_file_is_gone_and_its_bytes_too(tmp_path, serve):
    first = serve()
    client = client_of(first)
    file, kept = (client.files.create(file=("a", b"{}"), purpose="batch") for _ in range(2))
    first.kill()
    changed(tmp_path, "UPDATE object SET expires = 1 WHERE id = ?", file.id)
    client = client_of(serve())
    assert [each.id for each in client.files.list()] == [kept.id]
    with pytest.raises(openai.NotFoundError):
        client.files.content(file.id)
    eventually(lambda: [path.name for path in (tmp_path / "state/openai/files").iterdir()] == [kept.id])


def test_a_list_has_pages_an_order_and_a_purpose(own_server):
    client = client_of(own_server)
    files = [
        client.files.create(file=("a", b"{}"), purpose="batch" if number % 2 else "evals").id for number in range(5)
    ]
    assert [each.id for each in client.files.list(limit=2)] == files[::-1]  # the client follows `has_more`
    assert [each.id for each in client.files.list(limit=2, order="asc")] == files
    assert [each.id for each in client.files.list(purpose="batch", order="asc")] == files[1::2]
    page = client.files.list(limit=2, after=files[1], order="asc")
    assert ([each.id for each in page.data], page.has_more) == (files[2:4], True)
    assert not client.files.list(limit=1, after=files[3], order="asc").has_more
    for wrong in ({"limit": 0}, {"limit": 10_001}, {"order": "up"}, {"after": "file-unknown"}):
        with pytest.raises(openai.BadRequestError):
            client.files.list(**wrong)


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ([FILE], "purpose"),
        ([FILE, ('name="purpose"', b"mischief")], "purpose"),
        ([PURPOSE], "file"),
        ([PURPOSE, FILE, FILE], "file"),
        ([FILE, PURPOSE, ('name="expires_after[seconds]"', b"3600")], "expires_after.anchor"),
    ],
)
def test_an_incomplete_upload_is_refused_and_leaves_nothing(tmp_path, own_server, parts, param):
    headers, body = form(*parts)
    answer = own_server.ask("POST", "/v1/files", headers, body)
    assert (answer.status, answer.json["error"]["param"]) == (400, param)
    assert not list((tmp_path / "state/openai/files").iterdir())


def test_azures_names_of_the_expiry_are_understood(server):
    expiry = [('name="expires_after.anchor"', b"created_at"), ('name="expires_after.seconds"', b"7200")]
    found = server.ask("POST", "/v1/files", *form(PURPOSE, *expiry, FILE)).json
    assert found["expires_at"] == found["created_at"] + 7200


def test_a_body_that_is_no_form_is_refused(tmp_path, own_server):
    headers, body = form(FILE, PURPOSE)
    for wrong, text in ((BEARER, body), (headers, body[:-9]), (headers, b"--c" + body), (headers, b"")):
        answer = own_server.ask("POST", "/v1/files", wrong, text)
        assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")
    answer = own_server.ask("POST", "/v1/files", *form(FILE, ('name="x"', bytes(bounds.LONGEST_FIELD + 1)), PURPOSE))
    assert (answer.status, answer.json["error"]["param"]) == (400, "file")
    assert not list((tmp_path / "state/openai/files").iterdir())


def test_a_token_is_needed_and_sees_its_own_files_alone(tmp_path, upstream, own_server):
    assert own_server.ask("GET", "/v1/files").status == 401
    with servers(tmp_path, upstream.url, ServedHere) as serve:
        client = client_of(own_server)
        file = client.files.create(file=("a", b"{}"), purpose="batch")
        changed(tmp_path, "UPDATE object SET owner = 'another' WHERE id = ?", file.id)
        other = client_of(serve())
        assert not other.files.list().data
        for ask in (other.files.retrieve, other.files.content, other.files.delete):
            with pytest.raises(openai.NotFoundError):
                ask(file.id)
        with pytest.raises(openai.NotFoundError):
            other.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")


def pieces(*parts: tuple[str, bytes]) -> tuple[str, AsyncGenerator[bytes]]:
    """Return the type and the pieces of an upload; boundaries and headers are cut anywhere."""
    headers, body = form(*parts)

    async def stream() -> AsyncGenerator[bytes]:
        for start in range(0, len(body), 7):
            yield body[start : start + 7]

    return headers["Content-Type"], stream()


async def test_the_size_and_the_number_of_files_are_bounded(tmp_path, monkeypatch):
    files = StoredFiles(ObjectStore(tmp_path))
    monkeypatch.setattr(stored_files, "LARGEST_UPLOAD", 100)
    monkeypatch.setattr(stored_files, "LONGEST_FIELD", 400)
    monkeypatch.setattr(stored_files, "MOST_UPLOADS", 2)
    for count in range(2):
        file = await files.upload(*pieces(PURPOSE, FILE), "me")
        assert files.path(file.id).read_bytes() == b"{}", count
    with pytest.raises(ApiError, match="2 files"):
        await files.upload(*pieces(PURPOSE, FILE), "me")
    with pytest.raises(ApiError) as raised:
        await files.upload(*pieces(PURPOSE, ('name="file"; filename="b"', bytes(600))), "you")
    assert raised.value.status == 413
    assert len(list(files.folder.iterdir())) == 2


@pytest.mark.parametrize("full", ["temporary folder", "state folder"])
async def test_a_file_takes_at_most_half_of_the_free_disk(tmp_path, monkeypatch, full):
    files = StoredFiles(ObjectStore(tmp_path))

    def usage(folder: Path) -> SimpleNamespace:
        return SimpleNamespace(free=999 if (folder == files.folder) == (full == "state folder") else 1 << 30)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(PromptmillError, match="more than 50% of the free disk") as raised:
        await files.upload(*pieces(PURPOSE, ('name="file"; filename="b"', bytes(2000))), "me")
    assert raised.value.code == "storage"
    assert not list(files.folder.iterdir())
    assert (await files.upload(*pieces(PURPOSE, FILE), "me")).bytes == 2


async def test_the_lines_of_a_batch_take_at_most_half_of_the_free_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=9))
    (tmp_path / "in").write_text('{"custom_id": "1", "body": {}}\n')
    check = FileCheck("/v1/embeddings", cast("Any", SimpleNamespace(has_several=False)), "me")
    with pytest.raises(PromptmillError, match="more than 50% of the free disk"):
        await check.run(tmp_path / "in", tmp_path, lambda: False)


async def test_a_token_with_too_many_files_starts_no_batch(tmp_path, monkeypatch):
    files = StoredFiles(ObjectStore(tmp_path))
    monkeypatch.setattr(stored_files, "MOST_UPLOADS", 1)
    file = await files.upload(*pieces(PURPOSE, FILE), "me")
    batches = BatchRuns(files, cast("Any", None), cast("Any", None))  # neither is reached
    order = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    with pytest.raises(ApiError) as raised:
        await batches.create(order, "me", 0)
    assert raised.value.code == "too_many_files"


async def test_an_upload_that_sends_nothing_ends(tmp_path, monkeypatch):
    files = StoredFiles(ObjectStore(tmp_path))
    monkeypatch.setattr(stored_files, "_SILENCE_S", 0.01)

    async def silent() -> AsyncGenerator[bytes]:
        yield b"--b\r\n"
        await asyncio.Event().wait()

    for _ in range(5):  # none keeps its place
        with pytest.raises(ApiError) as raised:
            await files.upload(pieces()[0], silent(), "me")
        assert raised.value.status == 408


async def test_bytes_without_an_object_are_pruned(tmp_path):
    files = StoredFiles(ObjectStore(tmp_path))
    file = await files.upload(*pieces(PURPOSE, FILE), "me")
    for name in ("file-of-a-killed-upload", f"x{stored_files._PARTIAL}", "file-new"):
        (files.folder / name).touch()
    for path in files.folder.iterdir():
        if path.name != "file-new":
            os.utime(path, (1, 1))
    files.prune()
    assert {path.name for path in files.folder.iterdir()} == {file.id, "file-new"}


def test_the_type_of_a_form_names_no_codec(server):
    headers, body = form(PURPOSE, ('name="file"; filename="\\ud800.jsonl"', b"{}"))
    for codec in ("unicode_escape", "punycode", "undefined"):
        kind = {"Content-Type": f"{headers['Content-Type']}; charset={codec}"}
        answer = server.ask("POST", "/v1/files", headers | kind, body)
        assert (answer.status, answer.json["filename"]) == (200, "\\ud800.jsonl"), codec


def test_a_folder_that_cannot_be_used_is_an_error_that_may_pass(tmp_path, own_server):
    shutil.rmtree(tmp_path / "state/openai/files")
    answer = own_server.ask("POST", "/v1/files", *form(PURPOSE, FILE))
    assert (answer.status, answer.json["error"]["code"], answer.headers["retry-after"]) == (503, "storage", "30")


def test_a_program_that_locks_the_database_holds_up_no_reader(tmp_path):
    store = ObjectStore(tmp_path)
    file = StoredObject("file-1", "file", "me", "batch", 2, None, False, "", b"{}")
    store.put(file)
    with (
        contextlib.closing(sqlite3.connect(tmp_path / "objects.db", isolation_level=None)) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        other.execute("BEGIN IMMEDIATE")
        writing = pool.submit(store.put, file._replace(id="file-2"))
        eventually(writing.running)
        assert all(store.get("file", "file-1", "me") for _ in range(20))
        assert not writing.done()
        other.execute("ROLLBACK")
        writing.result()


def test_a_change_that_makes_none_stores_no_other_object(tmp_path):
    store = ObjectStore(tmp_path)
    file = StoredObject("file-1", "file", "me", "batch", 2, None, False, "", b"{}")
    store.put(file)
    other = file._replace(id="file-2")
    assert store.change("file-1", lambda stored: stored, other).id == "file-1"
    assert store.get("file", "file-2", "me") is None
    store.change("file-1", lambda stored: stored._replace(size=3), other)
    assert store.get("file", "file-2", "me") is not None


async def test_a_token_uploads_a_few_files_at_a_time(tmp_path):
    files, begun = StoredFiles(ObjectStore(tmp_path)), list[int]()
    may_end = asyncio.Event()

    async def slowly(number: int) -> AsyncGenerator[bytes]:
        begun.append(number)
        await may_end.wait()
        async for piece in pieces(PURPOSE, FILE)[1]:
            yield piece

    kind = pieces()[0]
    slow = [asyncio.ensure_future(files.upload(kind, slowly(number), "me")) for number in range(6)]
    await until(lambda: len(begun) == 4)
    await files.upload(*pieces(PURPOSE, FILE), "you")
    assert sorted(begun) == [0, 1, 2, 3]
    may_end.set()
    await asyncio.gather(*slow)
    assert len(files.page("me", Listing(10))["data"]) == 6


def test_each_spelling_of_the_token_s_scheme_is_the_same_owner(client, server):
    file = client.files.create(file=("a", b"{}"), purpose="evals")
    for scheme in ("bearer ", "BEARER", "Bearer  "):
        asked = server.ask("GET", f"/v1/files/{file.id}", {"Authorization": f"{scheme} {TOKEN}"})
        assert asked.status == 200, scheme


@pytest.mark.parametrize("limit", ["0", "10001", "0000010000000", "000001" + "9" * 30, "1e3"])
def test_a_limit_outside_its_bounds_is_refused(server, limit):
    assert server.ask("GET", f"/v1/files?limit={limit}", BEARER).json["error"]["param"] == "limit"


@pytest.mark.parametrize("seconds", ["3599", "000003600" + "0" * 20, "000003600" + "9" * 5000])
def test_a_lifetime_outside_its_bounds_is_refused(seconds):
    with pytest.raises(ApiError):
        checked(Expiry, {"anchor": "created_at", "seconds": seconds})
