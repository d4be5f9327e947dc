"""HOST:PORT: what is understood, what is said otherwise, and which sockets it gives."""

import socket

import pytest

from promptmill.core.errors import PromptmillError
from promptmill.http.address import Address, is_loopback, url


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8000", "127.0.0.1", 8000),
        ("localhost:0", "localhost", 0),
        ("[::1]:65535", "::1", 65535),
        ("0.0.0.0:80", "0.0.0.0", 80),
        ("mill.example.com:443", "mill.example.com", 443),
    ],
)
def test_an_address_is_read(text, host, port):
    assert Address.parse(text) == Address(host, port)


WRONG = [
    "",
    "8000",
    ":8000",
    "localhost",
    "localhost:",
    "::1:8000",
    "[::1]",
    "[]:1",
    "a:-1",
    "a:8 0",
    "a b:8",
]
WRONG += ["http://127.0.0.1:8000", "127.0.0.1:8000/mcp", "u@h:1", "a:\uff11", "a:1\n"]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_address_is_said_with_examples(text):
    with pytest.raises(PromptmillError, match=r"`http`: write HOST:PORT, such as 127\.0\.0\.1:8000"):
        Address.parse(text)


def test_a_port_that_is_too_high_is_named():
    with pytest.raises(PromptmillError, match=r"`http`: port 65536 is too large"):
        Address.parse("a:65536")


def test_loopback_is_told_from_the_rest():
    for text, expected in (("127.0.0.1:0", True), ("127.0.0.2:0", True), ("localhost:0", True), ("0.0.0.0:0", False)):
        sockets = Address.parse(text).bind()
        assert is_loopback(sockets) is expected
        assert url(Address.parse(text), sockets, tls=False).endswith(f":{sockets[0].getsockname()[1]}/mcp")
        for one in sockets:
            one.close()


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_an_ipv6_address_is_bracketed_in_the_url():
    address = Address.parse("[::1]:0")
    try:
        sockets = address.bind()
    except PromptmillError:
        pytest.skip("no IPv6 loopback here")
    assert url(address, sockets, tls=True) == f"https://[::1]:{sockets[0].getsockname()[1]}/mcp"
    assert is_loopback(sockets)
    for one in sockets:
        one.close()


def test_all_addresses_of_a_name_get_the_same_port():
    sockets = Address.parse("localhost:0").bind()
    assert len({one.getsockname()[1] for one in sockets}) == 1
    for one in sockets:
        one.close()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1", "x" * 300, "ü" * 70])
def test_a_host_that_is_not_here_is_said(host):
    with pytest.raises(PromptmillError, match="is not an address of this machine"):
        Address(host, 0).bind()
