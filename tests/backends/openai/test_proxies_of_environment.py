"""Proxies that the environment names: which requests use them, and how errors name them."""

from __future__ import annotations

import pytest

from promptmill.backends.openai.route import proxy_of
from promptmill.core.errors import PromptmillError
from replies import html


async def test_a_proxy_from_the_environment_is_used_and_named_when_it_is_gone(upstream, drive, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{upstream.port}")
    assert (await drive(["a"], base_url="http://model.example/v1")).texts == ["echo: a"]
    assert upstream.seen[0].target == "http://model.example/v1/chat/completions"
    upstream.vanish()
    failure = (await drive(["a"], base_url="http://model.example/v1", retries=1)).failures[0]
    assert failure.error.code == "unreachable"
    assert f"the proxy 127.0.0.1:{upstream.port} accepts no connection" in failure.error.message


async def test_a_proxy_that_answers_itself_is_named(upstream, drive, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://user:hunter2@127.0.0.1:{upstream.port}")
    upstream.reply = html(502)
    failure = (await drive(["a"], base_url="http://model.example/v1", retries=1)).failures[0]
    assert f"The proxy 127.0.0.1:{upstream.port} may have answered itself." in failure.error.message
    assert "NO_PROXY" in failure.error.hint
    assert "hunter2" not in str(failure.error)


async def test_a_proxy_that_refuses_a_tunnel_is_named_with_its_status(upstream, drive, monkeypatch):
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{upstream.port}")
    failure = (await drive(["a"], base_url="https://model.example/v1", retries=1)).failures[0]
    assert f"the proxy 127.0.0.1:{upstream.port} answered 404" in failure.error.message


async def test_a_proxy_from_the_environment_is_left_alone_when_asked(upstream, drive, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{upstream.port}")
    failure = (await drive(["a"], base_url="http://model.invalid/v1", trust_env=False, retries=1)).failures[0]
    assert failure.error.code == "name_resolution"


@pytest.mark.parametrize(
    "host", ["localhost", "ollama.localhost", "localhost.", "127.0.0.2", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_requests_to_this_machine_use_no_proxy(monkeypatch, host):
    monkeypatch.setenv("all_proxy", "http://10.0.0.1:3128")
    assert proxy_of(f"http://{host}:8000/v1", trust_env=True) is None


@pytest.mark.parametrize(
    ("no_proxy", "host", "is_direct"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("fd00::/8", "[fd00::5]", True),
        ("192.168.0.0/16 10.0.0.0/8", "10.1.2.3", True),
        ("a.example, 192.168.1.7", "192.168.1.7", True),
        ("10.0.0.0/8,.corp.example", "llm.corp.example", True),
        ("llm.corp.example:8000", "llm.corp.example", True),
        ("llm.corp.example:9000", "llm.corp.example", False),
        ("not/a/network,10.0.0.0/8", "10.1.2.3", True),
        ("*", "model.example", True),
    ],
)
def test_no_proxy_has_names_ports_and_networks(monkeypatch, no_proxy, host, is_direct):
    monkeypatch.setenv("http_proxy", "http://10.0.0.1:3128")
    monkeypatch.setenv("no_proxy", no_proxy)
    assert (proxy_of(f"http://{host}:8000/v1", trust_env=True) is None) is is_direct


def test_all_proxy_is_for_every_scheme_without_its_own(monkeypatch):
    monkeypatch.setenv("all_proxy", "10.0.0.1:3128")
    monkeypatch.setenv("https_proxy", "http://10.0.0.2:3128")
    assert str(proxy_of("http://model.example/v1", trust_env=True)) == "http://10.0.0.1:3128"
    assert str(proxy_of("https://model.example/v1", trust_env=True)) == "http://10.0.0.2:3128"


async def test_a_socks_proxy_is_an_error_before_anything_is_sent(drive, monkeypatch):
    monkeypatch.setenv("all_proxy", "socks5h://10.0.0.1:1080")
    with pytest.raises(PromptmillError, match=r"socks5h proxy for model\.example.*trust_env: false"):
        await drive(["a"], base_url="http://model.example/v1")
