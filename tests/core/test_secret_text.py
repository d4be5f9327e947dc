"""What is found in the content of files: keys by their form, the server's own, and passwords; and what is not."""

from __future__ import annotations

import gzip
import json
import re
import sys
from typing import Any

import pytest

from promptmill.core import secret_text
from promptmill.core.errors import redact
from promptmill.core.secret_text import SecretFinder, find_assigned, find_field

OWN = "My0wn+Gateway/key_42"
KEYS = [
    "sk-proj-0123456789abcdefghij",
    "sk_live_abcdefghijklmnop0123",
    "hf_abcdefghijklmnopqrstuvwx",
    "AIzaSyA-abcdefghijklmnopqrstuvwx",
    "AKIA0123456789ABCDEF",
    "ghp_0123456789abcdefghijABCDEFGHIJ012345",
    "github_pat_0123456789abcdefghijkl",
    "glpat-abcdefghijklmnopqrst",
    "xoxb-123456789012-abcdefghijkl",
    "SG.abcdefghijklmnopqrstuv",
    "hvs.abcdefghijklmnopqrstuv",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3",
    "Authorization: Bearer abcdef0123456789",
    "AUTHORIZATION: BEARER abcdef0123456789",
    "Authorization: Basic dXNlcjpwYXNzd29yZDEyMw==",
    "postgres://me:hunter2@db.example/shop",
]
WORDS = [
    "the ring bearer said that basic understanding is enough",
    "task-based-approach-with-many-words and risk-1234567890123456",
    "`skip_special_tokens`, hf_dataset_prompts_2024.jsonl, sk-learn-pipeline-config-v2-final",
    "https://example.com/a?mail=me@example.com and git+ssh://git@github.com/x",
    "http://user:password@proxy:8080 and https://user:PASSWORD@host",
    "550e8400-e29b-41d4-a716-446655440000",
]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_found_by_its_form_and_redaction_removes_it(key):
    assert SecretFinder().find(f'a row,"with {key}", and more'.encode())
    assert redact(key) != key


@pytest.mark.parametrize("text", WORDS)
def test_ordinary_words_are_no_keys(text):
    assert not SecretFinder().find(text.encode())


def test_a_private_key_is_found():
    assert SecretFinder().find(b"-----BEGIN OPENSSH PRIVATE KEY-----\n") == "a private key"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_the_servers_own_keys_are_found_in_every_encoding(encoding):
    assert SecretFinder([OWN]).find(f"the key is {OWN}.".encode(encoding)) == "a key of this server"


def test_own_keys_are_found_as_json_escapes_them():
    finder = SecretFinder([OWN])
    assert finder.find(OWN.replace("/", "\\/").encode())
    assert finder.find(OWN.replace("+", "\\u002B").encode())


@pytest.mark.parametrize("before", ["\n", "\r\n", "\t", "\b", "\f", "\x1f", "C:\\", "a\\\n"])
def test_a_key_is_found_behind_whitespace_that_json_escapes(before):
    for key in [*KEYS, "npm_abcdefghijklmnop0123"]:
        assert SecretFinder().find(json.dumps({"text": f"mine:{before}{key}"}).encode()), key


@pytest.mark.parametrize("own", ["pass\\new+key_42", "pass\\\\tab+key_42"])
def test_own_keys_with_a_backslash_are_found_in_text_and_in_json(own):
    assert SecretFinder([own]).find(own.encode())
    assert SecretFinder([own]).find(json.dumps(own).encode())


@pytest.mark.parametrize("key", ["EMPTY", "ollama", "not-needed", "dummy"])
def test_a_word_in_the_place_of_a_key_is_no_secret(key):
    assert not SecretFinder([key]).find(f"an {key} text".encode())


def test_keys_are_found_across_the_borders_of_blocks():
    finder, text = SecretFinder([OWN]), b"x" * 100
    for secret in (OWN.encode(), KEYS[0].encode(), b"-----BEGIN RSA PRIVATE KEY-----"):
        whole = text + b" " + secret + b" " + text
        for size in (1, 7, 64, 105):
            assert finder.find_in(whole[at : at + size] for at in range(0, len(whole), size))[0], (secret, size)


@pytest.fixture
def searches():
    """The names of the calls of `re` that a search makes."""
    called: list[str] = []

    def note(_frame: object, event: str, what: Any) -> None:
        if event == "c_call" and isinstance(getattr(what, "__self__", None), re.Pattern):
            called.append(what.__name__)

    sys.setprofile(note)
    yield called
    sys.setprofile(None)


def test_a_text_of_prefixes_is_searched_once_for_what_follows_them(searches):
    for prefix in ("sk-", "npm_", "-xoxb-", "SG.sk_"):
        assert not SecretFinder().find(prefix.encode() * 10_000)
    assert len(searches) < 200, "there are 50,000 prefixes"


@pytest.mark.thorough
def test_a_long_text_is_searched_in_pieces_so_that_other_threads_have_turns(searches):
    assert not SecretFinder().find(b"eyJ-" * (1 << 18))
    assert searches.count("finditer") > 50


@pytest.mark.parametrize("key", KEYS)
def test_keys_are_found_across_the_borders_of_pieces(key):
    for before in (0, 1, 20, 60, len(key)):
        text = b"x" * (secret_text._PIECE - before - 1) + b" " + key.encode() + b" " + b"x" * 200
        assert SecretFinder().find(text), before


@pytest.mark.parametrize("before", ["eyJ-" * 1000, "sk-" * 1000, "x-", ".eyJ ", "eyJhbGciOiJIUzI1NiJ9-"])
def test_a_key_is_found_behind_its_own_beginnings(before):
    for key in KEYS[:1] + [key for key in KEYS if key.startswith("eyJ")]:
        assert SecretFinder().find(f"{before}{key}".encode())


@pytest.mark.parametrize(
    "text", ["a.eyJzdWIiOiIxMjM0NTY3ODkwIn0", "eyJhb.eyJzdWIiOiIxMjM0NTY3ODkwIn0", "eyJ one.eyJ two"]
)
def test_half_a_token_is_none(text):
    assert not SecretFinder().find(text.encode())


def test_what_is_compressed_is_not_found():
    """Whoever decompresses a file looks into what comes out; SECURITY.md names what nobody decompresses."""
    assert not SecretFinder([OWN]).find(gzip.compress(OWN.encode()))


@pytest.mark.parametrize(
    ("text", "has_lines"),
    [
        ("SECRET_KEY = 'django-insecure-8x!k2'", False),
        ("DATABASES = {'default': {'PASSWORD': 'hunter2'}}", False),
        ("define( 'DB_PASSWORD', 'hunter2' );", False),
        ('{"env": {"API_KEY": "abc123def456"}}', True),
        ('{"ConnectionStrings": {"Default": "Server=db;User Id=sa;Password=Pa55w0rd!"}}', True),
        ("<server><password>hunter2</password></server>", True),
        ("db:\n  environment:\n    POSTGRES_PASSWORD: hunter2\n", True),
        ("environment:\n  - POSTGRES_PASSWORD=hunter2\r\n", True),
        ("export AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\n", True),
        ("ENV API_KEY=abcdef123456\n", True),
        ("apiVersion: v1\nkind: Secret\n", True),
        ("machine api.example login me password hunter2", True),
        ("root:$6$abcdefgh$0123456789:19000:0:99999:7:::", True),
        ("PuTTY-User-Key-File-3: ssh-ed25519", True),
    ],
)
def test_a_password_that_a_file_gives_to_a_name_is_found(text, has_lines):
    assert find_assigned(text.encode(), has_lines=has_lines)


@pytest.mark.parametrize(
    ("text", "has_lines"),
    [
        ("token = request.headers.get('x')\npassword = getpass()\nself.token = token\npassword: str = ''\n", False),
        ("password=password, token=token, api_key=api_key", False),
        ("names = ['api_key', 'api_key_env', 'bos_token']", False),
        ("eos_token = '<|im_end|>'\nunk_token: '[UNK]'", False),
        ("password: ${PASSWORD}\ntoken: {{ token }}\napi_key: null\nsecret: your-secret\n", True),
        ("password: settings.password\n", True),
        ("The password: it is written on the wall.", True),
    ],
)
def test_a_name_without_its_value_is_no_password(text, has_lines):
    assert not find_assigned(text.encode(), has_lines=has_lines)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "text",
    [
        b"token" * 100_000,
        b"api_key" * 70_000,
        b'password = "a' * 40_000,
        b"_sk_" * 100_000,
        b"://a:" * 100_000,
        b"sk-" + b"a-" * 200_000,
        b"secret" + b" " * 500_000,
    ],
)
def test_no_text_takes_long(text):
    """Half a megabyte takes less than a second; a pattern that goes back and forth would take minutes."""
    assert not SecretFinder().find(text)
    assert not find_assigned(text, has_lines=True)


@pytest.mark.parametrize(
    "name", ["password", "Login_Password", "otpauth", "api_key", "refresh_token", " PASSWORD ", "GITHUB_TOKEN"]
)
def test_a_column_of_passwords_is_found_by_its_name(name):
    assert find_field(["url", "username", name]) == name


def test_other_columns_are_no_passwords():
    assert not find_field(
        [
            "text",
            "token",
            "tokens",
            "key",
            "key_points",
            "password_strength",
            "pass",
            "PRIMARY_KEY",
            "input_token",
            5,
            None,
        ]
    )


def test_the_line_of_a_key_is_found_in_any_block():
    lines = [b"an ordinary line" for _ in range(20_000)]
    lines[15_432] = b"the key " + KEYS[0].encode()
    whole = b"\n".join(lines)
    blocks = (whole[at : at + 10_000] for at in range(0, len(whole), 10_000))
    assert SecretFinder().find_in(blocks) == ("an API key", 15_433)
    assert SecretFinder().find_in([b"ordinary"]) == ("", 0)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("text", ["<password>hunter22x9secret</password>", 'db: {"password": "hunter22x9secret"}'])
def test_an_assigned_password_is_found_in_every_encoding(encoding, text):
    assert find_assigned(text.encode(encoding), has_lines=False)
