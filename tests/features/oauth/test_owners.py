"""Each subject of the issuer is a client of its own, under every token that it gets."""

import contextlib

import openai
import pytest

from openai_clients import line, started
from promptmill.http.token import owner_of
from promptmill.server import tool_calls
from waiting import PATIENCE_S, eventually

pytestmark = [pytest.mark.http, pytest.mark.features("openai_server")]


@pytest.fixture
def clients(server, bearer):
    """Return OpenAI's clients of some subjects."""
    with contextlib.ExitStack() as opened:

        def clients(*tokens):
            for token in tokens:
                made = openai.OpenAI(
                    base_url=f"http://127.0.0.1:{server.port}/v1",
                    api_key=token["Authorization"].removeprefix("Bearer "),
                    timeout=PATIENCE_S,
                    max_retries=0,
                )
                yield opened.enter_context(contextlib.closing(made))

        yield clients


def test_files_and_batches_belong_to_the_subject(clients, bearer):
    alice, renewed, bob = clients(bearer("alice"), bearer("alice", jti="2", client_id="another app"), bearer("bob"))
    batch = started(alice, [line("1", "one")])
    assert [each.id for each in renewed.batches.list()] == [batch.id]
    assert renewed.files.retrieve(batch.input_file_id).id == batch.input_file_id
    assert [*bob.files.list()] == [*bob.batches.list()] == []
    with pytest.raises(openai.NotFoundError):
        bob.files.content(batch.input_file_id)
    with pytest.raises(openai.NotFoundError):
        bob.batches.cancel(batch.id)
    eventually(lambda: renewed.batches.retrieve(batch.id).status == "completed")


def test_jobs_belong_to_the_subject(server, bearer):
    job = server.session(bearer("alice")).call("bulk_generate", prompts=["a secret"])["structuredContent"]["job_id"]
    bob = server.session(bearer("bob"))
    for use in ({}, {"read": "all"}, {"action": "cancel"}):
        assert "There is no job" in bob.call("bulk_status", job_id=job, **use)["content"][0]["text"]
    assert job not in str(bob.call("bulk_status")["structuredContent"])
    renewed = server.session(bearer("alice", jti="2"))
    eventually(lambda: renewed.call("bulk_status", job_id=job)["structuredContent"]["state"] == "finished")
    assert renewed.call("bulk_status", job_id=job, read="all")["structuredContent"]["rows"][0]["answer"]


def test_neither_owner_nor_request_contains_the_token(server, bearer, monkeypatch):
    seen = []
    monkeypatch.setattr(tool_calls, "owner_of", lambda request: seen.append(request) or owner_of("x"))
    headers = bearer("alice")
    server.session(headers).answers("x")
    token = headers["Authorization"].removeprefix("Bearer ")
    assert seen
    for request in seen:
        assert token not in str(request.scope)
        assert token not in repr(request.scope["user"].access_token)


def test_no_client_can_name_a_subject_itself(server, bearer, provider):
    mine = server.session(bearer("alice"))
    job = mine.call("bulk_generate", prompts=["another secret"])["structuredContent"]["job_id"]
    assert job
    for scheme in ("Subject", "subject", "Bearer Subject"):
        assert server.ask("GET", "/v1/models", {"Authorization": f"{scheme} {'0' * 64}"}).status == 401
    eventually(lambda: mine.call("bulk_status", job_id=job)["structuredContent"]["state"] == "finished")
