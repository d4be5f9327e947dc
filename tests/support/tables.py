"""Rows as files of each kind, written and read by their names."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import feather, parquet


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows in the format of the suffix."""
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".json":
            path.write_text(json.dumps(rows))
        case ".parquet":
            parquet.write_table(pa.Table.from_pylist(list(rows)), path)
        case suffix:
            with path.open("w", newline="") as file:
                table = csv.DictWriter(file, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
                table.writeheader()
                table.writerows(rows)
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file."""
    match path.suffix:
        case ".jsonl":
            return [json.loads(line) for line in path.read_text().splitlines()]
        case ".json":
            return list(json.loads(path.read_text()))
        case ".parquet":
            return list(parquet.read_table(path).to_pylist())
        case ".arrow":
            return list(feather.read_table(path).to_pylist())
        case suffix:
            with path.open(newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ","))
