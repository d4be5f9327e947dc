"""Tokens of the configuration: each has models, files and batches of its own."""

from __future__ import annotations

import contextlib
import json
import sys

import openai
import pytest

from forked import ran
from openai_clients import CHAT, client_of, ended, line, servers, started, uploaded
from promptmill.config.configuration import Configuration
from promptmill.core.errors import PromptmillError
from promptmill.http.listen_options import check_tokens
from promptmill.http.token import Token, configured
from served import BEARER, TOKEN, ServedHere
from server_process import written

pytestmark = pytest.mark.http
HI = [{"role": "user", "content": "hi"}]
TEAMS = {"a": "team-a-token-0123456789", "b": "team-b-token-0123456789"}


@pytest.fixture
def clients(tmp_path, upstream):
    """Clients of one server: of its own token, of team a (the model `small` alone), and of team b (all models)."""
    own = {"small": {"openai": {"base_url": upstream.url, "model_name": "small-1"}}}
    tokens = {"a": {"token": TEAMS["a"], "models": ["small"]}, "b": {"token": TEAMS["b"]}}
    with servers(tmp_path, upstream.url, ServedHere) as start, contextlib.ExitStack() as opened:
        server = start({"models": own, "client_limits": {"tokens": tokens}})
        clients = [client_of(server), *(client_of(server, token) for token in TEAMS.values())]
        yield [opened.enter_context(contextlib.closing(client)) for client in clients]


def test_a_token_names_its_models_alone(clients, upstream):
    main, a, b = clients
    assert [model.id for model in a.models.list()] == ["small"]
    assert [model.id for model in main.models.list()] == [model.id for model in b.models.list()] == ["default", "small"]
    assert a.chat.completions.create(model="small", messages=HI).choices[0].message.content == "echo: hi"
    asked = len(upstream.seen)
    for name in ("default", "m", "other"):
        with pytest.raises(openai.NotFoundError, match="models here: small"):
            a.chat.completions.create(model=name, messages=HI)
        with pytest.raises(openai.NotFoundError):
            a.responses.create(model=name, input="hi")
        with pytest.raises(openai.NotFoundError):
            a.models.retrieve(name)
    assert len(upstream.seen) == asked


def test_a_token_sees_its_own_files_and_batches_alone(clients):
    main, a, b = clients
    batch = started(a, [line("1", "one", model="small")])
    for other in (main, b):
        assert [*other.files.list()] == [*other.batches.list()] == []
        with pytest.raises(openai.NotFoundError):
            other.files.content(batch.input_file_id)
        with pytest.raises(openai.NotFoundError):
            other.files.delete(batch.input_file_id)
        with pytest.raises(openai.NotFoundError):
            other.batches.retrieve(batch.id)
        with pytest.raises(openai.NotFoundError):
            other.batches.cancel(batch.id)
        with pytest.raises(openai.APIStatusError) as refused:
            other.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h")
        assert refused.value.status_code in {400, 404}
    assert ended(a, batch).request_counts.completed == 1


def test_a_line_of_a_batch_that_names_another_model_is_refused(clients):
    _, a, _ = clients
    batch = ended(a, started(a, [line("1", "one", model="small"), line("2", "two", model="default")]))
    assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 1)
    (refused,) = a.files.content(batch.error_file_id).text.splitlines()
    assert json.loads(refused)["response"]["body"]["error"]["code"] == "model_not_found"


def test_files_of_two_tokens_do_not_meet(clients):
    _, a, b = clients
    mine, other = uploaded(a, [line("1", "one")]), uploaded(b, [line("1", "two")])
    assert [file.id for file in a.files.list()] == [mine.id]
    assert [file.id for file in b.files.list()] == [other.id]


def test_further_tokens_open_neither_mcp_nor_the_metrics(tmp_path, upstream):
    top = {"client_limits": {"tokens": {"a": {"token": TEAMS["a"]}}}}
    environ = {"PROMPTMILL_HTTP_TOKEN": "the-token-of-the-server"}
    with ServedHere(written(tmp_path, upstream.url, top), environ=environ) as server:
        bearer = {"authorization": f"Bearer {TEAMS['a']}"}
        assert server.ask("GET", "/v1/models", bearer).status == 200
        assert server.ask("POST", "/mcp", bearer, b"{}").status == 401
        assert server.ask("GET", "/metrics", bearer).status == 401
        assert server.ask("GET", "/v1/models", {"authorization": "Bearer another-token-0123456"}).status == 401


def test_a_token_that_no_client_can_send_is_a_wrong_configuration():
    for secret in ("short", "with a space in the middle", "mit-Umlaut-ä-0123456789"):
        limits = Configuration({"client_limits": {"tokens": {"a": {"token": secret}}}}).config.operator.client_limits
        with pytest.raises(PromptmillError, match=r"client_limits\.tokens\.a\.token") as error:
            configured(limits.tokens)
        assert secret not in str(error.value)


def test_a_token_with_an_unknown_model_is_a_wrong_configuration():
    tokens = {"a": {"token": TEAMS["a"], "models": ["nothing"]}}
    with pytest.raises(PromptmillError, match=r"client_limits\.tokens\.a\.models: there is no model 'nothing'"):
        Configuration({"client_limits": {"tokens": tokens}})


def test_tokens_without_the_server_s_own_are_a_wrong_configuration(tmp_path, upstream):
    top = {"client_limits": {"tokens": {"a": {"token": TEAMS["a"]}}}}
    command = [sys.executable, "-m", "promptmill", "serve", "--config", str(written(tmp_path, upstream.url, top))]
    done = ran([*command, "--http", "127.0.0.1:0"])
    assert done.returncode == 2
    assert "client_limits.tokens: with these tokens the server needs its own" in done.stderr


@pytest.mark.parametrize("own", [TEAMS["a"], TOKEN])
def test_two_equal_tokens_are_a_wrong_configuration(own):
    tokens = {"a": {"token": TEAMS["a"]}, "b": {"token": TEAMS["b"] if own == TEAMS["a"] else TEAMS["a"]}}
    limits = Configuration({"client_limits": {"tokens": tokens}}).config.operator.client_limits
    with pytest.raises(PromptmillError, match=r"client_limits\.tokens: two tokens are the same"):
        check_tokens(Token(own), tuple(configured(limits.tokens).values()), (), is_open=False)


def test_without_a_token_a_page_of_another_port_is_refused_and_no_page_reads_a_reply(tmp_path, upstream):
    with ServedHere(written(tmp_path, upstream.url)) as server:
        own, other = f"http://127.0.0.1:{server.port}", "http://127.0.0.1:3000"
        body = json.dumps({"messages": HI}).encode()
        for origin, status in ((own, 200), (other, 403), (other.replace("127.0.0.1", "localhost"), 403)):
            for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions")):
                # a page may send a text without a preflight
                got = server.ask(method, path, {"Origin": origin, "Content-Type": "text/plain"}, body)
                assert got.status == status, (origin, path)
                assert not [name for name in got.headers if name.startswith("access-control")]
        assert len(upstream.seen) == 1


def test_without_a_token_all_clients_have_one_share_of_the_files(tmp_path, upstream):
    with ServedHere(written(tmp_path, upstream.url), environ={"PROMPTMILL_STATE": str(tmp_path / "state")}) as server:
        first, second = (client_of(server, token) for token in ("any", "word"))
        with first, second:
            file = first.files.create(file=("a", b"{}"), purpose="evals")
            assert [each.id for each in second.files.list()] == [file.id]


@pytest.fixture
def page_server(tmp_path, upstream):
    """A server with a token, and the origin of a page that may call it."""
    page, environ = "http://localhost:3000", {"PROMPTMILL_HTTP_TOKEN": TOKEN}
    with ServedHere(written(tmp_path, upstream.url), "--allowed-origin", page, environ=environ) as server:
        yield server, {"Origin": page}


def test_a_page_of_an_allowed_origin_may_ask_and_read_replies_and_errors(page_server):
    server, page = page_server
    wanted = page | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, x-stainless-lang",
        "Access-Control-Request-Private-Network": "true",
    }
    preflight = server.ask("OPTIONS", "/v1/chat/completions", wanted)
    assert preflight.status == 200
    assert preflight.headers["access-control-allow-origin"] == page["Origin"]
    assert preflight.headers["access-control-allow-headers"] == "authorization, x-stainless-lang"
    for path, headers, status in (
        ("/v1/models", BEARER, 200),
        ("/v1/models/none", BEARER, 404),
        ("/v1/nothing", BEARER, 404),
        ("/v1/models", {}, 401),
    ):
        got = server.ask("GET", path, page | headers)
        assert (got.status, got.headers["access-control-allow-origin"]) == (status, page["Origin"])
        assert "x-request-id" in got.headers["access-control-expose-headers"]
    for origin in ("https://evil.example", "http://localhost:3001", "https://localhost:3000", "http://127.0.0.1:3000"):
        got = server.ask("GET", "/v1/models", BEARER | {"Origin": origin})
        assert got.status == 403
        assert not [name for name in got.headers if name.startswith("access-control")]
