"""Which `Host` and `Origin` headers are answered: the table against DNS rebinding."""

import pytest

from promptmill.core.errors import PromptmillError
from promptmill.http.address import Address, HostAllowlist


def _hosts(text="127.0.0.1:0", *allowed, origins=()):
    address = Address.parse(text)
    sockets = address.bind()
    try:
        return HostAllowlist(address, sockets, allowed, origins)
    finally:
        for one in sockets:
            one.close()


OURS = [b"127.0.0.1", b"127.0.0.1:8000", b"localhost", b"LocalHost:1", b"localhost.", b"localhost.:80", b"[::1]"]
OURS += [b"[::1]:8000", b"127.9.9.9", b"[0:0:0:0:0:0:0:1]:5"]
NOT_OURS = [b"", b"evil.com", b"evil.com:8000", b"127.0.0.1.evil.com", b"localhost.evil.com", b"evil.com/localhost"]
NOT_OURS += [
    b"localhost@evil.com",
    b"evil.com@localhost",
    b"localhost evil.com",
    b"localhost, evil.com",
    b"localhost\t",
]
NOT_OURS += [b"localhost:", b"localhost:x", b"localhost:123456", b"localhost..", b".localhost", b"[::1", b"::1", b"[]"]
NOT_OURS += [b"[localhost]", b"[::1]evil", b"2130706433", b"0x7f.1", b"127.1", b"017700000001", b"10.0.0.1", b"0.0.0.0"]
NOT_OURS += [
    b"[::ffff:10.0.0.1]",
    b"lo\xffcalhost",
    "l\u043ecalhost".encode(),
    b"localhost\x00",
    b"http://localhost",
    b"*",
]


@pytest.mark.parametrize("header", OURS)
def test_loopback_answers_under_its_own_names(header):
    assert _hosts().is_ours(header)


@pytest.mark.parametrize("header", NOT_OURS)
def test_loopback_answers_under_no_other_name(header):
    assert not _hosts().is_ours(header)


def test_bound_to_every_address_it_answers_under_addresses_and_allowed_names():
    hosts = _hosts("0.0.0.0:0", "mill.example.com")
    for header in (b"10.1.2.3:8000", b"[fe80::1]", b"localhost", b"mill.example.com", b"MILL.example.com.:443"):
        assert hosts.is_ours(header)
    for header in (b"evil.com", b"example.com", b"x.mill.example.com", b"mill.example.com.evil.com"):
        assert not hosts.is_ours(header)


def test_a_name_that_was_bound_is_a_name_it_answers_under():
    assert _hosts("localhost:0").is_ours(b"localhost:8000")


def test_one_address_answers_under_that_address_alone():
    address = Address("127.0.0.1", 0)
    sockets = address.bind()
    hosts = HostAllowlist(address, sockets, ["192.0.2.7", "2001:db8::7", "[2001:db8::8]", "a.example:8443"])
    for header in (b"192.0.2.7", b"[2001:db8::7]:1", b"[2001:db8:0::8]", b"a.example"):
        assert hosts.is_ours(header)
    assert not hosts.is_ours(b"192.0.2.8")
    sockets[0].close()


@pytest.mark.parametrize("name", ["", "*", "http://a", "a b", "a/b", "ü.example", "a,b", "[x]"])
def test_an_allowed_host_that_is_no_name_is_said(name):
    with pytest.raises(PromptmillError, match="`allowed_host`: write a name"):
        _hosts("127.0.0.1:0", name)


FOREIGN = [b"http://localhost:3000", b"https://localhost:8017", b"http://localhost", b"http://127.0.0.1:8017"]
FOREIGN += [b"null", b"", b"https://evil.com", b"http://localhost.evil.com", b"http://evil.com:8000", b"file://"]
FOREIGN += [
    b"localhost",
    b"ftp://localhost",
    b"chrome-extension://localhost",
    b"http://localhost:8017/x",
    b"http://u@localhost:8017",
]
FOREIGN += [b"http://", b"http://localhost http://evil.com", b"https://localhost:8017@evil.com"]


@pytest.mark.parametrize("origin", FOREIGN)
def test_pages_from_elsewhere_may_not_call(origin):
    assert not _hosts().may_call(origin, "http", b"localhost:8017")


def test_a_page_of_this_scheme_host_and_port_may_call():
    assert _hosts().may_call(b"http://LocalHost:8017", "http", b"localhost:8017")
    assert _hosts("0.0.0.0:0", "mill.example").may_call(b"https://mill.example", "https", b"mill.example")


def test_a_page_of_an_allowed_origin_may_call():
    hosts = _hosts("127.0.0.1:0", origins=["http://localhost:3000", "HTTPS://Chat.example:443/", "app://obsidian.md"])
    assert hosts.origins == {"http://localhost:3000", "https://chat.example", "app://obsidian.md"}
    for origin in hosts.origins:
        assert hosts.may_call(origin.encode(), "http", b"localhost:8017")
    assert not hosts.may_call(b"http://localhost:3001", "http", b"localhost:8017")


@pytest.mark.parametrize("origin", ["", "*", "null", "localhost:3000", "http://", "http://a/b", "http://*.example"])
def test_an_allowed_origin_that_is_none_is_named(origin):
    with pytest.raises(PromptmillError, match="`allowed_origin`: write SCHEME"):
        _hosts(origins=[origin])
