"""Parse sizes such as `64MiB`."""

import pytest

from promptmill.core.errors import PromptmillError
from promptmill.http.listen_options import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64MiB", 64 << 20),
        ("64M", 64 << 20),
        ("64mb", 64_000_000),
        ("1 GiB", 1 << 30),
        ("65536", 65536),
        ("70000B", 70000),
    ],
)
def test_a_size_is_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1M", "1.5M", "MiB", "1TiB", "\uff11M", "inf", "1e9"])
def test_what_is_no_size_is_said(text):
    with pytest.raises(PromptmillError, match="`max_body`: write a size such as 64MiB"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0", "1K", "3GiB", "999999999999"])
def test_a_size_that_helps_nobody_is_said(text):
    with pytest.raises(PromptmillError, match="between 64KiB and 2GiB"):
        parse_size(text)
