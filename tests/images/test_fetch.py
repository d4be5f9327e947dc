"""Images from the web come from public addresses only."""

from __future__ import annotations

import pytest

from promptmill.core.errors import Code, PromptmillError
from promptmill.images.fetch import ImageFetcher, is_public


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "ff02::1",
    ],
)
def test_an_address_inside_is_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_an_address_of_the_internet_is_public(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "0x7f.1", "2130706433", "[::ffff:127.0.0.1]"]
)
async def test_nothing_inside_is_fetched_however_it_is_written(upstream, host, closing):
    fetcher = closing(ImageFetcher(5))
    with pytest.raises(PromptmillError) as caught:
        await fetcher.fetch(f"http://{host}:{upstream.port}/a.png")
    assert caught.value.code is Code.INVALID_IMAGE
    assert not upstream.seen


@pytest.mark.parametrize("url", ["ftp://example.org/a.png", "file:///etc/passwd", "http:///a.png"])
async def test_only_http_is_fetched(url, closing):
    with pytest.raises(PromptmillError):
        await closing(ImageFetcher(5)).fetch(url)


@pytest.mark.parametrize("url", ["http://h:99999/", "http://[::1/", "http://h:abc/x.png"])
async def test_an_address_that_is_none_is_the_items_own_error(url, closing):
    fetcher = closing(ImageFetcher())
    with pytest.raises(PromptmillError) as caught:
        await fetcher.fetch(url)
    assert caught.value.code is Code.INVALID_IMAGE
