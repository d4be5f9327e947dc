"""The options of `serve`."""

import logging
import sys

import pytest

from forked import ran
from promptmill.cli import main as cli
from promptmill.features.oauth import serve_command
from server_process import written

ISSUER = "http://localhost:9"
AUDIENCE = "https://mill.example.com/mcp"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--oauth", ISSUER), "--audience"),
        (("--audience", AUDIENCE), "--audience needs --oauth ISSUER"),
        (("--scope", "x"), "--scope needs --oauth ISSUER"),
        (("--oauth", "http://login.example.com", "--audience", AUDIENCE), "--oauth should be a URL"),
        (("--oauth", "login.example.com", "--audience", AUDIENCE), "--oauth should be a URL"),
        (("--oauth", "https://a:b@login.example.com", "--audience", AUDIENCE), "--oauth should be a URL"),
        (("--oauth", ISSUER, "--audience", "mill"), "--audience should be a URL"),
        (("--oauth", ISSUER, "--audience", f"{AUDIENCE}?a=1"), "--audience should be a URL"),
        (("--oauth", ISSUER, "--audience", AUDIENCE, "--scope", 'a"b'), "--scope should be a word"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, capsys, given, said):
    config = written(tmp_path, "http://127.0.0.1:9")
    assert cli.main(["serve", "--config", str(config), "--http", "127.0.0.1:0", *given]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "logged"),
    [("/mcp?access_token=eyJ.e.s", "/mcp"), ("/mcp?x=1&access_token=e", "/mcp"), ("/mcp?x=1", "/mcp?x=1")],
)
def test_the_access_log_has_no_token(path, logged):
    record = logging.LogRecord("a", 20, "", 0, '%s - "%s %s"', ("127.0.0.1:1", "GET", path), None)
    assert serve_command.without_token(record)
    assert record.getMessage() == f'127.0.0.1:1 - "GET {logged}"'


def test_over_stdio_the_options_are_refused(tmp_path, capsys):
    config = written(tmp_path, "http://127.0.0.1:9")
    for option in ("--oauth", "--audience", "--scope", "--token-file", "--no-openai"):
        value = () if option.startswith("--no") else ("https://x.example",)
        assert cli.main(["serve", "--config", str(config), option, *value]) == 2
        assert f"{option} needs --http HOST:PORT" in capsys.readouterr().err


def test_without_the_options_no_package_for_tokens_is_imported():
    code = """
import sys
from promptmill.cli import main
try:
    main.main(["serve", "--help"])
finally:
    assert not {"joserfc", "cryptography", "fastmcp", "httpx2"} & sys.modules.keys()
"""
    done = ran([sys.executable, "-c", code])
    assert (done.returncode, "--oauth ISSUER" in done.stdout) == (0, True), done.stderr
