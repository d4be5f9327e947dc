"""`rule("K1")` says which sentence of SECURITY.md a test proves; `test_sentences` holds the two together."""

from __future__ import annotations

import pytest

from bench import bench, tools

__all__ = ["bench", "tools"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "rule(name): the sentence of SECURITY.md that the test proves")
