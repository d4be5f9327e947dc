"""Which format a file has, and which outputs an input can have."""

from __future__ import annotations

import codecs
import importlib.util
from pathlib import Path
from types import MappingProxyType

from promptmill.backends import rows
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.jobs.disk import RandomFile
from promptmill.jobs.lines import Lines
from promptmill.system.installation import adding

SUFFIXES = MappingProxyType({".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"})
# Lines looked at to tell a Batch API file from plain rows: the first that is an object decides.
_LOOKED_AT = 100
_OUTPUTS = MappingProxyType(
    {
        "jsonl": ("jsonl",),
        "batch": ("jsonl",),
        "messages": ("jsonl",),
        "csv": ("csv", "jsonl"),
        "parquet": ("parquet", "jsonl"),
    }
)


def by_suffix(path: Path, role: str) -> str:
    """Return `jsonl`, `csv` or `parquet`. Raises `PromptmillError` (`invalid_input`) for another suffix."""
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        found = f"ends with {path.suffix!r:.20}" if path.suffix else "has no suffix"
        raise input_error(f"The {role} {path.name} {found}; use one of {', '.join(SUFFIXES)}.")
    return kind


def of_input(path: Path, file: RandomFile) -> str:
    """Return `jsonl`, `batch`, `csv` or `parquet`, by suffix and first line.

    Raises `PromptmillError` (`invalid_input`) for another suffix, and text that is not UTF-8 throughout.
    """
    kind = by_suffix(path, "input file")
    if file.read_at(0, 2) in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}:  # what `>` of some shells writes
        raise input_error(f"The input file {path.name} is UTF-16 text; save it as UTF-8.")
    if kind != "jsonl":
        return kind
    for line in Lines(file).read()[:_LOOKED_AT]:
        if line.blank or line.data is None:
            continue
        try:
            value = rows.load(line.data, "")
        except PromptmillError:
            continue
        if isinstance(value, dict):
            return "batch" if "custom_id" in value and "body" in value else "jsonl"
    return "jsonl"


def of_output(path: Path, input_format: str) -> str:
    """Return the format of the output. Raises `PromptmillError` (`invalid_input`) for what cannot be made."""
    kind = by_suffix(path, "output file")
    if kind not in _OUTPUTS[input_format]:
        possible = " or ".join(f".{kind}" for kind in _OUTPUTS[input_format])
        raise input_error(f"The output of a {input_format} file ends with {possible}, not {path.suffix}.")
    return "batch" if input_format == "batch" else kind


def row_kind(input_format: str) -> str:
    """Return the kind that `rows.decode` reads the rows of this format as."""
    return "table" if input_format in {"csv", "parquet"} else input_format


def check_installed(*formats: str) -> None:
    """Raise `PromptmillError` (`missing_dependency`) when Parquet is among `formats` and cannot be read here."""
    if "parquet" not in formats:
        return
    if importlib.util.find_spec("pyarrow") is None:
        raise PromptmillError(Code.MISSING_DEPENDENCY, "Parquet files need pyarrow.", adding("files"))
