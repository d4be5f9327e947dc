"""A client that knows only the server's URL: from the first 401 to an answer, by FastMCP's client."""

import socket
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from fastmcp import Client
from fastmcp.client.auth import OAuth
from mcp.client.auth import AuthorizationCodeResult

from served import Served
from server_process import written

pytestmark = pytest.mark.http


class _Browser(OAuth):
    """FastMCP's client, whose user signs in at once."""

    def __init__(self, subject):
        # the provider knows no client without a secret
        super().__init__(additional_client_metadata={"token_endpoint_auth_method": "client_secret_post"})
        self._subject = subject

    async def redirect_handler(self, authorization_url):
        async with httpx2.AsyncClient() as browser:
            page = await browser.post(authorization_url, data={"sub": self._subject})
        self.asked = {name: values[0] for name, values in parse_qs(urlsplit(authorization_url).query).items()}
        self._came_back = {
            name: values[0] for name, values in parse_qs(urlsplit(page.headers["location"]).query).items()
        }

    async def callback_handler(self):
        return AuthorizationCodeResult(code=self._came_back["code"], state=self._came_back.get("state"))


@pytest.fixture(scope="module")
def url(lasting, provider, tmp_path_factory):
    """The URL of a server, as users write it into their client."""
    lasting.begin_anew()
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    folder = tmp_path_factory.mktemp("flow")
    url = f"http://{address}/mcp"
    options = ("--oauth", provider.url, "--audience", url)
    with Served(
        written(folder, lasting.url), *options, listen=address, environ={"PROMPTMILL_STATE": str(folder)}
    ) as served:
        yield url
        assert "Bearer" not in served.said()
        assert "eyJ" not in served.said()


async def test_a_user_signs_in_and_asks(url):
    browser = _Browser("alice")
    async with Client(url, auth=browser) as client:
        assert (await client.call_tool("generate", {"prompt_ls": ["hi"]})).structured_content == {
            "ans_ls": ["echo: hi"]
        }
    assert (browser.asked["scope"], browser.asked["resource"]) == ("promptmill:ask", url)
    assert browser.asked["code_challenge_method"] == "S256"


async def test_a_user_without_the_scope_reads(url):
    async with Client(url, auth=_Browser("reader")) as client:
        assert not (await client.call_tool("bulk_status", {})).is_error
        with pytest.raises(Exception, match=r"promptmill:ask|403|scope"):
            await client.call_tool("generate", {"prompt_ls": ["hi"]})
