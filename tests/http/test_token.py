"""The bearer token: where it comes from, and which header opens."""

import pytest

from promptmill.core.errors import PromptmillError
from promptmill.http.token import find_token
from served import TOKEN
from sure import sure

WRONG = [b"", b"Bearer", b"Bearer ", b"Basic " + TOKEN.encode(), TOKEN.encode(), b"Bearer" + TOKEN.encode()]
WRONG += [b"Bearer " + secret for secret in (TOKEN[:-1].encode(), TOKEN.encode() + b"x", TOKEN.upper().encode())]
WRONG += [b"Bearer " + secret for secret in (b"\x00\xff\xfe", "ü".encode() * 9, b"x" * 60_000, b"a " + TOKEN.encode())]


def test_a_token_is_found_in_the_file_then_the_named_variable_then_the_usual_one(tmp_path):
    file = tmp_path / "token"
    file.write_text(f" {TOKEN}\r\n")
    headers = [(b"authorization", b"Bearer " + TOKEN.encode())]
    other = "another-token-of-some-length"
    for arguments in ((file, None, {}), (None, "MINE", {"MINE": TOKEN, "PROMPTMILL_HTTP_TOKEN": other})):
        assert sure(find_token(*arguments)).opens(headers)
    assert sure(find_token(None, None, {"PROMPTMILL_HTTP_TOKEN": TOKEN})).opens(headers)
    assert find_token(None, None, {}) is None


def test_a_token_is_taken_out_of_the_environment():
    environ = {"PROMPTMILL_HTTP_TOKEN": TOKEN, "OTHER": "x"}
    find_token(None, None, environ)
    assert environ == {"OTHER": "x"}


@pytest.mark.parametrize(
    "secret", ["", "short", "hunter2 with spaces in it", "hunter2-" + "ü" * 20, "hunter2\x00" + "x" * 20]
)
def test_a_token_that_cannot_be_good_is_said_without_quoting_it(tmp_path, secret):
    file = tmp_path / "token"
    file.write_text(secret, encoding="utf-8")
    for arguments in ((file, None, {}), (None, "MINE", {"MINE": secret})):
        with pytest.raises(PromptmillError, match=r"secrets\.token_urlsafe") as raised:
            find_token(*arguments)
        assert "hunter2" not in str(raised.value)


def test_a_token_that_is_not_there_is_said(tmp_path):
    with pytest.raises(PromptmillError, match=r"MINE is not set. Set it: `export MINE=\$\(python"):
        find_token(None, "MINE", {})
    with pytest.raises(PromptmillError, match="cannot be read: No such file"):
        find_token(tmp_path / "nowhere", None, {})
    (tmp_path / "binary").write_bytes(b"\xff\xfe" * 20)
    with pytest.raises(PromptmillError, match="not UTF-8"):
        find_token(tmp_path / "binary", None, {})
