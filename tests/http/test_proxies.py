"""What passes through Caddy and nginx, where installed, with their files of deploy/ in front of a running server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import httpx2
import pytest

from replies import answer, hang
from served import BEARER, TOKEN, Served
from server_process import written
from waiting import PATIENCE_S, eventually, until

DEPLOY = Path(__file__).parents[2] / "deploy"
NAME = "mill.example.com"
pytestmark = pytest.mark.http


def _caddy(folder: Path, port: int, server: int) -> tuple[list[str], Path]:
    test = f"admin off\ndefault_bind 127.0.0.1\nhttps_port {port}\nauto_https disable_redirects\nlocal_certs\n"
    text = (DEPLOY / "Caddyfile").read_text().replace("127.0.0.1:8000", f"127.0.0.1:{server}")
    (folder / "Caddyfile").write_text(f"{{\n{test}skip_install_trust\nstorage file_system {folder}\n}}\n{text}")
    command = ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]
    return command, folder / "pki/authorities/local/root.crt"


def _nginx(folder: Path, port: int, server: int) -> tuple[list[str], Path]:
    certificate = folder / "fullchain.pem"
    made = f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN={NAME} -addext subjectAltName=DNS:{NAME}"
    files = ["-out", str(certificate), "-keyout", str(folder / "privkey.pem")]
    subprocess.run([*shlex.split(made), *files], check=True, capture_output=True)
    text = (DEPLOY / "nginx.conf").read_text().replace("/etc/promptmill/tls", str(folder))
    text = text.replace("127.0.0.1:8000", f"127.0.0.1:{server}").replace("listen 443", f"listen 127.0.0.1:{port}")
    kept = "".join(f"{what}_temp_path {folder};\n" for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    user = "user root;\n" if os.geteuid() == 0 else ""  # else its workers may not enter the folder
    text = f"{user}daemon off;\npid {folder}/pid;\nerror_log stderr;\n{text.replace('http {', 'http {' + kept, 1)}"
    (folder / "nginx.conf").write_text(text)
    return ["nginx", "-c", str(folder / "nginx.conf"), "-e", str(folder / "errors")], certificate


class _Proxy:
    """A running proxy, and how clients reach it as `mill.example.com`."""

    def __init__(self, port: int, certificate: Path) -> None:
        self.port = port
        self._tls = ssl.create_default_context(cafile=str(certificate))

    def client(self, **options: str):
        from fastmcp import Client
        from fastmcp.client.transports import StreamableHttpTransport

        def factory(headers=None, timeout=None, auth=None, **more):
            through = _Through(self.port, self._tls)
            return httpx2.AsyncClient(headers=headers, timeout=timeout or 60, auth=auth, transport=through, **more)

        url = f"https://{NAME}/mcp"
        return Client(StreamableHttpTransport(url, auth=TOKEN, httpx_client_factory=factory), **options)

    def ask(self, method: str, path: str, host: str = NAME, **more) -> httpx2.Response:
        headers = BEARER | {"Host": host}
        url = f"https://127.0.0.1:{self.port}{path}"
        with httpx2.Client(verify=self._tls, timeout=PATIENCE_S) as client:
            return client.request(method, url, headers=headers, extensions={"sni_hostname": NAME}, **more)


class _Through(httpx2.AsyncHTTPTransport):
    """Connects to loopback, whatever the URL says."""

    def __init__(self, port: int, tls: ssl.SSLContext) -> None:
        super().__init__(verify=tls)
        self._port = port

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        request.extensions = dict(request.extensions) | {"sni_hostname": NAME}
        request.url = request.url.copy_with(host="127.0.0.1", port=self._port)
        return await super().handle_async_request(request)


@pytest.fixture(scope="module")
def _named(lasting, tmp_path_factory):
    config = written(tmp_path_factory.mktemp("named"), lasting.url)
    with Served(config, "--allowed-host", NAME, environ={"PROMPTMILL_HTTP_TOKEN": TOKEN}) as served:
        yield served


@pytest.fixture(scope="module", params=[_caddy, _nginx], ids=["caddy", "nginx"])
def _started(request, _named, tmp_path_factory):
    program = request.param.__name__[1:]
    if not shutil.which(program):
        pytest.skip(f"{program} is not here")
    folder = tmp_path_factory.mktemp(program)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command, certificate = request.param(folder, port, _named.port)
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=dict(os.environ) | {"HOME": str(folder)})

    def answers():
        assert process.poll() is None, (folder / "said").read_text()
        with contextlib.suppress(httpx2.HTTPError, OSError):
            return _Proxy(port, certificate).ask("GET", "/healthz").text == "ok\n"

    try:
        eventually(answers)
        yield _Proxy(port, certificate)
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def proxy(_started, upstream):
    return _started


@pytest.mark.usefixtures("protocol")
async def test_progress_arrives_before_the_answer(proxy, upstream):
    told = threading.Event()

    async def once_told(exchange):
        assert await asyncio.to_thread(told.wait, 30)
        await answer()(exchange)

    async def hear(*_):
        told.set()

    upstream.reply = once_told
    async with proxy.client() as client:
        result = await client.call_tool("generate", {"prompt_ls": ["a", "b"]}, progress_handler=hear)
    assert result.structured_content["ans_ls"] == ["echo: a", "echo: b"]


async def test_a_call_whose_client_is_gone_ends(proxy, upstream):
    upstream.reply = hang()
    async with proxy.client(mode="auto") as client:
        call = asyncio.ensure_future(client.call_tool("generate", {"prompt_ls": ["a"]}))
        await until(lambda: upstream.in_flight)
        call.cancel()
        await asyncio.wait([call])
    await until(lambda: not upstream.in_flight)


@pytest.mark.thorough
async def test_large_requests_pass_up_to_the_servers_own_limit(proxy, upstream):
    upstream.reply = answer("read")
    async with proxy.client(mode="auto") as client:
        result = await client.call_tool("generate", {"prompt_ls": ["x" * (31 << 20)]})
    assert result.structured_content["ans_ls"] == ["read"]
    assert proxy.ask("POST", "/mcp", content=b"x" * (32 << 20 | 1)).status_code == 413


def test_only_the_name_that_is_allowed_is_served(proxy):
    assert proxy.ask("GET", "/healthz", host="evil.example").text != "ok\n"
