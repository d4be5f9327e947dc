"""Upgrades databases of release 0.1, which do not hold the rows of the input.

A job that is run is upgraded in place. For a job that is only read, a copy is upgraded.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import sqlite3
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import orjson
from pydantic import ValidationError

from promptmill.core.errors import PromptmillError
from promptmill.core.values import JsonDict, JsonObject
from promptmill.jobs.store.database import COLUMNS, TABLES, DamagedError, JobDatabase, Work, database_error
from promptmill.jobs.store.records import Record, checksum
from promptmill.jobs.store.spec import JobSpec

_CHECKED = 12  # columns before the checksum
_NOT_SETTINGS = ("prompt_template", "row_settings", "prompt_column")


def in_place(path: Path, *, has_locks: bool = True) -> None:
    """Upgrade a database. The caller holds the job's lock. Raises `OSError` and `DamagedError`; then nothing
    changes."""
    with _connected(path, has_locks=has_locks) as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            _upgrade(connection)
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # a full disk has already rolled it back
                connection.execute("ROLLBACK")
            raise


@contextlib.contextmanager
def copied(path: Path, moved: Callable[[JobSpec], JobSpec], *, has_locks: bool = True) -> Iterator[JobDatabase]:
    """Yield an upgraded copy of a database, with the rows of the input if it still exists.

    `moved` returns a job with the current paths of its files.
    """
    from promptmill.jobs.ingest import ingest
    from promptmill.jobs.inputs import files
    from promptmill.jobs.inputs.any_format import input_of

    with tempfile.TemporaryDirectory(prefix="promptmill-") as place:
        copy = Path(place, path.name)
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(path.with_name(path.name + suffix), copy.with_name(copy.name + suffix))
        in_place(copy)
        with contextlib.closing(JobDatabase(copy, write=True, has_locks=has_locks)) as store:
            with contextlib.suppress(PromptmillError, OSError, ValidationError):
                spec = moved(JobSpec.model_validate(store.get("spec")))
                source = files.opened(spec.input.parts, known=True, encoding=spec.input.encoding)
                spec, _ = ingest(store, spec, input_of(source, spec.input.format), Work())
                store.put(spec=spec.model_dump(mode="json"))
            yield store


def values_of(path: Path, *, has_locks: bool = True) -> JsonDict:
    """Return the values of table `job` in the current form. Raises `OSError`, `DamagedError`."""
    with _connected(path, has_locks=has_locks) as connection:
        return _values(dict(connection.execute("SELECT name, value FROM job")))


@contextlib.contextmanager
def _connected(path: Path, *, has_locks: bool) -> Iterator[sqlite3.Connection]:
    options = "mode=rw" if has_locks else "mode=rw&vfs=unix-none"
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{quote(str(path))}?{options}", isolation_level=None, uri=True)
        ) as connection:
            connection.text_factory = functools.partial(str, encoding="utf-8", errors="replace")  # for damaged texts
            if not has_locks:
                connection.execute("PRAGMA locking_mode=EXCLUSIVE")  # must come first, see `JobDatabase`
            connection.execute("PRAGMA trusted_schema=OFF")
            yield connection
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_ERROR:  # the file has other tables
            raise DamagedError(f"{path} is not the database of a job") from None
        raise database_error(error, path) from None
    except (KeyError, TypeError, ValueError):
        raise DamagedError(f"{path} is not the database of a job") from None


def _upgrade(connection: sqlite3.Connection) -> None:
    run = connection.execute
    stored = dict(run("SELECT name, value FROM job"))
    values = _values(stored)
    names = {name for (name,) in run("SELECT name FROM sqlite_master WHERE type = 'table'")}
    settings = dict(run("SELECT id, fingerprint FROM settings")) if "settings" in names else {}
    for name in names - {"job"}:
        run(f'ALTER TABLE "{name}" RENAME TO "old_{name}"')
    for name, statement in TABLES.items():
        if name != "job":
            run(statement)
    for old, new in (("answer", "answer"), ("spare", "spare"), ("earlier", "spare")):
        if old in names:
            insert = f"INSERT INTO {new} ({COLUMNS}) VALUES ({','.join('?' * len(Record._fields))})"
            connection.executemany(insert, map(_record, _rows(connection, f"old_{old}")))
    for name in names - {"job"}:
        run(f'DROP TABLE "old_{name}"')
    if (spec := values.get("spec")) is not None:
        settings.setdefault(spec["targets"][0]["settings"], orjson.dumps(spec["targets"][0]["fingerprint"]).decode())
    known = {id_: _settings(orjson.loads(text)) for id_, text in settings.items()}
    texts = ((id_, orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()) for id_, value in known.items())
    connection.executemany("INSERT INTO settings VALUES (?, ?)", texts)
    before = _loaded(stored.get("spec", "")) or {}
    again, number = before.get("again"), before.get("round", 0)
    ((last,),) = run("SELECT coalesce(max(round), 0) FROM (SELECT round FROM answer UNION ALL SELECT round FROM spare)")
    id_ = max(int(last), int(number), 1)
    rows = f"again {again}" if again else "open"
    round_ = {"rows": rows, "reason": rows if again else "first", "since": id_ - 1, "done": not again}
    run("INSERT INTO round VALUES (?, ?)", (id_, orjson.dumps(round_).decode()))
    run("DELETE FROM job")
    connection.executemany(
        "INSERT INTO job VALUES (?, ?)", [(name, orjson.dumps(value).decode()) for name, value in values.items()]
    )


def _rows(connection: sqlite3.Connection, table: str) -> Iterator[JsonDict]:
    rows = connection.execute(f"SELECT * FROM {table}")
    names = [column[0] for column in rows.description]
    return (dict(zip(names, row, strict=True)) for row in rows)


def _record(row: JsonObject) -> Record:
    """Return a record with a checksum in the current form; a damaged record gets a wrong checksum."""
    asked = row.get("asked", row.get("digest"))
    fields = (row["row"], *(row[name] for name in Record._fields[1 : _CHECKED - 1]), asked)
    content = fields[1 : _CHECKED - 1]
    try:
        is_sound = row["checksum"] == zlib.crc32(asked or b"", zlib.crc32(orjson.dumps(fields[: _CHECKED - 1])))
        check = checksum(content) + (not is_sound)
    except TypeError:
        check = -1
    return Record._make((*fields, check, row.get("settings", 0), row.get("round", 0)))


def _settings(fingerprint: JsonObject) -> JsonDict:
    """Return a fingerprint without the settings that are now part of the questions' digests."""
    return {name: value for name, value in fingerprint.items() if name not in _NOT_SETTINGS}


def _values(stored: Mapping[str, str]) -> JsonDict:
    """Convert the values of table `job` to the current form; damaged values are left out."""
    values = {"order" if name == "request" else name: _loaded(text) for name, text in stored.items()}
    for name, upgraded in (("spec", _spec), ("order", _order)):
        try:
            values[name] = upgraded(values.get(name) or {})
        except (KeyError, TypeError, ValueError):
            values[name] = None
    return {name: value for name, value in values.items() if value is not None}


def _loaded(text: str) -> JsonDict | None:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _question(old: JsonObject, *, row_settings: bool) -> JsonDict:
    template = old.get("prompt_template")
    return {
        "templates": [] if template is None else [template],
        "column": old.get("prompt_column"),
        "image_column": old.get("image_column"),
        "prompt_only": old.get("prompt_only", ()),
        "row_settings": row_settings,
        "skip_empty": old.get("skip_empty", False),
    }


def _spec(old: JsonObject) -> JsonDict:
    asks = old.get("prompt_template") is not None or old.get("prompt_column") is not None
    target = {
        "settings": old.get("settings", 0),
        "kept": old.get("kept", ()),
        "changed": old.get("changed", ()),
        "fingerprint": {**_settings(old["fingerprint"]), "models": old.get("models", {})},
        "sampling": old.get("sampling"),
    }
    return {
        **{name: old[name] for name in ("job_id", "created", "backend", "model")},
        "provider": old.get("provider", ""),
        "settled": old.get("settled", False),
        "origin": {"working_folder": old.get("working_folder")},
        "input": {
            "path": old["input"],
            "files": old.get("files", ()),
            "format": old["input_format"],
            "encoding": old.get("encoding"),
            "size": old["size"],
            "version": old["mtime_ns"],
            "sha256": old.get("sha256") or "",
        },
        "question": _question(old, row_settings=asks and old.get("rows_set", True)),
        "output": {
            "path": old["output"],
            "format": old["output_format"],
            "form": {"column": old.get("answer_column", "answer"), "fields": old.get("fields", True)},
            "answer_schema": old.get("answer_schema"),
            "shard": old.get("shard"),
        },
        "targets": [target],
    }


def _order(old: JsonObject) -> JsonDict:
    return {
        "inputs": [old["input"], *old.get("more", ())],
        "output": old["output"],
        "reading": {"encoding": old.get("encoding")},
        "question": _question(old, row_settings=old.get("row_settings", False)),
        "system_prompt": old.get("system_prompt", ""),
        "form": {"column": old.get("answer_column", "answer"), "fields": old.get("fields", True)},
        "limits": {
            "rows": old.get("limit"),
            "max_failures": old.get("max_failures"),
            "max_cost": old.get("max_cost"),
            "dedupe": old.get("dedupe", False),
            "shard": old.get("shard"),
        },
        "ray": old.get("ray"),
        "shown": {"command": old.get("command", []), "urls": old.get("urls", {})},
    }
