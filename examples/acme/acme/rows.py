"""A YAML file as rows: a list of mappings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml


def read(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a file."""
    yield from yaml.safe_load(path.read_text(encoding="utf-8"))


def write(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write rows into a new file."""
    path.write_text(yaml.safe_dump([*rows], allow_unicode=True, sort_keys=False), encoding="utf-8")
