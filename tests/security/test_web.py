"""What we fetch from the web comes from public addresses, whoever chose the name, the spelling or the redirect."""

import base64
import io
import socket
import ssl

import pytest
from multidict import CIMultiDict
from PIL import Image
from yarl import URL

from promptmill.backends.openai.failures import PrivateAddressError
from promptmill.backends.openai.route import Route
from promptmill.backends.openai.session import Session
from promptmill.core.errors import PromptmillError
from promptmill.images import fetch as webimages
from promptmill.images.fetch import ImageFetcher, is_public
from replies import bomb, hang, huge, raw, redirect
from upstream import Upstream


class Site(Upstream):
    """A web site: its reply answers every request."""

    def choose(self, seen):
        return self.reply


@pytest.fixture
def web():
    with Site() as site:
        yield site


@pytest.fixture
def fetch(closing):
    """Fetch one URL; return the data URL or the error."""

    async def fetched(url, timeout_s=30.0):
        try:
            return await closing(ImageFetcher(timeout_s)).fetch(url)
        except PromptmillError as error:
            return error

    return fetched


@pytest.fixture
def open_door(monkeypatch):
    """Let loopback pass for public, so that redirects and bodies can be tested; all other rules stay."""
    real = webimages.is_public
    monkeypatch.setattr(webimages, "is_public", lambda address: address == "127.0.0.1" or real(address))


INNER = [
    *("127.0.0.1", "127.255.255.254", "10.0.0.1", "172.31.255.255", "192.168.0.1", "169.254.169.254"),
    *("100.100.100.200", "168.63.129.16", "0.0.0.0", "192.0.0.192", "198.18.0.1", "224.0.0.1", "240.0.0.1"),
    *("255.255.255.255", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254"),
    *("::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001::1", "fe80::1%eth0"),
    *("fec0::1", "fd00:ec2::254", "ff02::1", "100::1", "4000::1", "2001:db8::1"),
]


@pytest.mark.rule("W1")
@pytest.mark.parametrize("address", INNER)
def test_no_inner_address_is_public(address):
    assert not is_public(address)


SPELLINGS = [
    *("127.0.0.1", "127.1", "0177.0.0.1", "0x7f.0.0.1", "0x7f000001", "2130706433", "127.0.0.1."),
    *("localhost", "localhost.", "LOCALHOST", "\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021"),
    *("\u2460\u2461\u2466.0.0.1", "%31%32%37.0.0.1", "[::1]", "[::ffff:7f00:1]"),
    *("[0:0:0:0:0:ffff:127.0.0.1]", "[::1%251]", "user@127.0.0.1", "8.8.8.8@127.0.0.1"),
    *("8.8.8.8\t@127.0.0.1", "8.8.8.8\\@127.0.0.1", "127.0.0.1\\@8.8.8.8", "0", "0.0.0.0"),
]


@pytest.mark.rule("W1")
@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_no_spelling_of_this_machine_is_connected_to(fetch, upstream, spelling):
    assert isinstance(await fetch(f"http://{spelling}:{upstream.port}/a.png"), PromptmillError)
    assert not upstream.connections


def resolving(monkeypatch, *answers):
    """Let each look-up of a name find the next of `answers`, a list of addresses; return the names looked up."""
    asked = []

    class Resolver:
        def __init__(self, **_):
            pass

        async def resolve(self, host, port=0, family=socket.AF_INET):
            asked.append(host)
            some = {"hostname": host, "port": port, "proto": 0, "flags": 0}
            kinds = {True: socket.AF_INET6, False: socket.AF_INET}
            return [{**some, "host": one, "family": kinds[":" in one]} for one in answers[len(asked) - 1]]

        async def close(self):
            pass

    monkeypatch.setattr("aiohttp.connector.DefaultResolver", Resolver)
    return asked


@pytest.mark.rule("W2")
async def test_a_name_that_changes_its_address_is_checked_where_it_is_connected_to(fetch, upstream, monkeypatch):
    asked, connected, real = resolving(monkeypatch, ["8.8.8.8"], ["127.0.0.1"]), [], webimages.public_socket

    def without_network(address):
        real(address).close()
        connected.append(address[4][0])
        raise OSError("a test's network")

    monkeypatch.setattr(webimages, "public_socket", without_network)
    await fetch(f"http://rebinding.example:{upstream.port}/a.png")
    assert connected == ["8.8.8.8"], "what was looked up is what is connected to: nobody asks twice"
    assert len(asked) == 1
    connected.clear()
    assert "not a public address" in str(await fetch(f"http://rebinding.example:{upstream.port}/a.png"))
    assert not connected


@pytest.mark.rule("W2")
async def test_a_name_with_several_inner_addresses_is_refused_as_such(fetch, monkeypatch):
    resolving(monkeypatch, ["127.0.0.1", "10.0.0.1", "::1"])
    assert "from several.example: it is not a public" in str(await fetch("http://several.example/a.png"))


@pytest.mark.rule("W2")
async def test_a_file_of_a_batch_comes_from_no_name_with_several_inner_addresses(closing, monkeypatch):
    resolving(monkeypatch, ["127.0.0.1", "10.0.0.1", "::1"])
    session = closing(Session(4, 5.0, 5.0, ssl.create_default_context()))
    route = Route(URL("http://several.example/f"), CIMultiDict(), None)
    with pytest.raises(PrivateAddressError, match=r"several\.example"):
        async with session.exchange(route, "GET", only_public=True):
            pass


@pytest.mark.rule("W2")
def test_even_a_resolver_that_lies_gets_no_socket_to_this_machine():
    for place in ("127.0.0.1", "169.254.169.254", "::1"):
        with pytest.raises(webimages.NotPublicError):
            webimages.public_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", (place, 80)))


@pytest.mark.rule("W3")
@pytest.mark.parametrize(
    "host", ["127.0.0.2", "[::1]", "169.254.169.254", "[::ffff:7f00:2]", "0x7f000002", "2130706434"]
)
async def test_each_redirect_is_checked_like_the_first_address(fetch, web, open_door, host):
    web.reply = redirect(f"http://{host}:{web.port}/inner")
    error = await fetch(f"{web.url}/a.png")
    assert isinstance(error, PromptmillError)
    assert [seen.target for seen in web.seen] == ["/v1/a.png"]


@pytest.mark.rule("W3")
@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "data:image/png;base64,AAAA", "gopher://x"]
)
async def test_a_redirect_leads_to_the_web_or_nowhere(fetch, web, open_door, target):
    web.reply = redirect(target)
    assert isinstance(await fetch(f"{web.url}/a.png"), PromptmillError)


@pytest.mark.rule("W4")
async def test_redirects_and_bodies_have_an_end(fetch, web, open_door):
    web.reply = redirect(f"{web.url}/a.png")
    assert "too many redirects" in str(await fetch(f"{web.url}/a.png"))
    assert len(web.seen) == 5
    web.reply = huge(1 << 30)
    assert "more than 64 MiB" in str(await fetch(f"{web.url}/a.png"))
    web.reply = hang()
    assert "Timeout" in str(await fetch(f"{web.url}/a.png", 0.2))
    web.reply = bomb(1 << 30, "gzip")
    assert "more than 64 MiB" in str(await fetch(f"{web.url}/a.png"))


@pytest.mark.rule("W5")
async def test_a_download_carries_no_key_no_cookie_and_takes_no_proxy(fetch, web, upstreams, open_door, monkeypatch):
    proxy = upstreams()
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-0123456789abcdef")
    web.reply = raw(b"x", headers={"Set-Cookie": "session=1; Path=/"})
    assert isinstance(await fetch(f"{web.url}/a.png"), str)
    assert isinstance(await fetch(f"{web.url}/a.png"), str)
    assert not proxy.connections
    for seen in web.seen:
        assert not {"cookie", "authorization", "proxy-authorization"} & set(seen.headers)
        assert "secret" not in str(seen.headers)


@pytest.mark.rule("W6")
async def test_what_was_fetched_is_sent_only_if_it_is_an_image(serve, upstream, web, open_door):
    web.reply = raw(b"<html>internal page</html>")
    asked = {"prompt_ls": ["x"], "multimodal_path": [[f"{web.url}/a.png"]]}
    async with serve(top={"fetch_images": True}) as talk:
        result = await talk("multimodal_generate", **asked)
    assert result.structured_content["errors"][0]["code"] == "invalid_image"
    assert not upstream.seen
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "PNG")
    web.reply = raw(out.getvalue())
    async with serve(top={"fetch_images": True}) as talk:
        assert not (await talk("multimodal_generate", **asked)).is_error
    assert base64.b64encode(out.getvalue()) in upstream.seen[0].raw


@pytest.mark.rule("W7")
async def test_without_fetch_images_nothing_is_fetched_here(talk, upstream, web):
    assert not (await talk("multimodal_generate", prompt_ls=["x"], multimodal_path=[[f"{web.url}/a.png"]])).is_error
    assert not web.connections
    assert f"{web.url}/a.png".encode() in upstream.seen[0].raw
